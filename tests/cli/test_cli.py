"""The command line: quick help, one line for each mistake, and every command documented."""

import os
import pathlib
import pickle
import subprocess
import sys
import zipfile

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from kmed.cli.main import main

ROOT = pathlib.Path(__file__).parents[2]


def commands(group=main, prefix=()):
    """Returns {("data", "show"): command, ...}."""
    found = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, (*prefix, name))
        else:
            found[(*prefix, name)] = command
    return found


COMMANDS = commands()


class Touching:
    """An object whose pickle runs a command where it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def run(*arguments):
    """Runs kmed in this process; returns click's result."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def folders(tmp_path):
    """Class folders of 2 classes, with 12 groups per class and 2 tiny pictures per group."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        for group in range(12):
            for number in range(2):
                path = tmp_path / "pictures" / name / f"patient{label}{group:02d}_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 100, (20, 24, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "pictures"


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_a_place_in_the_readme(path):
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert f"kmed {' '.join(path)}" in result.output.split("Example")[1]
    assert f"`kmed {' '.join(path)}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["models", "--help"], ["train", "--help"], ["models"], ["--version"]]
)
def test_help_does_not_import_a_backend(arguments):
    code = f"import sys; from kmed.cli.main import main\nmain({arguments}, standalone_mode=False)\n"
    code += "print(sorted({'tensorflow', 'keras', 'jax'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_models_lists_all_of_them():
    output = run("models").output
    for name in ("resnet18", "densenet161", "efficientnetb7", "vit"):
        assert name in output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["trian"], 2, "Did you mean 'train'?"),
        (["train", "--model", "resnet19"], 1, "Did you mean 'resnet1"),
        (["train", "--set", "train.epoch=3"], 2, "Did you mean 'train.epochs'?"),
        (["train", "--epochs", "many"], 2, "train.epochs"),
        (["train", "--task", "multilable"], 2, "'multiclass' or 'multilabel'"),
        (["data", "demo", "drawn", "--task", "multilable"], 2, "Did you mean 'multilabel'?"),
        (["train", "--data", "nowhere"], 1, "nowhere"),
        (["train", "--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["train", "--resume", "nowhere"], 1, "nowhere"),
        (["train", "--resume", "x", "--epochs", "3"], 2, "continues a run with its own settings"),
        (["train", "--image-size", "121x160", "--model", "vit"], 1, "121"),
        (["train", "--model", "vit", "--set", "model.options={pach_size: 8}"], 1, "Did you mean 'patch_size'?"),
        (["train", "--config", "CONFIG"], 2, "Did you mean 'train.epochs'?"),
        (["train", "--set", "data.name=blood_cells"], 2, "give --data"),
        (["train", "--set", "data.fold=1", "--data", "PICTURES"], 2, "data.splits"),
        (["train", "--data", "PICTURES/no_label.csv"], 1, "label"),
        (["train", "--data", "PICTURES/unknown.csv", "--set", "data.class_names=[dark, light]"], 1, "grey"),
        (["train", "--data", "PICTURES/outside.csv"], 1, "leaves the data folder"),
        (["train", "--data", "PICTURES", "--out", "PICTURES"], 1, "is not empty"),
        (["train", "--data", "PICTURES/array.npz"], 1, "array.npz"),
        (["train", "--weights", "nowhere.safetensors", "--data", "PICTURES"], 1, "nowhere.safetensors"),
        (["train", "--weights", "imagenet", "--model", "vit", "--data", "PICTURES"], 1, "resnet18"),
        (["train", "--data", "PICTURES", "--append", "PICTURES/no_label.csv"], 1, "it has no column 'model'"),
        (["evaluate", "nowhere"], 1, "nowhere"),
        (["data", "show", "nowhere"], 1, "nowhere"),
        (["data", "pack", "PICTURES", "out.npz", "--image-size", "big"], 2, "HEIGHTxWIDTH"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(folders, tmp_path, monkeypatch, arguments, code, message):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    (tmp_path / "config.yaml").write_text("train: {epoch: 3}")
    first = "dark/patient000_0.png"
    (folders / "no_label.csv").write_text(f"path,colour\n{first},dark\n")
    (folders / "unknown.csv").write_text(f"path,label\n{first},grey\n")
    (folders / "outside.csv").write_text("path,label\n../config.yaml,dark\n")
    np.save(folders / "array.npy", np.zeros(3))
    (folders / "array.npy").rename(folders / "array.npz")
    names = {"PICTURES": str(folders), "CONFIG": str(tmp_path / "config.yaml")}
    arguments = [names.get(argument, argument.replace("PICTURES/", f"{folders}/")) for argument in arguments]
    result = run(*arguments)
    assert result.exit_code == code, result.output
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    assert "Traceback" not in result.output
    assert list(empty.iterdir()) == []


def test_weights_that_would_run_a_command_are_one_line_and_run_nothing(folders, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with zipfile.ZipFile(tmp_path / "bad.pth", "w") as archive:
        archive.writestr("weights/data.pkl", pickle.dumps(Touching(tmp_path / "touched"), protocol=2))
    result = run("train", "--weights", tmp_path / "bad.pth", "--data", folders, "--image-size", "32x40")
    assert result.exit_code == 1, result.output
    last = result.output.strip().splitlines()[-1]
    assert last.startswith(
        f"Error: {tmp_path / 'bad.pth'} is not read as PyTorch weights: it refers to '{os.system.__module__}."
    )
    assert "Traceback" not in result.output
    assert list(empty.iterdir()) == [] and not (tmp_path / "touched").exists()


@pytest.mark.parametrize("damage", ["truncated.jpg", "text.jpg", "empty class"])
def test_damaged_pictures_stop_the_run_before_it_begins(folders, tmp_path, monkeypatch, damage):
    if damage == "truncated.jpg":
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folders / "dark" / damage)
        whole = (folders / "dark" / damage).read_bytes()
        (folders / "dark" / damage).write_bytes(whole[: len(whole) // 2])
    elif damage == "text.jpg":
        (folders / "dark" / damage).write_text("not a picture")
    else:
        (folders / "grey").mkdir()
    monkeypatch.chdir(tmp_path)
    result = run("train", "--data", folders)
    assert result.exit_code == 1
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert {"empty class": "grey"}.get(damage, damage) in last
    assert not (tmp_path / "saved_models").exists()


def test_show_and_pack_and_train_on_the_pack(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group = "data.group=regex:(patient\\d+)"
    shown = run("data", "show", folders, "--out", "shown", "--set", group)
    assert shown.exit_code == 0, shown.output
    assert "dark" in shown.output
    assert len(list((tmp_path / "shown").glob("*.png"))) == 2
    packed = run("data", "pack", folders, "packed", "--image-size", "16x24", "--set", group)
    assert packed.exit_code == 0, packed.output
    assert "kmed train --data packed.npz" in packed.output
    settings = ["train.batch_size=8", "train.tensorboard=false", "evaluate.num_resamples=20", "data.image_size=16x24"]
    settings = [argument for setting in settings for argument in ("--set", setting)]
    options = "model.options={width: 8, depth: 1, num_heads: 2}"
    arguments = ["--data", "packed.npz", "--model", "vit", "--set", options, "--epochs", "1", *settings]
    trained = run("train", *arguments, "--out", "runs/one", "--append", "table.csv")
    assert trained.exit_code == 0, trained.output
    assert "accuracy" in trained.output
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 2
    again = run("evaluate", "runs/one", "--append", "table.csv")
    assert again.exit_code == 1
    assert "already holds" in again.output
    scored = run("evaluate", "runs/one", "--split", "val")
    assert scored.exit_code == 0, scored.output
    assert "val split" in scored.output
    missing = run("evaluate", "runs/one", "--split", "tset")
    assert missing.exit_code == 1
    assert "Did you mean 'test'?" in missing.output


def test_unreadable_files_can_be_left_out_and_are_counted(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folders / "dark" / "broken.jpg").write_text("not a picture")
    settings = [
        "data.skip_unreadable=true",
        "data.group=regex:(patient\\d+|broken)",
        "model.options={width: 8, depth: 1, num_heads: 2}",
    ]
    settings = [argument for setting in settings for argument in ("--set", setting)]
    result = run(
        "train", "--data", folders, "--model", "vit", "--image-size", "16x24", "--epochs", "1", *settings, "--out", "r"
    )
    assert result.exit_code == 0, result.output
    assert "broken.jpg" in (tmp_path / "r" / "unreadable.csv").read_text()
