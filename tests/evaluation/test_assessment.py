"""Predictions are stored and read again, decisions are fitted on validation alone, every subgroup is scored."""

import json

import numpy as np
import pandas as pd
import pytest

from kmed.config import EvaluateConfig
from kmed.data.table import Table
from kmed.errors import RunError, ScoreError
from kmed.evaluation.assessment import assess
from kmed.evaluation.decisions import Fitted, fit_on_validation
from kmed.evaluation.predictions import make_predictions, read_predictions
from kmed.evaluation.summary import describe_assessment
from kmed.files import write_json
from kmed.metrics.baselines import count_prior
from kmed.metrics.intervals import Bootstrap
from kmed.tasks import get_task

NAMES = {"multilabel": ("Mass", "Edema", "No Finding"), "multiclass": ("a", "b", "c")}
SETTINGS = EvaluateConfig(num_resamples=60)
BOOTSTRAP = Bootstrap(num_resamples=60)


def draw(task="multilabel", seed=0, num_images=240):
    """Returns (table with splits and metadata, probs) of a model that has learnt something."""
    rng = np.random.default_rng(seed)
    if task == "multilabel":
        findings = rng.random((num_images, 2)) < [0.3, 0.2]
        labels = np.column_stack([findings, ~findings.any(axis=1)]).astype(np.float32)
        probs = np.clip(0.15 + 0.6 * labels + rng.normal(0, 0.15, labels.shape), 0, 1)
        labels[rng.random(labels.shape) < 0.05] = np.nan
    else:
        labels = np.eye(3, dtype=np.float32)[rng.integers(0, 3, num_images)]
        probs = labels + rng.uniform(0.2, 1.0, labels.shape)
        probs /= probs.sum(axis=1, keepdims=True)
    patients = rng.integers(0, 60, num_images)
    rows = pd.DataFrame(
        {
            "path": [f"{index:04d}.png" for index in range(num_images)],
            "group": [f"p{patient}" for patient in patients],
            "cluster": [f"p{patient}" for patient in patients],
            "split": np.where(patients < 30, "val", "test"),
            "Patient Gender": np.where(patients % 2, "M", "F"),
            "Patient Age": [f"{20 + patient:03d}Y" for patient in patients],
            "View Position": np.where(patients == 45, "LL", "PA"),
        }
    )
    return Table(rows, labels, NAMES[task], task, "drawn"), probs


@pytest.fixture(params=["multiclass", "multilabel"])
def task(request):
    return request.param


def assessment_of(task):
    table, probs = draw(task)
    predictions = make_predictions(table, probs)
    fitted = fit_on_validation(predictions.split("val"), SETTINGS)
    prior = count_prior(table.labels, table.class_names)
    return assess(predictions.split("test"), prior, BOOTSTRAP, fitted)


def test_predictions_are_read_back_to_the_last_digit(task, tmp_path):
    table, probs = draw(task)
    made = make_predictions(table, probs)
    made.to_frame().to_csv(tmp_path / "predictions.csv", index=False)
    read = read_predictions(tmp_path / "predictions.csv", NAMES[task], get_task(task))
    np.testing.assert_array_equal(read.labels, made.labels)
    np.testing.assert_array_equal(read.probs, made.probs)
    pd.testing.assert_frame_equal(read.rows, made.rows.astype(str))
    assert set(read.subgroups) == {"Patient Gender", "Patient Age", "View Position"}


def test_predictions_of_other_classes_are_refused(tmp_path):
    table, probs = draw()
    make_predictions(table, probs).to_frame().to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(RunError, match="cannot be read as predictions of Mass, Hernia"):
        read_predictions(tmp_path / "p.csv", ["Mass", "Hernia"], get_task("multilabel"))
    with pytest.raises(RunError, match="cannot be read"):
        read_predictions(tmp_path / "none.csv", ["Mass"], get_task("multilabel"))


def test_the_table_reads_well(task):
    table, probs = draw(task)
    frame = make_predictions(table, probs).to_frame()
    first = list(frame.columns)[:6]
    assert first == ["path", "split", "group", "cluster", "label", "predicted"]
    held = [name for name, value in zip(NAMES[task], table.labels[0]) if value == 1]
    assert frame["label"].iloc[0] == "|".join(held)


def test_nothing_is_fitted_on_the_test_split(task):
    table, probs = draw(task)
    predictions = make_predictions(table, probs)
    first = fit_on_validation(predictions.split("val"), SETTINGS)
    in_test = (table.rows["split"] == "test").to_numpy()
    other = make_predictions(table, np.where(in_test[:, None], probs[::-1], probs))
    assert fit_on_validation(other.split("val"), SETTINGS).to_dict() == first.to_dict()


def test_what_was_fitted_survives_json(task, tmp_path):
    table, probs = draw(task)
    fitted = fit_on_validation(make_predictions(table, probs).split("val"), SETTINGS)
    write_json(tmp_path / "calibration.json", fitted.to_dict())
    stored = json.loads((tmp_path / "calibration.json").read_text())
    again = Fitted.from_dict(stored, NAMES[task])
    assert again.to_dict() == fitted.to_dict()
    np.testing.assert_array_equal(again.calibration.apply(probs), fitted.calibration.apply(probs))
    with pytest.raises(ScoreError, match="for other labels"):
        Fitted.from_dict(stored, ["x", "y", "z"])


def test_everything_is_reported(task, tmp_path):
    assessment = assessment_of(task)
    write_json(tmp_path / "metrics.json", assessment.to_dict())
    stored = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("brier", "brier_calibrated", "ece", "f1_macro_tuned", "auroc_macro", "average_precision_macro"):
        assert stored["scores"][name]["low"] is not None
    assert stored["verdict"]["learnt"] is True
    assert stored["prediction_sets"]["wanted"] == 0.9
    assert len(stored["risk_coverage"]["risk"]) == len(stored["risk_coverage"]["coverage"])
    assert set(stored["subgroups"]["Patient Gender"]) == {"F", "M"}
    assert stored["subgroups_too_small"] == ["View Position = LL"]  # one patient
    images = [part["num_images"] for part in stored["subgroups"]["Patient Gender"].values()]
    assert sum(images) == stored["num_images"]
    lines = describe_assessment(assessment, "test")
    for word in ("label prevalence", "Patient Gender", "Prediction sets", assessment.verdict.sentence, "_tuned"):
        assert word in lines


def test_subgroups_are_scored_as_their_pictures_alone(task):
    table, probs = draw(task)
    predictions = make_predictions(table, probs).split("test")
    fitted = fit_on_validation(make_predictions(table, probs).split("val"), SETTINGS)
    prior = count_prior(table.labels, table.class_names)
    whole = assess(predictions, prior, BOOTSTRAP, fitted)
    women = predictions.take((predictions.rows["subgroup_Patient Gender"] == "F").to_numpy())
    alone = assess(women, prior, BOOTSTRAP, fitted)
    assert whole.subgroups["Patient Gender"]["F"].scores["brier"] == alone.scores.scores["brier"]


def test_better_calibrated_than_before_on_test(task):
    scores = assessment_of(task).scores.scores
    assert scores["ece_calibrated"].value < scores["ece"].value


def test_validation_itself_has_no_tuned_scores(task):
    table, probs = draw(task)
    prior = count_prior(table.labels, table.class_names)
    assessment = assess(make_predictions(table, probs).split("val"), prior, BOOTSTRAP)
    assert assessment.sets is None
    assert not [name for name in assessment.scores.scores if "_tuned" in name or "_calibrated" in name]


def test_one_cluster_cannot_be_assessed(task):
    table, probs = draw(task)
    predictions = make_predictions(table, probs)
    one = predictions.take((predictions.rows["cluster"] == "p40").to_numpy())
    with pytest.raises(ScoreError, match=r"pictures of 1 cluster\(s\)"):
        assess(one, count_prior(table.labels, table.class_names), BOOTSTRAP)
