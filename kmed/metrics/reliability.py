"""How reliable probabilities are: Brier score, expected calibration error, bins of the reliability diagram."""

import dataclasses

import numpy as np
import sklearn.metrics

from kmed.metrics.class_scores import Probabilities
from kmed.metrics.intervals import Score, divide, macro_score, mean_score

NUM_BINS = 15


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Predicted probabilities and observed shares, in bins of equal width.

    Attributes:
      predicted: (B,), the mean probability in each bin; NaN if it is empty.
      observed: (B,), the share of each bin's predictions that were true; NaN if it is empty.
      low, high: (B,), ends of the intervals of `observed`.
      counts: int (B,), the number of predictions in each bin.
    """

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray

    def to_dict(self) -> dict:
        """Returns the fields as lists."""
        return {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}


def brier_score(probabilities: Probabilities) -> Score:
    """Returns the mean squared error of probabilities; 0 is best (Brier, 1950).

    With exclusive classes, the squares are summed over the classes, as in Brier's definition (0 to 2).
    Otherwise, they are averaged over all known labels (0 to 1).
    """
    sample, probs = probabilities.sample, probabilities.probs
    labels, known = sample.labels, sample.known
    squares = np.where(known, (probs - np.nan_to_num(labels)) ** 2, 0).sum(axis=1)  # (N,)
    if sample.exclusive:
        scaled = probs / probs.sum(axis=1, keepdims=True)  # float32 sums are not exactly 1; scikit-learn would warn
        classes = np.arange(labels.shape[1])
        value = sklearn.metrics.brier_score_loss(labels.argmax(axis=1), scaled, labels=classes, scale_by_half=False)
        return mean_score(sample.resamples, value, squares)
    value = sklearn.metrics.brier_score_loss(labels[known], probs[known], pos_label=1)
    return mean_score(sample.resamples, value, squares, known.sum(axis=1))


def calibration_error(probabilities: Probabilities) -> Score:
    """Returns the expected calibration error over 15 bins of equal width; 0 is best (Guo et al., 2017).

    It is the mean distance between confidence and accuracy over bins, weighted by the number of predictions in each.
    With exclusive classes, the confidence is the probability of the most probable class. Otherwise, each label has
    its own error, computed from its probability, and the score is the mean over labels.

    A resample contains clusters more than once and looks worse calibrated than the data it was drawn from. This bias,
    the mean over the resamples, is subtracted before the interval is computed. An error that is then below 0, or a mean
    above 1, as few clusters may give, is taken for 0 or 1.
    """
    resamples, scores = probabilities.sample.resamples, []
    for truth, prob in _columns(probabilities):
        known = ~np.isnan(truth)
        held = one_hot_bins(prob) * known[:, None]  # (N, B)
        gaps = held * (prob - np.nan_to_num(truth))[:, None]
        num_known = resamples.sums(known[:, None])[:, 0]  # (R,)
        errors = divide(np.abs(resamples.sums(gaps)).sum(axis=1), num_known, empty=np.nan)
        value = float(divide(np.abs(gaps.sum(axis=0)).sum(), known.sum(), empty=np.nan))
        drawn = np.maximum(errors - (np.nanmean(errors) - value), 0) if known.any() else errors
        scores.append(resamples.score(value, drawn))
    mean = macro_score(scores, resamples)
    return resamples.score(mean.value, np.minimum(mean.resampled, 1), mean.num_clusters)


def reliability(probabilities: Probabilities) -> Reliability:
    """Returns the bins of the reliability diagram, for the most probable class or for all labels pooled."""
    resamples, shape = probabilities.sample.resamples, (len(probabilities.probs), NUM_BINS)
    counts, trues, sums = np.zeros(shape, int), np.zeros(shape), np.zeros(NUM_BINS)
    for truth, prob in _columns(probabilities):
        held = one_hot_bins(prob) * ~np.isnan(truth)[:, None]  # (N, B)
        counts = counts + held
        trues = trues + held * np.nan_to_num(truth)[:, None]
        sums = sums + (held * prob[:, None]).sum(axis=0)
    totals = counts.sum(axis=0)
    drawn = resamples.sums(np.hstack([trues, counts]))  # (R, 2 B)
    rates = divide(drawn[:, :NUM_BINS], drawn[:, NUM_BINS:], empty=np.nan)
    observed = divide(trues.sum(axis=0), totals, empty=np.nan)
    bins = [resamples.score(value, rates[:, index]) for index, value in enumerate(observed)]
    low, high = (np.array([getattr(score, end) for score in bins]) for end in ("low", "high"))
    return Reliability(divide(sums, totals, empty=np.nan), observed, low, high, totals.astype(int))


def one_hot_bins(probs: np.ndarray) -> np.ndarray:
    """Returns bool (N, B): the bin of each probability; a bin contains its lower end, and the last one also 1."""
    index = np.clip((np.asarray(probs) * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    return index[:, None] == np.arange(NUM_BINS)


def _columns(probabilities: Probabilities) -> list:
    """Returns [(truth (N,), probability (N,)), ...]: one pair for the most probable class, or one per label."""
    labels, probs = probabilities.sample.labels, probabilities.probs
    if not probabilities.sample.exclusive:
        return list(zip(labels.T, probs.T, strict=True))
    rows, best = np.arange(len(probs)), probs.argmax(axis=1)
    return [(labels[rows, best], probs[rows, best])]
