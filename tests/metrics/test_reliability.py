"""Brier score, calibration error and diagram: laws, cases by hand, scikit-learn's calibration curve as oracle."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from kmed.metrics.class_scores import Probabilities, Sample
from kmed.metrics.intervals import Bootstrap, draw_resamples
from kmed.metrics.reliability import NUM_BINS, brier_score, calibration_error, one_hot_bins, reliability
from kmed.tasks import get_task


def draw(num_images=400, num_classes=3, unknown=0.2, seed=0):
    """Returns (labels with NaN, probs, clusters): each label is true with its probability."""
    rng = np.random.default_rng(seed)
    probs = rng.random((num_images, num_classes))
    labels = (rng.random(probs.shape) < probs).astype(float)
    labels[rng.random(probs.shape) < unknown] = np.nan
    return labels, probs, rng.integers(0, 50, num_images)


def given(labels, probs, clusters, num_resamples=10, exclusive=False) -> Probabilities:
    """Returns the Probabilities that the scores take; the class names are numbers."""
    resamples = draw_resamples(clusters, Bootstrap(num_resamples))
    return Probabilities(Sample(labels, tuple(range(labels.shape[1])), resamples, exclusive), probs)


def test_error_of_one_label_by_scikit_learns_curve():
    labels, probs, clusters = draw(num_classes=1, unknown=0)
    observed, predicted = calibration_curve(labels[:, 0], probs[:, 0], n_bins=NUM_BINS)
    counts = np.bincount((probs[:, 0] * NUM_BINS).astype(int), minlength=NUM_BINS)
    expected = np.sum(counts * np.abs(observed - predicted)) / len(labels)
    score = calibration_error(given(labels, probs, clusters, 50))
    assert score.value == pytest.approx(expected)
    bins = reliability(given(labels, probs, clusters, 50))
    np.testing.assert_allclose(bins.observed, observed)
    np.testing.assert_allclose(bins.predicted, predicted)
    np.testing.assert_array_equal(bins.counts, counts)
    assert (bins.low <= bins.observed).all() and (bins.observed <= bins.high).all()


def test_top_class_by_hand():
    labels = np.eye(2)[[0, 1, 1, 1]]
    probs = np.array([[0.9, 0.1], [0.92, 0.08], [0.2, 0.8], [0.3, 0.7]])
    # The confidences 0.9 and 0.92 share a bin, where one of two is right; 0.8 and 0.7 are alone and right.
    expected = (abs(1 - 0.9 - 0.92) + (1 - 0.8) + (1 - 0.7)) / 4
    score = calibration_error(given(labels, probs, range(4), exclusive=True))
    assert score.value == pytest.approx(expected)
    brier = brier_score(given(labels, probs, range(4), exclusive=True))
    assert brier.value == pytest.approx(np.mean(np.sum((labels - probs) ** 2, axis=1)))


def test_several_labels_are_averaged_and_unknown_ones_left_out():
    labels, probs, clusters = draw()
    alone = []
    for k in range(3):
        known = ~np.isnan(labels[:, k])
        parts = labels[known][:, [k]], probs[known][:, [k]], clusters[known]
        alone.append(calibration_error(given(*parts, 20)).value)
    assert calibration_error(given(labels, probs, clusters, 20)).value == pytest.approx(np.mean(alone))
    known = ~np.isnan(labels)
    brier = brier_score(given(labels, probs, clusters, 20))
    assert brier.value == pytest.approx(np.mean((labels[known] - probs[known]) ** 2))


def test_the_interval_contains_the_error():
    labels, probs, clusters = draw()
    for sharpened in (probs, probs**2, np.full_like(probs, 0.5)):
        score = calibration_error(given(labels, sharpened, clusters, 200))
        assert 0 <= score.low <= score.value <= score.high


def test_calibrated_probabilities_have_a_small_error_and_sharpened_ones_a_large_one():
    labels, probs, clusters = draw(num_images=20_000, num_classes=1, unknown=0)
    assert calibration_error(given(labels, probs, clusters)).value < 0.02
    assert calibration_error(given(labels, probs**3, clusters)).value > 0.15


def test_bins_contain_their_lower_end():
    bins = one_hot_bins(np.array([0.0, 1 / NUM_BINS, 0.999, 1.0]))
    assert bins.argmax(axis=1).tolist() == [0, 1, NUM_BINS - 1, NUM_BINS - 1]
    assert (bins.sum(axis=1) == 1).all()


def test_the_interval_of_the_calibration_error_of_few_clusters_ends_at_1():
    labels = np.eye(2)[[0] * 20 + [1] * 2]  # sure of class 1, which two of 22 pictures have
    probs = np.tile([0.0, 1.0], (len(labels), 1))
    ends = []
    for seed in range(20):
        clusters = np.repeat(np.arange(11), 2)
        score = get_task("multiclass").score(
            labels, probs, clusters, ["a", "b"], bootstrap=Bootstrap(num_resamples=20, seed=seed)
        )
        ends.append(score.scores["ece"].high)
    assert 0.9 < max(ends) <= 1.0
    assert 1.0 in ends  # without the limit some would end above
