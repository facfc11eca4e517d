"""Losses that Keras lacks: binary cross-entropy over the labels that are known."""

import keras
from keras import ops

from kmed.errors import ConfigError


@keras.saving.register_keras_serializable(package="kmed")
class MaskedBinaryCrossentropy(keras.losses.Loss):
    """Binary cross-entropy, averaged over the known labels of the batch.

    A label that nobody read (NaN) is neither a 0 nor a 1: it adds nothing to the loss and nothing
    to its gradient. Where every label is known, this is `keras.losses.BinaryCrossentropy`. Where
    some are not, it is that loss on the known ones alone, so an image with one known label counts
    as one label, not as a whole image.

    With the default reduction the loss is sum(weight * cross-entropy) / number of known labels,
    and 0 where none is known. A sample weight belongs to an image, shape (N,), and, as in Keras,
    does not enter the divisor.

    Args:
      from_logits: whether predictions are logits; otherwise probabilities in [0, 1].
      label_smoothing: in [0, 1): labels move towards 0.5, y -> y (1 - s) + s / 2.
      reduction, name: as in `keras.losses.Loss`.
    Call with labels (N, K) in {0, 1, NaN} and predictions (N, K).
    Raises: ConfigError: label_smoothing outside [0, 1).
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "masked_binary_crossentropy",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        check_label_smoothing(label_smoothing)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        known = ops.logical_not(ops.isnan(y_true))
        # NaN goes before the arithmetic: 0 * NaN would still poison the gradient.
        labels = ops.where(known, y_true, ops.zeros_like(y_true))
        labels = labels * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        entropy = ops.binary_crossentropy(labels, y_pred, from_logits=self.from_logits)  # (N, K)
        known = ops.cast(known, entropy.dtype)
        num_known = ops.maximum(ops.sum(known), 1.0)
        num_images = ops.cast(ops.shape(entropy)[0], entropy.dtype)
        # Keras divides by the number of images; this factor makes it the number of known labels.
        return ops.sum(entropy * known, axis=-1) * (num_images / num_known)  # (N,)

    def get_config(self):
        return {
            **super().get_config(),
            "from_logits": self.from_logits,
            "label_smoothing": self.label_smoothing,
        }


def check_label_smoothing(label_smoothing: float) -> None:
    """Raises ConfigError unless 0 <= label_smoothing < 1."""
    if not 0.0 <= label_smoothing < 1.0:
        raise ConfigError(
            f"label_smoothing must be at least 0, which turns it off, and below 1. "
            f"Received: label_smoothing={label_smoothing}."
        )
