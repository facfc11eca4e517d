"""The calibration line of probabilities: how their log-odds must be stretched and shifted to fit the labels.

A slope below 1 says that probabilities are too extreme, as after overfitting; an intercept above 0, that they are too
low on the whole (Van Calster et al., "Calibration: the Achilles heel of predictive analytics", 2019). Classes that
exclude each other are fitted one against the rest.
"""

import numpy as np
import scipy.special

from kmed.metrics.class_scores import Probabilities
from kmed.metrics.intervals import Score

_SMALLEST = 1e-7
_STEPS, _CLOSE = 30, 1e-4  # of Newton's method, whose error after a step is about the square of the step
_CHUNK_NUMBERS = 1_000_000


def calibration_lines(probabilities: Probabilities) -> dict[str, list[Score]]:
    """Returns {"slope": K Scores, "intercept": K Scores}, one per class; perfect are 1 and 0.

    The slope b is that of logit P(label) = a + b logit(p). The intercept is a where b is held at 1: calibration in the
    large. Both are NaN for a class whose known labels are all alike, and the slope where all probabilities are alike
    or a threshold separates the pictures with the class from the others.

    Args:
      probabilities: those that are judged, with their labels and draws.
    """
    sample, lines = probabilities.sample, {"slope": [], "intercept": []}  # type: ignore[var-annotated]
    for k, (truth, prob) in enumerate(zip(sample.labels.T, probabilities.probs.T, strict=True)):
        known = sample.known[:, k]
        odds = scipy.special.logit(np.clip(prob[known], _SMALLEST, 1 - _SMALLEST))
        counts = sample.resamples.counts[:, sample.resamples.index[known]]  # (R, n)
        fewest = min(sample.holding[k], sample.resamples.clusters_with(truth == 0))
        for name, fit in (("slope", _slopes), ("intercept", _intercepts)):
            value, drawn = _fit_all(fit, truth[known], odds, counts)
            lines[name].append(sample.resamples.score(value, drawn, fewest))
    return lines


def _fit_all(fit, truth: np.ndarray, odds: np.ndarray, counts: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns what is fitted to the data, and to each draw (R,); `counts` (R, n) says how often a draw has a row.

    The draws start from what fits the data, from which a few steps are enough.
    """
    undefined = np.full(len(counts), np.nan)
    if len(np.unique(truth)) < 2 or (fit is _slopes and np.ptp(odds) < 1e-6):
        return np.nan, undefined
    whole, start = fit(truth, odds, np.ones((1, len(truth))), None)
    step = max(1, _CHUNK_NUMBERS // len(truth))
    chunks = (counts[row : row + step].astype(float) for row in range(0, len(counts), step))
    return float(whole[0]), np.concatenate([fit(truth, odds, chunk, start)[0] for chunk in chunks])


def _intercepts(truth: np.ndarray, odds: np.ndarray, weights: np.ndarray, start) -> tuple[np.ndarray, tuple]:
    """Returns the shifts a (r,) of the log-odds that make the mean probability the share of positives, and a start."""
    shift, wanted = np.full(len(weights), start[0] if start else 0.0), weights @ truth
    for _ in range(_STEPS):
        probs = scipy.special.expit(odds + shift[:, None])  # (r, n)
        slope = np.maximum((weights * probs * (1 - probs)).sum(axis=1), 1e-12)
        step = np.clip((wanted - (weights * probs).sum(axis=1)) / slope, -2, 2)
        shift += step
        if np.abs(step).max() < _CLOSE:
            break
    return np.where(_both(truth, weights), shift, np.nan), (shift[0],)


def _slopes(truth: np.ndarray, odds: np.ndarray, weights: np.ndarray, start) -> tuple[np.ndarray, tuple]:
    """Returns the slopes b (r,) of weighted logistic regressions of the labels on the log-odds, and a start."""
    scale = odds.std()
    x = (odds - odds.mean()) / scale
    shift, slope = (np.full(len(weights), value) for value in start or (odds.mean(), scale))
    for _ in range(_STEPS):
        probs = scipy.special.expit(shift[:, None] + slope[:, None] * x)  # (r, n)
        rest, curve = weights * (truth - probs), weights * probs * (1 - probs)
        first, second = rest.sum(axis=1), rest @ x
        aa, ab, bb = curve.sum(axis=1), curve @ x, curve @ x**2
        scaled = np.maximum(aa * bb - ab**2, 1e-12)
        steps = np.stack([bb * first - ab * second, aa * second - ab * first]) / scaled
        steps = np.clip(steps, -2, 2)
        shift, slope = shift + steps[0], slope + steps[1]
        if np.abs(steps).max() < _CLOSE:
            break
    converged = (np.abs(steps) < _CLOSE).all(axis=0)  # not where a threshold separates the classes: no slope is best
    return np.where(converged & _both(truth, weights), slope / scale, np.nan), (shift[0], slope[0])


def _both(truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns bool (r,): which draws have a positive and a negative."""
    positives = weights @ truth
    return (positives > 0) & (positives < weights.sum(axis=1))
