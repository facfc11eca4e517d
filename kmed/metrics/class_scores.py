"""Precision, recall, F1, AUROC and average precision per class and the confusion matrix, with intervals.

The values come from scikit-learn. Those of the resamples come from sums over clusters: a draw that
contains a cluster twice counts its images twice, as `sample_weight` would.
"""

import dataclasses
import functools
import math

import numpy as np
import sklearn.metrics

from kmed.labels import finding_indices
from kmed.metrics.intervals import Resamples, Score, divide

RATES = ("precision", "recall", "f1")
CLASS_SCORES = (*RATES, "auroc", "average_precision")


@dataclasses.dataclass(frozen=True)
class Sample:
    """The images that are scored.

    Attributes:
      labels: float64 (N, K) in {0, 1}, NaN where unknown.
      class_names: K names.
      resamples: draws of the clusters of the N images.
      exclusive: whether each image has exactly one class.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    resamples: Resamples
    exclusive: bool

    @functools.cached_property
    def actual(self) -> np.ndarray:
        """bool (N, K): which labels are 1; False where unknown."""
        return self.labels == 1

    @functools.cached_property
    def known(self) -> np.ndarray:
        """bool (N, K): which labels are known."""
        return ~np.isnan(self.labels)

    @functools.cached_property
    def holding(self) -> list[int]:
        """K numbers: how many clusters contain each class."""
        return [self.resamples.clusters_with(column) for column in self.actual.T]

    @functools.cached_property
    def averaged(self) -> list[int]:
        """Indices of the classes in macro means: all but "No Finding", which is not a finding."""
        return list(range(len(self.class_names))) if self.exclusive else finding_indices(self.class_names)


@dataclasses.dataclass(frozen=True)
class Decisions:
    """The classes that were predicted for each image.

    Attributes:
      sample: the images.
      guesses: bool (N, K), the predicted classes; False where the label is unknown.
    """

    sample: Sample
    guesses: np.ndarray

    @functools.cached_property
    def _tallies(self) -> list[np.ndarray]:
        """Three arrays (R, K) of counts per draw and class: true positives, predicted positives, actual positives."""
        actual = self.sample.actual
        return np.split(self.sample.resamples.sums(np.hstack([actual & self.guesses, self.guesses, actual])), 3, axis=1)

    @functools.cached_property
    def rates(self) -> dict[str, list[Score]]:
        """{"precision", "recall", "f1"} -> K Scores, one per class."""
        resamples, holding = self.sample.resamples, self.sample.holding
        values = [_exact_rates(*columns) for columns in zip(self.sample.actual.T, self.guesses.T, strict=True)]
        drawn = resampled_rates(*self._tallies)
        return {
            name: [resamples.score(value[name], drawn[name][:, k], holding[k]) for k, value in enumerate(values)]
            for name in RATES
        }

    @functools.cached_property
    def pooled_rates(self) -> dict[str, Score]:
        """{"precision", "recall", "f1"} -> Score of all classes pooled."""
        values = _exact_rates(self.sample.actual.ravel(), self.guesses.ravel())
        drawn = resampled_rates(*(tally.sum(axis=1) for tally in self._tallies))
        return {name: self.sample.resamples.score(values[name], drawn[name]) for name in RATES}


@dataclasses.dataclass(frozen=True)
class Probabilities:
    """The predicted probabilities of the classes of each image.

    Attributes:
      sample: the images.
      probs: float64 (N, K) in [0, 1].
    """

    sample: Sample
    probs: np.ndarray

    @functools.cached_property
    def auroc(self) -> list[Score]:
        """K Scores; NaN for a class whose known labels are all 1 or all 0."""
        return self._ranking(self.sample.resamples.auroc, sklearn.metrics.roc_auc_score)

    @functools.cached_property
    def average_precision(self) -> list[Score]:
        """K Scores; NaN where the AUROC is NaN, because without negatives every model would score 1."""
        return self._ranking(self.sample.resamples.average_precision, sklearn.metrics.average_precision_score)

    def _ranking(self, resampled, exact) -> list[Score]:
        sample, scores = self.sample, []
        for k, (truth, prob) in enumerate(zip(sample.labels.T, self.probs.T, strict=True)):
            known = sample.known[:, k]
            both = len(np.unique(truth[known])) == 2
            value = exact(truth[known], prob[known]) if both else math.nan
            fewest = min(sample.holding[k], sample.resamples.clusters_with(truth == 0))
            scores.append(sample.resamples.score(value, resampled(truth, prob), fewest))
        return scores


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Counts of images by their true class (rows) and their predicted class (columns).

    Attributes:
      counts: int64 (K, K).
      low, high: (K, K), ends of the intervals of `rates`; NaN for a class in fewer than two clusters.
    """

    counts: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """(K, K): `counts` divided by the sum of each row; NaN for a class without images."""
        return divide(self.counts, self.counts.sum(axis=1, keepdims=True), empty=np.nan)


def confusion_matrix(decisions: Decisions) -> Confusion:
    """Returns the Confusion of decisions where each image has exactly one class."""
    guesses, resamples = decisions.guesses, decisions.sample.resamples
    num_classes = guesses.shape[1]
    truth = decisions.sample.labels.argmax(axis=1)
    counts = sklearn.metrics.confusion_matrix(truth, guesses.argmax(axis=1), labels=np.arange(num_classes))
    bounds = np.empty((2, num_classes, num_classes))
    for k in range(num_classes):  # row by row: with many classes, all resampled matrices would not fit into memory
        row = resamples.sums(guesses & (truth == k)[:, None])  # (R, K)
        row = row[row.any(axis=1)]  # draws without the class have undefined rates
        rates = divide(row, row.sum(axis=1, keepdims=True))
        bounds[:, k] = resamples.bounds(rates, resamples.clusters_with(truth == k))
    return Confusion(counts, low=bounds[0], high=bounds[1])


def resampled_rates(hits, guessed, actual) -> dict[str, np.ndarray]:
    """Returns precision, recall and F1 from (weighted) counts of the same shape; NaN where `actual` is 0."""
    undefined = np.where(actual > 0, 0.0, np.nan)
    return {
        "precision": divide(hits, guessed) + undefined,
        "recall": divide(hits, actual) + undefined,
        "f1": divide(2 * hits, guessed + actual) + undefined,
    }


def _exact_rates(actual, guesses) -> dict[str, float]:
    """Returns precision, recall and F1 of one class, or of all classes pooled; NaN if no image has it."""
    if not actual.any():
        return dict.fromkeys(RATES, math.nan)
    values = sklearn.metrics.precision_recall_fscore_support(
        actual.astype(int), guesses.astype(int), average="binary", zero_division=0
    )
    return dict(zip(RATES, values[:3], strict=True))
