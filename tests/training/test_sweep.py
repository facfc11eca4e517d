"""kmed sweep: several models, one recipe, one split; an interrupted sweep is resumed to the same table."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import pandas as pd
import pytest
from click.testing import CliRunner

import kmed
from kmed.cli.main import main
from kmed.config import load_config
from kmed.errors import ConfigError, ModelError, RunError
from kmed.files import write_text
from kmed.runs import Run
from kmed.runtime import Terminated
from kmed.training import sweep

MODELS = "vit,resnet18"
TIMES = ["minutes"]  # differ from run to run


def arguments(npz, *more) -> list[str]:
    options = ["--image-size", "32x40", "--epochs", "4", "--batch-size", "16", "--data", str(npz)]
    options += [
        "--set",
        "train.dtype=float32",
        "--set",
        "train.tensorboard=false",
        "--set",
        "evaluate.num_resamples=50",
    ]
    return ["sweep", "--models", MODELS, *options, *map(str, more)]


def start(command) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "kmed", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
        # A shell that runs the tests in the background may have made them and their children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def finish(command) -> str:
    result = CliRunner().invoke(main, list(command))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def whole(small_npz, tmp_path_factory):
    """(folder, printed output) of a sweep that was not interrupted."""
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    return folder, finish(arguments(small_npz, "--out", folder))


def test_a_sweep_ends_in_a_comparison_of_runs_on_one_split(whole, small_npz):
    folder, output = whole
    table = pd.read_csv(folder / "comparison" / "comparison.csv")
    assert set(MODELS.split(",")) <= set(table["model"])
    assert (folder / "comparison" / "report.html").exists()
    splits = [pd.read_csv(folder / model / "splits.csv") for model in MODELS.split(",")]
    pd.testing.assert_frame_equal(*splits)
    assert "[1/2] vit: starts." in output and "[2/2] resnet18: starts. About " in output and " left" in output
    flags = f"--data={small_npz} --epochs=4 --batch-size=16 --image-size=32x40"
    for model in MODELS.split(","):
        row = pd.read_csv(folder / model / "result.csv").iloc[0]
        assert row["command"].startswith(f"kmed train {flags} --set=") and f"--model {model} --out" in row["command"]


def test_an_interrupted_sweep_resumes_to_the_same_table(whole, small_npz, tmp_path):
    folder = tmp_path / "interrupted"
    process = start(arguments(small_npz, "--out", folder))
    stored = folder / "resnet18" / "checkpoints"
    deadline = time.monotonic() + 300
    while not list(stored.glob("epoch-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130 and "kmed sweep --resume DIR" in output, output
    assert (folder / "vit" / "result.csv").exists() and not (folder / "resnet18" / "result.csv").exists()
    untouched = (folder / "vit" / "result.csv").stat().st_mtime_ns

    output = finish(["sweep", "--resume", str(folder), "--append", str(tmp_path / "rows.csv")])
    assert "[1/2] vit: already finished." in output and "[2/2] resnet18: resumes." in output
    assert (folder / "vit" / "result.csv").stat().st_mtime_ns == untouched
    tables = [pd.read_csv(path / "comparison" / "comparison.csv").drop(columns=TIMES) for path in (whole[0], folder)]
    pd.testing.assert_frame_equal(*tables)
    histories = [pd.read_csv(path / "resnet18" / "history.csv").drop(columns="seconds") for path in (whole[0], folder)]
    pd.testing.assert_frame_equal(*histories)
    assert pd.read_csv(tmp_path / "rows.csv")["model"].tolist() == MODELS.split(",")


# ----- without training -----


def pretend(monkeypatch, codes=(), late=()):
    """Replaces the processes: each leaves a result, except the models in `codes`; those in `late` fail after it."""
    commands, codes, late = [], dict(codes), dict(late)

    def start_process(command, log, cores):
        commands.append(command)
        folder = Run(pathlib.Path(command[-1]))
        model = folder.folder.name
        write_text(folder.config, "")
        if not codes.get(model):
            write_text(folder.result, "minutes\n10\n")
        code = codes.get(model) or late.get(model, 0)
        return types.SimpleNamespace(poll=lambda: code)

    monkeypatch.setattr(sweep, "start_process", start_process)
    return commands


def test_finished_runs_are_skipped_and_failed_ones_named_and_tried_again(monkeypatch, tmp_path):
    plan = sweep.make_plan(["resnet18", "vit", "densenet121"], ["--epochs=2"], tmp_path / "s")
    commands = pretend(monkeypatch, {"vit": 1})
    seen = []
    assert sweep.train_all(plan, finished=lambda run: seen.append(run.folder.name)) == ["vit"]
    assert seen == ["resnet18", "densenet121"]
    assert [command[3:5] for command in commands] == [["train", "--epochs=2"]] * 3
    commands = pretend(monkeypatch)
    assert sweep.train_all(plan, quiet=True, finished=lambda run: seen.append(run.folder.name)) == []
    assert seen[2:] == ["resnet18", "vit", "densenet121"]  # the earlier ones too: the first call may have been cut off
    assert [command[3:] for command in commands] == [["--quiet", "train", "--resume", str(tmp_path / "s" / "vit")]]


def test_a_run_that_fails_after_its_result_is_finished(monkeypatch, tmp_path):
    plan = sweep.make_plan(["resnet18", "vit"], [], tmp_path / "s")
    commands, done, lines = pretend(monkeypatch, late={"resnet18": 1}), [], []
    monkeypatch.setattr(sweep, "say", lines.append)
    assert sweep.train_all(plan, finished=lambda run: done.append(run.folder.name)) == []
    assert done == ["resnet18", "vit"] and len(commands) == 2
    folder = tmp_path / "s" / "resnet18"
    (line,) = [line for line in lines if "exit code" in line]
    assert line.startswith("[1/2] resnet18: finished after ")
    error = "but its process ended with an error (exit code 1). Draw its page with: kmed report"
    assert line.endswith(f", {error} {folder}")
    assert sweep.train_all(plan) == [] and len(commands) == 2  # it is not trained again
    with pytest.raises(RunError, match=f"has already ended; .* Draw its page with: kmed report {folder}"):
        kmed.resume(folder)
    write_text(plan.run("resnet18").report, "<html>")
    with pytest.raises(RunError, match="Start a new run instead.$"):
        kmed.resume(folder)


def test_a_run_killed_at_its_start_is_started_anew(monkeypatch, tmp_path):
    plan = sweep.make_plan(["vit"], [], tmp_path / "s")
    write_text(plan.run("vit").splits, "half")
    commands = pretend(monkeypatch)
    assert sweep.train_all(plan) == [] and "--out" in commands[0]
    assert not plan.run("vit").splits.exists()
    plan = sweep.make_plan(["vit"], [], tmp_path / "t")
    write_text(plan.run("vit").folder / "notes.txt", "mine")
    sweep.train_all(plan)
    assert (plan.run("vit").folder / "notes.txt").exists()  # `kmed train` refuses the folder


def test_several_processes_run_at_once_on_their_own_cores_and_print_to_files(monkeypatch, tmp_path):
    """Each stand-in waits for a second one, so that only two at once can end; the third takes the place of one."""
    plan = sweep.make_plan(["resnet18", "vit", "densenet121"], [], tmp_path / "s")
    code = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[-1])
(folder.parent / f"{folder.name}.started").touch()
while len(list(folder.parent.glob("*.started"))) < 2:
    time.sleep(0.01)
folder.mkdir()
print("cores", sorted(os.sched_getaffinity(0)))
if folder.name == "vit":
    sys.exit(1)
(folder / "result.csv").write_text("minutes\\n1\\n")
"""
    monkeypatch.setattr(sweep.sys, "executable", sys.executable)
    real, running, most = sweep.start_process, [], []

    def start_process(command, log, cores):
        running.append(real([sys.executable, "-c", code, command[-1]], log=log, cores=cores))
        most.append(sum(process.poll() is None for process in running))
        return running[-1]

    monkeypatch.setattr(sweep, "start_process", start_process)
    assert sweep.train_all(plan, jobs=2) == ["vit"]
    assert max(most) <= 2
    cores = {name: (plan.folder / f"{name}.log").read_text().split("cores ")[1].strip() for name in plan.models}
    available = sorted(os.sched_getaffinity(0))
    shares = {str(available[slot::2]) for slot in range(2)} if len(available) > 1 else set(cores.values())
    assert set(cores.values()) <= shares


def test_what_ends_a_sweep_ends_its_processes(monkeypatch, tmp_path):
    plan = sweep.make_plan(["resnet18", "vit"], [], tmp_path / "s")
    running = []

    def start_process(command, log, cores):
        running.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        if len(running) == 2:
            raise Terminated
        return running[-1]

    monkeypatch.setattr(sweep, "start_process", start_process)
    with pytest.raises(Terminated):
        sweep.train_all(plan, jobs=2)
    assert running[0].wait(timeout=60) == -signal.SIGTERM
    running[1].kill()
    running[1].wait()


@pytest.mark.slow
def test_models_trained_at_once_give_the_same_table(whole, small_npz, tmp_path):
    output = finish(arguments(small_npz, "--out", tmp_path / "both", "--jobs", "2"))
    assert f"It prints to {tmp_path / 'both' / 'vit.log'}" in output
    assert "Epoch 4/4" in (tmp_path / "both" / "vit.log").read_text()
    tables = [
        pd.read_csv(path / "comparison" / "comparison.csv").drop(columns=TIMES)
        for path in (whole[0], tmp_path / "both")
    ]
    pd.testing.assert_frame_equal(*tables, atol=0.02)  # other threads add up in another order


def test_the_time_left_is_estimated_by_multiply_adds(monkeypatch, tmp_path):
    plan = sweep.make_plan(["resnet18", "resnet34"], [], tmp_path / "s")
    assert sweep.describe_time_left(plan) == ""
    write_text(plan.run("resnet18").result, "minutes\n10\n")
    work = kmed.models.build.model_facts().set_index("name")["multiply_adds"]
    expected = 10 * work["resnet34"] / work["resnet18"]
    assert sweep.describe_time_left(plan) == f"About {expected:.0f} min left, by multiply-adds."
    write_text(plan.run("resnet34").result, "minutes\n10\n")
    assert sweep.describe_time_left(plan) == ""


def test_a_folder_holds_one_sweep(tmp_path):
    plan = sweep.make_plan(["vit", "ResNet-18"], ["--epochs=2"], tmp_path / "s")
    assert plan.models == ("vit", "resnet18")
    assert sweep.make_plan(["vit", "resnet18"], ["--epochs=2"], tmp_path / "s") == plan == sweep.read_plan(plan.folder)
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["models"] == ["vit", "resnet18"]
    with pytest.raises(RunError, match="holds another sweep .*--resume"):
        sweep.make_plan(["vit"], ["--epochs=2"], tmp_path / "s")
    with pytest.raises(RunError, match="holds another sweep"):
        sweep.make_plan(["vit", "resnet18"], ["--epochs=3"], tmp_path / "s")
    with pytest.raises(RunError, match="is not empty and does not hold a sweep"):
        sweep.make_plan(["vit"], [], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file is a file. Give a folder that does not exist yet"):
        sweep.make_plan(["vit"], [], tmp_path / "file")
    with pytest.raises(RunError, match="is not the folder of a sweep: .*sweep.json cannot be read"):
        sweep.read_plan(tmp_path)
    with pytest.raises(ConfigError, match="each once. Received: vit, vit"):
        sweep.make_plan(["vit", "vit"], [], tmp_path / "t")
    with pytest.raises(ModelError, match="resnet19"):
        sweep.make_plan(["resnet19"], [], tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_the_order_of_options_makes_no_other_sweep(tmp_path):
    options = ["--seed=1", "--epochs=2", "--set=seed=1", "--set=seed=2"]
    plan = sweep.make_plan(["vit"], options, tmp_path)
    assert sweep.make_plan(["vit"], ["--epochs=2", "--seed=1", *options[2:]], tmp_path) == plan
    with pytest.raises(RunError, match="holds another sweep"):  # a later --set wins over an earlier one
        sweep.make_plan(["vit"], [*options[:2], "--set=seed=2", "--set=seed=1"], tmp_path)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ([], 2, "give --models, such as"),
        (["--models", "resnet19"], 1, "Did you mean 'resnet18'"),
        (["--models", "resnet18,vit", "--image-size", "60x60"], 1, "multiple"),
        (["--models", "vit", "--set", "train.epoch=3"], 2, "Did you mean 'train.epochs'"),
        (["--models", "vit", "--resume", "x"], 2, "so it takes no others. Received: models."),
        (["--resume", "nowhere"], 1, "nowhere is not the folder of a sweep"),
        (["--models", "resnet18", "--append", "others.csv"], 1, "others.csv is another table: it has no"),
        (["--models", "resnet18", "--append", "xrays.csv"], 1, "would hold results of multiclass and multilabel"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(tmp_path, monkeypatch, more, code, message):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "others.csv", "format,size\ntflite,1\n")
    write_text(tmp_path / "xrays.csv", "model,task,command\nvit,multilabel,kmed train\n")
    monkeypatch.setattr(sweep, "train_all", None)
    result = CliRunner().invoke(main, ["sweep", *more])
    assert result.exit_code == code and message in result.output, result.output
    assert {path.name for path in tmp_path.iterdir()} == {"others.csv", "xrays.csv"}


@pytest.fixture
def appended(monkeypatch, tmp_path):
    """(sweep, rows): a function that sweeps three models, of which resnet18 fails, and the path of its table.

    The function calls `meanwhile(model)` in each run, and returns the printed output and the models in the table.
    """
    rows = tmp_path / "rows.csv"

    def sweep_three(meanwhile):
        def start_process(command, log, cores):
            folder = Run(pathlib.Path(command[-1]))
            model = folder.folder.name
            meanwhile(model)
            write_text(folder.config, "")
            if model != "resnet18":
                write_text(folder.result, f"model,task,minutes,command\n{model},multiclass,10,kmed train\n")
            return types.SimpleNamespace(poll=lambda: int(model == "resnet18"))

        monkeypatch.setattr(sweep, "start_process", start_process)
        monkeypatch.setattr("kmed.report.comparison_page.compare", lambda runs, out: (None, ()))
        command = ["sweep", "--models", "densenet121,resnet18,resnet34", "--out", tmp_path / "s", "--append", rows]
        result = CliRunner().invoke(main, [*map(str, command)])
        assert result.exit_code == 1 and "Error: 1 of 3 runs failed: resnet18." in result.output, result.output
        assert f"The rows of 2 runs are in {rows}." in result.output
        return result.output, pd.read_csv(rows)["model"].tolist()

    return sweep_three, rows


def test_a_row_is_added_as_soon_as_its_run_is_finished(appended):
    sweep_three, rows = appended
    seen = []
    _, models = sweep_three(lambda model: seen.append(pd.read_csv(rows)["model"].tolist() if rows.exists() else []))
    assert seen == [[], ["densenet121"], ["densenet121"]]
    assert models == ["densenet121", "resnet34"]


def test_a_table_spoilt_meanwhile_does_not_stop_the_training(appended):
    sweep_three, rows = appended
    deeds = {"densenet121": lambda: write_text(rows, "format\ntflite\n"), "resnet34": rows.unlink}
    output, models = sweep_three(lambda model: deeds.get(model, lambda: None)())
    assert "it has no column 'model'. Give another file. The sweep continues" in output
    assert sorted(models) == ["densenet121", "resnet34"]


@pytest.mark.parametrize("command", ["sweep", "train"])
def test_a_table_of_another_task_is_refused_before_resuming(tmp_path, monkeypatch, command):
    monkeypatch.setattr(sweep, "train_all", None)
    monkeypatch.setattr("kmed.training.fit.resume", None)
    plan = sweep.make_plan(["vit", "resnet18"], [], tmp_path / "s")
    load_config(overrides=["task=multiclass"]).write(plan.run("vit").config)
    write_text(tmp_path / "xrays.csv", "model,task,command\nvit,multilabel,kmed train\n")
    folder = plan.folder if command == "sweep" else plan.run("vit").folder
    result = CliRunner().invoke(main, [command, "--resume", str(folder), "--append", str(tmp_path / "xrays.csv")])
    assert result.exit_code == 1 and "would hold results of multiclass and multilabel" in result.output, result.output
