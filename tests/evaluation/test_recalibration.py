"""A recalibrated run is a run like any other: it predicts, is evaluated and scored again, and knows its source."""

import dataclasses
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from drawn_hospitals import draw_hospital

import kmed
from kmed.cli.main import main
from kmed.errors import RunError
from kmed.evaluation import recalibration
from kmed.evaluation.decisions import read_fitted
from kmed.evaluation.lineage import trained_pictures
from kmed.runs import Run


@pytest.fixture(scope="module")
def made(short_run, tmp_path_factory):
    """(the source, the recalibrated run, the local pictures). Do not change them."""
    folder = tmp_path_factory.mktemp("recalibrated")
    source = Run(shutil.copytree(short_run.folder, folder / "source"))
    hospital = draw_hospital(folder / "hospital", names=("crimson", "green", "blue"), patients=24)
    before = {path: path.read_bytes() for path in source.folder.rglob("*") if path.is_file()}
    arguments = ["recalibrate", str(source.folder), "--on", str(hospital), "--out", str(folder / "here")]
    done = CliRunner().invoke(main, [*arguments, "--map", "crimson=red"])
    assert done.exit_code == 0, done.output
    assert before == {path: path.read_bytes() for path in source.folder.rglob("*") if path.is_file()}
    assert "Recalibrated (labels): calibration and thresholds, with the labels of 12 groups" in done.output
    return source, Run(folder / "here"), hospital


def test_its_splits_are_the_two_parts_of_the_sample(made):
    source, run, _ = made
    splits, predictions = run.read_splits(), pd.read_csv(run.predictions)
    assert set(splits["split"]) == {"val", "test"} and len(splits) == 48
    assert not set(splits["group"][splits["split"] == "val"]) & set(splits["group"][splits["split"] == "test"])
    assert predictions["split"].value_counts().to_dict() == splits["split"].value_counts().to_dict()
    assert run.model.read_bytes() == source.model.read_bytes()
    fitted, before = read_fitted(run), read_fitted(source)
    assert fitted.calibration.temperature != before.calibration.temperature
    record = run.read_json(run.recalibration)
    assert record["method"] == "labels" and record["groups"] == {"fit": 12, "check": 12}
    assert {"brier_calibrated", "ece_calibrated", "accuracy_tuned"} <= set(record["gains"])
    assert (run.folder / record["source"]).resolve() == source.folder.resolve()


def test_it_is_evaluated_predicts_and_knows_what_it_was_trained_on(made):
    source, run, hospital = made
    stored = run.read_json(run.metrics)["test"]["scores"]
    scores = kmed.evaluate(run.folder).scores  # on the part that nothing was fitted to, with the class map
    assert scores["brier_calibrated"].value == pytest.approx(stored["brier_calibrated"]["value"], abs=1e-6)
    assert set(trained_pictures(run)["path"]) == set(trained_pictures(source)["path"])
    picture = next((hospital / "green").rglob("*.png"))
    answers = [next(iter(kmed.classify_files(each.folder, [picture]))) for each in (source, run)]
    probs = [np.array([list(answer.probs.values())]) for answer in answers]
    raw = read_fitted(source).calibration.invert(probs[0])
    np.testing.assert_allclose(read_fitted(run).calibration.apply(raw), probs[1], atol=1e-4)
    assert run.report.exists() and "Recalibrated (labels)" in run.report.read_text()


def test_scoring_again_keeps_what_was_fitted(made, tmp_path):
    run = Run(shutil.copytree(made[1].folder, tmp_path / "copy"))
    fitted = run.fitted.read_text()
    kmed.rescore(run.folder, ["evaluate.num_resamples=20"])
    assert run.fitted.read_text() == fitted
    assert "Recalibrated" in run.summary.read_text()
    with pytest.raises(RunError, match="was recalibrated, so evaluate.thresholds cannot be changed by scoring again"):
        kmed.rescore(run.folder, ["evaluate.thresholds=youden"])


def test_without_labels_the_shares_are_found_and_the_assumption_is_named(made, tmp_path):
    source, _, hospital = made
    run = kmed.recalibrate(
        source.folder, on=hospital, out=tmp_path / "prior", method="prior", class_map={"crimson": "red"}, copies="none"
    )
    record = run.read_json(run.recalibration)
    assert "only the shares differ" in record["assumption"] and record["curve"] is None
    assert sum(record["shares"]["found"].values()) == pytest.approx(1)
    assert "It assumes that each class looks here as it does at home" in run.summary.read_text()
    assert kmed.evaluate(run.folder).scores["accuracy"].value == pytest.approx(
        run.read_json(run.metrics)["test"]["scores"]["accuracy"]["value"]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "guess"], "method must be labels or prior. Received: 'guess'"),
        (["--fit-fraction", "1.5"], "fit_fraction must be between 0 and 1. Received: 1.5"),
        (["--set", "evaluate.views=flips"], "With --on, --set takes settings of data"),
        (["--set", "data.image_size=9x9"], "With --on, --set takes settings of data"),
        ([], "class names that the model does not know .1.: crimson"),
    ],
)
def test_what_does_not_fit_is_one_line_and_writes_nothing(made, tmp_path, options, message):
    arguments = ["recalibrate", str(made[0].folder), "--on", str(made[2]), "--out", str(tmp_path / "out"), *options]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code in (1, 2) and isinstance(done.exception, SystemExit)
    assert re.search(message, done.output), done.output
    assert not (tmp_path / "out").exists()


def test_pictures_that_the_source_knows_are_named(made, tmp_path):
    fitted = recalibration.fit_to_sample(made[0].folder, made[2], class_map=["crimson=red"], copies="none")
    assert not (made[1].folder / "seen.csv").exists()
    known = {"path": "green/copy.png", "label": "green", "found": "one photograph", "known": "7", "split": "train"}
    seen = dataclasses.replace(fitted.foreign.seen, rows=pd.DataFrame([known]))
    fitted = dataclasses.replace(fitted, foreign=dataclasses.replace(fitted.foreign, seen=seen))
    run = recalibration.write_run(fitted, tmp_path / "out")
    assert (run.folder / "seen.csv").read_text().splitlines()[1] == "green/copy.png,green,one photograph,7,train"


def test_a_folder_that_is_taken_is_left_alone(made):
    source, run, hospital = made
    done = CliRunner().invoke(
        main, ["recalibrate", str(source.folder), "--on", str(hospital), "--out", str(run.folder)]
    )
    assert done.exit_code == 1 and "holds another run" in done.output


def test_nothing_is_left_of_a_run_that_could_not_be_written(made, tmp_path, monkeypatch):
    def fail(*_):
        raise RunError("The disk is full.")

    monkeypatch.setattr(recalibration, "write_figures", fail)
    with pytest.raises(RunError, match="disk is full"):
        kmed.recalibrate(
            made[0].folder, on=made[2], out=tmp_path / "out", class_map=["crimson=red"], copies="none"
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_an_ensemble_is_recalibrated_like_its_member(made, tmp_path):
    """An ensemble of one answers as its member does, and keeps its record of members from its new place."""
    source, single, hospital = made
    kmed.ensemble([source.folder], out=tmp_path / "one")
    run = kmed.recalibrate(tmp_path / "one", on=hospital, out=tmp_path / "deep" / "here", class_map=["crimson=red"])
    assert read_fitted(run).calibration.temperature == pytest.approx(
        read_fitted(single).calibration.temperature, rel=1e-4
    )
    member = run.read_json(run.ensemble)["members"][0]
    assert (run.folder / member["path"]).resolve() == source.folder.resolve()
    assert set(trained_pictures(run)["path"]) == set(trained_pictures(source)["path"])
    stored = run.read_json(run.metrics)["test"]["scores"]
    scores = kmed.evaluate(run.folder).scores
    assert scores["brier_calibrated"].value == pytest.approx(stored["brier_calibrated"]["value"], abs=1e-6)
    answer = next(iter(kmed.classify_files(run.folder, [next((hospital / "green").rglob("*.png"))])))
    assert sum(answer.probs.values()) == pytest.approx(1)
