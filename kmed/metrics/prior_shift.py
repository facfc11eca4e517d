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

ASSUMPTION = (
    "It assumes that each class looks here as it does at home, and that only the shares differ (label shift); "
    "unlabelled pictures cannot show whether that is so."
)
_STEPS, _CLOSE = 1000, 1e-7
_SMALLEST = 1e-6  # a share is kept off 0 and 1, from which it could never return


def shifted_shares(probs: np.ndarray, shares: np.ndarray, *, exclusive: bool) -> np.ndarray:
    """Returns float64 (K,), the shares of the classes among pictures without labels.

    Args:
      probs: (N, K), calibrated probabilities.
      shares: (K,), the shares of the classes that the probabilities were calibrated for, in (0, 1).
      exclusive: whether each picture has exactly one class; otherwise each label is taken by itself.
    Raises: ScoreError: there are no pictures, or a share is not in (0, 1).
    """
    probs, shares = np.asarray(probs, np.float64), np.asarray(shares, np.float64)
    if not len(probs):
        raise ScoreError("The shares of the classes cannot be found without pictures. Received: none.")
    if not ((shares > 0) & (shares < 1)).all():
        raise ScoreError(f"The shares of the classes at home must lie between 0 and 1. Received: {shares.tolist()}.")
    if exclusive:
        return _maximise(probs, shares)
    both = [np.column_stack([prob, 1 - prob]) for prob in probs.T]
    return np.array([_maximise(two, np.array([share, 1 - share]))[0] for two, share in zip(both, shares, strict=True)])


def _maximise(probs: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Returns the shares (K,) of exclusive classes with the highest likelihood, by EM from the shares at home."""
    likelihoods = probs / shares  # (N, K), up to a factor per picture
    found = shares.copy()
    for _ in range(_STEPS):
        weighted = likelihoods * found
        new = np.clip((weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0), _SMALLEST, 1 - _SMALLEST)
        new /= new.sum()
        step, found = np.abs(new - found).max(), new
        if step < _CLOSE:
            break
    return found


def shift_calibration(calibration: Calibration, shares: np.ndarray, new: np.ndarray) -> Calibration:
    """Returns the calibration for other shares of the classes; it is the old one followed by Bayes' rule.

    A label whose probability calibration makes constant gets the new share.

    Args:
      calibration: the one at home.
      shares, new: (K,), the shares at home and the new ones.
    """
    if calibration.method == "temperature":
        weights = np.array(calibration.log_weights or [0.0] * len(new)) + np.log(new / shares)
        return dataclasses.replace(calibration, log_weights=tuple(weights.tolist()))
    moves = scipy.special.logit(new) - scipy.special.logit(shares)
    intercepts = tuple((np.array(calibration.intercepts) + moves).tolist())
    return dataclasses.replace(calibration, intercepts=intercepts)
