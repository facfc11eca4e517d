"""The training of one run: `train_and_score` is read from top to bottom, in the order in which it runs."""

import contextlib
import math
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator

import keras
import numpy as np
import pandas as pd

from kmed import runtime
from kmed.config import Config, TrainConfig
from kmed.data.augment import Augmentation
from kmed.data.images import Resizing
from kmed.data.pipeline import Pipeline
from kmed.data.table import Table
from kmed.errors import ConfigError
from kmed.evaluation import run_evaluation
from kmed.files import write_frame
from kmed.models.build import build_model
from kmed.models.keras_file import save_model
from kmed.models.layers import freeze_batch_norm
from kmed.models.registry import choose_dtype
from kmed.progress import format_time, say, warn
from kmed.runs import Run
from kmed.tasks import LOWER_IS_BETTER, get_task
from kmed.training import checkpoint, processes
from kmed.training.callbacks import EpochProgress, StopOnNonFiniteLoss
from kmed.training.distillation import describe_teacher, open_teacher, with_teacher
from kmed.training.ema import WeightAverage
from kmed.training.memory import estimate_memory
from kmed.training.optimizer import make_optimizer
from kmed.training.tensorboard import make_writer
from kmed.training.trackers import Followers, following
from kmed.training.validation import Validation


def write_history(path: pathlib.Path, rows: list[dict]) -> None:
    """Writes history.csv: one row per epoch, with the times in the last column."""
    write_frame(path, pd.DataFrame(rows))


def train(
    run: Run,
    config: Config,
    table: Table,
    *,
    checkpoints: pathlib.Path | None = None,
    after_epoch: Callable[[list[dict]], None] | None = None,
) -> Run:
    """Trains for the remaining epochs, then scores the best one; trackers follow it. `fit` and `resume` call it.

    Args:
      run: the run, which has begun.
      config: its settings.
      table: its images, with their splits.
      checkpoints: where an earlier process left its state; None: in the run.
      after_epoch: as for `kmed.fit`.
    """
    with following(run, config) as trackers:
        train_and_score(run, config, table, trackers, checkpoints, after_epoch)
    return run


def train_and_score(run: Run, config: Config, table: Table, trackers: Followers, checkpoints, after_epoch=None) -> None:
    """Trains for the remaining epochs, then scores the best one; see `train`."""
    settings = config.train

    # ---- 1. Global state: devices, seed, arithmetic; the teacher, if there is one -------------------
    strategy = runtime.distribution(settings.devices)
    teacher = open_teacher(config, strategy)  # before the seed is set, since loading a model draws numbers
    runtime.seed_everything(config.seed)
    dtype = choose_dtype(config.model.name, settings.dtype)

    # ---- 2. Batches: every draw is a function of (seed, epoch, index) -------------------------------
    training = table.split("train")
    targets = None if teacher is None else teacher.answer_all(training, config)
    batches = training_pipeline(training, config, cache_dir=run.cache, targets=targets)
    check_shares(batches, strategy)
    validation = Validation(table.split("val"), config, run.cache)

    # ---- 3. Model, optimizer, weight average, as an earlier process left them -----------------------
    last = checkpoint.newest(checkpoints or run.checkpoints)
    state = checkpoint.read_state(last)
    with runtime.scope(strategy), runtime.dtype_policy(dtype):
        model = with_teacher(build(config, table, weights=config.model.weights if last is None else None), teacher)
        average = make_average(model, settings)
        start_phase(model, config, training, epoch=max(state.epoch - 1, 0), steps=batches.steps_per_epoch)
        if last is not None:
            continue_from(run, last, state, model, average)
    judge = local_copy(config, table, dtype, strategy)
    describe_model(model, config, dtype, [batches.pictures, validation.batches.pictures])
    if teacher is not None:
        describe_teacher(teacher, config, batches, epochs=settings.epochs - state.epoch)

    # ---- 4. Epochs: fit, validate the averaged weights, record, store -------------------------------
    writer = make_writer(run.logs, get_task(config.task), enabled=settings.tensorboard)
    first = state.epoch
    for epoch in remaining_epochs(settings, state, after_epoch):
        start = time.monotonic()
        if 0 < epoch == settings.freeze_epochs:
            with runtime.scope(strategy):
                start_phase(model, config, training, epoch=epoch, steps=batches.steps_per_epoch)
        with runtime.scope(strategy):
            trained = run_epoch(model, average, batches, config, epoch, estimate=epoch == first)
        row = {"epoch": epoch + 1, **trained}
        probs = validation.predict(model, judge, average, epoch + 1)
        row |= {f"val_{name}": value for name, value in quick_scores(config, training, validation.table, probs).items()}
        row["seconds"] = round(time.monotonic() - start, 1)
        improved = record_epoch(state, row, settings.monitor, average)
        # As long as there is no best epoch, the newest weights stand in for its weights.
        checkpoint.save(run.checkpoints, state, model, average, improved=improved or not state.best_epoch)
        write_history(run.history, state.rows)
        writer.write_epoch(row, validation.table, probs, batches if epoch == 0 else None)
        trackers.write_epochs(state.rows)
        say(describe_epoch(row, settings.epochs, improved))
    writer.close()
    leads = processes.leads()
    processes.leave()  # nobody waits while the first of several processes scores the model

    # ---- 5. Store the best epoch's weights as a float32 model, and score it once ---------------------
    if leads:
        score_best(run, config, table, state, trackers)


def score_best(run: Run, config: Config, table: Table, state: checkpoint.State, trackers: Followers) -> None:
    """Stores the model of the best epoch, scores it, and removes what only an unfinished run needs."""
    choose_epoch(state, config.train.monitor)
    with runtime.dtype_policy("float32"):
        final = build(config, table, weights=None)
    checkpoint.load_best(run.checkpoints, final)
    save_model(final, run.model)
    run_evaluation.write_evaluation(run, config, table, final, state)
    trackers.write_results(state.rows)
    remove_leftovers(run)


def make_average(model: keras.Model, settings: TrainConfig) -> WeightAverage | None:
    """Returns the average of the model's weights, or None if it is turned off."""
    if not settings.ema:
        return None
    return WeightAverage(model.weights, settings.ema, settings.accumulate, settings.ema_every)


def continue_from(run: Run, last: pathlib.Path, state: checkpoint.State, model: keras.Model, average) -> None:
    """Puts the model, its optimizer, the average and history.csv into the state of the checkpoint `last`."""
    checkpoint.restore(last, state, model, average)
    write_history(run.history, state.rows)  # the process may have been killed between checkpoint and history
    say(f"Continuing after epoch {state.epoch}.")


def remaining_epochs(settings: TrainConfig, state: checkpoint.State, after_epoch=None) -> Iterator[int]:
    """Yields the remaining epochs, 0-based, until patience ends; `state` is read anew before each one.

    After each epoch, `after_epoch` is called with the rows of all epochs so far.
    """
    for epoch in range(state.epoch, settings.epochs):
        if settings.patience and state.waited >= settings.patience:
            say(f"Stopped early: {settings.monitor} has not improved for {state.waited} epochs.")
            return
        yield epoch
        if after_epoch is not None:
            after_epoch(state.rows)


def remove_leftovers(run: Run) -> None:
    """Removes the folders that only an unfinished run needs."""
    for folder in (run.cache, run.checkpoints):  # the checkpoints last: without them, the run has ended
        shutil.rmtree(folder, ignore_errors=True)


def training_pipeline(table: Table, config: Config, *, cache_dir=None, targets=None) -> Pipeline:
    """Returns the batches of the training split, augmented and weighted according to the settings.

    Args:
      table: the images of the training split.
      config: the settings.
      cache_dir: where decoded images are kept if they do not fit in memory.
      targets: what a teacher answered for these images (N, K), which is put behind their labels; None: nothing.
    """
    return Pipeline(
        table,
        Resizing.from_settings(config.data),
        augmentation=Augmentation.from_settings(config.augment, config.seed),
        batch_size=config.train.batch_size,
        cache=config.data.cache,
        cache_dir=cache_dir,
        class_weights=class_weights(table.labels) if config.train.class_weights == "balanced" else None,
        sample=config.train.sample,
        targets=targets,
        part=(processes.index(), processes.number()),
    )


def check_shares(batches: Pipeline, strategy) -> None:
    """Raises ConfigError unless every device gets the same number of a batch's images, as Keras on JAX needs it."""
    if is_spread_by_keras(strategy) and batches.batch_size % (number := strategy.num_model_replicas):
        raise ConfigError(
            f"A batch of {batches.batch_size} cannot be shared equally by {number} devices. Set train.batch_size to a "
            f"multiple of {number}."
        )


def is_spread_by_keras(strategy) -> bool:
    """Returns whether `runtime.distribution` returned a distribution of Keras on JAX, not one of TensorFlow."""
    return isinstance(strategy, keras.distribution.DataParallel)


def local_copy(config: Config, table: Table, dtype: str, strategy) -> keras.Model | None:
    """Returns a model for this process's first device alone, if Keras spreads the one in training over several.

    Whatever computes with the weights of that one, all processes must take part in.
    """
    if not is_spread_by_keras(strategy):
        return None
    with runtime.dtype_policy(dtype):
        return build(config, table, weights=None)


def class_weights(labels: np.ndarray) -> np.ndarray:
    """Returns float (K,), N / (K * count): all classes weigh the same in the loss, as scikit-learn's "balanced"."""
    counts = np.nansum(labels, axis=0)
    return len(labels) / (len(counts) * np.maximum(counts, 1))


def build(config: Config, table: Table, *, weights: str | None) -> keras.Model:
    """Returns the run's model, under the current dtype policy."""
    return build_model(
        config.model.name,
        len(table.class_names),
        class_names=table.class_names,
        image_size=config.data.image_size,
        task=config.task,
        weights=weights,
        normalization=config.model.normalization,
        dropout=config.model.dropout,
        **config.model.options,
    )


def describe_model(model: keras.Model, config: Config, dtype: str, pictures: list) -> None:
    """Says which model is trained on which device, and how much memory that is likely to take."""
    cached = sum(math.prod(held.shape) for held in pictures if held.place in ("memory", "table"))
    kept = {"averaged": bool(config.train.ema), "accumulated": config.train.accumulate > 1}
    memory = estimate_memory(model, config.train.batch_size, cached_bytes=cached, **kept)
    size = f"{model.count_params():,} parameters"
    say(f"{config.model.name}: {size}, {dtype}, {runtime.describe_device()}; about {memory / 1e9:.1f} GB of memory.")


def positive_weights(labels: np.ndarray) -> np.ndarray:
    """Returns float (K,), negatives / positives per label, 0.01 to 100: then both sides weigh the same in the loss.

    Args:
      labels: (N, K) in {0, 1}, NaN where unknown, of the training split.
    """
    positives, negatives = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
    return np.clip(negatives / np.maximum(positives, 1), 0.01, 100.0)


def make_loss(config: Config, training: Table) -> keras.losses.Loss:
    """Returns the loss that the settings name, with weights computed from the training split."""
    return get_task(config.task).make_loss(
        config.train.loss,
        label_smoothing=config.train.label_smoothing,
        positive_weights=positive_weights(training.labels),
    )


def make_training_loss(config: Config, training: Table) -> keras.losses.Loss:
    """Returns the loss of the training steps: that of `make_loss`, mixed with a teacher's answers if there is one."""
    loss, settings = make_loss(config, training), config.train
    if settings.teacher is None:
        return loss
    task = get_task(config.task)
    return task.make_distillation(loss, temperature=settings.teacher_temperature, weight=settings.teacher_weight)


def freeze_layers(model: keras.Model, settings: TrainConfig, *, epoch: int) -> None:
    """Decides which layers learn from `epoch` on: the head alone, or all but the batch normalisation, or all."""
    model.get_layer("backbone").trainable = epoch >= settings.freeze_epochs
    if settings.freeze_batch_norm:
        freeze_batch_norm(model)


def start_phase(model: keras.Model, config: Config, training: Table, *, epoch: int, steps: int) -> None:
    """Compiles the model for the epochs from `epoch` on, with the head only while the backbone is frozen.

    A phase starts with a new optimizer, whose learning rate follows the schedule from the current step on.
    """
    freeze_layers(model, config.train, epoch=epoch)
    optimizer = make_optimizer(config.train, steps)
    model.compile(
        optimizer=optimizer,
        loss=make_training_loss(config, training),
        metrics=get_task(config.task).make_metrics(training.class_names),
        jit_compile=keras.backend.backend() == "jax",
    )
    model.optimizer.build(model.trainable_variables)  # in mixed_float16 this is a wrapper that scales the loss
    optimizer._iterations.assign(epoch * steps)  # the steps; its `iterations` are updates


def run_epoch(model, average, batches: Pipeline, config: Config, epoch: int, *, estimate: bool) -> dict:
    """Trains for one epoch; returns the learning rate at its end, the mean loss and the metrics."""
    if average is not None:
        average.num_steps = epoch * batches.steps_per_epoch
    progress = EpochProgress(epoch, config.train.epochs, batches.steps_per_epoch, estimate=estimate)
    callbacks = [callback for callback in (average, StopOnNonFiniteLoss(), progress) if callback is not None]
    with contextlib.closing(progress), batches.clear_errors():
        history = model.fit(batches.epoch(epoch), epochs=1, shuffle=False, verbose=0, callbacks=callbacks)
    logs = {name: float(values[-1]) for name, values in history.history.items()}
    return {"learning_rate": float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)), **logs}


def quick_scores(config: Config, training: Table, validation: Table, probs: np.ndarray) -> dict:
    """Returns the loss and the fit metrics of the joined arrays, which a mean over unequal batches would not give."""
    labels = validation.labels
    values = {"loss": make_loss(config, training)(labels, probs)}
    for metric in get_task(config.task).make_metrics(training.class_names):
        for rows in range(0, len(labels), 1024):  # some metrics need much memory per picture
            metric.update_state(labels[rows : rows + 1024], probs[rows : rows + 1024])
        values[metric.name] = metric.result()
    return {name: float(keras.ops.convert_to_numpy(value)) for name, value in values.items()}


def record_epoch(state: checkpoint.State, row: dict, monitor: str, average) -> bool:
    """Adds an epoch to the state; returns whether it is the best so far. One without the score never is."""
    value = row[monitor]
    best = state.best_value
    state.epoch = row["epoch"]
    state.rows.append(row)
    state.seconds += row["seconds"]
    state.num_updates = average.num_updates if average is not None else 0
    better = min if monitor.removeprefix("val_") in LOWER_IS_BETTER else max
    improved = math.isfinite(value) and (best is None or (value != best and better(value, best) == value))
    if improved:
        state.best_epoch, state.best_value, state.waited = state.epoch, value, 0
    else:
        state.waited += 1
    return improved


def choose_epoch(state: checkpoint.State, monitor: str) -> None:
    """Says which epoch's weights are kept: the best one's, or the last one's if the score was never defined."""
    if state.best_epoch:
        best = f"{monitor} {state.best_value:.4f}"
    else:
        state.best_epoch, best = state.epoch, "the last one"
        warn(
            f"Warning: {monitor} was undefined in every epoch, so none of them is the best and the last one is kept. "
            "Train again with another train.monitor, such as val_loss."
        )
    say(f"Best epoch: {state.best_epoch} ({best}), {format_time(state.seconds)}.")


def describe_score(value: float) -> str:
    """Returns a score to four decimals, or "undefined"."""
    return "undefined" if math.isnan(value) else f"{value:.4f}"


def describe_epoch(row: dict, epochs: int, improved: bool) -> str:
    """Returns the line that is printed after an epoch."""
    hidden = ("epoch", "learning_rate", "seconds")
    scores = "  ".join(f"{name} {describe_score(value)}" for name, value in row.items() if name not in hidden)
    return f"Epoch {row['epoch']}/{epochs}: {scores}  ({row['seconds']:.0f} s){'  best so far' if improved else ''}"
