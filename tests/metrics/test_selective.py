"""Risk-coverage curve and prediction sets: cases by hand, MAPIE as an independent oracle, the promised coverage."""

import numpy as np
import pytest

from kmed.errors import ScoreError
from kmed.metrics.intervals import Bootstrap, draw_resamples
from kmed.metrics.selective import confidence, conformal_thresholds, prediction_sets, risk_coverage


def draw(num_images, seed=0, num_classes=4):
    """Returns (one-hot labels, calibrated probs)."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(num_classes, 0.5), num_images)
    classes = (rng.random(num_images)[:, None] > probs.cumsum(axis=1)).sum(axis=1).clip(max=num_classes - 1)
    return np.eye(num_classes)[classes], probs


def test_risk_by_hand():
    wrong = np.array([False, True, False, True])
    curve = risk_coverage(wrong, np.array([0.9, 0.8, 0.7, 0.6]), draw_resamples(range(4), Bootstrap(20)))
    assert curve.risk[-1] == pytest.approx(1 / 2)
    at = {round(float(share), 2): risk for share, risk in zip(curve.coverage, curve.risk)}
    assert at[0.5] == pytest.approx(1 / 2)
    assert at[0.24] == pytest.approx(0)
    assert curve.area.value == pytest.approx((0 + 1 / 2 + 1 / 3 + 2 / 4) / 4)


def test_images_of_equal_confidence_are_answered_together():
    wrong = np.array([True, False, False, True])
    curves = [
        risk_coverage(wrong[order], np.full(4, 0.5), draw_resamples(range(4), Bootstrap(20))).area.value
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 2, 0, 3])
    ]
    assert curves == pytest.approx([0.5] * 3)


def test_a_model_that_knows_what_it_knows_has_less_risk_when_it_may_abstain():
    labels, probs = draw(600)
    wrong = probs.argmax(axis=1) != labels.argmax(axis=1)
    curve = risk_coverage(wrong, confidence(probs, exclusive=True), draw_resamples(range(600), Bootstrap(50)))
    assert curve.risk[24] < curve.risk[-1] - 0.1
    assert (curve.low <= curve.risk + 0.02).all() and (curve.risk <= curve.high + 0.02).all()
    assert curve.area.low < curve.area.value < curve.area.high


def test_confidence():
    probs = np.array([[0.9, 0.1], [0.5, 0.5]])
    assert confidence(probs, exclusive=True).tolist() == [0.9, 0.5]
    np.testing.assert_allclose(np.exp(confidence(probs, exclusive=False)), [0.81, 0.25])


@pytest.mark.parametrize("wanted", [0.8, 0.9, 0.95])
def test_one_class_equals_mapie(wanted):
    mapie = pytest.importorskip("mapie.classification", reason='MAPIE is not installed: pip install -e ".[dev]"')
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):
        """A fitted classifier that returns its input as the probabilities."""

        classes_, fitted_ = np.arange(4), True

        def fit(self, X, y):
            return self

        def predict_proba(self, X):
            return X

        def predict(self, X):
            return X.argmax(axis=1)

    (labels, probs), (_, others) = draw(103, seed=1), draw(300, seed=2)
    oracle = mapie.SplitConformalClassifier(Given(), confidence_level=wanted, conformity_score="lac", prefit=True)
    oracle.conformalize(probs, labels.argmax(axis=1))
    expected = oracle.predict_set(others)[1][:, :, 0]
    thresholds = conformal_thresholds(labels, probs, wanted, exclusive=True)
    np.testing.assert_array_equal(others >= thresholds, expected)


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_promised_coverage_is_reached(exclusive):
    reached = []
    for seed in range(60):
        labels, probs = draw(300, seed=seed)
        probs = probs**2  # badly calibrated, which does not matter
        fitted, evaluated = slice(0, 150), slice(150, 300)
        thresholds = conformal_thresholds(labels[fitted], probs[fitted], 0.9, exclusive=exclusive)
        sets = prediction_sets(
            labels[evaluated],
            probs[evaluated],
            thresholds,
            "abcd",
            0.9,
            draw_resamples(range(150), Bootstrap(2, seed=seed)),
        )
        reached.append(sets.coverage.value)
    assert 0.89 <= np.mean(reached) <= 0.93


def test_sets_by_hand():
    labels = np.array([[1, 0, np.nan], [1, 1, 0]])
    probs = np.array([[0.9, 0.4, 0.9], [0.2, 0.6, 0.1]])
    sets = prediction_sets(
        labels, probs, np.array([0.5, 0.5, 0.0]), "abc", 0.9, draw_resamples(range(2), Bootstrap(20))
    )
    assert sets.coverage.value == pytest.approx(2 / 3)
    assert sets.size.value == pytest.approx((2 + 2) / 2)
    assert [score.value for score in sets.per_class.values()] == pytest.approx([1 / 2, 1, np.nan], nan_ok=True)
    assert sets.uncalibrated == ("c",)


def test_too_few_positives_put_the_label_in_every_set():
    labels, probs = np.ones((8, 1)), np.linspace(0.1, 0.9, 8)[:, None]
    assert conformal_thresholds(labels, probs, 0.9, exclusive=False) == [0.0]  # 9 are needed
    assert conformal_thresholds(np.ones((9, 1)), np.linspace(0.1, 0.9, 9)[:, None], 0.9, exclusive=False) == [0.1]


def test_coverage_out_of_range():
    with pytest.raises(ScoreError, match="target coverage"):
        conformal_thresholds(np.ones((3, 1)), np.ones((3, 1)), 1.0, exclusive=False)
