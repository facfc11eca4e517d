"""Probabilities for other shares of the classes, found from unlabelled pictures.

If a class looks the same everywhere and only its share differs ("label shift", an assumption that the pictures alone
cannot prove), the probabilities of a calibrated model follow from the new shares by Bayes' rule, and the new shares
from the probabilities: expectation-maximisation finds both (Saerens, Latinne & Decaestecker, "Adjusting the outputs
of a classifier to new a priori probabilities", 2002).
"""

import dataclasses

import numpy as np
import scipy.special

from kmed.errors import ScoreError
from kmed.metrics.calibration import Calibration
from kmed.metrics.intervals import Resamples

ASSUMPTION = (
    "It assumes that each class looks here as it does at home, and that only the shares differ (label shift); "
    "unlabelled pictures cannot show whether that is so."
)
_STEPS, _CLOSE = 1000, 1e-7
_SMALLEST = 1e-6  # a share is kept off 0 and 1, from which it could never return


def shifted_shares(probs: np.ndarray, shares: np.ndarray, *, exclusive: bool, weights=None) -> np.ndarray:
    """Returns float64 (K,), the shares of the classes among pictures without labels; (R, K) with `weights`.

    They are those under which the probabilities are most likely, to which expectation-maximisation climbs. For a single
    label that likelihood has one maximum, which bisection finds sooner.

    Args:
      probs: (N, K), calibrated probabilities.
      shares: (K,), the shares of the classes that the probabilities were calibrated for, in (0, 1).
      exclusive: whether each picture has exactly one class; otherwise each label is taken by itself.
      weights: (R, N), how often each of R draws contains each picture; None: the pictures as they are.
    Raises: ScoreError: there are no pictures, or a share is not in (0, 1).
    """
    probs, shares = np.asarray(probs, np.float64), np.asarray(shares, np.float64)
    if not len(probs):
        raise ScoreError("The shares of the classes cannot be found without pictures. Received: none.")
    if not ((shares > 0) & (shares < 1)).all():
        raise ScoreError(f"The shares of the classes at home must lie between 0 and 1. Received: {shares.tolist()}.")
    counts = np.ones((1, len(probs))) if weights is None else np.asarray(weights, np.float64)
    if exclusive:
        found = np.stack([_maximise(probs / shares, shares, row) for row in counts])
    else:
        columns = zip((probs / shares).T, ((1 - probs) / (1 - shares)).T, strict=True)
        found = np.stack([_bisect(*column, counts) for column in columns], axis=1)
    return found[0] if weights is None else found


def _maximise(likelihoods: np.ndarray, start: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the shares (K,) of exclusive classes with the highest likelihood, by EM.

    Args:
      likelihoods: (N, K), those of a picture given its class, up to a factor per picture.
      start: (K,).
      weights: (N,), how often each picture counts.
    """
    found = start.copy()
    for _ in range(_STEPS):
        weighted = likelihoods * found
        new = weights @ (weighted / weighted.sum(axis=1, keepdims=True)) / weights.sum()
        new = np.clip(new, _SMALLEST, 1 - _SMALLEST)
        new /= new.sum()
        step, found = np.abs(new - found).max(), new
        if step < _CLOSE:
            break
    return found


def _bisect(with_it: np.ndarray, without: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns (R,): the share of one label with the highest likelihood, from those (N,) with and without the label."""
    low, high = np.full(len(weights), _SMALLEST), np.full(len(weights), 1 - _SMALLEST)
    for _ in range(25):
        middle = (low + high) / 2
        mixed = middle[:, None] * with_it + (1 - middle[:, None]) * without  # (R, N)
        rising = (weights * (with_it - without) / mixed).sum(axis=1) > 0
        low, high = np.where(rising, middle, low), np.where(rising, high, middle)
    return (low + high) / 2


def are_shifted(probs: np.ndarray, shares: np.ndarray, resamples: Resamples, *, exclusive: bool) -> np.ndarray:
    """Returns bool (K,): the classes whose share is not that at home; the interval of the new share excludes it.

    Where a model hardly tells a label from the others, the likeliest share is mostly noise, and moving the
    probabilities to it does harm. Of exclusive classes, all are moved if one of them has to be. Of other labels, one
    whose likeliest share is none or all of the pictures is not moved: that likelihood has no maximum in between, as
    where calibration made the label constant, or where the probabilities are a little too low or too high.

    Args:
      probs, shares, exclusive: as for `shifted_shares`.
      resamples: draws of the clusters of the pictures.
    """
    drawn = shifted_shares(probs, shares, exclusive=exclusive, weights=resamples.counts[:, resamples.index])
    low, high = resamples.bounds(drawn, resamples.num_clusters)
    shifted = (low > shares) | (high < shares)
    if exclusive:
        return np.full(len(shifted), shifted.any())
    likeliest, one = shifted_shares(probs, shares, exclusive=False), 1 / len(probs)
    return shifted & (likeliest >= one) & (likeliest <= 1 - one)


def shift_calibration(calibration: Calibration, shares: np.ndarray, new: np.ndarray) -> Calibration:
    """Returns the calibration for other shares of the classes; it is the old one followed by Bayes' rule.

    A label whose probability calibration makes constant gets the new share.

    Args:
      calibration: the one at home.
      shares, new: (K,), the shares at home and the new ones.
    """
    if calibration.method == "temperature":
        weights = calibration.weights + np.log(new / shares)
        return dataclasses.replace(calibration, log_weights=tuple(weights.tolist()))
    moves = scipy.special.logit(new) - scipy.special.logit(shares)
    intercepts = tuple((np.array(calibration.intercepts) + moves).tolist())
    return dataclasses.replace(calibration, intercepts=intercepts)
