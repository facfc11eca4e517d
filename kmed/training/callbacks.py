"""What happens between the steps of an epoch: the bar, the estimate of time, the stop on a bad loss."""

import contextlib
import math
import time

import keras

from kmed.errors import KmedError
from kmed.progress import bar, format_time, say

ESTIMATE_AFTER = 10  # steps; the first one compiles and says nothing about the rest

CHECK_EVERY = 20  # steps; reading the loss waits for the device, so not at every one


class NonFiniteLoss(KmedError):
    """The training loss became infinite or NaN."""


class EpochProgress(keras.callbacks.Callback):
    """Shows one epoch's progress and, in the first epoch of a process, how long the run will take.

    Args:
      epoch: 0-based.
      epochs: how many the run has.
      steps: batches an epoch.
      estimate: whether to tell the time the remaining epochs need.
    """

    def __init__(self, epoch: int, epochs: int, steps: int, *, estimate: bool):
        super().__init__()
        self.epoch, self.epochs, self.steps, self.estimate = epoch, epochs, steps, estimate
        self._bar = contextlib.ExitStack()

    def on_train_begin(self, logs=None):
        """Opens the bar."""
        label = f"Epoch {self.epoch + 1}/{self.epochs}"
        self._advance = self._bar.enter_context(bar(label, self.steps, announce=False))

    def on_train_batch_end(self, batch, logs=None):
        """Moves the bar, and tells the estimate once."""
        self._advance()
        if self.estimate and batch == 0:
            self._start = time.monotonic()
        elif self.estimate and batch == min(ESTIMATE_AFTER, self.steps - 1):
            seconds = (time.monotonic() - self._start) / batch
            remaining = seconds * self.steps * (self.epochs - self.epoch)
            say(
                f"A step takes {seconds:.2f} s: about {format_time(remaining)} for the epochs to come, plus validation."
            )

    def on_train_end(self, logs=None):
        """Closes the bar."""
        self.close()

    def close(self):
        """Closes the bar where an error ended the epoch."""
        self._bar.close()


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Raises NonFiniteLoss soon after the loss is no number any more."""

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the epoch's mean loss every few steps; one NaN in it stays."""
        if batch % CHECK_EVERY == 0:
            self._check(logs)

    def on_epoch_end(self, epoch, logs=None):
        """Looks at the loss of the whole epoch."""
        self._check(logs)

    def _check(self, logs):
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"The training loss is {loss}: training has diverged and was stopped. Lower --lr (a tenth is a "
                "good next try), keep train.clip_norm on, or set train.dtype=float32."
            )
