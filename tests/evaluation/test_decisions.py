"""Whole decisions of a run: scored again, stored, shown, in use, and what contradicts them is refused."""

import dataclasses
import json

import numpy as np
import pytest
import sklearn.metrics
from click.testing import CliRunner
from drawn_runs import NAMES, make_run

import kmed
from kmed.cli.main import main
from kmed.errors import ConfigError, RunError
from kmed.evaluation.decisions import decision_rule, fit_on_validation, read_fitted
from kmed.evaluation.predictions import stored_predictions
from kmed.evaluation.predictor import describe_run
from kmed.files import write_json
from kmed.metrics.objectives import OBJECTIVES
from kmed.report.run_page import write_report
from kmed.schemas.records import stamped

FINDINGS = NAMES["multilabel"]


def decided(tmp_path, rule="exact_match", skill=1.0, task="multilabel", more=()):
    """Returns a drawn run whose decisions follow a rule."""
    return make_run(tmp_path / "run", task, skill, settings=[f"evaluate.thresholds={rule}", *more])


def test_the_tuned_scores_are_those_of_the_decisions(tmp_path):
    run = decided(tmp_path)
    test, fitted = stored_predictions(run).split("test"), read_fitted(run)
    found = fitted.thresholds.decide(test.task.decode, test.probs)
    assert fitted.thresholds.choice.chosen != "constant"
    assert ((found[:, 2] == 1) == ~(found[:, :2] == 1).any(axis=1)).all()
    ratio, constant = sklearn.metrics.accuracy_score(test.labels, found), test.labels[:, 2].mean()
    stored = run.read_json(run.metrics)["test"]
    assert stored["scores"]["exact_match_ratio_tuned"]["value"] == pytest.approx(ratio)
    loss = sklearn.metrics.hamming_loss(test.labels, found)
    assert stored["scores"]["hamming_loss_tuned"]["value"] == pytest.approx(loss)
    decision = stored["decision"]
    assert decision["value"] == stored["scores"]["exact_match_ratio_tuned"]
    assert decision["constant_name"] == "always 'No Finding'"
    assert decision["constant"] == stored["constants"]["always 'No Finding'"]["scores"]["exact_match_ratio"]
    assert decision["gain"]["value"] == pytest.approx(ratio - constant)
    assert decision["gain"]["low"] > 0
    assert float(run.read_result()["exact_match_ratio_tuned"]) == pytest.approx(ratio)
    assert "decision" not in run.read_json(run.metrics)["val"]


def test_a_model_without_skill_is_tied_with_the_constant_answer_and_says_so(tmp_path):
    run = decided(tmp_path, skill=0.0)
    stored = run.read_json(run.metrics)["test"]
    constant = stored["constants"]["always 'No Finding'"]["scores"]
    for score in ("exact_match_ratio", "hamming_loss", "f1_samples"):
        assert stored["scores"][f"{score}_tuned"] == constant[score]
    assert stored["decision"]["gain"]["value"] == stored["decision"]["gain"]["high"] == 0
    summary = run.summary.read_text()
    assert "Decisions for the exact match ratio: always 'No Finding'" in summary
    assert "whatever the picture shows, because no thresholds were better by more than one standard error" in summary
    assert "difference 0.000 (0.000 to 0.000)" in summary


def test_costs_are_settings(tmp_path):
    findings = []
    for price in (0.2, 1.0, 5.0):
        run = decided(tmp_path / str(price), "cost", 0.6, more=[f"evaluate.cost_missed={price}"])
        test, fitted = stored_predictions(run).split("test"), read_fitted(run)
        assert fitted.thresholds.choice.costs == (price, 1.0)
        found, labels = fitted.thresholds.decide(test.task.decode, test.probs)[:, :2] == 1, test.labels[:, :2] == 1
        cost = price * (labels & ~found).sum() + (found & ~labels).sum()
        assert run.read_json(run.metrics)["test"]["decision"]["value"]["value"] == pytest.approx(cost / len(test))
        findings.append(found.sum())
    assert findings == sorted(findings) and findings[0] < findings[-1]


@pytest.mark.parametrize(("task", "rule", "skill"), [("multiclass", "exact_match", 0.0), ("multilabel", "cost", 0.5)])
def test_the_page_shows_what_was_decided(tmp_path, task, rule, skill):
    run = decided(tmp_path, rule, skill, task, [f"data.path={tmp_path / 'gone'}"])
    page = write_report(run).read_text(encoding="utf-8")
    decision = run.read_json(run.metrics)["test"]["decision"]
    for name in ("value", "constant", "gain"):
        place = f'data-from="metrics.json#/test/decision/{name}/value"'
        assert place in page and f'data-value="{decision[name]["value"]!r}"' in page
    assert read_fitted(run).thresholds.choice.sentence(task == "multiclass").split(":")[0] in page


@pytest.mark.parametrize("rule", OBJECTIVES)
@pytest.mark.parametrize("skill", [0.0, 0.5, 1.0])
def test_a_model_in_use_decides_as_it_was_scored(tmp_path, rule, skill):
    run = decided(tmp_path, rule, skill)
    probs, known = stored_predictions(run).probs, read_fitted(run)
    used = decision_rule(run)
    plain = known.thresholds.decide(used.task.decode, probs)
    np.testing.assert_array_equal(used.decide(known.calibration.apply(probs)), plain)
    assert (used.constant is not None) == (known.thresholds.choice.chosen == "constant")
    description = json.loads(json.dumps(describe_run(run), allow_nan=False))
    assert description["exclusion"] == {"negative": "No Finding", "findings": list(FINDINGS[:2]), "complete": True}
    assert description["constant"] == (None if used.constant is None else list(used.constant.constant))


@pytest.mark.parametrize("rule", OBJECTIVES)
def test_a_label_that_calibration_made_constant_is_decided_alike_for_all(tmp_path, rule):
    run = decided(tmp_path, rule)
    predictions = stored_predictions(run)
    probs = predictions.probs.copy()
    probs[:, 0] = 1 - probs[:, 0]  # against the truth
    turned = dataclasses.replace(predictions, probs=probs).split("val")
    known = fit_on_validation(turned, run.read_config().evaluate)
    assert known.calibration.constant.tolist() == [True, False, False]
    write_json(run.fitted, stamped(known.to_dict()))
    used, other = decision_rule(run), probs.copy()
    other[:, 0] = np.random.default_rng(0).uniform(0.001, 0.999, len(other))
    found = known.thresholds.decide(used.task.decode, probs)
    np.testing.assert_array_equal(known.thresholds.decide(used.task.decode, other), found)
    np.testing.assert_array_equal(used.decide(known.calibration.apply(probs)), found)
    assert found[:, 1].any()


def test_classes_are_still_predicted_by_the_highest_probability(tmp_path):
    run = decided(tmp_path, "cost", 0.0, "multiclass")
    rule = decision_rule(run)
    assert rule.constant is None and "constant" not in describe_run(run)
    assert rule.decide(np.array([[0.2, 0.5, 0.3]])).tolist() == [[0, 1, 0]]


def test_without_validation_predictions_costs_cannot_change(tmp_path):
    run = decided(tmp_path, "cost")
    rows = run.predictions.read_text().splitlines(keepends=True)
    run.predictions.write_text("".join([rows[0], *(row for row in rows if ",test," in row)]))
    with pytest.raises(RunError, match="no validation predictions, so evaluate.cost_missed cannot be fitted"):
        kmed.rescore(run.folder, ["evaluate.cost_missed=2"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluate.thresholds=exact", "evaluate.thresholds: input should be 'f1', .*'exact_match'.* Received: 'exact'"),
        ("evaluate.cost_missed=0", "evaluate.cost_missed: input should be greater than 0. Received: 0"),
        ("evaluate.cost_false=much", "evaluate.cost_false: input should be a valid number"),
    ],
)
def test_settings_that_are_not_legal(tmp_path, setting, message):
    with pytest.raises(ConfigError, match=message):
        kmed.rescore(make_run(tmp_path / "run").folder, [setting])


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("constant", ["Hernia"], "thresholds.choice.constant names 'Hernia', which is none of"),
        ("chosen", "best", "thresholds.choice.chosen must be 'constant', 'shared' or 'separate'. Received: 'best'"),
        ("tried", {"shared": 0.5}, "tried lacks 'constant'"),
        ("costs", [1.0], "thresholds.choice.costs must hold at least 2 items"),
        ("exclusion", {"negative": "a", "findings": ["Mass"], "complete": True}, "choice.exclusion names 'a'"),
        ("exclusion", {"negative": "Mass", "findings": ["Mass"], "complete": True}, "findings names 'Mass' twice"),
    ],
)
def test_a_damaged_choice_is_one_line(tmp_path, place, value, message):
    run = decided(tmp_path)
    content = json.loads(run.fitted.read_text())
    content["thresholds"]["choice"][place] = value
    run.fitted.write_text(json.dumps(content))
    with pytest.raises(RunError, match=f"calibration.json: .*{message}") as caught:
        read_fitted(run)
    assert "\n" not in str(caught.value)


def test_the_command_takes_the_settings(tmp_path):
    run = make_run(tmp_path / "run", "multilabel")
    settings = ["--set", "evaluate.thresholds=cost", "--set", "evaluate.cost_missed=5"]
    done = CliRunner().invoke(main, ["evaluate", str(run.folder), "--rescore", *settings])
    assert done.exit_code == 0, done.output
    assert "Decisions for the cost per picture: " in done.output and "Here: cost per picture " in done.output
    assert (run.read_config().evaluate.thresholds, run.read_config().evaluate.cost_missed) == ("cost", 5)
