"""Temperature and Platt scaling: distorted probabilities are restored, the order of images is kept, JSON, errors."""

import json

import numpy as np
import pytest
import scipy.special

from kmed.errors import ScoreError
from kmed.metrics.calibration import MIN_POSITIVES, Calibration, fit_platt, fit_temperature


def draw_one(num_images=4000, seed=0):
    """Returns (one-hot labels, calibrated probs) of three classes."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet([1, 1, 1], num_images)
    classes = (rng.random(num_images)[:, None] > probs.cumsum(axis=1)).sum(axis=1)
    return np.eye(3)[classes], probs


def draw_many(num_images=4000, seed=0):
    """Returns (labels, calibrated probs) of two labels."""
    rng = np.random.default_rng(seed)
    probs = rng.uniform(0.02, 0.7, (num_images, 2))
    return (rng.random(probs.shape) < probs).astype(float), probs


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(temperature):
    labels, probs = draw_one()
    distorted = scipy.special.softmax(np.log(probs) * temperature, axis=1)
    calibration = fit_temperature(labels, distorted, "abc")
    assert calibration.temperature == pytest.approx(temperature, rel=0.1)
    np.testing.assert_allclose(calibration.apply(distorted), probs, atol=0.05)
    np.testing.assert_array_equal(calibration.apply(distorted).argmax(axis=1), distorted.argmax(axis=1))


def test_platt_is_recovered_and_keeps_the_order():
    labels, probs = draw_many()
    distorted = scipy.special.expit(2 * scipy.special.logit(probs) - 1)
    labels[::7, 0] = np.nan
    calibration = fit_platt(labels, distorted, "ab")
    np.testing.assert_allclose(calibration.slopes, 0.5, rtol=0.2)
    np.testing.assert_allclose(calibration.apply(distorted), probs, atol=0.06)
    for k in range(2):
        order = np.argsort(distorted[:, k])
        assert (np.diff(calibration.apply(distorted)[order, k]) >= 0).all()


def test_a_label_ranked_in_reverse_gets_its_share():
    labels, probs = draw_many()
    calibration = fit_platt(labels, 1 - probs, "ab")
    assert calibration.slopes == (0.0, 0.0)
    np.testing.assert_allclose(calibration.apply(probs)[0], labels.mean(axis=0), atol=1e-6)
    constant = fit_platt(labels, np.full_like(probs, 0.2), "ab")
    np.testing.assert_allclose(constant.apply(np.full((1, 2), 0.2))[0], labels.mean(axis=0), atol=1e-6)


def test_labels_with_few_positives_keep_their_probabilities():
    labels, probs = draw_many(200)
    labels[:, 1] = 0
    labels[: MIN_POSITIVES - 1, 1] = 1
    calibration = fit_platt(labels, probs, ["common", "rare"])
    assert calibration.not_fitted == {"rare": "9 positives on validation; 10 are needed"}
    np.testing.assert_allclose(calibration.apply(probs)[:, 1], probs[:, 1])


def test_probabilities_of_0_and_1_stay_finite():
    labels, probs = draw_many(100)
    probs[:4] = [[0, 1], [1, 0], [0, 0], [1, 1]]
    assert np.isfinite(fit_platt(labels, probs, "ab").apply(probs)).all()
    one, of_one = draw_one(100)
    of_one[0] = [1, 0, 0]
    assert np.isfinite(fit_temperature(one, of_one, "abc").apply(of_one)).all()


@pytest.mark.parametrize(
    "fit", [lambda: fit_platt(*draw_many(60), "ab"), lambda: fit_temperature(*draw_one(60), "abc")]
)
def test_survives_json_and_refuses_other_labels(fit):
    calibration = fit()
    stored = json.loads(json.dumps(calibration.to_dict()))
    assert Calibration.from_dict(stored, calibration.class_names) == calibration
    with pytest.raises(ScoreError, match="The calibration was fitted for"):
        Calibration.from_dict(stored, ["x", *calibration.class_names[1:]])
