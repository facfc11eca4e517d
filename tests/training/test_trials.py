"""kmed tune: trials are ordinary runs that see no test picture; none is lost or doubled when a process is killed."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import kmed
from kmed.cli.main import main
from kmed.config import load_config
from kmed.data.prepare import open_table, prepare_table
from kmed.errors import ConfigError, DataError, RunError
from kmed.files import write_frame
from kmed.runs import Run
from kmed.training import study, trials
from kmed.training.callbacks import NonFiniteLoss
from kmed.training.space import make_space
from kmed.training.trackers import Stopped

SPACE = "train.learning_rate: {log: [1e-4, 0.01]}\nmodel.options.width: {choices: [8, 16]}\n"
TINY = ["--model", "vit", "--image-size", "16x16", "--epochs", "2", "--batch-size", "16"]
TINY += ["--set", "model.options={patch_size: 8, width: 8, depth: 1, num_heads: 2}", "--set", "train.dtype=float32"]
TINY += ["--set", "train.tensorboard=false", "--set", "evaluate.num_resamples=10"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder whose test pictures cannot be read: whoever opens one of them as a picture gets an error."""
    folder, rng = tmp_path_factory.mktemp("data") / "pictures", np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6), ("test", 6)):
        for label in range(2):
            for number in range(count):
                path = folder / split / "ab"[label] / f"{split}{label}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 120, (16, 16, 3), np.uint8)
                pixels[..., label] += 60
                Image.fromarray(pixels).save(path)
                if split == "test":
                    path.write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """A file with a search space of two settings."""
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    return path


def tune(*arguments):
    """Runs kmed tune in this process; returns click's result."""
    return CliRunner().invoke(main, ["tune", *map(str, arguments)])


@pytest.fixture(scope="module")
def tuned(pictures, space, tmp_path_factory):
    """(folder, output) of a study of three trials."""
    folder = tmp_path_factory.mktemp("studies") / "tuned"
    result = tune("--space", space, *TINY, "--data", pictures, "--trials", 3, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_no_test_picture_is_opened_and_none_is_scored(tuned, pictures):
    folder, output = tuned
    with pytest.raises(DataError, match="12 of 48 pictures cannot be read"):
        kmed.fit(load_config(folder / "best.yaml"), out=folder.parent / "not_possible")
    assert "12 pictures of other splits, such as test, are not opened in any trial." in output
    for number in range(3):
        run = Run(folder / f"trial{number}")
        assert run.report.exists() and run.model.exists()  # a run like any other
        assert set(run.read_splits()["split"]) == {"train", "val"}
        assert "test" not in json.loads(run.metrics.read_text())
        assert set(pd.read_csv(run.predictions)["split"]) == {"val"}


def test_the_best_settings_are_a_config_for_the_split_that_was_tuned_on(tuned, pictures):
    folder, output = tuned
    table = pd.read_csv(folder / "trials.csv")
    assert table["state"].tolist() == ["finished"] * 3 and table["trial"].tolist() == [0, 1, 2]
    best = table.loc[table["val_loss"].idxmin()]
    config = load_config(folder / "best.yaml")
    assert config.train.learning_rate == best["train.learning_rate"]
    assert config.model.options["width"] == best["model.options.width"] and config.model.options["patch_size"] == 8
    assert config.data.path == str(pictures) and config.evaluate.num_resamples == 10
    assert pd.read_csv(config.data.splits)["split"].value_counts().to_dict() == {"train": 24, "val": 12, "test": 12}
    run = Run(folder / f"trial{best['trial']}")
    assert run.read_history()["val_loss"].min() == best["val_loss"]
    assert f"kmed train --config {folder / 'best.yaml'}" in output and f"Best trial: {run.folder}" in output
    assert "[3/3] trial2: finished, val_loss" in output


def test_unreadable_test_pictures_are_left_out_of_the_run_with_the_best_settings(tuned):
    folder, _ = tuned
    config = load_config(folder / "best.yaml", ["data.skip_unreadable=true"])
    table, unreadable = prepare_table(open_table(config), config)
    assert table.rows["split"].value_counts().to_dict() == {"train": 24, "val": 12} and len(unreadable) == 12
    assert any("Left out: 12 of 48 pictures cannot be read: test/a/test00.png" in note for note in table.notes)


def test_the_page_shows_the_history_and_every_trial(tuned):
    page = (tuned[0] / "report.html").read_text()
    assert page.count("<svg") >= 1 and "four are needed" in page
    assert all(f">trial{number}</th>" in page for number in range(3))
    assert "train.learning_rate" in page and "log: 0.0001, 0.01" in page


def test_a_study_that_has_ended_is_not_trained_again_and_more_trials_extend_it(tuned, pictures, space):
    folder, _ = tuned
    before = (folder / "trial0" / "result.csv").stat().st_mtime_ns
    result = tune("--resume", folder)
    assert result.exit_code == 0 and "starts" not in result.output, result.output
    assert (folder / "trial0" / "result.csv").stat().st_mtime_ns == before
    other = tune("--space", space, *TINY, "--data", pictures, "--out", folder, "--seed", 1)
    assert other.exit_code == 1 and "holds another study (with seed=0). Resume that one" in other.output
    fields = json.loads((folder / "tune.json").read_text())
    assert fields["trials"] == 3 and "epochs" in fields["settings"]["train"]
    assert "weight_decay" not in fields["settings"]["train"]  # it was not given


def test_settings_cannot_be_given_with_resume(tuned):
    result = tune("--resume", tuned[0], "--epochs", 3)
    assert result.exit_code == 2 and "continues a study with its own settings" in result.output
    result = tune("--resume", tuned[0], "--no-prune")
    assert result.exit_code == 2 and "Received: prune" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "A study needs a search space: give --space FILE, or --resume DIR."),
        (["--space", "{space}", "--trials", "0"], "trials must be a whole number of at least 1. Received: 0."),
        (["--space", "{bad}"], "there is no setting 'train.lr'"),
        (["--space", "{options}", "--model", "resnet18"], "options.yaml: .*depht"),
        (["--resume", "nowhere"], "nowhere is not the folder of a study"),
        (
            ["--space", "{space}", *TINY, "--out", "{taken}", "--data", "{data}"],
            "is not empty and does not hold a study",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(pictures, space, tmp_path, arguments, message):
    (tmp_path / "bad.yaml").write_text("train.lr: {log: [0.1, 1]}")
    (tmp_path / "options.yaml").write_text("model.options.depht: {int: [1, 2]}")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    names = {"space": space, "bad": tmp_path / "bad.yaml", "options": tmp_path / "options.yaml", "data": pictures}
    names["taken"] = tmp_path / "taken"
    before = sorted(tmp_path.rglob("*"))
    result = tune(*(names.get(text.strip("{}"), text) for text in arguments))
    assert result.exit_code in (1, 2)
    line = result.output.strip().splitlines()[-1]
    assert line.startswith("Error: ") and re.search(message, line), result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_without_optuna_the_extra_is_named(monkeypatch, space):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name))
    with pytest.raises(ConfigError, match=r"needs optuna. Install it with: pip install kmed\[tune\]"):
        kmed.tune(space)


# ----- without training -----


@pytest.fixture
def plan(tmp_path):
    """A study of nine trials whose folder is there."""
    config = load_config(overrides=["train.epochs=4"])
    space = make_space({"train.learning_rate": {"log": [1e-4, 0.01]}}, "space.yaml")
    return trials.Plan(tmp_path, space, config, trials=9, prune=True)


def pretend(monkeypatch, behave):
    """Replaces the training: `behave` gets (number of the trial, epoch), and returns the score or raises an error."""
    trained = []

    def fit(config, *, table, out, after_epoch):
        number, rows = int(out.name.removeprefix("trial")), []
        trained.append(number)
        out.mkdir(exist_ok=True)
        for epoch in range(1, config.train.epochs + 1):
            score = behave(number, epoch)
            rows.append({"epoch": epoch, "learning_rate": 0.1, "loss": 1.0, "val_loss": score, "seconds": 1.0})
            write_frame(Run(out).history, pd.DataFrame(rows))
            after_epoch(rows)

    monkeypatch.setattr(trials.fit, "fit", fit)
    monkeypatch.setattr(trials, "report_run", lambda run: None)
    monkeypatch.setattr(trials, "open_pictures", lambda plan: (None, plan.config))
    return trained


def test_poor_trials_are_pruned_diverged_ones_count_as_poor_and_bad_settings_as_failed(plan, monkeypatch):
    def behave(number, epoch):
        if number == 6:
            raise NonFiniteLoss("The training loss is nan.")
        if number == 7:
            raise ConfigError("These do not go together.")
        if number == 8:
            raise MemoryError("no room")
        return 9.0 if number == 5 else 1 / (epoch + number)

    pretend(monkeypatch, behave)
    trials.train_all(plan)
    table = trials.write_results(plan)
    assert table["state"].tolist() == ["finished"] * 5 + ["pruned"] * 2 + ["failed"] * 2
    assert table["epochs"].tolist() == [4] * 5 + [2, 0, 0, 0]
    assert table["note"].tolist()[5:8] == [
        "worse than the median of the other trials",
        "The training loss is nan.",
        "These do not go together.",
    ]
    assert table["note"].iloc[8] == "out of memory (MemoryError: no room)"
    assert trials.best_trial(plan, table) == 4
    assert "pruned" in (plan.folder / "report.html").read_text()


def test_what_stops_a_trial_names_the_epoch(plan, monkeypatch):
    pretend(monkeypatch, lambda number, epoch: 9.0 if number == 5 else 1.0)
    train, reasons = trials.fit.fit, []

    def fit(config, **others):
        try:
            train(config, **others)
        except Stopped as error:  # which a tracker such as MLflow stores
            reasons.append(str(error))
            raise

    monkeypatch.setattr(trials.fit, "fit", fit)
    trials.train_all(dataclasses.replace(plan, trials=6))
    assert reasons == ["pruned at epoch 2"]


def test_without_pruning_every_trial_is_trained_to_its_end(plan, monkeypatch):
    plan = dataclasses.replace(plan, prune=False, trials=6)
    pretend(monkeypatch, lambda number, epoch: 9.0 if number == 5 else 1.0)
    trials.train_all(plan)
    assert trials.write_results(plan)["epochs"].tolist() == [4] * 6


def test_an_error_that_is_not_of_the_settings_ends_the_process_and_the_trial_is_taken_up(plan, monkeypatch):
    def behave(number, epoch):
        if number == 1 and epoch == 3 and broken:
            raise DataError("A picture is gone.")
        return float(number + 1)

    plan, broken = dataclasses.replace(plan, trials=3), [True]
    trained = pretend(monkeypatch, behave)
    for _ in range(4):  # it does not count as a trial that kills its process
        with pytest.raises(DataError, match="gone"):
            trials.train_all(plan)
    broken.clear()
    trials.train_all(plan)
    assert trained == [0, 1, 1, 1, 1, 1, 2]
    assert trials.write_results(plan)["state"].tolist() == ["finished"] * 3


def test_a_score_that_was_never_defined_is_a_failure(plan, monkeypatch):
    pretend(monkeypatch, lambda number, epoch: float("nan") if number == 0 else 1.0)
    plan = dataclasses.replace(plan, trials=2)
    trials.train_all(plan)
    table = trials.write_results(plan)
    assert table["state"].tolist() == ["failed", "finished"]
    assert table["note"].iloc[0] == "val_loss was undefined in every epoch"


@pytest.mark.parametrize("tried", [{}, {"data.range": {"choices": ["0-2000", "full"]}}])
def test_a_range_may_be_tried_and_is_else_the_one_that_was_found(plan, monkeypatch, tried):
    space = make_space({"data.decode": {"choices": ["full", "reduced"]}, **tried}, "space.yaml")
    plan = dataclasses.replace(plan, space=space, trials=6)
    pretend(monkeypatch, lambda number, epoch: 1.0)
    found = load_config(overrides=["data.range=0-4095"])
    monkeypatch.setattr(trials, "open_pictures", lambda plan: (None, found))
    train, given = trials.fit.fit, []

    def fit(config, **others):
        given.append((config.data.range, config.data.decode))
        train(config, **others)

    monkeypatch.setattr(trials.fit, "fit", fit)
    trials.train_all(plan)
    table = trials.write_results(plan)
    ranges = table["data.range"].tolist() if tried else ["0-4095"] * 6
    assert given == list(zip(ranges, table["data.decode"].tolist(), strict=True))
    assert len(set(given)) > len(set(ranges))


@pytest.mark.parametrize(
    ("name", "kind", "once"),
    [
        ("model.dropout", {"float": [0, 0.5]}, True),
        ("data.decode", {"choices": ["full", "reduced"]}, False),
        ("data.range", {"choices": ["auto", "full"]}, False),
        ("data.fit", {"choices": ["pad", "crop"]}, False),
    ],
)
def test_pictures_are_decoded_once_unless_their_decoding_is_tried(plan, pictures, name, kind, once):
    config = load_config(overrides=[f"data.path={pictures}", "data.image_size=16x16"])
    plan = dataclasses.replace(plan, config=config, space=make_space({name: kind}, "space.yaml"))
    table, _ = trials.open_pictures(plan)
    assert len(table) == 36 and (table.images is not None) == once


def test_settings_that_always_fail_end_the_study(plan, monkeypatch):
    def behave(number, epoch):
        raise ConfigError("No.")

    trained = pretend(monkeypatch, behave)
    with pytest.raises(RunError, match="All 3 trials have failed. Correct the settings"):
        trials.train_all(plan)
    assert trained == [0, 1, 2]


def test_a_higher_score_may_be_the_better_one(plan, monkeypatch):
    config = load_config(overrides=["train.epochs=4", "train.monitor=val_loss"])
    assert dataclasses.replace(plan, config=config).minimize
    config = load_config(overrides=["train.monitor=val_accuracy"])
    assert not dataclasses.replace(plan, config=config).minimize
    table = pd.DataFrame({"trial": [0, 1, 2], "state": ["finished"] * 2 + ["pruned"], "val_accuracy": [0.1, 0.2, 0.9]})
    assert trials.best_trial(dataclasses.replace(plan, config=config), table) == 1


def test_pretrained_weights_bring_their_recipe_unless_a_setting_is_given_or_tried(plan):
    config = load_config(overrides=["model.weights=imagenet", "augment.level=light"])
    space = make_space({"model.weights": {"choices": ["none", "imagenet"]}}, "")
    plan = dataclasses.replace(plan, config=config, space=space)
    tuned, plain = (plan.settings_of({"model.weights": name}, "splits.csv") for name in ("imagenet", None))
    assert tuned.train.learning_rate == 0.0003 and tuned.augment.level == "light"
    assert plain.train.learning_rate == 0.001 and plain.model.weights is None


# ----- several processes -----


@pytest.mark.slow
def test_twenty_trials_by_two_processes_one_of_them_killed(space, tmp_path):
    """On the drawn data: no trial is lost or doubled, and each has the scores that its run folder holds."""
    data = kmed.draw_demo(tmp_path / "data")
    folder = tmp_path / "tuned"
    command = ["tune", "--space", space, *TINY, "--data", data, "--trials", 20, "--out", folder]
    processes = [start(command, tmp_path / f"{name}.log") for name in ("first", "second")]
    wait_until(lambda: len(list(folder.glob("trial*/result.csv"))) >= 4, processes)
    wait_until(lambda: begun_epochs(folder) > 0, processes)  # so that the killed one leaves a checkpoint, if it can
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].wait()
    running = [trial.number for trial in read_study(folder) if not trial.state.is_finished()]
    assert len(running) == 2
    assert processes[1].wait() == 0, (tmp_path / "second.log").read_text()
    found = read_study(folder)
    assert [trial.number for trial in found] == list(range(20))
    assert all(trial.state.is_finished() for trial in found)
    assert "continues" in (tmp_path / "second.log").read_text()
    table = pd.read_csv(folder / "trials.csv")
    assert table["trial"].tolist() == list(range(20)) and set(table["state"]) <= {"finished", "pruned"}
    assert sorted(path.name for path in folder.glob("trial*") if path.is_dir()) == sorted(
        f"trial{n}" for n in range(20)
    )
    for row in table.to_dict("records"):
        history = Run(folder / f"trial{row['trial']}").read_history()
        assert history["epoch"].tolist() == list(range(1, row["epochs"] + 1))
        assert history["val_loss"].min() == row["val_loss"]
    assert not list(folder.glob(".*"))


def start(command, log) -> subprocess.Popen:
    with pathlib.Path(log).open("wb") as output:
        return subprocess.Popen([sys.executable, "-m", "kmed", *map(str, command)], stdout=output, stderr=output)


def wait_until(happens, processes) -> None:
    deadline = time.monotonic() + 1200
    while not happens():
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.02)


def begun_epochs(folder) -> int:
    return len(list(folder.glob("trial*/checkpoints/epoch-*")))


def read_study(folder):
    return study.open_study(folder, minimize=True, prune=True, warmup=1).get_trials()
