"""Models that may abstain or name several classes: the risk-coverage curve and conformal prediction sets."""

import dataclasses
import math

import numpy as np

from kmed.errors import ScoreError
from kmed.metrics.intervals import Resamples, Score, divide, mean_score

CURVE_POINTS = 50


@dataclasses.dataclass(frozen=True)
class RiskCoverage:
    """The error rate on the images with the highest confidence, by the share of images that are answered.

    Attributes:
      coverage: (P,), the share of images that are answered, rising to 1.
      risk: (P,), the share of wrong answers among them.
      low, high: (P,), ends of the intervals of `risk`.
      area: Score of the area under the curve; lower is better.
    """

    coverage: np.ndarray
    risk: np.ndarray
    low: np.ndarray
    high: np.ndarray
    area: Score

    def to_dict(self) -> dict:
        """Returns the fields as lists, the area as a dict."""
        curves = {name: getattr(self, name).tolist() for name in ("coverage", "risk", "low", "high")}
        return {**curves, "area": self.area.to_dict()}


@dataclasses.dataclass(frozen=True)
class PredictionSets:
    """Coverage and size of split-conformal prediction sets on a split.

    Attributes:
      wanted: the target coverage, in (0, 1).
      coverage: the share of true labels that are in their sets.
      size: the mean number of labels per set.
      per_class: class name -> coverage of its positives.
      uncalibrated: classes with too few positives in the validation split for the target coverage; they are in
        every set.
    """

    wanted: float
    coverage: Score
    size: Score
    per_class: dict[str, Score]
    uncalibrated: tuple[str, ...]

    def to_dict(self) -> dict:
        """Returns the fields as dicts and numbers."""
        return {
            "wanted": self.wanted,
            "coverage": self.coverage.to_dict(),
            "size": self.size.to_dict(),
            "per_class": {name: score.to_dict() for name, score in self.per_class.items()},
            "uncalibrated": list(self.uncalibrated),
        }


def confidence(probs: np.ndarray, *, exclusive: bool) -> np.ndarray:
    """Returns (N,), the model's confidence in its whole answer.

    With exclusive classes, this is the highest probability. Otherwise, it is the log of the product of max(p, 1 - p)
    over the labels: the log of the answer's probability if labels were independent.
    """
    probs = np.asarray(probs, np.float64)
    if exclusive:
        return probs.max(axis=1)
    return np.log(np.maximum(probs, 1 - probs)).sum(axis=1)


def risk_coverage(wrong: np.ndarray, confidences: np.ndarray, resamples: Resamples) -> RiskCoverage:
    """Returns the risk-coverage curve (El-Yaniv & Wiener, 2010).

    Images are answered in order of falling confidence. Those of equal confidence are answered together, so the order
    of the files does not matter.

    Args:
      wrong: bool (N,), whether the whole answer is wrong.
      confidences: (N,), see `confidence`.
      resamples: kmed.metrics.intervals.Resamples of the N images.
    """
    order = np.argsort(-confidences, kind="stable")
    last = np.flatnonzero(np.diff(confidences[order], append=-np.inf))
    groups = np.repeat(np.arange(len(last)), np.diff(last, prepend=-1))
    ones = np.ones((1, len(wrong)))
    shares, risks, area = _curve(ones, wrong[order], groups, last)
    points = np.linspace(1 / CURVE_POINTS, 1, CURVE_POINTS)
    drawn, areas = np.empty((len(resamples.counts), CURVE_POINTS)), np.empty(len(resamples.counts))
    for row, counts in enumerate(resamples.counts):
        share, risk, areas[row] = _curve(counts[resamples.index[order]][None].astype(float), wrong[order], groups, last)
        drawn[row] = np.interp(points, share, risk)
    low, high = resamples.bounds(drawn, resamples.num_clusters)
    return RiskCoverage(points, np.interp(points, shares, risks), low, high, resamples.score(area, areas))


def _curve(weights, wrong, groups, last):
    """Returns coverage and risk at the end of each run of equal confidence, and the mean risk over images."""
    answered = np.cumsum(weights[0])[last]
    risk = divide(np.cumsum(weights[0] * wrong)[last], answered)
    share = answered / answered[-1]
    area = np.bincount(groups, weights[0], minlength=len(last)) @ risk / answered[-1]
    return share, risk, float(area)


def conformal_thresholds(labels: np.ndarray, probs: np.ndarray, wanted: float, *, exclusive: bool) -> np.ndarray:
    """Returns (K,): a class is in the set if its probability is at least its threshold; with 0, it always is.

    This is split-conformal prediction with the score 1 - p of the true label (Sadinle, Lei & Wasserman, 2019): the
    threshold is the ceil((n + 1) wanted)-th highest of the n validation probabilities. Exclusive classes share one
    threshold, and the true class is in the set with probability `wanted`. Otherwise, each label has its own
    threshold from its positives, and each true label is in the set with that probability.

    Args:
      labels: (N, K) in {0, 1}, NaN where unknown, of the validation split.
      probs: (N, K).
      wanted: the target coverage, in (0, 1).
      exclusive: whether each image has exactly one class.
    Raises: ScoreError: `wanted` is out of range.
    """
    if not 0 < wanted < 1:
        raise ScoreError(f"The target coverage must lie between 0 and 1. Received: {wanted}.")
    num_classes = labels.shape[1]
    if exclusive:
        return np.full(num_classes, _conformal(probs[labels == 1], wanted))
    return np.array([_conformal(probs[labels[:, k] == 1, k], wanted) for k in range(num_classes)])


def _conformal(true_probs, wanted):
    rank = math.ceil((len(true_probs) + 1) * wanted - 1e-9)  # above n, no threshold is low enough
    return float(np.sort(true_probs)[::-1][rank - 1]) if rank <= len(true_probs) else 0.0


def prediction_sets(labels, probs, thresholds, class_names, wanted: float, resamples: Resamples) -> PredictionSets:
    """Returns the PredictionSets of a split: how often true labels are in their sets, and how large the sets are.

    Args:
      labels: (N, K) in {0, 1}, NaN where unknown, of the split that is evaluated.
      probs: (N, K).
      thresholds: (K,), from `conformal_thresholds`.
      class_names: K names.
      wanted: the target coverage of the thresholds.
      resamples: kmed.metrics.intervals.Resamples of the N images.
    """
    inside = probs >= thresholds  # (N, K)
    truth = labels == 1
    hits, num = (inside & truth).sum(axis=1), truth.sum(axis=1)
    per_class = {}
    for k, name in enumerate(class_names):
        value = divide((inside & truth)[:, k].sum(), truth[:, k].sum(), empty=np.nan)
        score = mean_score(resamples, float(value), (inside & truth)[:, k], truth[:, k])
        per_class[name] = dataclasses.replace(score, num_clusters=resamples.clusters_with(truth[:, k]))
    return PredictionSets(
        wanted=wanted,
        coverage=mean_score(resamples, float(divide(hits.sum(), num.sum(), empty=np.nan)), hits, num),
        size=mean_score(resamples, inside.sum(axis=1).mean(), inside.sum(axis=1)),
        per_class=per_class,
        uncalibrated=tuple(name for name, threshold in zip(class_names, thresholds) if threshold == 0),
    )
