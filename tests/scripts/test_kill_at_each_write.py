"""Commands that are killed at their writes, and then run again: with a stand-in for the training, which is quick.

`scripts/kill_at_each_write.py` does the same with real trainings and all commands.
"""

import dataclasses
import pathlib

import numpy as np
import pytest
from drawn_runs import contents
from PIL import Image

from kmed.data.images import Resizing
from kmed.data.readers.load import load_table
from kmed.data.readers.npz import pack
from kmed.files import replacing, write_text
from kmed.training import fit, loop

RESULTS = ("predictions.csv", "calibration.json", "metrics.json", "summary.txt", "result.csv")


@pytest.fixture
def kill(script, monkeypatch):
    """scripts/kill_at_each_write.py, for commands that never use TensorFlow."""
    monkeypatch.setattr("kmed.training.recipe.load_backend", lambda: None)
    return script("kill_at_each_write")


@pytest.fixture
def material(tmp_path):
    """A folder with pictures of two classes, twelve patients each."""
    rng = np.random.default_rng(0)
    for row in range(48):
        path = tmp_path / "material" / "pictures" / ("red", "green")[row % 2] / f"patient{row // 2:02d}_{row % 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 200, (20, 24, 3)).astype(np.uint8)).save(path)
    pack(load_table(tmp_path / "material" / "pictures"), tmp_path / "material" / "data.npz", Resizing((16, 16)))
    return tmp_path / "material"


@pytest.fixture
def quick(monkeypatch):
    """Training takes an instant: it writes what a training writes, in the same order, without a network."""
    drawn = contents("multiclass", 1.0, "vit", 0, ("a", "b", "c"), "", ())

    def train(run, config, table, **_):
        if loop.checkpoint.newest(run.checkpoints) is None:
            with replacing(run.checkpoints / "epoch-0001") as temporary:
                write_text(temporary / "state.json", "{}")
        run.history.write_bytes(drawn["history.csv"])
        write_text(run.model, "")
        for name in RESULTS:
            write_text(run.folder / name, drawn[name].decode())
        draw(run)
        loop.remove_leftovers(run)
        return run

    def draw(run):
        write_text(run.figures / "history.png", "drawn")

    monkeypatch.setattr(fit, "train", train)
    monkeypatch.setattr(fit, "check_settings", lambda config: None)
    monkeypatch.setattr("kmed.evaluation.run_evaluation.draw_again", draw)
    monkeypatch.setattr("kmed.report.run_page.try_report", lambda run: write_text(run.report, "<html>"))
    environment = {"device": "a CPU", "backend": "none", "platform": "any", "versions": {}, "command": "kmed train"}
    monkeypatch.setattr("kmed.runtime.environment", lambda: environment)


def counts_of(kill, name, material, capsys, every=1):
    counts = kill.try_case(name, material, material.parent, every)
    assert capsys.readouterr().out == ""  # what is wrong would be named here
    assert counts["good"] == counts["kills"] > 3
    return counts


@pytest.mark.parametrize("name", ["train", "resume"])
def test_a_killed_training_is_finished_by_the_same_command_or_resume(kill, material, quick, capsys, name):
    counts = counts_of(kill, name, material, capsys, every=5)
    assert counts["kills"] > 10
    assert (counts["refused in one line"] > 0) == (name == "resume")  # before there is a run, and after its end


@pytest.mark.parametrize("name", ["pack"])
def test_a_killed_command_is_repeated(kill, material, capsys, name):
    counts_of(kill, name, material, capsys, every=2)


def test_what_a_case_must_leave_is_checked(kill, tmp_path):
    case = kill.Case((), same=("a",), rows=(("a", 1),), refusals=("has ended",))
    for name in ("whole", "killed"):
        write_text(tmp_path / name / "a", "model\nvit\n")

    def faults(code=0, output=""):
        return kill.faults(case, tmp_path / "whole", tmp_path / "killed", code, output)

    assert faults() == faults(1, "Error: it has ended.") == []
    assert faults(1, "Error: no.") == ["exit code 1: Error: no."]
    assert faults(0, "Traceback (most recent call last)") == ["a traceback"]
    write_text(tmp_path / "killed" / "a", "model\nvit\nvit\n")
    assert faults() == ["a has other bytes", "a has 2 rows, not 1"]
    for name in (".kmed-here-0123abcd.tmp/lock", ".kmed-lock", "tmp/tmpabcd1234/x"):
        write_text(tmp_path / "killed" / name, "")
        assert faults()[0].startswith("temporary files are left: "), name
        (tmp_path / "killed" / name).unlink()
        (tmp_path / "killed" / pathlib.Path(name).parts[0]).is_dir() and kill.shutil.rmtree(
            tmp_path / "killed" / pathlib.Path(name).parts[0]
        )


def test_every_case_is_a_command(kill):
    from kmed.cli.main import main

    for name, case in kill.CASES.items():
        assert dataclasses.is_dataclass(case) and case.arguments[0] in main.commands, name
