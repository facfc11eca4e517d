"""Several devices and several processes on JAX train the model of one: losses, weights, scores, after a kill too."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import kmed
from kmed.cli.main import main
from kmed.config import load_config
from kmed.data.augment import Augmentation
from kmed.data.images import Resizing
from kmed.data.pipeline import Pipeline
from kmed.data.readable import look_at
from kmed.data.readers.load import load_table
from kmed.errors import ConfigError, DataError, RunError
from kmed.models.keras_file import load_plain_model
from kmed.runs import Run
from kmed.training import processes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
RESNET = ["model.name=resnet18", "data.image_size=32x32"]


@pytest.fixture(scope="module")
def jax_settings(tiny) -> list[str]:
    """Settings of two epochs with everything that draws numbers: augmentation, mixing, dropout; and the average."""
    pytest.importorskip("jax", reason="JAX is not installed: pip install jax")
    drawing = ["augment.level=light", "augment.mixup=0.2", "model.dropout=0.2", "train.ema=0.9"]
    return [*tiny, *drawing, "train.epochs=2", "train.batch_size=16", "train.tensorboard=false"]


def start(out: pathlib.Path, settings, index=0, number=1, port=None, devices=1) -> subprocess.Popen:
    """Starts `kmed train` on JAX with so many logical processor devices, as process `index` of `number`."""
    together = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", number, "--process-id", index]
    options = [*(together if number > 1 else []), "--out", out]
    options += [part for setting in settings for part in ("--set", setting)]
    environment = os.environ | {
        "KERAS_BACKEND": "jax",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-m", "kmed", "train", *map(str, options)]
    # Into files: a pipe that nobody reads while another process is waited for would fill.
    with out.with_name(f"{out.name}.{index}.log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_together(out: pathlib.Path, settings, number: int) -> list[subprocess.Popen]:
    port = free_port()
    return [start(out, settings, index, number, port) for index in range(number)]


def log_of(out: pathlib.Path, index: int = 0) -> str:
    return out.with_name(f"{out.name}.{index}.log").read_text(errors="replace")


def finish(started: list[subprocess.Popen], out: pathlib.Path) -> Run:
    codes = [process.wait(timeout=1800) for process in started]
    assert not any(codes), "".join(log_of(out, index)[-2000:] for index in range(len(started)))
    return Run(out)


def assert_same(one: Run, other: Run) -> None:
    """Asserts equal losses, weights and predictions to 1e-5."""
    histories = [pd.read_csv(run.history).drop(columns="seconds") for run in (one, other)]
    pd.testing.assert_frame_equal(*histories, rtol=0, atol=1e-5)
    models = [load_plain_model(run) for run in (one, other)]
    for weight, twin in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_allclose(weight, twin, rtol=0, atol=1e-5, err_msg=weight.path)
    predictions = [pd.read_csv(run.predictions).filter(like="prob") for run in (one, other)]
    pd.testing.assert_frame_equal(*predictions, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def one(jax_settings, tmp_path_factory) -> Run:
    """The run of one process with one device."""
    out = tmp_path_factory.mktemp("one") / "run"
    return finish([start(out, jax_settings)], out)


def test_two_processes_train_the_model_of_one(one, jax_settings, tmp_path):
    assert_same(one, finish(start_together(tmp_path / "two", jax_settings, 2), tmp_path / "two"))
    assert "Epoch" in log_of(tmp_path / "two", 0) and "Epoch" not in log_of(tmp_path / "two", 1)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["latest", "two"]


@pytest.mark.slow
def test_two_devices_of_one_process_train_the_model_of_one(one, jax_settings, tmp_path):
    settings = [*jax_settings, "train.devices=[CPU:0, CPU:1]"]
    assert_same(one, finish([start(tmp_path / "two", settings, devices=2)], tmp_path / "two"))


@pytest.mark.slow
def test_four_processes_train_the_model_of_one(one, jax_settings, tmp_path):
    assert_same(one, finish(start_together(tmp_path / "four", jax_settings, 4), tmp_path / "four"))


@pytest.mark.slow
def test_batch_normalisation_is_that_of_the_whole_batch(jax_settings, tmp_path):
    settings = [*(line for line in jax_settings if not line.startswith("model.")), *RESNET]
    alone = finish([start(tmp_path / "one", settings)], tmp_path / "one")
    assert_same(alone, finish(start_together(tmp_path / "two", settings, 2), tmp_path / "two"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_all_and_fewer_go_on(jax_settings, tmp_path, victim):
    settings, out = [*jax_settings, "train.epochs=40"], tmp_path / "killed"
    started = start_together(out, settings, 2)
    while not any((out / "checkpoints").glob("epoch-*")):
        assert all(process.poll() is None for process in started), log_of(out)
        time.sleep(0.1)
    started[victim].send_signal(signal.SIGKILL)
    assert started[1 - victim].wait(timeout=60) != 0
    assert "has ended or cannot be reached" in log_of(out, 1 - victim)
    assert "Traceback" not in log_of(out, 1 - victim)
    resumed = finish([start(out, settings)], out)  # the same command, by one process
    assert "it is continued" in log_of(out)
    alone = finish([start(tmp_path / "alone", settings)], tmp_path / "alone")
    assert_same(alone, resumed)


LOOK = """
import sys
from kmed.data.readers.load import load_table
from kmed.training import processes
processes.join(sys.argv[1], 2, int(sys.argv[2]))
table = load_table(sys.argv[3])
assert processes.gather_texts(["", "gr\u00f6\u00dfer"][processes.index()]) == ["", "gr\u00f6\u00dfer"]
processes.look_together(table).to_json(f"{sys.argv[3]}.{sys.argv[2]}.json", orient="records")
processes.leave()
"""


def test_two_processes_look_at_a_part_each_and_know_of_all(tmp_path):
    pytest.importorskip("jax", reason="JAX is not installed: pip install jax")
    folder = tmp_path / "pictures"
    for number in range(5):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 8), 1000 * number, np.uint16)).save(path)
    (folder / "a" / "2.png").write_bytes(b"")
    (folder / "b" / "3.png").write_bytes(b"no picture")
    port, environment = free_port(), os.environ | {"KERAS_BACKEND": "jax"}
    commands = [[sys.executable, "-c", LOOK, f"127.0.0.1:{port}", str(index), str(folder)] for index in range(2)]
    started = [subprocess.Popen(command, env=environment) for command in commands]
    assert [process.wait(timeout=600) for process in started] == [0, 0]
    found, other = (json.loads(folder.with_name(f"pictures.{index}.json").read_text()) for index in range(2))
    assert found == other == json.loads(look_at(load_table(folder)).to_json(orient="records"))
    facts = {row["path"]: (row["reason"], row["peak"]) for row in found}
    assert facts["a/4.png"] == ("", 4000) and facts["a/2.png"] == ("the file is empty", None)
    assert facts["b/3.png"] == ("it is no picture", None)


# ---- What does not need a second process -----------------------------------------------------------


def as_one_of(monkeypatch, index: int, number: int) -> None:
    monkeypatch.setattr(processes, "index", lambda: index)
    monkeypatch.setattr(processes, "number", lambda: number)


def test_a_process_looks_at_no_picture_of_the_others(monkeypatch, small_npz):
    table, looked = load_table(small_npz).take([0, 1, 2, 3]), []

    def look(part):
        looked.append(len(part))
        return look_at(part)

    monkeypatch.setattr(processes, "look_at", look)
    for index, count in ((0, 2), (1, 2), (2, 0)):  # the last one of three has nothing to do
        as_one_of(monkeypatch, index, 3)
        monkeypatch.setattr(processes, "gather_texts", lambda text: [text])
        assert len(processes.look_together(table)) == count and looked[-1] == count


def test_own_rows_are_parts_of_the_whole(monkeypatch):
    for num_rows in (0, 1, 5, 6, 7):
        parts = []
        for index in range(3):
            as_one_of(monkeypatch, index, 3)
            parts.append(processes.own_rows(num_rows))
        np.testing.assert_array_equal(np.concatenate(parts), np.arange(num_rows))


@pytest.mark.parametrize("mixing", [{}, {"mixup": 0.4}, {"cutmix": 1.0, "mixup": 0.4}])
def test_the_parts_of_a_batch_are_the_batch(small_npz, mixing):
    table = load_table(small_npz).split("train")
    augmentation = Augmentation("medium", seed=3, **mixing)

    def batches(part):
        pipeline = Pipeline(
            table, Resizing((32, 40)), augmentation=augmentation, batch_size=12, backend="memory", part=part
        )
        dataset = pipeline.epoch(1)
        return [dataset[step] for step in range(len(dataset))]

    whole, parts = batches((0, 1)), [batches((index, 3)) for index in range(3)]
    for step, batch in enumerate(whole):
        for column, values in enumerate(batch):
            joined = np.concatenate([part[step][column] for part in parts])
            np.testing.assert_allclose(joined, values, rtol=0, atol=1e-4)


def test_a_batch_that_cannot_be_shared_equally_is_one_line(small_npz):
    table = load_table(small_npz).split("train")
    with pytest.raises(DataError, match="batch of 16 cannot be shared equally by 3 processes"):
        Pipeline(table, Resizing((32, 40)), batch_size=16, backend="memory", part=(0, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator", "here:9911"], "Missing: --num-processes, --process-id"),
        (["--process-id", "0"], "Missing: --coordinator, --num-processes"),
        (["--coordinator", "here", "--num-processes", "2", "--process-id", "0"], "must be HOST:PORT"),
        (["--coordinator", "here:1", "--num-processes", "2", "--process-id", "2"], "Received: 2 of 2 processes"),
        (["--coordinator", "here:1", "--num-processes", "2", "--process-id", "1"], "only on JAX"),
        (["--distributed"], "only on JAX"),
    ],
)
def test_mistakes_in_the_options_are_one_line(tiny, tmp_path, monkeypatch, options, message, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    settings = [part for setting in tiny for part in ("--set", setting)]
    with pytest.raises(SystemExit):
        main(["train", *settings, "--out", str(tmp_path / "run"), *options])
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]
    assert not (tmp_path / "run").exists()


def test_without_slurm_or_open_mpi_the_options_are_named(monkeypatch):
    pytest.importorskip("jax", reason="JAX is not installed: pip install jax")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ConfigError, match="Neither Slurm nor Open MPI has started this process.*--coordinator"):
        processes.join()


def test_only_lost_processes_are_reported_as_such(monkeypatch):
    jax = pytest.importorskip("jax", reason="JAX is not installed: pip install jax")
    as_one_of(monkeypatch, 0, 2)
    lost = jax.errors.JaxRuntimeError("INTERNAL: Gloo all-reduce failed: Connection reset by peer")
    for error, reported in ((lost, RunError), (ValueError("another mistake"), ValueError)):
        with pytest.raises(reported) as raised, processes.reporting_lost_ones("kmed train --resume RUN"):
            raise error
        assert ("kmed train --resume RUN" in str(raised.value)) == (reported is RunError)


def test_an_ordinary_process_is_the_only_one(small_npz):
    assert (processes.index(), processes.number(), processes.leads(), processes.agree(2)) == (0, 1, True, 2)
    assert processes.gather_texts("one") == ["one"]
    part = np.ones((3, 2))
    assert processes.join_parts(part, 3) is part
    processes.leave()  # has no effect
    processes.end(1)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="Keras does not run on JAX here")
def test_a_device_that_does_not_exist_on_jax(tiny, tmp_path):
    with pytest.raises(ConfigError, match="GPU:7"):
        kmed.fit(load_config(overrides=[*tiny, "train.devices=[GPU:7, CPU:0]"]), out=tmp_path / "run")
