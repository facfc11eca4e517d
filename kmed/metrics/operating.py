"""What decisions do to each class: sensitivity, specificity, and the share of pictures that have it."""

import math

import numpy as np

from kmed.metrics.class_scores import Decisions, Sample
from kmed.metrics.intervals import Score, divide


def operating_points(decisions: Decisions) -> dict[str, list[Score]]:
    """Returns {"sensitivity": K Scores, "specificity": K Scores}; NaN for a class without positives or negatives.

    Args:
      decisions: the classes that were reported for each image.
    """
    sample = decisions.sample
    absent = sample.known & ~sample.actual
    return {
        "sensitivity": _rates(sample, decisions.guesses & sample.actual, sample.actual),
        "specificity": _rates(sample, ~decisions.guesses & absent, absent),
    }


def label_shares(sample: Sample) -> list[Score]:
    """Returns K Scores: the share of the images with a known label that have each class."""
    return _rates(sample, sample.actual, sample.known)


def _rates(sample: Sample, hits: np.ndarray, among: np.ndarray) -> list[Score]:
    """Returns K Scores of hits / among, both bool (N, K)."""
    num_classes = hits.shape[1]
    drawn = sample.resamples.sums(np.hstack([hits, among]))  # (R, 2 K)
    rates = divide(drawn[:, :num_classes], drawn[:, num_classes:], empty=np.nan)
    counts = among.sum(axis=0)
    values = [float(hits[:, k].sum() / counts[k]) if counts[k] else math.nan for k in range(num_classes)]
    holding = [sample.resamples.clusters_with(column) for column in among.T]
    return [sample.resamples.score(value, rates[:, k], holding[k]) for k, value in enumerate(values)]
