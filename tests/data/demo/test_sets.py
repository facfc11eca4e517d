"""The demo data of both tasks: drawn once, redrawn for another seed, and never over other files."""

import hashlib
import importlib.resources
import json
import pathlib

import pytest
from click.testing import CliRunner

import kmed
from kmed.cli.main import main
from kmed.data.demo import sets
from kmed.data.demo.sets import DEMOS, draw_demo, ensure_demo
from kmed.data.prepare import open_table
from kmed.data.readers.load import load_table
from kmed.errors import ConfigError, DataError
from kmed.tasks import TASKS

FEW = {
    "multiclass": {"num_train": 4, "num_test": 4, "image_size": (32, 32)},
    "multilabel": {"num_patients": 6, "image_size": (32, 32)},
}


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture
def few(tmp_path, monkeypatch):
    """Makes ensure_demo draw a few pictures in an empty folder; returns the (task, seed) of each drawing."""
    monkeypatch.chdir(tmp_path)
    drawings = []
    for task, small in FEW.items():
        whole = DEMOS[task]

        def draw(folder, *, seed, task=task, whole=whole, small=small):
            drawings.append((task, seed))
            return whole.draw(folder, seed=seed, **small)

        def marker(seed, whole=whole, small=small):
            return whole.marker(seed, **small)

        monkeypatch.setitem(DEMOS, task, sets.Demo(whole.folder, whole.about, draw, marker))
    return drawings


def test_every_task_has_demo_data_and_settings_of_its_own():
    assert set(DEMOS) == set(TASKS)
    for task in DEMOS:
        assert kmed.load_config(importlib.resources.files("kmed.data.demo").joinpath(f"demo_{task}.yaml")).task == task


@pytest.mark.parametrize(("task", "folder"), [("multiclass", "data/demo"), ("multilabel", "data/demo_xrays")])
def test_the_demo_is_drawn_once_and_redrawn_for_another_seed(few, task, folder):
    for seed in (0, 0, 1, 1, 0):
        assert ensure_demo(seed, task) == pathlib.Path(folder)
        assert json.loads((pathlib.Path(folder) / "demo.json").read_text())["seed"] == seed
    assert few == [(task, 0), (task, 1), (task, 0)]


@pytest.mark.parametrize("task", DEMOS)
def test_a_run_without_data_opens_the_demo_of_its_task(few, task):
    table = open_table(kmed.load_config(overrides=[f"task={task}"]))
    assert (table.task, table.name, table.grouped) == (task, DEMOS[task].folder, True)
    assert few == [(task, 0)]


@pytest.mark.parametrize("task", DEMOS)
def test_a_folder_of_other_files_is_left_unchanged(tmp_path, task):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="did not draw"):
        draw_demo(tmp_path / "mine", task=task, **FEW[task])
    assert digest(tmp_path).keys() == {"mine/thesis.txt"}


def test_a_drawing_replaces_an_earlier_one_whole(tmp_path):
    smears = digest(draw_demo(tmp_path / "demo", **FEW["multiclass"]))
    xrays = digest(draw_demo(tmp_path / "demo", task="multilabel", **FEW["multilabel"]))
    assert set(smears) & set(xrays) == {"demo.json"}
    assert digest(draw_demo(tmp_path / "demo", **FEW["multiclass"])) == smears


def test_a_misspelt_task_draws_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for draw in (lambda: ensure_demo(task="multilable"), lambda: draw_demo("here", task="multilable")):
        with pytest.raises(ConfigError, match="Did you mean 'multilabel'"):
            draw()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", DEMOS)
def test_the_command_draws_what_it_then_names(few, task):
    result = CliRunner().invoke(main, ["data", "demo", "drawn", "--task", task, "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert f"kmed train --task {task} --data drawn" in result.output
    assert few == [(task, 3)]
    assert load_table("drawn").task == task
