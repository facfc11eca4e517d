"""Scoring a run again: from its predictions alone, without weights, and without what was not kept."""

import pandas as pd
import pytest
from click.testing import CliRunner
from drawn_runs import make_run

import kmed
from kmed.cli.main import main
from kmed.errors import RunError

WRITTEN = ("metrics.json", "calibration.json", "result.csv", "summary.txt", "config.yaml")


def contents(run):
    return {name: (run.folder / name).read_text(encoding="utf-8") for name in WRITTEN}


def keep_split(run, split):
    """Leaves the predictions of one split, as scripts/keep_runs.py does."""
    predictions = pd.read_csv(run.predictions, dtype=str, keep_default_na=False)
    predictions[predictions["split"] == split].to_csv(run.predictions, index=False)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_no_weights_are_needed(tmp_path, task):
    run = make_run(tmp_path / "run", task)
    before = contents(run)
    run.model.unlink()
    kmed.rescore(run.folder)
    assert contents(run) == before
    kmed.rescore(run.folder, ["evaluate.thresholds=youden"])
    assert run.read_json(run.fitted)["thresholds"]["rule"] == "youden"


def test_the_command_draws_the_page_of_a_run_without_weights_pictures_and_splits(tmp_path):
    run = make_run(tmp_path / "run", settings=[f"data.path={tmp_path / 'gone'}"])
    run.model.unlink()
    done = CliRunner().invoke(main, ["evaluate", str(run.folder), "--rescore", "--set", "evaluate.coverage=0.8"])
    assert done.exit_code == 0, done.output
    assert f"Report: {run.report}" in done.output
    assert "to hold 80% of the true labels" in run.summary.read_text()
    page = run.report.read_text(encoding="utf-8")
    assert "The pictures cannot be shown: " in page and "no longer holds splits.csv" in page


def test_an_unfinished_run_is_not_scored_again(tmp_path):
    run = make_run(tmp_path / "run")
    run.result.unlink()
    with pytest.raises(RunError, match="it is not finished. Finish it with: kmed train --resume"):
        kmed.rescore(run.folder)


def test_without_validation_predictions_what_was_fitted_stays(tmp_path):
    run = make_run(tmp_path / "run", "multilabel")
    before, fitted, row = run.read_json(run.metrics), run.fitted.read_text(), run.read_result()
    keep_split(run, "test")
    kmed.rescore(run.folder)
    assert run.read_json(run.metrics) == before  # that of validation too
    assert run.fitted.read_text() == fitted and run.read_result() == row
    kmed.rescore(run.folder, ["evaluate.num_resamples=50"])
    assert run.read_json(run.metrics)["test"]["num_resamples"] == 50
    assert run.read_json(run.metrics)["val"] == before["val"]
    written = contents(run)
    with pytest.raises(RunError, match="no validation predictions, so evaluate.thresholds cannot be fitted"):
        kmed.rescore(run.folder, ["evaluate.thresholds=youden"])
    keep_split(run, "none")
    with pytest.raises(RunError, match="no validation predictions, so the calibration cannot be fitted"):
        kmed.rescore(run.folder)
    assert contents(run) == written


def test_a_run_without_counts_of_its_training_labels_is_one_line(tmp_path):
    run = make_run(tmp_path / "run")
    run.metrics.write_text("{}")
    with pytest.raises(RunError, match="does not hold the counts of the training labels"):
        kmed.rescore(run.folder)
