"""TensorBoard's logs of a run: scalars, a sample batch, and the confusion matrix of the validation split."""

import io
import pathlib

import keras
import numpy as np

from kmed import figures
from kmed.progress import optional, say

NUM_SAMPLES = 16
LOST = "Training is not affected."


class NoWriter:
    """A writer that writes nothing, for runs without logs."""

    def write_epoch(self, row, validation, probs, batches=None) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class Writer:
    """Writes one run's logs.

    Args:
      folder: the folder that TensorBoard reads.
      task: kmed.tasks.Task.
    """

    def __init__(self, folder: pathlib.Path, task):
        import tensorflow as tf

        self.summary = tf.summary
        self.task = task
        self.writer = tf.summary.create_file_writer(str(folder))

    def write_epoch(self, row: dict, validation, probs: np.ndarray, batches=None) -> None:
        """Writes the scores and the confusion matrix of an epoch, and a training batch if `batches` are given.

        Args:
          row: the epoch's row of history.csv.
          validation: Table of the validation split.
          probs: float (N, K), the predictions for it.
          batches: kmed.data.pipeline.Pipeline of the sample batch; None: no batch is written.
        """
        epoch = row["epoch"]
        with optional(f"TensorBoard's log of epoch {epoch}", LOST), self.writer.as_default(step=epoch):
            for name, value in row.items():
                if name not in ("epoch", "seconds"):
                    group = "validation" if name.startswith("val_") else "training"
                    self.summary.scalar(f"{group}/{name.removeprefix('val_')}", value)
            if batches is not None:
                images = next(iter(batches.epoch(epoch - 1)))[0]
                pixels = np.clip(np.asarray(images), 0, 255).astype(np.uint8)
                self.summary.image("training/sample_batch", pixels, max_outputs=NUM_SAMPLES)
            if self.task.exclusive:
                counts = confusion_counts(validation.labels, self.task.decode(probs))
                figure = figures.plot_confusion(counts, list(validation.class_names), f"validation, epoch {epoch}")
                self.summary.image("validation/confusion", figure_pixels(figure)[None])
            self.writer.flush()

    def close(self) -> None:
        """Closes the log file."""
        with optional("The end of TensorBoard's log", LOST):
            self.writer.close()


def make_writer(folder: pathlib.Path, task, *, enabled: bool) -> Writer | NoWriter:
    """Returns a Writer, or a NoWriter if logs are off or the backend is not TensorFlow."""
    if enabled and keras.backend.backend() != "tensorflow":
        say("TensorBoard logs need TensorFlow, which is not the backend here, so none are written.")
    elif enabled:
        return Writer(folder, task)
    return NoWriter()


def confusion_counts(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Returns int (K, K), counts by true class (rows) and predicted class (columns), from one-hot (N, K) arrays."""
    return labels.T.astype(int) @ predicted.astype(int)


def figure_pixels(figure) -> np.ndarray:
    """Returns the pixels of a matplotlib figure, uint8 (H, W, 4)."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return np.asarray(Image.open(buffer))
