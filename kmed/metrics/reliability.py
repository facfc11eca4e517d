"""How far probabilities can be believed: Brier score, calibration error, and the reliability diagram's bins."""

import dataclasses

import numpy as np
import sklearn.metrics

from kmed.metrics.class_scores import Probabilities
from kmed.metrics.intervals import Score, divide, macro_score, mean_score

NUM_BINS = 15


@dataclasses.dataclass(frozen=True)
class Reliability:
    """What was predicted beside what came true, by bins of equal width.

    Attributes:
      predicted: (B,) mean probability of each bin; NaN where it is empty.
      observed: (B,) share that came true; NaN where it is empty.
      low, high: (B,) interval of `observed`.
      counts: int (B,), predictions in each bin.
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

    With exclusive classes the squares are summed over the classes, as in Brier's definition (0 to 2);
    otherwise they are averaged over all known labels (0 to 1).
    """
    sample, probs = probabilities.sample, probabilities.probs
    labels, known = sample.labels, sample.known
    squares = np.where(known, (probs - np.nan_to_num(labels)) ** 2, 0).sum(axis=1)  # (N,)
    if sample.exclusive:
        scaled = probs / probs.sum(axis=1, keepdims=True)  # float32 sums miss 1 by a hair, which scikit-learn minds
        classes = np.arange(labels.shape[1])
        value = sklearn.metrics.brier_score_loss(labels.argmax(axis=1), scaled, labels=classes, scale_by_half=False)
        return mean_score(sample.resamples, value, squares)
    value = sklearn.metrics.brier_score_loss(labels[known], probs[known], pos_label=1)
    return mean_score(sample.resamples, value, squares, known.sum(axis=1))


def calibration_error(probabilities: Probabilities) -> Score:
    """Returns the expected calibration error over 15 bins of equal width; 0 is best (Guo et al., 2017).

    It is the mean distance of confidence and accuracy, each bin weighing as many predictions as it
    holds. With exclusive classes the confidence is that in the most probable class; otherwise each
    label has an error of its own, of its probability, and the score is their mean.

    A resample holds clusters twice and looks worse calibrated than the data it was drawn from; that
    excess, the mean over the resamples, is taken off before the interval is made.
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
    return macro_score(scores, resamples)


def reliability(probabilities: Probabilities) -> Reliability:
    """Returns the reliability diagram's bins: of the most probable class, or of all labels pooled."""
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
    """Returns bool (N, B): the bin of each probability; a bin holds its lower end, the last one 1 too."""
    index = np.clip((np.asarray(probs) * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    return index[:, None] == np.arange(NUM_BINS)


def _columns(probabilities: Probabilities) -> list:
    """Returns [(truth (N,), probability (N,))]: of the most probable class alone, or of each label."""
    labels, probs = probabilities.sample.labels, probabilities.probs
    if not probabilities.sample.exclusive:
        return list(zip(labels.T, probs.T, strict=True))
    rows, best = np.arange(len(probs)), probs.argmax(axis=1)
    return [(labels[rows, best], probs[rows, best])]
