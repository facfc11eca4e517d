"""What the README says is run: its main command, its Python example, its test command's form."""

import pathlib
import re
import shlex
import subprocess
import sys

import pandas as pd
import pytest
from click.testing import CliRunner

from kmed.cli.main import main

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(name):
    """Returns the code between the README's marker `name` and the end of that fence."""
    return re.search(rf"<!-- {name} -->\n```\w+\n(.*?)\n```", README, re.DOTALL)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the README's main command was run, as by a reader."""
    folder = tmp_path_factory.mktemp("reader")
    train = block("main command").split(" && ")[1]
    # One epoch instead of all: what is tested is that the command runs, not how good it gets.
    command = [sys.executable, "-m", *shlex.split(train), "--epochs", "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_the_main_command_trains_on_the_demo_data(folder):
    assert block("main command").split(" && ")[0] == 'pip install -e ".[pretrained]"'
    row = pd.read_csv(folder / "saved_models" / "latest" / "result.csv").iloc[0]
    assert (row["model"], row["data"], row["num_clusters"]) == ("efficientnetlite0", "demo", 25)


def test_the_run_goes_to_the_phone(folder, short_measurements, monkeypatch):
    monkeypatch.chdir(folder)
    lines = [line.split("#")[0].split(" && ")[0].strip() for line in block("phone").splitlines()]
    assert [line.split()[1] for line in lines] == ["export", "evaluate", "demo"]
    # After one epoch a class is hardly surer than another, so int8 may move more than is tolerated of a trained model.
    lines[0] += " --tolerance 100"
    for line in lines:
        program, *arguments = shlex.split(line)
        result = CliRunner().invoke(main, arguments)
        assert program == "kmed" and result.exit_code == 0, (line, result.output[-3000:])
    assert (folder / "saved_models" / "latest" / "export" / "efficientnetlite0-int8.tflite").exists()
    assert (folder / "demo" / "index.html").exists() and (folder / "demo" / "model.tflite").exists()


def test_the_python_example_runs(folder):
    assert (folder / "data" / "demo").exists()
    result = subprocess.run([sys.executable, "-c", block("python example")], capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "val_accuracy" in result.stdout


def test_the_test_command_is_this_one():
    assert block("test command").endswith("python -m pytest")


def test_the_files_it_names_are_there():
    for target in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / target).exists(), target
