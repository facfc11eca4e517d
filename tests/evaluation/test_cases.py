"""Scores per case: pandas and scikit-learn as oracles, what is stored and shown, and cases that cannot be."""

import json

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from drawn_runs import make_run

import kmed
from kmed.config import EvaluateConfig
from kmed.data.table import Table
from kmed.errors import ConfigError, RunError, ScoreError
from kmed.evaluation import comparison as comparing
from kmed.evaluation.assessment import assess
from kmed.evaluation.cases import check_columns, pool_cases
from kmed.evaluation.decisions import fit_on_validation, read_fitted
from kmed.evaluation.predictions import make_predictions, read_predictions, stored_predictions
from kmed.evaluation.summary import describe_assessment
from kmed.files import write_frame
from kmed.metrics.baselines import count_prior
from kmed.metrics.intervals import Bootstrap
from kmed.metrics.thresholds import choose_thresholds
from kmed.metrics.whole_decisions import choose_whole_decisions
from kmed.report import comparison_page
from kmed.report.run_page import write_report
from kmed.tasks import get_task

CLASSES = ("a", "b", "c")


def draw_table(num_images=240, seed=0) -> tuple[Table, np.ndarray]:
    """Returns crops of photographs, of which each has one class, and two or three a patient; and probabilities."""
    rng = np.random.default_rng(seed)
    photograph = np.repeat(np.arange(num_images // 4), 4)
    classes = rng.integers(0, 3, num_images // 4)[photograph]
    labels = np.eye(3, dtype=np.float32)[classes]
    probs = np.exp(1.2 * labels + rng.normal(0, 1, labels.shape))
    patient = [f"p{number // 3}" for number in photograph]
    rows = {
        "path": [f"{number:04d}.png" for number in range(num_images)], "group": patient, "cluster": patient,
        "split": np.where(photograph < num_images // 8, "val", "test"),
        "photo": [f"s{number}" for number in photograph],
    }  # fmt: skip
    return Table(pd.DataFrame(rows), labels, CLASSES, "multiclass", "drawn"), probs / probs.sum(axis=1, keepdims=True)


def assessed(table, probs, case, **more):
    settings = EvaluateConfig(num_resamples=50, case=case, **more)
    predictions = make_predictions(table, probs, None, case)
    fitted = fit_on_validation(predictions.split("val"), settings)
    prior = count_prior(table.labels, table.class_names)
    return assess(predictions.split("test"), prior, Bootstrap(50), fitted), predictions.split("test"), fitted


def test_the_scores_of_a_column_are_those_of_pandas_and_sklearn():
    table, probs = draw_table()
    found, test, fitted = assessed(table, probs, "photo")
    frame = pd.DataFrame(np.log(fitted.calibration.apply(test.probs)))
    means = frame.groupby(test.rows["case_photo"].to_numpy()).mean()
    truth = pd.Series(test.labels.argmax(axis=1)).groupby(test.rows["case_photo"].to_numpy()).first()
    guessed = means.to_numpy().argmax(axis=1)
    assert found.cases.scores.num_images == len(means) == 30 and found.cases.num_pictures == len(test) == 120
    assert found.cases.scores.scores["accuracy"].value == sklearn.metrics.accuracy_score(truth, guessed)
    f1 = sklearn.metrics.f1_score(truth, guessed, average="macro")
    assert found.cases.scores.scores["f1_macro"].value == pytest.approx(f1)
    assert found.cases.scores.num_clusters == len(set(test.clusters))  # photographs of a patient stay together
    majority = truth.value_counts().get(int(table.labels.sum(axis=0).argmax()), 0) / len(truth)
    assert found.cases.constants["majority class"].scores["accuracy"].value == pytest.approx(majority)
    assert found.cases.by_count == {}
    assert found.cases.scores.scores["accuracy"].value > found.scores.scores["accuracy"].value
    assert "120 pictures of 30 cases (photo): the answer for a case is the mean of" in describe_assessment(
        found, "test"
    )


def test_findings_per_patient_are_those_of_pandas_and_sklearn(tmp_path):
    run = make_run(tmp_path / "run", "multilabel", 0.5, settings=["evaluate.case=cluster"])
    test, fitted = stored_predictions(run).split("test"), read_fitted(run)
    logits = pd.DataFrame(np.log(1 / (1 / fitted.calibration.apply(test.probs) - 1))).groupby(test.clusters)
    how = {"mean": ["mean"] * 3, "largest": ["max", "max", "min"]}[fitted.cases.pooling]
    pooled = logits.agg(dict(enumerate(how))).to_numpy()
    truth = pd.DataFrame(test.labels).groupby(test.clusters).agg({0: "max", 1: "max", 2: "min"}).to_numpy()
    stored = run.read_json(run.metrics)["test"]["cases"]
    scores = {name: score["value"] for name, score in stored["scores"].items()}
    assert scores["exact_match_ratio"] == pytest.approx(sklearn.metrics.accuracy_score(truth, pooled >= 0))
    assert scores["auroc_macro"] == pytest.approx(sklearn.metrics.roc_auc_score(truth[:, :2], pooled[:, :2]))
    assert (stored["by"], stored["num_images"], stored["num_pictures"]) == ("cluster", len(truth), len(test))
    counts = pd.Series(test.clusters).groupby(test.clusters).size()
    by_count = [sklearn.metrics.roc_auc_score(truth[:, k], counts) for k in range(2)]
    assert stored["by_count"]["auroc_macro"]["value"] == pytest.approx(np.mean(by_count))
    assert "Ranked by their number of pictures alone, the cases have auroc_macro" in run.summary.read_text()
    assert set(stored["tried"]) == {"mean", "largest"} and stored["tried"] == fitted.cases.tried
    row = run.read_result()
    assert row["case"] == "cluster" and float(row["case_auroc_macro"]) == pytest.approx(scores["auroc_macro"])
    assert "cases" not in run.read_json(run.metrics)["val"]


@pytest.mark.parametrize("rule", ["f1", "exact_match"])
def test_thresholds_for_cases_are_chosen_on_validation_cases(tmp_path, rule):
    settings = ["evaluate.case=cluster", f"evaluate.thresholds={rule}"]
    run = make_run(tmp_path / "run", "multilabel", 0.5, settings=settings)
    stored, fitted = stored_predictions(run), read_fitted(run)
    cases = {name: pool_cases(stored.split(name), fitted.calibration, fitted.cases)[0] for name in ("val", "test")}
    val, test, found = cases["val"], cases["test"], fitted.cases.thresholds
    if rule == "f1":
        assert found == choose_thresholds(val.labels, val.probs, val.class_names)
    else:
        groups, more = val.rows["group"].to_numpy(), {"decode": val.task.decode, "exclusive": False}
        chosen = choose_whole_decisions(val.labels, val.probs, groups, val.class_names, rule, **more)
        assert (found.values, found.choice.chosen) == (chosen.values, chosen.choice.chosen)
    scores = run.read_json(run.metrics)["test"]["cases"]["scores"]
    decided = found.decide(test.task.decode, test.probs)
    assert scores["exact_match_ratio_tuned"]["value"] == sklearn.metrics.accuracy_score(test.labels, decided)
    assert scores["hamming_loss_tuned"]["value"] == pytest.approx(sklearn.metrics.hamming_loss(test.labels, decided))
    assert run.read_json(run.metrics)["test"]["cases"].keys().isdisjoint({"thresholds"})
    per_case = run.summary.read_text().partition("per cluster")[2].partition("\n\n")[0]
    assert "exact_match_ratio_tuned" in per_case and "hamming_loss_tuned" in per_case


def test_without_validation_predictions_no_other_cases_can_be_chosen(tmp_path):
    run = make_run(tmp_path / "run", "multilabel", 0.5)
    write_frame(run.predictions, pd.read_csv(run.predictions).query("split == 'test'"))
    with pytest.raises(RunError, match="holds no validation predictions, so evaluate.case cannot be fitted"):
        kmed.rescore(run.folder, ["evaluate.case=group"])


def test_cases_of_several_classes_are_left_out_and_counted(caplog):
    table, probs = draw_table(960)
    found, test, fitted = assessed(table, probs, "group")
    cases, mixed = pool_cases(test, fitted.calibration, fitted.cases)
    classes = pd.Series(test.labels.argmax(axis=1)).groupby(test.rows["group"].to_numpy()).nunique()
    assert list(cases.rows["path"][mixed]) == list(classes.index[classes > 1]) == list(found.cases.mixed) != []
    assert found.cases.scores.num_images == (classes == 1).sum()
    words = f"{mixed.sum()} are left out, because their pictures have different classes"
    assert words in describe_assessment(found, "test")
    few = test.take(np.isin(test.rows["group"], classes.index[classes > 1]))
    prior = count_prior(table.labels, table.class_names)
    with caplog.at_level("INFO", "kmed"):
        assert assess(few, prior, Bootstrap(50), fitted).cases is None
    assert "There are no scores per case (group): 0 cases of 0 cluster(s) are too few; " in caplog.text


def test_a_case_over_several_clusters_is_drawn_with_its_group():
    table, probs = draw_table()
    photos = table.with_columns(cluster=table.rows["photo"].to_numpy())
    _, test, fitted = assessed(photos, probs, "group")
    cases, _ = pool_cases(test, fitted.calibration, fitted.cases)
    assert list(cases.clusters) == list(cases.rows["group"]) == sorted(set(test.rows["group"]))
    _, test, fitted = assessed(photos, probs, "photo")
    assert list(pool_cases(test, fitted.calibration, fitted.cases)[0].clusters) == sorted(set(test.rows["case_photo"]))


def test_the_column_is_stored_and_read_again(tmp_path):
    table, probs = draw_table()
    made = make_predictions(table, probs, None, "photo")
    write_frame(tmp_path / "predictions.csv", made.to_frame())
    read = read_predictions(tmp_path / "predictions.csv", CLASSES, get_task("multiclass"))
    assert list(read.rows["case_photo"]) == list(table.rows["photo"])
    assert not [name for name in make_predictions(table, probs, None, "cluster").rows if name.startswith("case_")]


def test_a_run_is_scored_again_per_case(tmp_path):
    run = make_run(tmp_path / "run", "multilabel", 0.5)
    before = run.read_json(run.metrics)["test"]
    kmed.rescore(run.folder, ["evaluate.case=group"])
    after = run.read_json(run.metrics)["test"]
    assert after.pop("cases")["by"] == "group" and after == before
    kmed.rescore(run.folder, ["evaluate.case=none"])
    assert run.read_json(run.metrics)["test"] == before and "case" not in run.read_result()
    with pytest.raises(ConfigError, match="evaluate.case is 'study', but the stored .* pooled by cluster or group"):
        kmed.rescore(run.folder, ["evaluate.case=study"])
    assert run.read_json(run.metrics)["test"] == before and run.read_config().evaluate.case is None


def test_the_page_shows_each_score_per_case(tmp_path):
    gone = f"data.path={tmp_path / 'gone'}"
    run = make_run(tmp_path / "run", "multilabel", 0.5, settings=["evaluate.case=cluster", gone])
    page = write_report(run).read_text(encoding="utf-8")
    cases = json.loads(run.metrics.read_text())["test"]["cases"]
    for name in cases["scores"]:
        assert f'data-from="metrics.json#/test/cases/scores/{name}/value"' in page
    assert 'data-from="metrics.json#/test/cases/by_count/auroc_macro/value"' in page
    assert 'href="#cases"' in page and "ranks the validation cases better" in page
    plain = write_report(make_run(tmp_path / "plain", "multilabel", 0.5, settings=[gone]))
    assert 'href="#cases"' not in plain.read_text(encoding="utf-8")


def test_runs_are_compared_per_case_where_all_have_the_same_cases(tmp_path):
    case = ["evaluate.case=cluster"]
    runs = [
        make_run(tmp_path / name, "multilabel", skill, name, settings=case)
        for name, skill in (("vit", 0.3), ("resnet18", 0.7))
    ]
    found = comparing.compare_runs([run.folder for run in runs])
    stored = {run.read_config().model.name: run.read_json(run.metrics)["test"]["cases"]["scores"] for run in runs}
    pair = found.pairs[found.pairs["score"] == "case_auroc_macro"].iloc[0]
    gap = stored[pair["first"]]["auroc_macro"]["value"] - stored[pair["second"]]["auroc_macro"]["value"]
    assert pair["difference"] == pytest.approx(gap) and pair["low"] < gap < pair["high"]
    table = found.table.set_index("model")
    assert table.loc["vit", "case_exact_match_ratio"] == stored["vit"]["exact_match_ratio"]["value"]
    assert 0 < table.loc["constant: always 'No Finding'", "case_exact_match_ratio"] < 1
    comparing.write_files(found, tmp_path / "out")
    assert "case auroc macro" in (tmp_path / "out" / "comparison.md").read_text()
    page = comparison_page.write_comparison(found, tmp_path / "out").read_text(encoding="utf-8")
    assert "marks scores per cluster" in page
    other = make_run(tmp_path / "other", "multilabel", 0.5, "densenet121")
    mixed = comparing.compare_runs([runs[0].folder, other.folder])
    assert not [name for name in mixed.table if name.startswith("case_")] and mixed.runs[0].cases is None


@pytest.mark.parametrize(
    ("case", "error", "message"),
    [
        ("photos", ConfigError, "must be cluster, group or a column of the data. Received: 'photos'.* mean 'photo'"),
        ("empty", ConfigError, "evaluate.case: column 'empty' is empty for 240 images"),
        ("class", ScoreError, "must lie inside one group, but 3 of evaluate.case=class lie in several, such as '0'"),
    ],
)
def test_cases_that_cannot_be_are_refused_before_training(case, error, message):
    table, _ = draw_table()
    more = {"empty": "", "class": table.labels.argmax(axis=1).astype(str)}
    table = table.with_columns(**{name: np.broadcast_to(value, 240).copy() for name, value in more.items()})
    with pytest.raises(error, match=message) as caught:
        check_columns(table.rows, EvaluateConfig(case=case))
    assert "\n" not in str(caught.value)
    check_columns(table.rows, EvaluateConfig(case="photo"))
    with pytest.raises(ConfigError, match="evaluate.subgroups names the column 'age'"):
        check_columns(table.rows, EvaluateConfig(subgroups=["age"]))


def test_a_damaged_rule_is_one_line(tmp_path):
    run = make_run(tmp_path / "run", "multilabel", 0.5, settings=["evaluate.case=cluster"])
    content = json.loads(run.fitted.read_text())
    content["cases"]["pooling"] = "median"
    run.fitted.write_text(json.dumps(content))
    with pytest.raises(RunError, match="cases.pooling must be 'mean' or 'largest'. Received: 'median'"):
        read_fitted(run)
