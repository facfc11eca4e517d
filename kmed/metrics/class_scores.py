"""Precision, recall, F1, AUROC, average precision and confusion of classes, each with an interval.

The values come from scikit-learn. Those of the resamples come from sums over clusters: a draw that
holds a cluster twice counts its images twice, as `sample_weight` would.
"""

import dataclasses
import math

import numpy as np
import sklearn.metrics

from kmed.metrics.intervals import Score, divide, macro_score, mean_score

RATES = ("precision", "recall", "f1")

CLASS_SCORES = (*RATES, "auroc", "average_precision")


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Images by their class (rows) and the class they were given (columns).

    Attributes:
      counts: int64 (K, K).
      low, high: (K, K), the intervals of `rates`; NaN for a class in fewer than two clusters.
    """

    counts: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def rates(self) -> np.ndarray:
        """(K, K): each row of `counts` as shares of 1; NaN for a class without an image."""
        return divide(self.counts, self.counts.sum(axis=1, keepdims=True), empty=np.nan)


def rate_scores(actual, guesses, resamples, holding, findings=None) -> tuple[dict, dict]:
    """Returns precision, recall and F1: {name_macro and name_micro: Score}, {name: K Scores}.

    Args:
      actual, guesses: bool (N, K), False where the label is unknown.
      resamples: kmed.metrics.intervals.Resamples of the N images.
      holding: K numbers, the clusters that hold each class.
      findings: the classes of the macro mean; None: all.
    """
    tallies = np.split(resamples.sums(np.hstack([actual & guesses, guesses, actual])), 3, axis=1)  # 3 of (R, K)
    drawn = _rates(*tallies)
    drawn_micro = _rates(*(tally.sum(axis=1) for tally in tallies))
    values = [_exact_rates(actual[:, k], guesses[:, k]) for k in range(actual.shape[1])]
    values_micro = _exact_rates(actual.ravel(), guesses.ravel())
    overall, per_class = {}, {}
    for name in RATES:
        per_class[name] = [
            resamples.score(value[name], drawn[name][:, k], holding[k]) for k, value in enumerate(values)
        ]
        overall[f"{name}_macro"] = macro_score(per_class[name], drawn[name], resamples, findings)
        overall[f"{name}_micro"] = resamples.score(values_micro[name], drawn_micro[name])
    return overall, per_class


def _exact_rates(actual, guesses) -> dict[str, float]:
    """Returns precision, recall and F1 of one class, or of all pooled; NaN without an image of it."""
    if not actual.any():
        return dict.fromkeys(RATES, math.nan)
    values = sklearn.metrics.precision_recall_fscore_support(
        actual.astype(int), guesses.astype(int), average="binary", zero_division=0
    )
    return dict(zip(RATES, values[:3], strict=True))


def _rates(hits, guessed, actual) -> dict[str, np.ndarray]:
    """Returns precision, recall and F1 from (weighted) counts of any one shape; NaN where `actual` is 0."""
    undefined = np.where(actual > 0, 0.0, np.nan)
    return {
        "precision": divide(hits, guessed) + undefined,
        "recall": divide(hits, actual) + undefined,
        "f1": divide(2 * hits, guessed + actual) + undefined,
    }


def ranking_scores(labels, probs, resamples, holding, findings=None) -> tuple[dict, dict]:
    """Returns AUROC and average precision: {name_macro: Score}, {name: K Scores}.

    Both are NaN for a class of which all images, or none, are known to hold it, and the macro mean
    leaves it out: without a negative an average precision is 1 whatever the model says.

    Args:
      labels: (N, K) in {0, 1}, NaN where unknown.
      probs: (N, K).
      resamples, holding, findings: as in `rate_scores`.
    """
    overall, per_class = {}, {}
    lacking = [resamples.clusters_with(truth == 0) for truth in labels.T]
    for name, kernel, exact in (
        ("auroc", resamples.auroc, sklearn.metrics.roc_auc_score),
        ("average_precision", resamples.average_precision, sklearn.metrics.average_precision_score),
    ):
        drawn = np.stack([kernel(*columns) for columns in zip(labels.T, probs.T, strict=True)], axis=1)  # (R, K)
        per_class[name] = []
        for k, (truth, prob) in enumerate(zip(labels.T, probs.T, strict=True)):
            known = ~np.isnan(truth)
            both = len(np.unique(truth[known])) == 2
            value = exact(truth[known], prob[known]) if both else math.nan
            per_class[name].append(resamples.score(value, drawn[:, k], min(holding[k], lacking[k])))
        overall[f"{name}_macro"] = macro_score(per_class[name], drawn, resamples, findings)
    return overall, per_class


def samples_scores(actual, guesses, resamples) -> dict[str, Score]:
    """Returns precision, recall and F1 as means over images, 0 where undefined; `actual`, `guesses` bool (N, K)."""
    of_image = _rates((actual & guesses).sum(axis=1), guesses.sum(axis=1), actual.sum(axis=1))  # name -> (N,)
    of_image = {name: np.nan_to_num(values) for name, values in of_image.items()}
    return {f"{name}_samples": mean_score(resamples, values.mean(), values) for name, values in of_image.items()}


def confusion_matrix(labels, guesses, resamples) -> Confusion:
    """Returns the Confusion of one-hot labels and guesses, (N, K) each."""
    num_classes = labels.shape[1]
    truth = labels.argmax(axis=1)
    counts = sklearn.metrics.confusion_matrix(truth, guesses.argmax(axis=1), labels=np.arange(num_classes))
    bounds = np.empty((2, num_classes, num_classes))
    for k in range(num_classes):  # row by row: all resampled matrices at once would not fit for many classes
        row = resamples.sums(guesses & (truth == k)[:, None])  # (R, K)
        row = row[row.any(axis=1)]  # draws without the class have no rates
        rates = divide(row, row.sum(axis=1, keepdims=True))
        bounds[:, k] = resamples.bounds(rates, resamples.clusters_with(truth == k))
    return Confusion(counts, low=bounds[0], high=bounds[1])
