"""What is fitted to a local sample, on drawn predictions."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.special

from kmed.config import EvaluateConfig
from kmed.errors import DataError
from kmed.evaluation.decisions import fit_on_validation
from kmed.evaluation.local_fit import (
    few_labels,
    fit_calibration,
    fit_labels,
    fit_shares,
    learning_curve,
    log_loss,
    measure_gains,
    split_groups,
)
from kmed.evaluation.predictions import Predictions
from kmed.metrics.intervals import Bootstrap
from kmed.tasks import get_task

NAMES = ("common", "rare", "Mass")
SHARES = np.array([0.4, 0.01, 0.3])
BOOTSTRAP = Bootstrap(100)


def draw(shares=SHARES, patients=300, seed=0, slope=1.0, shift=0.0, task="multilabel"):
    """Returns Predictions, 3 pictures per patient; the model's log-odds are slope * the true ones + shift."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), 3).astype(str)
    labels = (rng.random((len(groups), 3)) < shares).astype(float)
    if task == "multiclass":
        labels = np.eye(3)[rng.choice(3, len(groups), p=shares)]
    signal = rng.normal(1.5 * labels, 1)
    odds = scipy.special.logit(SHARES) + 1.5 * signal - 1.5**2 / 2
    probs = scipy.special.expit(slope * odds + shift)
    if task == "multiclass":
        probs = scipy.special.softmax(slope * (np.log([0.3, 0.3, 0.4]) + 1.5 * signal), axis=1)
    rows = pd.DataFrame({"path": np.arange(len(groups)).astype(str), "split": "test", "group": groups})
    return Predictions(rows.assign(cluster=groups), labels, probs, NAMES, get_task(task))


@pytest.fixture(scope="module")
def home():
    return fit_on_validation(draw(seed=1), EvaluateConfig())


def test_whole_groups_are_fitted_to_and_shares_are_alike():
    predictions = draw()
    inside = split_groups(predictions, 0.3, seed=0)
    groups = predictions.rows["group"]
    assert not set(groups[inside]) & set(groups[~inside])
    assert groups[inside].nunique() == 90
    shares = [predictions.labels[part].mean(axis=0) for part in (inside, ~inside)]
    np.testing.assert_allclose(*shares, atol=0.03)
    with pytest.raises(DataError, match="needs at least 4 groups, better 100. Received: 3"):
        split_groups(draw(patients=3), 0.5, seed=0)


def test_labels_that_are_too_rare_keep_what_home_had(home):
    sample = draw(patients=100, seed=2, slope=2.0, shift=1.0)
    assert few_labels(sample).tolist() == [False, True, False]
    local = fit_labels(sample, home, EvaluateConfig(), ())
    for name in ("slopes", "intercepts"):
        values, before = getattr(local.calibration, name), getattr(home.calibration, name)
        assert values[1] == before[1] and values[0] != before[0]
    assert local.thresholds.values[1] == home.thresholds.values[1]
    assert local.thresholds.values[0] != home.thresholds.values[0]
    assert local.set_thresholds[1] == home.set_thresholds[1]
    np.testing.assert_allclose(np.array(local.calibration.slopes)[[0, 2]], 0.5, atol=0.12)  # undoes the stretch


def test_the_gain_is_measured_on_the_same_draws(home):
    fit, check = (draw(seed=seed, slope=2.5) for seed in (3, 4))
    local = fit_labels(fit, home, EvaluateConfig(), ())
    gain = measure_gains(check, home, local, BOOTSTRAP)["brier_calibrated"]
    assert gain.gain.value == pytest.approx(gain.local.value - gain.home.value)
    assert gain.gain.high < 0  # lower is better, and the pairing makes the interval narrow
    assert gain.gain.high - gain.gain.low < gain.local.high - gain.local.low
    np.testing.assert_allclose(gain.gain.resampled, gain.local.resampled - gain.home.resampled)


@pytest.mark.parametrize("task", ["multilabel", "multiclass"])
def test_the_curve_says_how_many_labels_are_enough(home, task):
    if task == "multiclass":
        shares = (0.3, 0.3, 0.4)
        home = fit_on_validation(draw(shares, seed=1, task=task), EvaluateConfig())
        fit, check = (draw(shares, seed=seed, slope=3.0, task=task) for seed in (3, 4))
    else:
        fit, check = (draw(seed=seed, slope=3.0) for seed in (3, 4))

    def fit_to(part):
        return fit_calibration(part, home.calibration)

    curve = learning_curve(fit, check, home.calibration, fit_to, seed=0)
    assert curve["home"] == log_loss(check, home.calibration)
    assert [point["groups"] for point in curve["points"]] == [10, 20, 40, 80, 160, 300]
    assert curve["points"][-1]["mean"] == pytest.approx(log_loss(check, fit_to(fit)))
    assert curve["points"][-1]["mean"] < curve["home"]
    wanted = curve["points"][-1]["mean"] + 0.1 * (curve["home"] - curve["points"][-1]["mean"])
    means = {point["groups"]: point["mean"] for point in curve["points"]}
    assert curve["enough"] in means and means[curve["enough"]] <= wanted
    assert all(mean > wanted for groups, mean in means.items() if groups < curve["enough"])


def test_where_labels_gain_nothing_none_are_needed(home):
    fit, check = draw(patients=15, seed=5), draw(seed=6)
    curve = learning_curve(fit, check, home.calibration, lambda part: home.calibration, seed=0)
    assert curve["enough"] == 0


def test_shares_are_moved_without_looking_at_labels(home):
    shares = np.array([0.4, 0.01, 0.3])
    sample, check = (draw(shares * [2, 1, 0.4], seed=seed) for seed in (7, 8))
    blind = dataclasses.replace(sample, labels=np.full_like(sample.labels, np.nan))
    local, found, used = fit_shares(blind, home, shares, BOOTSTRAP)
    assert used.tolist() == [True, False, True]
    np.testing.assert_allclose(found[used], [0.8, 0.12], atol=0.06)
    # A finding is reported from the same calibrated probability on.
    before = home.calibration.apply(np.array(home.thresholds.values)[None])
    after = local.calibration.apply(np.array(local.thresholds.values)[None])
    np.testing.assert_allclose(after, before, rtol=1e-4)
    gain = measure_gains(check, home, local, BOOTSTRAP)["ece_calibrated"]
    assert gain.gain.high < 0


def test_a_finding_that_was_not_calibrated_at_home_is_not_moved(home):
    shares = np.array([0.4, 0.01, 0.3])
    calibration = dataclasses.replace(home.calibration, not_fitted={"common": "7 positives on validation"})
    known = dataclasses.replace(home, calibration=calibration)
    local, found, used = fit_shares(draw(shares * [2, 1, 0.4], seed=7), known, shares, BOOTSTRAP)
    assert used.tolist() == [False, False, True] and found[0] == pytest.approx(0.8, abs=0.06)
    assert local.calibration.intercepts[0] == calibration.intercepts[0]


def test_exclusive_classes_move_with_their_probabilities():
    home_shares, here = (0.3, 0.3, 0.4), (0.7, 0.2, 0.1)
    home = fit_on_validation(draw(home_shares, seed=1, task="multiclass"), EvaluateConfig())
    sample, check = (draw(here, seed=seed, task="multiclass") for seed in (2, 3))
    local, found, used = fit_shares(sample, home, np.array(home_shares), BOOTSTRAP)
    assert used.all()
    np.testing.assert_allclose(found, here, atol=0.05)
    assert all(0 <= value <= 1 for value in local.thresholds.values)
    # Decisions by the thresholds are those of the moved probabilities over the thresholds of home.
    moved = local.calibration.apply(check.probs)
    tau = np.array(home.thresholds.values) ** (1 / home.calibration.temperature)
    expected = (moved / tau).argmax(axis=1)
    np.testing.assert_array_equal(local.thresholds.decide(check.task.decode, check.probs).argmax(axis=1), expected)
    assert measure_gains(check, home, local, BOOTSTRAP)["brier_calibrated"].gain.high < 0
