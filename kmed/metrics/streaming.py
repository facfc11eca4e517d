"""Multi-label metrics for `fit` that Keras lacks. Batch sizes do not matter, and unknown labels (NaN) are left out."""

import keras
import numpy as np
from keras import ops

from kmed.errors import ConfigError


class _WeightedRatio(keras.metrics.Metric):
    """A ratio of two sums that grow batch by batch; `per_image` of a subclass returns what each image adds to them.

    Args:
      threshold: in [0, 1]; a label counts as predicted if its probability p >= threshold.
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
    """Share of images whose known labels are all correct; images without a known label are left out."""

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


@keras.saving.register_keras_serializable(package="kmed")
class MacroAUROC(keras.metrics.Metric):
    """Mean area under the ROC curve over the labels for which both a 0 and a 1 were seen; NaN if there are none.

    `keras.metrics.AUC(multi_label=True)` counts a label without positives as 0. Here, it is left out of the mean and
    counted by `num_left_out`. The area is the share of pairs of a positive and a negative that are in the right order,
    where a tie counts half (Hanley & McNeil, 1982). Probabilities are rounded to bins of 0.05 in log-odds, which are
    fine enough even for rare labels, whose probabilities are all small.

    Args:
      num_labels: K, the number of labels.
      ignored: indices of labels that are not part of the mean, such as that of "No Finding".
      name, dtype: as in `keras.metrics.Metric`.
    Raises: ConfigError: all labels are ignored.
    """

    _direction = "up"
    _LIMIT, _STEP = 12.0, 0.05  # of the log-odds

    def __init__(self, num_labels: int, ignored=(), name: str = "auroc_macro", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.num_labels = num_labels
        self.ignored = tuple(int(index) for index in ignored)
        self._judged = np.setdiff1d(np.arange(num_labels), self.ignored)
        if not self._judged.size:
            raise ConfigError(
                f"A macro AUROC needs at least one label that is not ignored. "
                f"Received: num_labels={num_labels}, ignored={ignored}."
            )
        num_bins = round(2 * self._LIMIT / self._STEP) + 1
        self.positives = self.add_variable(shape=(num_labels, num_bins), initializer="zeros", name="positives")
        self.negatives = self.add_variable(shape=(num_labels, num_bins), initializer="zeros", name="negatives")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch: labels (N, K) in {0, 1, NaN}, probabilities (N, K), weights (N,) or None."""
        labels = ops.cast(ops.convert_to_tensor(y_true), self.dtype)
        probs = ops.clip(ops.cast(ops.convert_to_tensor(y_pred), self.dtype), 1e-7, 1.0 - 1e-7)
        odds = ops.clip(ops.log(probs) - ops.log(1.0 - probs), -self._LIMIT, self._LIMIT)
        bins = ops.cast(ops.round((odds + self._LIMIT) / self._STEP), "int32")  # (N, K)
        weight = 1.0 if sample_weight is None else ops.reshape(ops.cast(sample_weight, self.dtype), (-1, 1))
        for counts, value in ((self.positives, 1.0), (self.negatives, 0.0)):
            held = ops.cast(ops.equal(labels, value), self.dtype) * weight  # (N, K), 0 where NaN
            hot = ops.one_hot(bins, counts.shape[1], dtype=self.dtype)  # (N, K, bins)
            counts.assign_add(ops.einsum("nk,nkb->kb", held, hot))

    def result(self):
        areas = ops.take(self._areas(), self._judged, axis=0)
        defined = ops.logical_not(ops.isnan(areas))
        total = ops.sum(ops.where(defined, areas, ops.zeros_like(areas)))
        return total / ops.sum(ops.cast(defined, self.dtype))  # 0 / 0 is NaN

    @property
    def num_left_out(self) -> int:
        """How many labels are left out of the mean so far, because they have no positives or no negatives."""
        areas = ops.convert_to_numpy(self._areas())[self._judged]
        return int(np.isnan(areas).sum())

    def _areas(self):
        """Returns (K,), the area of each label; NaN without a 0 or without a 1."""
        negatives = ops.convert_to_tensor(self.negatives)
        up_to = ops.cumsum(negatives, axis=1)
        right = ops.sum(ops.convert_to_tensor(self.positives) * (up_to - 0.5 * negatives), axis=1)
        return right / (ops.sum(self.positives, axis=1) * up_to[:, -1])

    def get_config(self):
        return {**super().get_config(), "num_labels": self.num_labels, "ignored": list(self.ignored)}
