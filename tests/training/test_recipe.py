"""kmed.train and kmed.sweep as a script calls them: the arguments, what is resumed and appended, the errors."""

import pathlib
import types

import pandas as pd
import pytest
from click.testing import CliRunner
from drawn_runs import make_run

import kmed
from kmed.cli.main import main
from kmed.errors import ConfigError, DataError, ModelError, RunError
from kmed.files import write_text
from kmed.runs import Run
from kmed.training import fit, loop, sweep
from kmed.training.recipe import Recipe

SMALL = ["model.options={width: 16, depth: 1, num_heads: 2}", "train.dtype=float32", "train.tensorboard=false"]
SMALL += ["evaluate.num_resamples=20"]


@pytest.fixture
def arguments(small_npz):
    """The arguments of a run or sweep that takes a second per epoch."""
    return {"data": small_npz, "image_size": (32, 40), "batch_size": 16, "epochs": 1, "settings": SMALL}


@pytest.fixture
def read(monkeypatch):
    """The settings with which `kmed.train` would train: nothing is trained, and an empty run is returned."""
    configs = []

    def pretend(config, *, out=None):
        configs.append(config)
        return Run(pathlib.Path(out or "nowhere"))

    monkeypatch.setattr(fit, "fit", pretend)
    monkeypatch.setattr("kmed.report.run_page.try_report", lambda run: None)
    return configs


# ----- kmed.train -----


def test_a_run_is_trained_scored_appended_and_reported(arguments, tmp_path):
    seen = []

    def finished(run):
        seen.append((run.folder.name, run.summary.exists(), run.report.exists(), (tmp_path / "rows.csv").exists()))

    run = kmed.train(model="vit", **arguments, out=tmp_path / "run", append=tmp_path / "rows.csv", finished=finished)
    assert seen == [("run", True, False, False)]  # scored; neither appended nor reported yet
    assert run.folder == tmp_path / "run" and run.report.exists() and run.model.exists()
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert rows["model"].tolist() == ["vit"] and rows["image_size"].tolist() == ["32x40"]
    config = run.read_config()
    assert config.data.image_size == (32, 40) and config.train.epochs == 1 and config.task == "multiclass"
    with pytest.raises(RunError, match="has already ended"):
        kmed.train(resume=run.folder)


def test_an_interrupted_run_is_resumed_with_its_own_settings(arguments, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "describe_epoch", stop)
        kmed.train(model="vit", **arguments | {"epochs": 2}, out=tmp_path / "run")
    seen = []
    run = kmed.train(resume=tmp_path / "run", append=tmp_path / "rows.csv", finished=seen.append)
    assert seen == [run] and run.folder == tmp_path / "run" and run.report.exists()
    assert pd.read_csv(run.history)["epoch"].tolist() == [1, 2]
    assert pd.read_csv(tmp_path / "rows.csv")["model"].tolist() == ["vit"]


def test_the_same_command_continues_an_interrupted_run_and_completes_an_ended_one(arguments, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    lines, again = [], {"model": "vit", **arguments | {"epochs": 2}, "out": tmp_path / "run"}
    monkeypatch.setattr("kmed.training.recipe.say", lines.append)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "describe_epoch", stop)
        kmed.train(**again)
    for other in ({"epochs": 3}, {"seed": 1}, {"settings": SMALL[:-1]}, {"batch_size": 8}):
        with pytest.raises(RunError, match="holds another run"):
            kmed.train(**again | other)
    run = kmed.train(**again)
    assert pd.read_csv(run.history)["epoch"].tolist() == [1, 2] and run.report.exists()

    scored = run.result.read_bytes()
    run.report.unlink()  # as if the process had been killed before it
    kmed.train(**again, append=tmp_path / "rows.csv")
    assert lines[-1].endswith("run has already ended; its row and its page had not been written, and are there now.")
    assert run.report.exists() and len(pd.read_csv(tmp_path / "rows.csv")) == 1
    kmed.train(**again, append=tmp_path / "rows.csv")
    assert lines[-1].endswith("which has already ended. Choose another --out to train it again.")
    assert len(pd.read_csv(tmp_path / "rows.csv")) == 1 and run.result.read_bytes() == scored


def test_paths_may_be_paths_or_text(read, tmp_path):
    for kind in (str, lambda path: path):
        kmed.train(data=kind(tmp_path / "images"), weights=kind(tmp_path / "earlier"))
    assert read[0] == read[1]
    assert read[0].data.path == str(tmp_path / "images") and read[0].model.weights == str(tmp_path / "earlier")


def test_arguments_win_over_settings_and_those_over_the_file(read, tmp_path):
    write_text(tmp_path / "own.yaml", "seed: 5\ntrain: {epochs: 7, batch_size: 8, ema: 0.5}\ndata: {path: there}\n")
    run = kmed.train(
        model="ResNet-18", config=tmp_path / "own.yaml", epochs=3, lr=0.01, out=tmp_path / "run", task="multilabel",
        settings=["train.epochs=4", "train.batch_size=4"],
    )  # fmt: skip
    (config,) = read
    assert run.folder == tmp_path / "run"
    assert (config.seed, config.train.epochs, config.train.batch_size, config.train.ema) == (5, 3, 4, 0.5)
    assert (config.train.learning_rate, config.data.path, config.task) == (0.01, "there", "multilabel")


@pytest.mark.parametrize("size", [(60, 80), [60, 80], "60x80"])
def test_an_image_size_is_numbers_or_text(read, size):
    kmed.train(data="there", image_size=size)
    assert read[0].data.image_size == (60, 80)


def test_numbers_may_be_text_and_zero_is_a_value(read):
    kmed.train(data="there", epochs="3", batch_size="4", lr="1e-4", seed=0, settings=["seed=7"])
    (config,) = read
    assert (config.train.epochs, config.train.batch_size, config.train.learning_rate, config.seed) == (3, 4, 1e-4, 0)


def test_a_single_setting_may_be_one_text(read):
    kmed.train(data="there", settings="train.epochs=3")
    assert read[0].train.epochs == 3


def test_without_data_the_demo_data_are_used(read):
    kmed.train(task="multilabel")
    (config,) = read
    assert config.data.path is None and config.data.image_size == (64, 64)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"epochs": 0}, ConfigError, "train.epochs: input should be greater than or equal to 1. Received: 0."),
        ({"image_size": "60by80"}, ConfigError, "must be HEIGHTxWIDTH"),
        ({"task": "regression"}, ConfigError, "task: input should be 'auto', 'multiclass' or 'multilabel'"),
        ({"settings": ["train.epoch=3"]}, ConfigError, "Did you mean 'train.epochs'"),
        ({"settings": [("train.epochs", 3)]}, ConfigError, r"settings must be texts section.key=value, .*'train.epo"),
        ({"config": "nowhere.yaml"}, ConfigError, "There is no config file nowhere.yaml"),
        ({"model": "resnet19"}, ModelError, "Did you mean 'resnet18'"),
        ({"data": "nowhere"}, DataError, "nowhere"),
        ({"resume": "nowhere"}, RunError, "The run folder nowhere does not exist"),
        ({"resume": "run", "model": "vit", "out": "x"}, ConfigError, "takes no others. Received: model, out."),
        ({"resume": "run", "seed": 0}, ConfigError, "--resume continues a run with its own .* Received: seed."),
        ({"resume": "run", "settings": ["seed=1"]}, ConfigError, "Received: settings."),
        ({"append": "others.csv"}, RunError, "others.csv is another table"),
        ({"append": "xrays.csv", "task": "multiclass"}, RunError, "would hold results of multiclass and multilabel"),
        ({"out": "taken"}, RunError, "taken is not empty"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, monkeypatch, given, error, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fit, "train", None)
    write_text(tmp_path / "others.csv", "format,size\ntflite,1\n")
    write_text(tmp_path / "xrays.csv", "model,task,command\nvit,multilabel,kmed train\n")
    write_text(tmp_path / "taken" / "notes.txt", "mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message) as caught:
        kmed.train(**given)
    assert "\n" not in str(caught.value) and sorted(tmp_path.rglob("*")) == before


def test_a_row_is_not_added_twice(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    monkeypatch.setattr(fit, "fit", lambda config, *, out: run)
    monkeypatch.setattr("kmed.report.run_page.try_report", lambda run: None)
    kmed.train(append=tmp_path / "rows.csv")
    with pytest.raises(RunError, match="already holds this run's row"):
        kmed.train(append=tmp_path / "rows.csv")


# ----- kmed.sweep -----


@pytest.fixture
def processes(monkeypatch):
    """Draws the runs of a sweep instead of training them; those of the models in `failing` fail.

    Attributes: commands, the arguments of `kmed` that would have been run; failing.
    """
    noted = types.SimpleNamespace(commands=[], failing=set())

    def start_process(command, log, cores):
        noted.commands.append(command[3:])
        folder = pathlib.Path(command[-1])
        if folder.name not in noted.failing:
            make_run(folder, model=folder.name)
        return types.SimpleNamespace(poll=lambda: int(folder.name in noted.failing))

    monkeypatch.setattr(sweep, "start_process", start_process)
    return noted


def test_a_sweep_names_failed_runs_and_the_same_call_continues_it(processes, tmp_path):
    recipe = {"data": tmp_path / "there", "image_size": (32, 40), "epochs": 2, "settings": ["train.ema=0.5"]}
    recipe |= {"out": tmp_path / "s", "append": tmp_path / "rows.csv"}
    options = [f"--data={tmp_path / 'there'}", "--epochs=2", "--image-size=32x40", "--set=train.ema=0.5"]
    processes.failing.add("resnet18")
    swept = kmed.sweep(["vit", "resnet18"], **recipe, quiet=True)
    assert swept.folder == tmp_path / "s" and swept.failed == ("resnet18",) and swept.comparison == ()
    assert swept.runs == (Run(tmp_path / "s" / "vit"),)
    assert processes.commands == [
        ["--quiet", "train", *options, "--model", name, "--out", str(tmp_path / "s" / name)]
        for name in ("vit", "resnet18")
    ]
    assert pd.read_csv(tmp_path / "rows.csv")["model"].tolist() == ["vit"]

    processes.failing.clear()
    again = kmed.sweep("vit, resnet18,", **recipe)
    assert again.failed == () and again.runs == (Run(tmp_path / "s" / "vit"), Run(tmp_path / "s" / "resnet18"))
    assert len(processes.commands) == 3  # vit is not trained again
    assert {"comparison.csv", "comparison.md", "report.html"} <= {path.name for path in again.comparison}
    assert all(path.exists() and path.parent == tmp_path / "s" / "comparison" for path in again.comparison)
    assert pd.read_csv(tmp_path / "rows.csv")["model"].tolist() == ["vit", "resnet18"]

    resumed = kmed.sweep(resume=tmp_path / "s", append=tmp_path / "more.csv")
    assert resumed == again and len(processes.commands) == 3
    assert pd.read_csv(tmp_path / "more.csv")["model"].tolist() == ["vit", "resnet18"]


def test_all_models_may_fail(processes, tmp_path):
    processes.failing |= {"vit", "resnet18"}
    size = {"data": "there", "image_size": (32, 40)}
    swept = kmed.sweep(["vit", "resnet18"], **size, out=tmp_path / "s", append=tmp_path / "rows.csv")
    assert swept.runs == swept.comparison == () and swept.failed == ("vit", "resnet18")
    assert not (tmp_path / "rows.csv").exists()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ConfigError, "A sweep needs models"),
        ({"models": []}, ConfigError, "A sweep needs models"),
        ({"models": " , "}, ConfigError, "A sweep needs models"),
        ({"models": ["resnet18", "ResNet-18"]}, ConfigError, "one or more models, each once"),
        ({"models": "resnet19"}, ModelError, "Did you mean 'resnet18'"),
        ({"models": ["resnet18", "vit"], "image_size": (60, 60)}, ModelError, "multiples of its patch size"),
        (
            {"models": "resnet18", "settings": ["model.options={width: 8}"]},
            ModelError,
            "resnet18 has no option 'width'",
        ),
        ({"models": "resnet18", "settings": "train.epoch=3"}, ConfigError, "Did you mean 'train.epochs'"),
        ({"resume": "nowhere"}, RunError, "nowhere is not the folder of a sweep"),
        ({"resume": "s", "models": "vit", "epochs": 3}, ConfigError, "continues a sweep .* Received: models, epochs."),
        ({"models": "resnet18", "append": "others.csv"}, RunError, "others.csv is another table"),
        ({"models": "resnet18", "out": "taken"}, RunError, "taken is not empty and does not hold a sweep"),
    ],
)
def test_mistakes_in_a_sweep_are_one_line_before_anything_is_trained(tmp_path, monkeypatch, given, error, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "train_all", None)
    write_text(tmp_path / "others.csv", "format,size\ntflite,1\n")
    write_text(tmp_path / "taken" / "notes.txt", "mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=message) as caught:
        kmed.sweep(**given)
    assert "\n" not in str(caught.value) and sorted(tmp_path.rglob("*")) == before


def test_a_recipe_survives_as_options_of_the_command(monkeypatch, tmp_path):
    write_text(tmp_path / "own file.yaml", "train: {ema: 0.5}\n")
    recipe = Recipe(
        config=tmp_path / "own file.yaml", task="multilabel", data="there", epochs=3, batch_size="4",
        image_size=(60, 80), lr=1e-4, seed=0, weights="imagenet", settings=("augment.mixup=0.2", "model.dropout=0.1"),
    )  # fmt: skip
    configs = []
    monkeypatch.setattr("kmed.training.recipe.train", lambda **arguments: configs.append(arguments) or Run(tmp_path))
    monkeypatch.setattr("kmed.cli.train.print_report", lambda run: None)
    result = CliRunner().invoke(main, ["train", *recipe.options()])
    assert result.exit_code == 0, result.output
    (given,) = configs
    assert given.pop("model") is given.pop("out") is given.pop("resume") is given.pop("append") is None
    for name in ("finished", "distributed", "coordinator", "num_processes", "process_id"):  # no part of the recipe
        given.pop(name)
    assert Recipe(**given | {"settings": tuple(given["settings"])}).read("vit") == recipe.read("vit")
