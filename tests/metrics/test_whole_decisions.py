"""Whole decisions: brute force over thresholds and constant answers, held-out groups, labels decided together."""

import itertools
import json

import numpy as np
import pytest
import sklearn.metrics

from kmed.errors import ScoreError
from kmed.metrics import whole_decisions
from kmed.metrics.intervals import Bootstrap, draw_resamples
from kmed.metrics.objectives import OBJECTIVES, make_objective
from kmed.metrics.thresholds import Choice, Exclusion, Thresholds
from kmed.metrics.whole_decisions import (
    Problem,
    best_constant,
    choose_whole_decisions,
    find_exclusion,
    fit_separate,
    fit_shared,
    score_decisions,
)
from kmed.tasks import get_task

FINDINGS = ("Mass", "Edema")
NAMES = (*FINDINGS, "No Finding")
EXCLUSION = Exclusion("No Finding", FINDINGS, complete=True)
COSTS = (3.0, 1.0)
MULTILABEL, MULTICLASS = get_task("multilabel"), get_task("multiclass")


def draw(seed, num_images=10, names=NAMES, unknown=0.0, skill=0.4):
    """Returns (labels, probs) of findings, with "No Finding" where there is none if that is a name."""
    rng = np.random.default_rng(seed)
    findings = rng.random((num_images, 2)) < 0.35
    labels = np.column_stack([findings, ~findings.any(axis=1)]).astype(float)[:, : len(names)]
    probs = np.clip(skill * labels + (1 - skill) * rng.random(labels.shape), 0, 1)
    labels[rng.random(labels.shape) < unknown] = np.nan
    return labels, probs


def problem_of(seed, rule, names=NAMES, exclusion=EXCLUSION, **settings):
    labels, probs = draw(seed, names=names, **settings)
    objective = make_objective(rule, names, *COSTS)
    return Problem(labels, probs, names, MULTILABEL.decode, False, exclusion, objective)


def cuts(probs):
    """Returns all thresholds that differ in what they find."""
    values = np.unique(probs)
    return np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [1.0]])


# ---- Objectives ------------------------------------------------------------------------------------


def test_exact_match_and_hamming_are_those_of_sklearn():
    labels, probs = draw(0, 50)
    guesses = probs >= 0.5
    exact, hamming = (make_objective(rule, NAMES) for rule in ("exact_match", "hamming"))
    ratio = exact.reported(exact.losses(guesses, labels), exact.counted(labels)).mean()
    assert ratio == pytest.approx(sklearn.metrics.accuracy_score(labels, guesses))
    loss = hamming.losses(guesses, labels).sum() / hamming.counted(labels).sum()
    assert loss == pytest.approx(sklearn.metrics.hamming_loss(labels, guesses))


def test_costs_are_those_of_each_missed_and_each_false_finding():
    labels, probs = draw(0, 50, unknown=0.2)
    guesses, price = probs >= 0.5, np.zeros(50)
    for i, k in itertools.product(range(50), range(2)):  # not "No Finding"
        price[i] += COSTS[0] * (labels[i, k] == 1 and not guesses[i, k])
        price[i] += COSTS[1] * (labels[i, k] == 0 and guesses[i, k])
    np.testing.assert_array_equal(make_objective("cost", NAMES, *COSTS).losses(guesses, labels), price)


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ScoreError, match="The rule must be one of exact_match, hamming, cost. Received: rule='f2'"):
        make_objective("f2", NAMES)


# ---- Brute force -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", OBJECTIVES)
@pytest.mark.parametrize("exclusion", [EXCLUSION, None], ids=["excluding", "independent"])
@pytest.mark.parametrize("seed", range(8))
def test_no_constant_answer_is_better(rule, exclusion, seed):
    problem = problem_of(seed, rule, exclusion=exclusion, unknown=0.1)
    answers = problem.resolve(np.array(list(itertools.product([0, 1], repeat=3)), np.uint8))
    lowest = min(problem.constant_losses(answer).sum() for answer in answers)
    assert problem.constant_losses(best_constant(problem)).sum() == pytest.approx(lowest)


@pytest.mark.parametrize("rule", ["hamming", "cost"])
@pytest.mark.parametrize("seed", range(8))
def test_no_thresholds_have_a_lower_sum_where_each_label_counts_for_itself(rule, seed):
    problem = problem_of(seed, rule, FINDINGS, None, unknown=0.1)
    lowest = min(problem.losses(np.array(pair)).sum() for pair in itertools.product(*map(cuts, problem.probs.T)))
    assert problem.losses(fit_separate(problem)).sum() == pytest.approx(lowest)


@pytest.mark.parametrize("rule", OBJECTIVES)
@pytest.mark.parametrize(("names", "exclusion"), [(FINDINGS, None), (NAMES, EXCLUSION)], ids=["two", "excluding"])
def test_few_thresholds_beat_those_that_are_moved_one_by_one(rule, names, exclusion):
    excess = []
    for seed in range(12):
        problem = problem_of(seed, rule, names, exclusion)
        all_of_them = itertools.product(*map(cuts, problem.probs.T))
        lowest = min(problem.losses(np.array(each)).sum() for each in all_of_them)
        excess.append(problem.losses(fit_separate(problem)).sum() - lowest)
    assert min(excess) >= -1e-9
    assert np.mean(np.array(excess) < 1e-9) >= 0.9


@pytest.mark.parametrize("rule", OBJECTIVES)
@pytest.mark.parametrize("seed", range(4))
def test_no_single_threshold_can_be_moved_to_a_lower_loss(rule, seed):
    problem = problem_of(seed, rule, num_images=60, unknown=0.05)
    thresholds = fit_separate(problem)
    lowest = problem.losses(thresholds).sum()
    for k in range(3):
        for value in cuts(problem.probs[:, k]):
            moved = thresholds.copy()
            moved[k] = value
            assert problem.losses(moved).sum() >= lowest - 1e-9


@pytest.mark.parametrize("rule", OBJECTIVES)
@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_for_all_findings_is_better(rule, seed):
    problem = problem_of(seed, rule)
    shared, gate = cuts(problem.probs[:, :2]), cuts(problem.probs[:, 2])
    lowest = min(problem.losses(np.array([value, value, last])).sum() for value in shared for last in gate)
    found = fit_shared(problem)
    assert found[0] == found[1]
    assert problem.losses(found).sum() == pytest.approx(lowest)


@pytest.mark.parametrize("seed", range(4))
def test_no_ratio_of_two_classes_is_better(seed):
    rng = np.random.default_rng(seed)
    labels = np.eye(2)[rng.integers(0, 2, 30)]
    first = np.clip(0.5 * labels[:, 0] + 0.4 * rng.random(30), 0.01, 0.99)
    probs = np.column_stack([first, 1 - first])
    problem = Problem(labels, probs, ("a", "b"), MULTICLASS.decode, True, None, make_objective("exact_match", "ab"))
    lowest = min(((first >= cut) != (labels[:, 0] == 1)).sum() for cut in cuts(first))
    assert problem.losses(fit_separate(problem)).sum() == lowest
    assert problem.losses(fit_shared(problem)).sum() == (probs.argmax(axis=1) != labels.argmax(axis=1)).sum()


# ---- The choice ------------------------------------------------------------------------------------


def choose(labels, probs, rule, groups=None, task=MULTILABEL, names=NAMES, **settings):
    groups = np.arange(len(labels)) // 3 if groups is None else groups
    settings = {"decode": task.decode, "exclusive": task.exclusive, "costs": COSTS, **settings}
    return choose_whole_decisions(labels, probs, groups, names, rule, **settings)


def loss_of(found, labels, rule, names=NAMES):
    return make_objective(rule, names, *COSTS).losses(found == 1, labels).sum()


@pytest.mark.parametrize("rule", OBJECTIVES)
@pytest.mark.parametrize("skill", [0.0, 0.2, 0.5, 1.0])
def test_decisions_are_never_worse_on_validation_than_any_constant_answer(rule, skill):
    labels, probs = draw(3, 200, skill=skill)
    thresholds = choose(labels, probs, rule)
    found = thresholds.decide(MULTILABEL.decode, probs)
    assert ((found[:, 2] == 1) == (found[:, :2] == 0).all(axis=1)).all()
    for answer in ([1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]):
        assert loss_of(found, labels, rule) <= loss_of(np.tile(answer, (200, 1)), labels, rule)
    assert (thresholds.choice.chosen == "constant") == (skill == 0)
    assert skill < 1 or loss_of(found, labels, rule) == 0


@pytest.mark.parametrize("rule", OBJECTIVES)
def test_noise_gives_the_constant_answer_although_thresholds_fit_it_better(rule):
    labels, probs = draw(5, 120, skill=0.0)
    thresholds = choose(labels, probs, rule)
    choice, found = thresholds.choice, thresholds.decide(MULTILABEL.decode, probs[:7])
    assert choice.chosen == "constant" and (found == [name in choice.constant for name in NAMES]).all()
    problem = Problem(labels, probs, NAMES, MULTILABEL.decode, False, EXCLUSION, make_objective(rule, NAMES, *COSTS))
    assert problem.losses(fit_separate(problem)).sum() < problem.constant_losses(found[0]).sum()
    assert "whatever the picture shows, because no thresholds were better" in choice.sentence(False)


def test_a_model_that_only_knows_its_own_patients_gives_the_constant_answer():
    """Each patient has one label set and one probability: thresholds fit each patient, but not the next one."""
    labels, probs = draw(1, 25, skill=0.0)
    labels, probs, groups = (np.repeat(each, 8, axis=0) for each in (labels, probs, np.arange(25)))
    assert choose(labels, probs, "exact_match", groups).choice.chosen == "constant"


def test_each_group_is_judged_once_by_thresholds_of_the_others(monkeypatch):
    labels, probs = draw(2, 90)
    probs[:, 0] = np.arange(90) / 100  # tells the images apart
    groups, fitted_on = np.arange(90) // 7, []

    def spy(problem):
        fitted_on.append(frozenset((problem.probs[:, 0] * 100).round().astype(int)))
        return np.full(3, 0.5)

    monkeypatch.setattr(whole_decisions, "FAMILIES", {"shared": spy})
    tried = choose(labels, probs, "hamming", groups).choice.tried
    held_out = [sorted(set(range(90)) - each) for each in fitted_on]
    assert sorted(sum(held_out, [])) == list(range(90)) and len(held_out) == 5
    assert all(not set(groups[rows]) & set(groups[list(each)]) for rows, each in zip(held_out, fitted_on))
    found = EXCLUSION.resolve((probs >= 0.5).astype(np.uint8), NAMES)
    assert tried["shared"] == pytest.approx(sklearn.metrics.hamming_loss(labels, found))


def test_the_order_of_the_images_changes_nothing():
    labels, probs = draw(4, 120)
    groups, order = np.arange(120) // 3, np.random.default_rng(0).permutation(120)
    first, second = choose(labels, probs, "cost", groups), choose(labels[order], probs[order], "cost", groups[order])
    assert first.values == second.values and first.choice.chosen == second.choice.chosen
    assert first.choice.tried == pytest.approx(second.choice.tried)


def test_one_group_leaves_nothing_to_judge_on():
    labels, probs = draw(0, 40, skill=1.0)
    choice = choose(labels, probs, "exact_match", np.zeros(40)).choice
    assert choice.chosen == "constant" and list(choice.tried) == ["constant"]
    assert "validation holds one group" in choice.sentence(False)


def test_images_without_a_known_label_change_nothing():
    labels, probs = draw(0, 60)
    more = np.concatenate([labels, np.full((5, 3), np.nan)]), np.concatenate([probs, np.full((5, 3), 0.7)])
    groups = np.arange(65) // 3
    first, second = choose(labels, probs, "hamming", groups[:60]), choose(*more, "hamming", groups)
    assert first == second
    none = choose(np.full((5, 3), np.nan), probs[:5], "hamming")
    assert none.choice is None and none.values == (0.5,) * 3 and set(none.not_chosen) == set(NAMES)


@pytest.mark.parametrize("rule", OBJECTIVES)
def test_classes_are_never_decided_worse_than_the_best_constant_class(rule):
    rng = np.random.default_rng(0)
    labels = np.eye(3)[rng.choice(3, 200, p=[0.7, 0.2, 0.1])]
    for skill in (0.0, 2.0):
        logits = skill * labels + rng.normal(0, 1, labels.shape) + [2.0, 0.0, 0.0]
        probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        thresholds = choose(labels, probs, rule, task=MULTICLASS, names=("a", "b", "c"))
        found = thresholds.decide(MULTICLASS.decode, probs)
        assert (found.sum(axis=1) == 1).all() and max(thresholds.values) <= 1
        best = min(loss_of(np.tile(row, (200, 1)), labels, rule, ("a", "b", "c")) for row in np.eye(3))
        assert loss_of(found, labels, rule, ("a", "b", "c")) <= best
        assert (thresholds.choice.chosen == "constant") == (skill == 0)
        assert thresholds.choice.constant == ("a",)


# ---- Labels that exclude each other ----------------------------------------------------------------


def test_no_finding_is_decided_together_with_the_findings():
    found = np.array(list(itertools.product([0, 1], repeat=3)), np.uint8)
    complete = EXCLUSION.resolve(found, NAMES)
    assert complete.tolist() == [[*row[:2], int(not any(row[:2]))] for row in complete.tolist()]
    assert (complete[found[:, 2] == 1] == [0, 0, 1]).all()
    partial = Exclusion("No Finding", FINDINGS, complete=False).resolve(found, NAMES)
    assert partial[0].tolist() == [0, 0, 0] and not (partial[:, :2].any(axis=1) & (partial[:, 2] == 1)).any()
    assert found.sum() == 12  # unchanged


def test_what_no_finding_excludes_comes_from_settings_and_labels():
    names = ("Mass", "Support Devices", "No Finding", "Edema")
    labels = np.array([[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    assert find_exclusion(labels, names, ["support devices"]) == Exclusion("No Finding", ("Mass", "Edema"), True)
    assert find_exclusion(labels, names).findings == ("Mass", "Edema")  # they stand beside each other in the labels
    assert not find_exclusion(np.concatenate([labels, [[0, 1, 0, 0]]]), names, ["Support Devices"]).complete
    assert find_exclusion(labels[:, :2], names[:2]) is None
    assert find_exclusion(labels[:, 2:3], names[2:3]) is None


# ---- Storing and scoring ---------------------------------------------------------------------------


@pytest.mark.parametrize("skill", [0.0, 1.0])
def test_a_choice_survives_json(skill):
    thresholds = choose(*draw(0, 90, skill=skill), "exact_match")
    assert Thresholds.from_dict(json.loads(json.dumps(thresholds.to_dict())), NAMES) == thresholds


def test_the_gain_over_the_constant_answer_is_paired():
    labels, probs = draw(0, 150, skill=0.6)
    thresholds = choose(labels, probs, "cost")
    more, its_probs = draw(1, 90, skill=0.6, unknown=0.1)
    clusters = np.arange(90) // 3
    resamples = draw_resamples(clusters, Bootstrap(50))
    found = thresholds.decide(MULTILABEL.decode, its_probs)
    scored = score_decisions(thresholds, found, more, resamples)
    objective = make_objective("cost", NAMES, *COSTS)
    constant = np.tile([name in thresholds.choice.constant for name in NAMES], (90, 1))
    known = (~np.isnan(more)).any(axis=1)
    price, other = objective.losses(found == 1, more)[known], objective.losses(constant, more)[known]
    assert scored.score.value == pytest.approx(price.mean()) and scored.constant.value == pytest.approx(other.mean())
    assert scored.gain.value == pytest.approx((price - other).mean())
    weights = resamples.counts[:, resamples.index][:, known]  # (R, N')
    assert scored.gain.resampled == pytest.approx((weights * (price - other)).sum(axis=1) / weights.sum(axis=1))
    assert score_decisions(Thresholds("f1", NAMES, (0.5,) * 3), found, more, resamples) is None


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_sentence_names_what_was_chosen_and_what_it_beat(exclusive):
    tried = {"constant": 0.6, "shared": 0.63, "separate": 0.62}
    sentence = Choice("shared", ("No Finding",), None, tried, "exact match ratio", COSTS).sentence(exclusive)
    assert ("the most probable class, 0.630" if exclusive else "one threshold for all findings, 0.630") in sentence
    assert sentence.endswith("the best constant answer is always 'No Finding' (exact match ratio 0.600 on validation).")
    assert Choice("constant", (), None, tried, "cost per picture", COSTS).constant_name == "always nothing"
