"""Other shares of the classes, found without labels: drawn probabilities whose truth is known."""

import dataclasses

import numpy as np
import pytest
import scipy.special

from kmed.errors import ScoreError
from kmed.metrics.calibration import Calibration, fit_platt, fit_temperature
from kmed.metrics.class_scores import Probabilities, Sample
from kmed.metrics.intervals import Bootstrap, draw_resamples
from kmed.metrics.prior_shift import are_shifted, shift_calibration, shifted_shares
from kmed.metrics.reliability import calibration_error

SHARES = np.array([0.1, 0.2, 0.3])
NAMES = ("a", "b", "c")
SKILL = 1.5  # distance of positives from negatives, in standard deviations
SLOPES, INTERCEPTS = np.array([1.4, 0.7, 1.0]), np.array([-0.3, 0.2, 0.0])  # of a model that is not calibrated


def draw_findings(shares, num_pictures, seed):
    """Returns (labels, probabilities of an overconfident model that were trained at SHARES), both (N, 3)."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_pictures, 3)) < shares).astype(float)
    signal = rng.normal(SKILL * labels, 1)
    odds = scipy.special.logit(SHARES) + SKILL * signal - SKILL**2 / 2  # Bayes' rule at SHARES: calibrated there
    return labels, scipy.special.expit((odds - INTERCEPTS) / SLOPES)


def draw_classes(shares, num_pictures, seed):
    rng = np.random.default_rng(seed)
    labels = np.eye(3)[rng.choice(3, num_pictures, p=shares)]
    signal = rng.normal(SKILL * labels, 1)
    return labels, scipy.special.softmax((np.log([0.2, 0.3, 0.5]) + SKILL * signal) / 0.6, axis=1)


def ece(labels, probs, exclusive):
    sample = Sample(labels, NAMES, draw_resamples(np.arange(len(labels)), Bootstrap(2)), exclusive)
    return calibration_error(Probabilities(sample, probs)).value


@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_findings_at_another_prevalence_are_as_well_calibrated_as_refitted_ones(factor):
    """The correction sees no label; refitting sees all of them."""
    calibration = fit_platt(*draw_findings(SHARES, 20_000, seed=1), NAMES)
    fit, check = (draw_findings(factor * SHARES, 20_000, seed=seed) for seed in (2, 3))
    found = shifted_shares(calibration.apply(fit[1]), SHARES, exclusive=False)
    np.testing.assert_allclose(found, factor * SHARES, rtol=0.08)
    corrected = shift_calibration(calibration, SHARES, found)
    refitted = fit_platt(*fit, NAMES)
    before, after, best = (ece(check[0], one.apply(check[1]), False) for one in (calibration, corrected, refitted))
    assert before > 0.03
    assert abs(after - best) < 0.01


@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (0.1, 0.1, 0.8)])
def test_exclusive_classes_at_other_shares(shares):
    calibration = fit_temperature(*draw_classes((0.2, 0.3, 0.5), 20_000, seed=1), NAMES)
    fit, check = (draw_classes(shares, 20_000, seed=seed) for seed in (2, 3))
    found = shifted_shares(calibration.apply(fit[1]), np.array([0.2, 0.3, 0.5]), exclusive=True)
    np.testing.assert_allclose(found, shares, atol=0.015)
    corrected = shift_calibration(calibration, np.array([0.2, 0.3, 0.5]), found)
    probs = corrected.apply(check[1])
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    assert ece(check[0], probs, True) < 0.01 < ece(check[0], calibration.apply(check[1]), True)
    accuracies = [(one.apply(check[1]).argmax(axis=1) == check[0].argmax(axis=1)).mean()
                  for one in (calibration, corrected)]  # fmt: skip
    assert accuracies[1] > accuracies[0]


def test_without_a_shift_nothing_moves():
    labels, probs = draw_findings(SHARES, 20_000, seed=4)
    calibration = fit_platt(labels, probs, NAMES)
    found = shifted_shares(calibration.apply(probs), labels.mean(axis=0), exclusive=False)
    np.testing.assert_allclose(found, labels.mean(axis=0), rtol=0.05)
    same = shift_calibration(calibration, SHARES, SHARES)
    np.testing.assert_allclose(same.apply(probs), calibration.apply(probs))


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_a_shifted_calibration_is_bayes_rule_and_can_be_inverted_and_stored(method):
    rng = np.random.default_rng(0)
    old, new = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    probs = rng.dirichlet([1, 1, 1], 50)
    fields = {"temperature": 1.7} if method == "temperature" else {"slopes": (1.2, 0.8, 1.0), "intercepts": (0.1, 0, 0)}
    calibration = Calibration(method, NAMES, **fields)
    shifted = shift_calibration(calibration, old, new)
    before = calibration.apply(probs)
    odds = before * new / old
    others = (1 - before) * (1 - new) / (1 - old)
    expected = odds / odds.sum(axis=1, keepdims=True) if method == "temperature" else odds / (odds + others)
    np.testing.assert_allclose(shifted.apply(probs), expected)
    np.testing.assert_allclose(shifted.invert(shifted.apply(probs)), probs, atol=1e-6)
    assert Calibration.from_dict(shifted.to_dict(), NAMES) == shifted
    assert "log_weights" not in calibration.to_dict()  # which older versions would refuse
    back = shift_calibration(shifted, new, old)
    np.testing.assert_allclose(back.apply(probs), before)
    assert dataclasses.asdict(back)["method"] == method


def test_only_shares_that_the_pictures_tell_from_home_are_moved():
    """A label that the model tells from the others, twice as frequent; one that it guesses; and one as at home."""
    rng = np.random.default_rng(0)
    labels, probs = draw_findings(SHARES * [2, 1, 1], 2000, seed=5)
    probs = Calibration("platt", NAMES, slopes=tuple(SLOPES), intercepts=tuple(INTERCEPTS)).apply(probs)
    probs[:, 1] = SHARES[1] + rng.normal(0, 0.002, len(probs))
    resamples = draw_resamples(np.arange(2000) // 2, Bootstrap(100))
    assert are_shifted(probs, SHARES, resamples, exclusive=False).tolist() == [True, False, False]


def test_a_label_that_hardly_varies_is_not_moved_to_none_or_all_of_the_pictures():
    """Its likelihood rises up to one end, though the pictures say nothing, and each draw of them agrees."""
    resamples = draw_resamples(np.arange(500), Bootstrap(100))
    for factor in (0.99, 1.0, 1.01):
        probs = np.tile(factor * SHARES, (500, 1))
        assert not np.isclose(shifted_shares(probs, SHARES, exclusive=False), SHARES, atol=0.05).any()
        assert not are_shifted(probs, SHARES, resamples, exclusive=False).any()


@pytest.mark.parametrize("exclusive", [True, False])
def test_draws_weigh_pictures_as_copies_of_them_would(exclusive):
    _, probs = draw_classes((0.5, 0.3, 0.2), 300, seed=6)
    weights = np.random.default_rng(0).integers(0, 4, (2, 300))
    drawn = shifted_shares(probs, np.array([0.2, 0.3, 0.5]), exclusive=exclusive, weights=weights)
    repeated = shifted_shares(np.repeat(probs, weights[1], axis=0), np.array([0.2, 0.3, 0.5]), exclusive=exclusive)
    np.testing.assert_allclose(drawn[1], repeated, atol=1e-4)


def test_what_cannot_be_shifted_is_one_line():
    with pytest.raises(ScoreError, match="without pictures"):
        shifted_shares(np.zeros((0, 2)), np.array([0.5, 0.5]), exclusive=False)
    with pytest.raises(ScoreError, match="must lie between 0 and 1"):
        shifted_shares(np.full((3, 2), 0.5), np.array([0.0, 1.0]), exclusive=True)
