"""Callbacks of an epoch: the progress bar, the estimate of the time left, the stop on a loss that is not finite."""

import contextlib
import math
import time

import keras
import numpy as np

from kmed.errors import KmedError
from kmed.progress import bar, format_time, say

ESTIMATE_AFTER = 10  # steps; the first one includes compilation, so it says nothing about the others
CHECK_EVERY = 20  # steps; reading the loss waits for the device, so it is not read at every step


class NonFiniteLoss(KmedError):
    """The training loss, or what the model predicts, became infinite or NaN."""


class EpochProgress(keras.callbacks.Callback):
    """Shows the progress of one epoch and, if asked, an estimate of how long the remaining epochs will take.

    Args:
      epoch: 0-based.
      epochs: number of epochs of the run.
      steps: batches per epoch.
      estimate: whether to print the estimate.
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
        """Advances the bar, and prints the estimate once."""
        self._advance()
        if self.estimate and batch == 0:
            self._start = time.monotonic()
        elif self.estimate and batch == min(ESTIMATE_AFTER, self.steps - 1):
            seconds = (time.monotonic() - self._start) / batch
            remaining = seconds * self.steps * (self.epochs - self.epoch)
            say(
                f"A step takes {seconds:.2f} s: about {format_time(remaining)} for the remaining epochs, plus "
                "validation."
            )

    def on_train_end(self, logs=None):
        """Closes the bar."""
        self.close()

    def close(self):
        """Closes the bar, also after an error in the epoch; may be called twice."""
        self._bar.close()


DIVERGED = (
    "training has diverged and was stopped. Lower --lr (try a tenth of it first), keep train.clip_norm on, or set "
    "train.dtype=float32."
)


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Raises NonFiniteLoss soon after the loss has become infinite or NaN."""

    def on_train_batch_end(self, batch, logs=None):
        """Checks the epoch's mean loss every few steps; after one NaN it remains NaN."""
        if batch % CHECK_EVERY == 0:
            self._check(logs)

    def on_epoch_end(self, epoch, logs=None):
        """Checks the loss of the whole epoch."""
        self._check(logs)

    def _check(self, logs):
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"The training loss is {loss}: {DIVERGED}")


def check_finite(probs: np.ndarray, epoch: int) -> None:
    """Raises NonFiniteLoss if predictions (N, K) after an epoch are not finite: the weights have blown up in its last
    steps, which the mean loss of the epoch does not show.
    """
    if not np.isfinite(probs).all():
        raise NonFiniteLoss(f"The predictions for the validation split are not finite after epoch {epoch}: {DIVERGED}")
