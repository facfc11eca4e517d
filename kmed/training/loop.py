"""The training of one run, read from top to bottom in the order it runs."""

import contextlib
import math
import pathlib
import shutil
import time
from collections.abc import Iterator

import keras
import numpy as np
import pandas as pd

from kmed import runtime
from kmed.config import Config, TrainConfig
from kmed.data.augment import Augmentation
from kmed.data.images import Resizing
from kmed.data.pipeline import Pipeline
from kmed.data.table import Table
from kmed.evaluation import inference, run_evaluation
from kmed.files import replacing, write_frame
from kmed.models.build import build_model
from kmed.models.registry import choose_dtype
from kmed.progress import format_time, say
from kmed.runs import Run
from kmed.tasks import LOWER_IS_BETTER, get_task
from kmed.training import checkpoint
from kmed.training.callbacks import EpochProgress, StopOnNonFiniteLoss
from kmed.training.ema import WeightAverage
from kmed.training.memory import estimate_memory
from kmed.training.optimizer import make_optimizer
from kmed.training.tensorboard import make_writer


def write_history(path: pathlib.Path, rows: list[dict]) -> None:
    """Writes history.csv: a row an epoch, the times in the last column."""
    write_frame(path, pd.DataFrame(rows))


def train(run: Run, config: Config, table: Table) -> Run:
    """Runs the epochs that are still to be run, then judges the best one. `fit` and `resume` call it."""
    settings = config.train

    # ---- 1. Global state: seed, devices, arithmetic -------------------------------------------------
    runtime.seed_everything(config.seed)
    strategy = runtime.distribution(settings.devices)
    dtype = choose_dtype(config.model.name, settings.dtype)

    # ---- 2. Batches: every draw is a function of (seed, epoch, index) -------------------------------
    training, validation = table.split("train"), table.split("val")
    batches = training_pipeline(training, config, cache_dir=run.cache)
    val_batches = inference.evaluation_pipeline(validation, config, cache=config.data.cache, cache_dir=run.cache)

    # ---- 3. Model, optimizer, weight average; where an earlier process stopped ----------------------
    last = checkpoint.newest(run.checkpoints)
    state = checkpoint.read_state(last)
    with runtime.scope(strategy), runtime.dtype_policy(dtype):
        model = build(config, table, weights=config.model.weights if last is None else None)
        average = WeightAverage(model.weights, settings.ema) if settings.ema else None
        start_phase(model, config, training, epoch=max(state.epoch - 1, 0), steps=batches.steps_per_epoch)
        if last is not None:
            go_on(run, last, state, model, average)
    describe_model(model, config, dtype, [batches.pictures, val_batches.pictures])

    # ---- 4. Epochs: fit, validate the averaged weights, note, store ---------------------------------
    writer = make_writer(run.logs, get_task(config.task), enabled=settings.tensorboard)
    first = state.epoch
    for epoch in epochs_left(settings, state):
        start = time.monotonic()
        if 0 < epoch == settings.freeze_epochs:
            with runtime.scope(strategy):
                start_phase(model, config, training, epoch=epoch, steps=batches.steps_per_epoch)
        row = {"epoch": epoch + 1, **run_epoch(model, average, batches, config, epoch, estimate=epoch == first)}
        probs = predict_averaged(model, average, validation, config, val_batches)
        row |= {f"val_{name}": value for name, value in quick_scores(config, training, validation, probs).items()}
        row["seconds"] = round(time.monotonic() - start, 1)
        improved = note_epoch(state, row, settings.monitor, average)
        checkpoint.save(run.checkpoints, state, model, average, improved=improved)
        write_history(run.history, state.rows)
        writer.write_epoch(row, validation, probs, batches if epoch == 0 else None)
        say(describe_epoch(row, settings.epochs, improved))
    writer.close()

    # ---- 5. The best epoch's weights in a float32 model, stored -------------------------------------
    say(f"Best epoch: {state.best_epoch} ({settings.monitor} {state.best_value:.4f}), {format_time(state.seconds)}.")
    with runtime.dtype_policy("float32"):
        final = build(config, table, weights=None)
    checkpoint.load_best(checkpoint.newest(run.checkpoints), final)
    with replacing(run.model) as temporary:
        final.save(temporary)

    # ---- 6. Judged once -----------------------------------------------------------------------------
    run_evaluation.write_evaluation(run, config, table, final, state)
    remove_leftovers(run)
    return run


def go_on(run: Run, last: pathlib.Path, state: checkpoint.State, model: keras.Model, average) -> None:
    """Puts model, optimizer and average where the checkpoint `last` left them."""
    checkpoint.restore(last, state, model, average)
    write_history(run.history, state.rows)  # a kill may have come between checkpoint and history
    say(f"Going on after epoch {state.epoch}.")


def epochs_left(settings: TrainConfig, state: checkpoint.State) -> Iterator[int]:
    """Yields the epochs to come, 0-based, until the last one or until patience ends; `state` is that of each moment."""
    for epoch in range(state.epoch, settings.epochs):
        if settings.patience and state.waited >= settings.patience:
            say(f"Stopped early: {settings.monitor} has not improved for {state.waited} epochs.")
            return
        yield epoch


def remove_leftovers(run: Run) -> None:
    """Removes what only an unfinished run needs."""
    for folder in (run.checkpoints, run.cache):
        shutil.rmtree(folder, ignore_errors=True)


def training_pipeline(table: Table, config: Config, *, cache_dir=None) -> Pipeline:
    """Returns the training split's batches, augmented and weighted as the settings say."""
    return Pipeline(
        table,
        Resizing.from_settings(config.data),
        augmentation=Augmentation.from_settings(config.augment, config.seed),
        batch_size=config.train.batch_size,
        cache=config.data.cache,
        cache_dir=cache_dir,
        class_weights=class_weights(table.labels) if config.train.class_weights == "balanced" else None,
    )


def class_weights(labels: np.ndarray) -> np.ndarray:
    """Returns float (K,), N / (K * count): every class weighs alike in the loss, as scikit-learn's "balanced"."""
    counts = np.nansum(labels, axis=0)
    return len(labels) / (len(counts) * np.maximum(counts, 1))


def build(config: Config, table: Table, *, weights: str | None) -> keras.Model:
    """Returns the run's model, under the dtype policy in force."""
    chosen = {"normalization": config.model.normalization, "dropout": config.model.dropout}
    arguments = {name: value for name, value in chosen.items() if value is not None}
    return build_model(
        config.model.name,
        len(table.class_names),
        image_size=config.data.image_size,
        task=config.task,
        weights=weights,
        **arguments,
        **config.model.options,
    )


def describe_model(model: keras.Model, config: Config, dtype: str, pictures: list) -> None:
    """Says what is trained on what, and how much memory that is likely to take."""
    cached = sum(math.prod(held.shape) for held in pictures if held.place in ("memory", "table"))
    memory = estimate_memory(model, config.train.batch_size, cached_bytes=cached, averaged=bool(config.train.ema))
    size = f"{model.count_params():,} parameters"
    say(f"{config.model.name}: {size}, {dtype}, {runtime.describe_device()}; about {memory / 1e9:.1f} GB of memory.")


def positive_weights(labels: np.ndarray) -> np.ndarray:
    """Returns float (K,), negatives / positives of each label, at most 100: both sides then weigh alike in the loss.

    Args:
      labels: (N, K) in {0, 1}, NaN where unknown, of the training split.
    """
    positives, negatives = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    return np.clip(negatives / np.maximum(positives, 1), 0.01, 100.0)


def make_loss(config: Config, training: Table) -> keras.losses.Loss:
    """Returns the loss that the settings name; its weights come from the training split."""
    return get_task(config.task).make_loss(
        config.train.loss,
        label_smoothing=config.train.label_smoothing,
        positive_weights=positive_weights(training.labels),
    )


def start_phase(model: keras.Model, config: Config, training: Table, *, epoch: int, steps: int) -> None:
    """Compiles the model for the epochs from `epoch` on: the head alone while the backbone is frozen, else all.

    A phase starts with a fresh optimizer, whose learning rate goes on where the schedule stands.
    """
    model.get_layer("backbone").trainable = epoch >= config.train.freeze_epochs
    optimizer = make_optimizer(config.train, steps)
    model.compile(
        optimizer=optimizer,
        loss=make_loss(config, training),
        metrics=get_task(config.task).make_metrics(training.class_names),
        jit_compile=keras.backend.backend() == "jax",
    )
    model.optimizer.build(model.trainable_variables)  # in mixed_float16 a wrapper that scales the loss
    optimizer.iterations.assign(epoch * steps)


def run_epoch(model, average, batches: Pipeline, config: Config, epoch: int, *, estimate: bool) -> dict:
    """Trains one epoch; returns its learning rate at the end, mean loss and metrics."""
    progress = EpochProgress(epoch, config.train.epochs, batches.steps_per_epoch, estimate=estimate)
    callbacks = [callback for callback in (average, StopOnNonFiniteLoss(), progress) if callback is not None]
    with contextlib.closing(progress), batches.clear_errors():
        history = model.fit(batches.epoch(epoch), epochs=1, shuffle=False, verbose=0, callbacks=callbacks)
    logs = {name: float(values[-1]) for name, values in history.history.items()}
    return {"learning_rate": float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)), **logs}


def predict_averaged(model: keras.Model, average, validation: Table, config: Config, batches: Pipeline) -> np.ndarray:
    """Returns float32 (N, K), what the averaged weights say of the validation split; the model keeps its own."""
    with average.applied() if average is not None else contextlib.nullcontext():
        return inference.predict(model, validation, config, pipeline=batches)


def quick_scores(config: Config, training: Table, validation: Table, probs: np.ndarray) -> dict:
    """Returns loss and fit metrics of the joined arrays; no mean over batches of unlike size."""
    labels = validation.labels
    values = {"loss": make_loss(config, training)(labels, probs)}
    for metric in get_task(config.task).make_metrics(training.class_names):
        for rows in range(0, len(labels), 1024):  # some need much memory a picture
            metric.update_state(labels[rows : rows + 1024], probs[rows : rows + 1024])
        values[metric.name] = metric.result()
    return {name: float(keras.ops.convert_to_numpy(value)) for name, value in values.items()}


def note_epoch(state: checkpoint.State, row: dict, monitor: str, average) -> bool:
    """Adds an epoch to the state; returns whether it is the best so far."""
    value = row[monitor]
    state.epoch = row["epoch"]
    state.rows.append(row)
    state.seconds += row["seconds"]
    state.num_updates = average.num_updates if average is not None else 0
    better = min if monitor.removeprefix("val_") in LOWER_IS_BETTER else max
    improved = state.best_value is None or (value != state.best_value and better(value, state.best_value) == value)
    if improved:
        state.best_epoch, state.best_value, state.waited = state.epoch, value, 0
    else:
        state.waited += 1
    return improved


def describe_epoch(row: dict, epochs: int, improved: bool) -> str:
    """Returns an epoch as one line."""
    hidden = ("epoch", "learning_rate", "seconds")
    scores = "  ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in hidden)
    return f"Epoch {row['epoch']}/{epochs}: {scores}  ({row['seconds']:.0f} s){'  best so far' if improved else ''}"
