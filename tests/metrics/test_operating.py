"""Sensitivity, specificity and label shares: by counting, draw by draw."""

import numpy as np
import pytest

from kmed.metrics.class_scores import Decisions, Sample
from kmed.metrics.intervals import Bootstrap, draw_resamples
from kmed.metrics.operating import label_shares, operating_points


@pytest.fixture
def decided():
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 3)) < 0.4).astype(float)
    labels[:10, 1], labels[:, 2] = np.nan, 0
    resamples = draw_resamples(np.arange(60) // 4, Bootstrap(20))
    sample = Sample(labels, ("a", "b", "c"), resamples, False)
    return Decisions(sample, sample.known & (rng.random((60, 3)) < 0.5))


def test_they_are_counted_among_known_labels(decided):
    labels, guesses, resamples = decided.sample.labels, decided.guesses, decided.sample.resamples
    points, shares = operating_points(decided), label_shares(decided.sample)
    for k in range(2):
        weights = resamples.counts[7][resamples.index]
        for name, kind, hit in (("sensitivity", 1, True), ("specificity", 0, False)):
            among = labels[:, k] == kind
            assert points[name][k].value == pytest.approx((guesses[among, k] == hit).mean())
            assert points[name][k].resampled[7] == pytest.approx(
                np.average(guesses[among, k] == hit, weights=weights[among])
            )
        assert shares[k].value == pytest.approx(np.nanmean(labels[:, k]))


def test_a_class_that_nobody_has_has_no_sensitivity(decided):
    points = operating_points(decided)
    assert np.isnan(points["sensitivity"][2].value) and np.isfinite(points["specificity"][2].value)
    assert label_shares(decided.sample)[2].value == 0
