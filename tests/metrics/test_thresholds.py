"""Thresholds chosen on validation: the best of all candidates by brute force, and thresholds for other labels."""

import json

import numpy as np
import pytest
import sklearn.metrics

from kmed.errors import ScoreError
from kmed.metrics.thresholds import RULES, Thresholds, choose_thresholds

NAMES = ("a", "b")


def draw(seed=0, num_images=120):
    """Returns (labels with NaN, probs full of ties), (N, 2)."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_images, 2)) < [0.3, 0.1]).astype(float)
    probs = np.clip(0.2 * labels + rng.integers(0, 9, labels.shape) / 10, 0, 1)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    return labels, probs


def sensitivity(truth, guess):
    return sklearn.metrics.recall_score(truth, guess)


GOALS = {
    "f1": sklearn.metrics.f1_score,
    "youden": lambda truth, guess: sensitivity(truth, guess) + sensitivity(1 - truth, ~guess) - 1,
    "sensitivity": lambda truth, guess: float(sensitivity(truth, guess) >= 0.8),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_is_better_and_no_equal_one_is_higher(rule, seed):
    labels, probs = draw(seed)
    chosen = choose_thresholds(labels, probs, NAMES, rule, sensitivity=0.8)
    for k, value in enumerate(chosen.values):
        known = ~np.isnan(labels[:, k])
        truth, prob = labels[known, k].astype(int), probs[known, k]
        reached = {t: GOALS[rule](truth, prob >= t) for t in np.unique(prob)}
        best = max(reached.values())
        assert reached[value] == pytest.approx(best)
        assert value == max(t for t, goal in reached.items() if goal == pytest.approx(best))


def test_labels_without_positives_keep_one_half():
    labels, probs = draw()
    labels[:, 1] = 0
    chosen = choose_thresholds(labels, probs, NAMES)
    assert chosen.values[1] == 0.5
    assert list(chosen.not_chosen) == ["b"]


def test_survives_json_in_any_order_and_refuses_other_labels():
    chosen = choose_thresholds(*draw(), NAMES)
    stored = json.loads(json.dumps(chosen.to_dict()))
    assert Thresholds.from_dict(stored, NAMES) == chosen
    assert Thresholds.from_dict(stored, NAMES[::-1]).values == chosen.values[::-1]
    with pytest.raises(ScoreError, match=r"for other labels. Missing: \['c'\]; unknown: \['b'\]"):
        Thresholds.from_dict(stored, ["a", "c"])


@pytest.mark.parametrize("settings", [{"rule": "best"}, {"rule": "sensitivity", "sensitivity": 0.0}])
def test_errors(settings):
    with pytest.raises(ScoreError, match="The rule must be one of f1, youden, sensitivity"):
        choose_thresholds(*draw(), NAMES, **settings)
