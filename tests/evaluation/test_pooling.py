"""Pooled out-of-fold predictions: their scores are those of scikit-learn on the joined arrays."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as oracle
from drawn_runs import make_run

from kmed.errors import RunError
from kmed.evaluation import comparison as comparing
from kmed.evaluation.decisions import read_fitted
from kmed.evaluation.pooling import Part, part_name, pool, score_pooled_cases, spread, write_pooled
from kmed.evaluation.predictions import read_predictions, stored_predictions
from kmed.files import write_frame, write_json
from kmed.metrics.baselines import Prior
from kmed.metrics.intervals import Bootstrap
from kmed.metrics.thresholds import choose_thresholds
from kmed.report.crossval_page import write_crossval_report
from kmed.runs import CROSSVAL, Run
from kmed.schemas.records import stamped

FOLDS = 3


def make_parts(folder, task, repeats=1):
    """Returns the runs of a cross-validation: each keeps the test pictures of its own patients."""
    parts = []
    for repeat in range(repeats):
        for fold in range(FOLDS):
            name = part_name(repeat, fold, repeats)
            run = make_run(folder / name, task, seed=10 * repeat + fold, settings=["evaluate.case=cluster"])
            frame = pd.read_csv(run.predictions)
            own = (frame["group"] + repeat) % FOLDS == fold
            write_frame(run.predictions, frame[own | (frame["split"] == "val")])
            parts.append(Part(repeat, fold, run))
    return parts


@pytest.fixture(scope="module", params=[("multiclass", 1), ("multilabel", 2)], ids=["multiclass", "multilabel"])
def pooled(request, tmp_path_factory):
    """(folder, parts, assessment) of a cross-validation."""
    task, repeats = request.param
    folder = tmp_path_factory.mktemp("pooled")
    parts = make_parts(folder, task, repeats)
    run = Run(folder)
    write_json(run.environment, stamped(json.loads(environment())))
    return run, parts, write_pooled(run, parts, "test", parts[0].run.read_config())


def environment():
    return json.dumps(
        {"device": "none", "backend": "none", "platform": "none", "versions": {}, "command": "kmed crossval"}
    )


def test_scores_equal_scikit_learns_on_the_joined_arrays(pooled):
    run, parts, assessment = pooled
    tested = [pd.read_csv(part.run.predictions).query("split == 'test'") for part in parts]
    frame = pd.concat(tested)
    names = [name.removeprefix("prob_") for name in frame.columns if name.startswith("prob_")]
    labels, probs = (frame[[f"{kind}_{name}" for name in names]].to_numpy() for kind in ("label", "prob"))
    scores = {name: score.value for name, score in assessment.scores.scores.items()}
    if assessment.task.exclusive:
        truth, decided = labels.argmax(axis=1), probs.argmax(axis=1)
        expected = {
            "accuracy": oracle.accuracy_score(truth, decided),
            "f1_macro": oracle.f1_score(truth, decided, average="macro"),
            "auroc_macro": oracle.roc_auc_score(labels, probs, average="macro"),
        }
    else:
        findings = [k for k, name in enumerate(names) if name != "No Finding"]
        expected = {
            "exact_match_ratio": oracle.accuracy_score(labels, probs >= 0.5),
            "hamming_loss": oracle.hamming_loss(labels, probs >= 0.5),
            "auroc_macro": oracle.roc_auc_score(labels[:, findings], probs[:, findings], average="macro"),
        }
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-12)
    stored = json.loads(run.metrics.read_text())["test"]
    assert stored["scores"]["auroc_macro"]["value"] == scores["auroc_macro"]
    assert stored["num_images"] == len(frame) and stored["num_clusters"] == frame["cluster"].nunique()


def test_calibration_and_thresholds_are_those_of_the_other_folds(pooled):
    run, parts, assessment = pooled
    frames, task, names = [], assessment.task, tuple(assessment.scores.per_class)
    judged = [stored_predictions(part.run).split("test") for part in parts]
    for part, own in zip(parts, judged, strict=True):
        rest = [each for other, each in zip(parts, judged) if other.repeat == part.repeat and other is not part]
        arrays = (np.concatenate([getattr(each, name) for each in rest]) for name in ("labels", "probs"))
        labels, probs = arrays
        decided = task.decode(own.probs, np.array(choose_thresholds(labels, probs, names).values))
        calibrated = task.fit_calibration(labels, probs, names).apply(own.probs)
        frames.append((own.labels, decided, calibrated))
    labels, decided, calibrated = (np.concatenate(each) for each in zip(*frames))
    scores = {name: score.value for name, score in assessment.scores.scores.items()}
    brier = ((calibrated - labels) ** 2).sum(axis=1).mean() / (1 if task.exclusive else len(names))
    assert scores["brier_calibrated"] == pytest.approx(brier)
    if task.exclusive:
        assert scores["accuracy_tuned"] == oracle.accuracy_score(labels.argmax(axis=1), decided.argmax(axis=1))
    else:
        assert scores["exact_match_ratio_tuned"] == oracle.accuracy_score(labels, decided)
    assert "fitted to the out-of-fold predictions of the other folds" in run.summary.read_text()
    assert json.loads(run.metrics.read_text())["test"]["scores"]["brier_calibrated"]["value"] == pytest.approx(brier)


def test_compared_with_validation_splits_its_pictures_are_those_judged_out_of_fold(pooled, tmp_path):
    run, parts, assessment = pooled
    folders = [shutil.copytree(run.folder, tmp_path / name) for name in ("one", "two")]
    for folder in folders:
        (folder / CROSSVAL).write_text("{}")
    for split in ("val", "test"):
        comparison = comparing.compare_runs(folders, split=split)
        for compared in comparison.runs:
            assert compared.scores.num_images == assessment.scores.num_images
            for name, score in assessment.scores.scores.items():  # those of calibration and thresholds too
                assert compared.scores.scores[name].value == pytest.approx(score.value, nan_ok=True), name
        assert (comparison.pairs["difference"].dropna() == 0).all()


def test_scores_per_case_pool_what_each_run_has_calibrated(pooled):
    run, parts, assessment = pooled
    truth, right, exclusive = [], [], assessment.task.exclusive
    for part in parts:
        own, fitted = stored_predictions(part.run).split("test"), read_fitted(part.run)
        logits = np.log(np.maximum(fitted.calibration.apply(own.probs), 1e-30))
        for cluster in set(own.clusters):
            rows = own.clusters == cluster
            if exclusive and len(set(own.labels[rows].argmax(axis=1))) > 1:
                continue
            truth.append(cluster)
            if exclusive:
                right.append(logits[rows].mean(axis=0).argmax() == own.labels[rows][0].argmax())
    scored = json.loads(run.metrics.read_text())["test"]["cases"]
    assert scored["num_images"] == len(truth) and scored["num_clusters"] == len(set(truth))
    assert scored["pooling"] in {fitted_pooling(part.run) for part in parts}
    if exclusive:
        assert scored["scores"]["accuracy"]["value"] == pytest.approx(np.mean(right))
    else:
        assert scored["by"] == "cluster in each repeat"
    assert pd.read_csv(run.result)["case_auroc_macro"].iloc[0] == scored["scores"]["auroc_macro"]["value"]
    predictions = read_predictions(run.predictions, assessment.scores.per_class.keys(), assessment.task)
    again = score_pooled_cases(
        run, predictions, Prior.from_dict(json.loads(run.metrics.read_text())["training"]), Bootstrap(100)
    )
    assert again.scores.scores["auroc_macro"].value == pytest.approx(scored["scores"]["auroc_macro"]["value"])
    assert 'id="cases"' in write_crossval_report(run).read_text()


def fitted_pooling(run):
    return read_fitted(run).cases.pooling


def test_predictions_have_a_runs_columns_and_the_fold(pooled):
    run, parts, assessment = pooled
    first = stored_predictions(parts[0].run)
    frame = pd.read_csv(run.predictions)
    assert list(frame.columns) == [*pd.read_csv(parts[0].run.predictions).columns, "repeat", "fold"]
    read = read_predictions(run.predictions, first.class_names, first.task)
    assert set(zip(read.rows["repeat"], read.rows["fold"])) == {(str(part.repeat), str(part.fold)) for part in parts}
    for part in parts:
        own = (read.rows["repeat"] == str(part.repeat)) & (read.rows["fold"] == str(part.fold))
        np.testing.assert_array_equal(read.take(own.to_numpy()).probs, stored_predictions(part.run).split("test").probs)


def test_the_row_has_the_spread_of_the_folds(pooled):
    run, parts, assessment = pooled
    table = pd.read_csv(run.folder / "fold_scores.csv")
    row = pd.read_csv(run.result).iloc[0]
    values = [json.loads(part.run.metrics.read_text())["test"]["scores"]["auroc_macro"]["value"] for part in parts]
    assert table["auroc_macro"].tolist() == pytest.approx(values)
    assert row["auroc_macro_folds_mean"] == pytest.approx(np.mean(values))
    assert row["auroc_macro_folds_std"] == pytest.approx(np.std(values, ddof=1))
    assert (row["auroc_macro_folds_min"], row["auroc_macro_folds_max"]) == pytest.approx((min(values), max(values)))
    assert row["auroc_macro"] == pytest.approx(assessment.scores.scores["auroc_macro"].value)
    assert (
        row["folds"] == FOLDS
        and row["minutes"] == pytest.approx(1.5 * len(parts))
        and row["command"] == "kmed crossval"
    )
    assert "best epoch was chosen on the fold" not in run.summary.read_text()
    assert np.isnan(spread(table.head(1), assessment.task)["auroc_macro_folds_std"])


def test_the_page_shows_all_pictures_and_every_fold(pooled):
    run, parts, assessment = pooled
    text = write_crossval_report(run).read_text()
    assert f"{len(parts)} models, " in text and f'data-from="fold_scores.csv#/{len(parts) - 1}/auroc_macro"' in text
    assert 'data-from="result.csv#/auroc_macro_folds_std"' in text and "slightly too high" not in text
    assert ("repeat 1, fold 2" in text) == (len(parts) > FOLDS)


def test_folds_that_overlap_or_lack_predictions_are_refused(tmp_path):
    parts = make_parts(tmp_path, "multiclass")
    with pytest.raises(RunError, match="Two runs of one repeat judge '.*': their folds overlap"):
        pool([*parts, Part(0, 7, parts[0].run)], "test")
    assert len(pool([*parts, Part(1, 0, parts[0].run)], "test")) > len(pool(parts, "test"))
    frame = pd.read_csv(parts[1].run.predictions)
    write_frame(parts[1].run.predictions, frame[frame["split"] == "val"])
    with pytest.raises(RunError, match="holds no predictions of split 'test'"):
        pool(parts, "test")
    other = Part(0, 1, make_run(tmp_path / "other", "multiclass", names=("x", "y", "z")))
    with pytest.raises(RunError, match=r"has the classes \['x', 'y', 'z'\], but .* has \['a', 'b', 'c'\]"):
        pool([parts[0], other], "test")
