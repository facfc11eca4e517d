"""Scoring a run again: from its predictions alone, without weights, and without what was not kept."""

import errno
import pathlib

import pandas as pd
import pytest
from click.testing import CliRunner
from drawn_runs import make_run

import kmed
from kmed.cli.main import main
from kmed.errors import RunError

KINDS = ("confusion", "reliability", "risk_coverage")
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
    with pytest.raises(RunError, match="metrics.json: training is missing"):
        kmed.rescore(run.folder)


# What draws, and the files that are then missing: those of the run folder, or the whole page if it cannot be written.
DRAWN = {
    "figures.plot_history": ("figures/history.png",),
    "figures.plot_confusion": ("figures/confusion_val.png", "figures/confusion_test.png"),
    "figures.plot_reliability": ("figures/reliability_val.png", "figures/reliability_test.png"),
    "figures.plot_risk_coverage": ("figures/risk_coverage_val.png", "figures/risk_coverage_test.png"),
    "report.run_page.render_page": ("report.html",),
    "report.run_page.inline_figure": ("report.html",),
    "report.run_page.count_splits": ("report.html",),
}
ON_THE_PAGE = ("figures.plot_history", "figures.plot_reliability", "figures.plot_risk_coverage")
ERRORS = [ValueError("a bad\nlabel"), MemoryError(), RuntimeError("no font"), OSError(errno.ENOSPC, "No space left")]


@pytest.mark.parametrize("number", range(len(DRAWN)))
def test_what_cannot_be_drawn_is_one_warning_and_the_scores_are_kept(tmp_path, monkeypatch, number):
    run = make_run(tmp_path / "run", settings=[f"data.path={tmp_path / 'gone'}"])
    drawn = ["figures/history.png", *(f"figures/{kind}_{split}.png" for kind in KINDS for split in ("val", "test"))]
    for name in drawn:
        (run.folder / name).parent.mkdir(exist_ok=True)
        (run.folder / name).write_bytes(b"of other scores")
    run.report.write_text("of other scores")
    before = {name: (run.folder / name).stat().st_ino for name in WRITTEN}
    place, missing = list(DRAWN.items())[number]
    missing = {*missing, *(["report.html"] if place in ON_THE_PAGE else [])}
    error = ERRORS[number % len(ERRORS)]

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(f"kmed.{place}", fail)
    done = CliRunner().invoke(main, ["evaluate", str(run.folder), "--rescore"])
    assert done.exit_code == 0, done.output
    assert {name for name in (*drawn, "report.html") if not (run.folder / name).exists()} == missing
    warnings = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    assert len(warnings) == len(missing)
    for name in missing:
        (line,) = [line for line in warnings if f"{run.folder / name} was not made" in line]
        assert type(error).__name__ in line or "disk is full" in line
        again = f"kmed report {run.folder}" if name == "report.html" else f"kmed evaluate {run.folder} --rescore"
        assert line.endswith(f"again with: {again}")
    assert all((run.folder / name).stat().st_ino != inode for name, inode in before.items())  # all written anew
    assert not [path for path in run.folder.rglob("*") if ".tmp" in path.name]


def test_a_full_disk_costs_only_the_figures(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")

    def full(figure, path, **_):
        pathlib.Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert kmed.rescore(run.folder).read_result() == run.read_result()
    assert not list(run.figures.glob("*")) and not list(run.figures.glob(".*"))
