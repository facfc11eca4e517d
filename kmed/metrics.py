"""Multi-label metrics for `fit` that Keras lacks; exact over any batching, deaf to unknown labels (NaN)."""

import keras
from keras import ops


class _WeightedRatio(keras.metrics.Metric):
    """A ratio of two sums that grow batch by batch; subclasses say what an image adds to each.

    Args:
      threshold: probability in [0, 1] from which on a label counts as predicted (p >= threshold).
      name, dtype: as in `keras.metrics.Metric`.
    """

    def __init__(self, threshold: float = 0.5, name: str | None = None, dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.threshold = threshold
        self.total = self.add_variable(shape=(), initializer="zeros", name="total")
        self.count = self.add_variable(shape=(), initializer="zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch: labels (N, K) in {0, 1, NaN}, probabilities (N, K), weights (N,) or None."""
        labels = ops.cast(ops.convert_to_tensor(y_true), self.dtype)
        probs = ops.cast(ops.convert_to_tensor(y_pred), self.dtype)
        known = ops.logical_not(ops.isnan(labels))  # (N, K)
        wrong = ops.logical_and(known, ops.not_equal(labels > 0.5, probs >= self.threshold))  # (N, K)
        added, counted = self.per_image(ops.cast(wrong, self.dtype), ops.cast(known, self.dtype))  # (N,), (N,)
        if sample_weight is not None:
            weight = ops.reshape(ops.cast(ops.convert_to_tensor(sample_weight), self.dtype), (-1,))  # (N,)
            added, counted = added * weight, counted * weight
        self.total.assign_add(ops.sum(added))
        self.count.assign_add(ops.sum(counted))

    def result(self):
        return ops.divide_no_nan(self.total, self.count)

    def get_config(self):
        return {**super().get_config(), "threshold": self.threshold}


@keras.saving.register_keras_serializable(package="kmed")
class ExactMatchRatio(_WeightedRatio):
    """Share of images with every known label right; images with no known label are left out."""

    _direction = "up"

    def __init__(self, threshold: float = 0.5, name: str = "exact_match_ratio", dtype=None):
        super().__init__(threshold=threshold, name=name, dtype=dtype)

    def per_image(self, wrong, known):
        counted = ops.max(known, axis=-1)
        return counted * (1.0 - ops.max(wrong, axis=-1)), counted


@keras.saving.register_keras_serializable(package="kmed")
class HammingLoss(_WeightedRatio):
    """Share of the known labels that are wrong; 0 is best."""

    _direction = "down"

    def __init__(self, threshold: float = 0.5, name: str = "hamming_loss", dtype=None):
        super().__init__(threshold=threshold, name=name, dtype=dtype)

    def per_image(self, wrong, known):
        return ops.sum(wrong, axis=-1), ops.sum(known, axis=-1)
