"""Pictures of one case pooled into one answer: their labels, and their calibrated probabilities.

A case is what several pictures show: a photograph of which there are several crops, a study, a patient.
"""

import math

import numpy as np
import scipy.special
import sklearn.metrics

from kmed.errors import ScoreError
from kmed.labels import finding_indices, negative_label

POOLINGS = ("mean", "largest")
_SMALLEST = 1e-7


def pool_labels(labels: np.ndarray, index: np.ndarray, class_names, *, exclusive: bool) -> np.ndarray:
    """Returns the labels of cases, float64 (C, K); a row of NaN for a case whose pictures have different classes.

    A case has each finding that one of its pictures has. It has "No Finding" if each of its pictures has it. What the
    known labels do not decide is unknown.

    Args:
      labels: (N, K) in {0, 1}, NaN where unknown.
      index: (N,) in 0..C-1, the case of each picture.
      class_names: K names.
      exclusive: whether each picture has exactly one class.
    """
    num_cases = int(index.max()) + 1
    highest, lowest = np.full((num_cases, labels.shape[1]), -np.inf), np.full((num_cases, labels.shape[1]), np.inf)
    np.maximum.at(highest, index, np.nan_to_num(labels, nan=0.5))  # an unknown label lies between 0 and 1
    np.minimum.at(lowest, index, np.nan_to_num(labels, nan=0.5))
    pooled = highest
    if exclusive:
        pooled = np.where((highest == lowest).all(axis=1, keepdims=True), highest, np.nan)
    elif (negative := negative_label(class_names)) is not None:
        pooled[:, negative] = lowest[:, negative]
    return np.where(pooled == 0.5, np.nan, pooled)


def pool_probs(probs: np.ndarray, index: np.ndarray, class_names, pooling: str, *, exclusive: bool) -> np.ndarray:
    """Returns the probabilities of cases, float64 (C, K).

    Args:
      probs: (N, K), calibrated probabilities of pictures.
      index: (N,) in 0..C-1, the case of each picture.
      class_names: K names.
      pooling: "mean": of the logits; "largest": the largest logit of each finding, and the smallest of "No Finding".
      exclusive: whether each picture has exactly one class; the logits are then log-probabilities, and their mean is
        normalised.
    Raises: ScoreError: the pooling is unknown, or is "largest" for exclusive classes.
    """
    if pooling not in POOLINGS or (exclusive and pooling != "mean"):
        raise ScoreError(f"Findings are pooled by mean or largest, classes by mean. Received: pooling={pooling!r}.")
    probs = np.clip(probs, _SMALLEST, 1 - _SMALLEST)
    logits = np.log(probs) if exclusive else scipy.special.logit(probs)
    num_cases = int(index.max()) + 1
    if pooling == "mean":
        sums = np.stack([np.bincount(index, column, num_cases) for column in logits.T], axis=1)
        pooled = sums / np.bincount(index, minlength=num_cases)[:, None]
        return scipy.special.softmax(pooled, axis=1) if exclusive else scipy.special.expit(pooled)
    signs = np.ones(logits.shape[1])
    if (negative := negative_label(class_names)) is not None:
        signs[negative] = -1
    pooled = np.full((num_cases, logits.shape[1]), -np.inf)
    np.maximum.at(pooled, index, signs * logits)
    return scipy.special.expit(signs * pooled)


def choose_pooling(
    labels: np.ndarray, probs: np.ndarray, index: np.ndarray, class_names, *, exclusive: bool
) -> tuple[str, dict[str, float]]:
    """Returns the pooling with the highest macro AUROC over cases, and pooling -> that AUROC.

    Classes are always pooled by the mean. So are findings for which no AUROC is defined, or whose AUROCs are equal.

    Args: those of `pool_probs`, and the `labels` (N, K) of the pictures.
    """
    if exclusive:
        return "mean", {}
    truth = pool_labels(labels, index, class_names, exclusive=False)
    areas = {}
    for pooling in POOLINGS:
        area = _macro_auroc(truth, pool_probs(probs, index, class_names, pooling, exclusive=False), class_names)
        if not math.isnan(area):
            areas[pooling] = area
    return max(areas, key=lambda name: round(areas[name], 9)) if areas else "mean", areas


def _macro_auroc(labels, probs, class_names) -> float:
    areas = []
    for k in finding_indices(class_names):
        known = ~np.isnan(labels[:, k])
        if len(np.unique(labels[known, k])) == 2:
            areas.append(sklearn.metrics.roc_auc_score(labels[known, k], probs[known, k]))
    return float(np.mean(areas)) if areas else math.nan
