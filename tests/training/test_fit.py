"""A run from data to scores: the files it leaves, how it is resumed after a kill, what it refuses."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import kmed
from kmed.config import load_config
from kmed.data.demo.sets import draw_demo
from kmed.data.images import Resizing
from kmed.data.readers.load import load_table
from kmed.data.readers.npz import pack
from kmed.errors import ConfigError, DataError, KmedError, ModelError, RunError, WeightsError
from kmed.training import checkpoint, fit
from kmed.training.callbacks import NonFiniteLoss

MADE = [
    "config.yaml",
    "splits.csv",
    "classes.json",
    "history.csv",
    "model.keras",
    "metrics.json",
    "predictions.csv",
    "result.csv",
    "environment.json",
    "figures/history.png",
    "figures/confusion_test.png",
    "figures/reliability_test.png",
    "figures/risk_coverage_test.png",
    "calibration.json",
    "summary.txt",
]


def run_python(code, *arguments, check=True):
    """Runs `code` in a new process, like a user's script."""
    result = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert not check or result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A finished run of the tiny settings; nothing may be changed in it."""
    return kmed.fit(load_config(overrides=tiny), out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def one_epoch(tiny, tmp_path_factory):
    """A finished run of one epoch, to take weights from."""
    return kmed.fit(load_config(overrides=[*tiny, "train.epochs=1"]), out=tmp_path_factory.mktemp("runs") / "first")


def test_a_run_leaves_all_that_is_needed(tiny, finished):
    run = finished
    assert [name for name in MADE if not (run.folder / name).exists()] == []
    assert list(run.logs.iterdir())
    assert not run.checkpoints.exists()
    assert (run.folder.parent / "latest").resolve() == run.folder.resolve()
    found = ["task=multiclass", "data.range=full"]  # from the data
    assert load_config(run.config) == load_config(overrides=[*tiny, *found])

    history = pd.read_csv(run.history)
    assert list(history["epoch"]) == [1, 2]
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"} <= set(history)

    row = pd.read_csv(run.result).iloc[0]
    first = [
        "model", "task", "data", "split", "image_size", "epochs", "best_epoch", "images_seen", "parameters", "seed",
        "accuracy", "accuracy_low", "accuracy_high", "precision_macro",
    ]  # fmt: skip
    last = [
        "best_constant_accuracy", "best_constant", "learnt", "num_labels", "num_clusters",
        "minutes", "device", "versions", "command",
    ]  # fmt: skip
    assert list(row.index[: len(first)]) == first
    assert list(row.index[-len(last) :]) == last
    assert row["images_seen"] == 2 * 64  # 72 training pictures, 4 full batches of 16, 2 epochs
    for score in ("accuracy", "precision_macro", "recall_micro", "f1_macro", "auroc_macro"):
        assert row[f"{score}_low"] <= row[score] <= row[f"{score}_high"]

    predictions = pd.read_csv(run.predictions)
    assert set(predictions["split"]) == {"val", "test"}
    test = predictions[predictions["split"] == "test"]
    assert np.allclose(test.filter(like="prob_").sum(axis=1), 1, atol=1e-5)
    assert row["accuracy"] == pytest.approx((test["label"] == test["predicted"]).mean())
    metrics = json.loads(run.metrics.read_text())
    assert metrics["test"]["scores"]["accuracy"]["value"] == pytest.approx(row["accuracy"])
    best = metrics["test"]["constants"][row["best_constant"]]["scores"]["accuracy"]["value"]
    assert best == pytest.approx(row["best_constant_accuracy"])
    assert metrics["training"]["num_images"] == 72

    scores = kmed.evaluate(run.folder)
    assert scores.flat() == pytest.approx({name: row[name] for name in scores.flat()})
    assert scores.scores["accuracy"].value == pytest.approx(row["accuracy"])
    with pytest.raises(RunError, match="holds another run"):
        kmed.fit(load_config(overrides=tiny), out=run.folder)
    with pytest.raises(RunError, match="already ended"):
        kmed.resume(run.folder)


# The process dies without any clean-up: in the third step of epoch 3, or while epoch 2 is being stored,
KILLED_IN_AN_EPOCH = """
import os, signal, sys, kmed
from kmed.training import callbacks
def die(self, batch, logs=None):
    if self.epoch == 2 and batch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
callbacks.EpochProgress.on_train_batch_end = die
kmed.fit(kmed.load_config(overrides=sys.argv[2:]), out=sys.argv[1])
"""
KILLED_WHILE_STORING = """
import os, signal, sys, kmed
from kmed.training import checkpoint
save = checkpoint._save_arrays
def die(path, values):
    save(path, values)
    if path.name == "optimizer.npz" and "epoch-0002" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint._save_arrays = die
kmed.fit(kmed.load_config(overrides=sys.argv[2:]), out=sys.argv[1])
"""
# or after the last epoch was stored, before its row is in history.csv.
KILLED_BEFORE_HISTORY = """
import os, signal, sys, kmed
from kmed.training import loop
write = loop.write_history
def die(path, rows):
    if len(rows) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, rows)
loop.write_history = die
kmed.fit(kmed.load_config(overrides=sys.argv[2:]), out=sys.argv[1])
"""
# How it dies -> (script, number of rows in history.csv after that).
KILLED = {"epoch": (KILLED_IN_AN_EPOCH, 2), "storing": (KILLED_WHILE_STORING, 1), "history": (KILLED_BEFORE_HISTORY, 2)}


@pytest.fixture(scope="module")
def demo_npz(tmp_path_factory):
    """A few of the built-in demo pictures, packed at a small size."""
    folder = tmp_path_factory.mktemp("demo")
    table = load_table(draw_demo(folder / "demo", num_train=96, num_test=32, image_size=(60, 80)))
    return pack(kmed.assign_splits(table), folder / "demo.npz", Resizing((32, 40)))


def test_a_killed_run_is_resumed_to_the_same_history(demo_npz, tmp_path):
    settings = [
        f"data.path={demo_npz}", "data.image_size=32x40", "model.name=resnet18", "model.dropout=0.2",
        "augment.level=strong", "augment.orientation=free", "augment.mixup=0.2", "train.ema=0.9", "train.ema_every=4",
        "train.patience=3",
        "train.learning_rate=0.05", "train.epochs=12", "train.batch_size=16", "train.dtype=float32",
        "train.tensorboard=false", "evaluate.num_resamples=50",
    ]  # fmt: skip
    kmed.fit(load_config(overrides=settings), out=tmp_path / "unbroken")
    unbroken = pd.read_csv(tmp_path / "unbroken" / "history.csv").drop(columns="seconds")
    assert len(unbroken) < 12, "early stopping had nothing to stop"
    for name, (script, finished) in KILLED.items():
        killed = run_python(script, tmp_path / name, *settings, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        assert not (tmp_path / name / "model.keras").exists()
        assert len(pd.read_csv(tmp_path / name / "history.csv")) == finished
        kmed.resume(tmp_path / name)
        resumed = pd.read_csv(tmp_path / name / "history.csv").drop(columns="seconds")
        pd.testing.assert_frame_equal(resumed, unbroken, check_exact=True)
        for file in ("predictions.csv", "splits.csv"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "unbroken" / file).read_bytes()


TWO_DEVICES = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import kmed
from kmed import runtime
assert runtime.distribution(["CPU:0", "CPU:1"]).num_replicas_in_sync == 2
kmed.fit(kmed.load_config(overrides=sys.argv[2:]), out=sys.argv[1] + "/one")
kmed.fit(kmed.load_config(overrides=[*sys.argv[2:], "train.devices=[CPU:0, CPU:1]"]), out=sys.argv[1] + "/two")
"""


def test_two_devices_give_the_losses_of_one(tiny, tmp_path):
    run_python(TWO_DEVICES, tmp_path, *tiny, "augment.level=none", "train.ema=0.9")
    one, two = (pd.read_csv(tmp_path / name / "history.csv") for name in ("one", "two"))
    assert np.abs(one["loss"] - two["loss"]).max() < 1e-5
    assert np.abs(one["val_loss"] - two["val_loss"]).max() < 1e-5


def test_accumulated_batches_train_the_model_of_one_large_batch(tiny, tmp_path):
    same = [*tiny, "train.ema=0.9", "train.epochs=2", "train.warmup_epochs=1", "model.dropout=0"]
    for name, settings in {
        "whole": ["train.batch_size=18"],
        "halves": ["train.batch_size=9", "train.accumulate=2"],
    }.items():
        kmed.fit(load_config(overrides=[*same, *settings]), out=tmp_path / name)
    whole, halves = (pd.read_csv(tmp_path / name / "history.csv") for name in ("whole", "halves"))
    assert len(whole) == 2
    for column in ("loss", "val_loss", "learning_rate"):
        np.testing.assert_allclose(halves[column], whole[column], rtol=0, atol=1e-5, err_msg=column)


def test_a_device_that_does_not_exist(tiny, tmp_path):
    with pytest.raises(ConfigError, match="GPU:7"):
        kmed.fit(load_config(overrides=[*tiny, "train.devices=[GPU:7, CPU:0]"]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("model.name=resnet19", ModelError, "Did you mean 'resnet1"),
        ("data.image_size=33x40", ModelError, "33"),
        ("model.options={pach_size: 8}", ModelError, "patch_size"),
        ("model.options={dropout: 0.1}", ConfigError, "model.dropout"),
        ("train.monitor=val_acuracy", ConfigError, "Did you mean 'val_accuracy'"),
        ("train.freeze_epochs=1", ConfigError, "model.weights"),
        ("task=multilabel", DataError, "task"),
        ("data.path=nowhere", DataError, "nowhere"),
        ("data.splits=nowhere.csv", DataError, "nowhere.csv"),
    ],
)
def test_a_bad_setting_leaves_no_folder(tiny, tmp_path, override, error, message):
    with pytest.raises(error, match=message) as raised:
        kmed.fit(load_config(overrides=[*tiny, override]), out=tmp_path / "deep" / "run")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("normalization", [None, "imagenet"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("damaged.pth", "damaged.pth is not read as PyTorch weights"),
        ("other.safetensors", "those of the family vit and do not fit resnet18"),
    ],
)
def test_bad_weights_are_refused_before_the_pictures_are_read(tmp_path, monkeypatch, name, message, normalization):
    (tmp_path / "damaged.pth").write_bytes(b"no weights")
    save_file({"cls_token": np.zeros((1, 1, 8), "float32")}, tmp_path / "other.safetensors")
    monkeypatch.setattr(fit, "open_table", lambda config: pytest.fail("the pictures were read"))
    settings = [("data.path", str(tmp_path)), ("model.weights", str(tmp_path / name))]
    config = load_config(overrides=[*settings, ("model.normalization", normalization)])
    with pytest.raises(WeightsError, match=message) as raised:
        kmed.fit(config, out=tmp_path / "run")
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


@pytest.fixture
def started(small_npz, tmp_path, monkeypatch):
    """(Run, Table) of a run that was killed in its first epoch."""
    monkeypatch.setattr(fit, "train", lambda run, config, table, **_: run)
    settings = [f"data.path={small_npz}", "data.image_size=32x40", "train.tensorboard=false"]
    table = load_table(small_npz)
    return kmed.fit(load_config(overrides=settings), table=table, out=tmp_path / "run"), table


def renamed(table, **names):
    return table.replace(class_names=tuple(names.get(name, name) for name in table.class_names))


def turned(table, rows, task="multiclass"):
    labels = table.labels.copy()
    labels[rows] = labels[rows][:, ::-1]
    return table.replace(labels=labels, task=task)


WIDER = ("red", "green", "blue", "new")
CHANGES = {  # what is done to the data between a crash and the resumption, and the message
    "a class is renamed": (lambda t: renamed(t, red="zred"), "new: zred; missing: red"),
    "two classes are renamed": (lambda t: renamed(t, red="a", blue="b"), "new: a, b; missing: red, blue"),
    "classes change places": (lambda t: renamed(t, red="blue", blue="red"), "in another order"),
    "the case changes": (lambda t: renamed(t, red="Red"), "new: Red; missing: red"),
    "a class is added": (
        lambda t: t.replace(class_names=WIDER, labels=np.pad(t.labels, ((0, 0), (0, 1)))), r"green, blue \(new: new\)",
    ),
    "a class is removed": (
        lambda t: t.replace(class_names=t.class_names[:2], labels=t.labels[:, :2]), r"green, blue \(missing: blue\)",
    ),
    "a picture is removed": (lambda t: t.take(np.arange(1, len(t))), "lists 1 of 144 pictures that are not in .*0000"),
    "pictures are removed": (lambda t: t.take(np.arange(100)), "lists 44 of 144 pictures that are not in"),
    "a picture is renamed": (
        lambda t: t.with_columns(path=["x", *t.rows["path"][1:]]), "lists 1 of 144 pictures that are not in",
    ),
    "a label changes": (lambda t: turned(t, [0]), "The labels of 1 of 144 pictures have changed .*: 0000"),
    "two classes swap their labels": (lambda t: turned(t, slice(None)), "The labels of 96 of 144 pictures have"),
    "the task changes": (lambda t: turned(t, [], "multilabel"), "as multiclass, but the task of the data is now"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_resumed_run_refuses_data_that_have_changed(started, change):
    run, table = started
    changed, message = CHANGES[change]
    with pytest.raises(KmedError, match=message) as raised:
        kmed.resume(run.folder, table=changed(table))
    assert "\n" not in str(raised.value)


def test_a_resumed_run_takes_the_same_data_and_leaves_out_new_pictures(started):
    run, table = started
    assert kmed.resume(run.folder, table=table) == kmed.resume(run.folder) == run
    both = pd.concat([table.rows, table.rows.assign(path="new" + table.rows["path"])], ignore_index=True)
    more = table.replace(rows=both, labels=np.tile(table.labels, (2, 1)), images=np.tile(table.images, (2, 1, 1, 1)))
    assert kmed.resume(run.folder, table=more) == run
    stored = pd.read_csv(run.splits, dtype=str, keep_default_na=False)
    assert list(stored) == ["path", "group", "cluster", "split", "label_red", "label_green", "label_blue"]


def test_a_resumed_run_refuses_settings_of_another_task(started):
    run, _ = started
    run.config.write_text(run.config.read_text().replace("task: multiclass", "task: multilabel"))
    with pytest.raises(KmedError, match="started as multiclass, but the task in .*config.yaml is now multilabel"):
        kmed.resume(run.folder)


def test_a_full_disk_stops_the_run_and_leaves_nothing(tiny, tmp_path, monkeypatch):
    def full(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.np, "savez", full)
    with pytest.raises(RunError, match="disk is full"):
        kmed.fit(load_config(overrides=tiny), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path):
    with pytest.raises(NonFiniteLoss, match="Lower --lr"):
        kmed.fit(
            load_config(overrides=[*tiny, "train.learning_rate=1e30", "train.clip_norm=0", "train.warmup_epochs=0"]),
            out=tmp_path / "r",
        )
    assert not (tmp_path / "r").exists()


def test_the_best_epoch_is_kept_and_patience_stops(tiny, tmp_path):
    run = kmed.fit(
        load_config(overrides=[*tiny, "train.epochs=9", "train.patience=1", "train.learning_rate=0.5"]),
        out=tmp_path / "r",
    )
    history = pd.read_csv(run.history)
    assert len(history) < 9
    best = history["val_loss"].idxmin()
    assert len(history) - 1 - best == 1  # stopped one epoch after the best
    predictions = pd.read_csv(run.predictions)
    val = predictions[predictions["split"] == "val"]
    assert (val["label"] == val["predicted"]).mean() == pytest.approx(history["val_accuracy"][best], abs=1e-6)


def test_a_frozen_backbone_does_not_move(tiny, one_epoch, tmp_path):
    frozen = [*tiny, "train.epochs=1", "train.freeze_epochs=1", f"model.weights={one_epoch.folder}"]
    second = kmed.fit(load_config(overrides=frozen), out=tmp_path / "second")
    before, after = (kmed.load_model(run.model) for run in (one_epoch, second))
    for old, new in zip(before.get_layer("backbone").weights, after.get_layer("backbone").weights, strict=True):
        np.testing.assert_array_equal(old.numpy(), new.numpy())
    assert np.abs(before.get_layer("head").kernel.numpy() - after.get_layer("head").kernel.numpy()).max() > 0


def test_a_thawed_backbone_moves_slowly(tiny, one_epoch, tmp_path):
    before = kmed.load_model(one_epoch.model).get_layer("backbone").weights
    moved = {}
    for factor in (1.0, 0.01):
        settings = [
            *tiny,
            f"model.weights={one_epoch.folder}",
            "train.freeze_epochs=1",
            "train.ema=0",
            "train.warmup_epochs=0",
        ]
        config = load_config(overrides=[*settings, f"train.backbone_learning_rate={factor}", "train.weight_decay=0"])
        run = kmed.fit(config, out=tmp_path / f"at_{factor}")
        assert run.read_config().model.normalization is not None  # the weights' own, written out
        after = kmed.load_model(run.model).get_layer("backbone").weights
        moved[factor] = max(np.abs(new.numpy() - old.numpy()).max() for new, old in zip(after, before, strict=True))
    assert 0 < moved[0.01] < 0.1 * moved[1.0]


def test_an_error_of_any_kind_leaves_no_folder(tiny, tmp_path, monkeypatch):
    def fail(*arguments, **settings):
        raise MemoryError

    monkeypatch.setattr("kmed.training.loop.build_model", fail)
    (tmp_path / "mine").mkdir()
    for name in ("mine", "deep/run"):
        with pytest.raises(MemoryError):
            kmed.fit(load_config(overrides=tiny), out=tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]  # it existed before


def test_half_precision_with_a_scaled_loss_can_be_resumed(tiny, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    settings = [*tiny, "train.dtype=mixed_float16"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("kmed.training.loop.describe_epoch", stop)
        kmed.fit(load_config(overrides=settings), out=tmp_path / "run")
    run = kmed.resume(tmp_path / "latest")
    assert list(pd.read_csv(run.history)["epoch"]) == [1, 2]


def test_tensorboard_gets_scalars_a_batch_and_the_confusion_matrix(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished.logs), size_guidance={"tensors": 0})
    events.Reload()
    steps = {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    for tag in (
        "training/loss",
        "training/learning_rate",
        "training/accuracy",
        "validation/loss",
        "validation/confusion",
    ):
        assert steps[tag] == [1, 2], tag
    assert steps["training/sample_batch"] == [1]


# TensorFlow cannot be imported, as in an environment without it.
WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = None
import kmed
from kmed import runtime
runtime.load_backend()
import keras
assert keras.backend.backend() == "jax"
run = kmed.fit(kmed.load_config(overrides=sys.argv[2:]), out=sys.argv[1])
kmed.evaluate(run.folder)
"""


def test_packed_data_are_trained_on_without_tensorflow(small_npz, tmp_path):
    pytest.importorskip("jax", reason="JAX is not installed: pip install jax")
    settings = [
        f"data.path={small_npz}", "data.image_size=32x40", "model.name=vit",
        "model.options={patch_size: 8, width: 16, depth: 2, num_heads: 2}", "train.epochs=3", "train.batch_size=16",
        "train.dtype=float32", "evaluate.num_resamples=50", "train.ema=0.9",
    ]  # fmt: skip
    run_python(WITHOUT_TENSORFLOW, tmp_path / "run", *settings)
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert "tensorflow" not in json.loads((tmp_path / "run" / "environment.json").read_text())["backend"]
