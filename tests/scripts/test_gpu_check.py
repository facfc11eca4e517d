"""scripts/gpu_check.py: a run is interrupted and resumed, what fails is named, and speeds are counted."""

import pandas as pd
import pytest
from click.testing import CliRunner

SMALL = ["--models", "vit", "--image-size", "16x16", "--batch-size", "256", "--steps", "10", "--epochs", "12"]


@pytest.fixture
def check(script):
    return script("gpu_check")


@pytest.mark.slow
def test_one_model_from_training_to_its_export(check, tmp_path):
    ran = CliRunner().invoke(check.main, [*SMALL, "--out", str(tmp_path / "rows.csv")], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    rows = pd.read_csv(tmp_path / "rows.csv").set_index("check")
    done = ["train, interrupted", "resume", "evaluate", *(f"export {name}" for name in check.FORMATS), "steps, kmed"]
    assert list(rows.index) == done and set(rows["outcome"]) == {"ok"}
    assert (rows.loc[["resume", "steps, kmed"], "images_per_second"] > 0).all()


def test_what_fails_is_named(check, tmp_path):
    failed = check.kmed_command("evaluate", str(tmp_path / "nothing"))
    row = check.row("evaluate", failed)
    assert row["outcome"].startswith(f"exit code {failed.code}: ") and "nothing" in row["outcome"]
    assert failed.code in (1, 2) and row["required"]


def test_a_run_that_ends_before_it_is_interrupted_is_no_success(check, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "kmed_command", lambda *_, **__: check.Outcome(0, "done\n", 1.0))
    first = check.check_model("vit", tmp_path / "a.npz", tmp_path / "run", [])[0]
    assert (first["check"], first["outcome"]) == ("train, interrupted", "exit code 0: done")


def test_one_epoch_cannot_be_interrupted(check):
    refused = CliRunner().invoke(check.main, ["--epochs", "1"])
    assert refused.exit_code == 2 and "must be at least 2" in refused.output
