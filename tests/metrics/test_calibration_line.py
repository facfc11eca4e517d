"""Calibration slope and intercept: those of scikit-learn's regression, and undefined where no line fits."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from kmed.metrics.calibration_line import calibration_lines
from kmed.metrics.class_scores import Probabilities, Sample
from kmed.metrics.intervals import Bootstrap, draw_resamples


def sample_of(labels, seed=0, num_resamples=30):
    clusters = np.arange(len(labels)) // 3
    return Sample(labels, ("a", "b"), draw_resamples(clusters, Bootstrap(num_resamples, seed=seed)), False)


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    odds = rng.normal(-1, 1.5, (600, 2))
    labels = (rng.random((600, 2)) < 1 / (1 + np.exp(-(0.4 + 0.6 * odds)))).astype(float)
    labels[:20, 1] = np.nan
    return labels, 1 / (1 + np.exp(-odds))


def oracle(truth, prob, weights):
    """Returns (slope, intercept at a slope of 1) by scikit-learn, and by a search."""
    odds = np.log(prob / (1 - prob))
    slope = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(odds[:, None], truth, weights).coef_[0, 0]
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        too_low = (weights / (1 + np.exp(-odds - middle))).sum() < (weights * truth).sum()
        low, high = (middle, high) if too_low else (low, middle)
    return slope, middle


def test_values_and_draws_are_those_of_a_weighted_regression(drawn):
    labels, probs = drawn
    sample = sample_of(labels)
    lines = calibration_lines(Probabilities(sample, probs))
    for k in range(2):
        known = ~np.isnan(labels[:, k])
        truth, prob = labels[known, k], probs[known, k]
        expected = oracle(truth, prob, np.ones(len(truth)))
        for name, value in zip(("slope", "intercept"), expected, strict=True):
            assert lines[name][k].value == pytest.approx(value, abs=1e-4)
            assert lines[name][k].low < value < lines[name][k].high
        weights = sample.resamples.counts[3][sample.resamples.index[known]].astype(float)
        expected = oracle(truth, prob, weights)
        for name, value in zip(("slope", "intercept"), expected, strict=True):
            assert lines[name][k].resampled[3] == pytest.approx(value, abs=1e-4)


def test_perfect_probabilities_have_slope_1_and_intercept_0():
    rng = np.random.default_rng(1)
    probs = rng.beta(2, 3, (20_000, 2))
    labels = (rng.random(probs.shape) < probs).astype(float)
    lines = calibration_lines(Probabilities(sample_of(labels, num_resamples=10), probs))
    assert [score.value for score in lines["slope"]] == pytest.approx([1, 1], abs=0.05)
    assert [score.value for score in lines["intercept"]] == pytest.approx([0, 0], abs=0.05)


@pytest.mark.parametrize(
    ("labels", "probs", "defined"),
    [
        (np.zeros(30), np.linspace(0.1, 0.9, 30), {"slope": False, "intercept": False}),  # no positives
        (np.arange(30) % 2, np.full(30, 0.3), {"slope": False, "intercept": True}),  # one probability for all
        (np.arange(30) >= 15, np.linspace(0.1, 0.9, 30), {"slope": False, "intercept": True}),  # separated
    ],
)
def test_where_no_line_fits_it_is_undefined(labels, probs, defined):
    both = np.column_stack([labels, labels]).astype(float)
    lines = calibration_lines(Probabilities(sample_of(both), np.column_stack([probs, probs])))
    assert {name: bool(np.isfinite(scores[0].value)) for name, scores in lines.items()} == defined
