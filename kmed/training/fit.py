"""`kmed.fit` and `kmed.resume`: train a model on a table, score it once, and leave a run folder."""

import contextlib
import math
import pathlib
from collections.abc import Callable

import numpy as np

from kmed import files, runtime
from kmed.config import FULL, Config, range_text
from kmed.data.demo.sets import demo_task
from kmed.data.prepare import open_table, prepare_table, print_counts
from kmed.data.splits import check_same_labels, write_splits
from kmed.data.table import Table
from kmed.errors import ConfigError, RunError, suggest
from kmed.evaluation import run_evaluation
from kmed.evaluation.cases import check_columns
from kmed.evaluation.inference import run_table
from kmed.evaluation.lineage import leak_of_weights
from kmed.files import point_latest, write_json
from kmed.models.build import check_model
from kmed.models.combined import check_views
from kmed.models.registry import resolve_name
from kmed.models.weight_files import is_earlier_run, normalization_of
from kmed.models.weights import check_weights
from kmed.progress import say, warn
from kmed.reading import read_json
from kmed.runs import (
    Run,
    check_vacant,
    claimed,
    clear_run,
    default_folder,
    has_ended,
    held,
    open_run,
    write_classes,
)
from kmed.schemas.records import Classes, check, stamped
from kmed.tasks import TASKS, get_task
from kmed.training import processes
from kmed.training.distillation import check_lessons, check_same_teacher, check_teacher, record_teacher
from kmed.training.fine_tuning import describe_recipe, with_recipe
from kmed.training.loop import quick_scores, remove_leftovers, train
from kmed.training.plans import hint_at_page
from kmed.training.trackers import catch_up, check_trackers

# Settings with the value for which a run stores another one, found from its data or its weights.
RESOLVED = (("task", "auto"), ("model.normalization", None), ("data.range", "auto"))
# What the first of several processes finds in the run folder, and the others learn from it.
BEGINS, CONTINUES, ENDED = range(3)


def fit(
    config: Config | None = None,
    *,
    table: Table | None = None,
    out=None,
    after_epoch: Callable[[list[dict]], None] | None = None,
) -> Run:
    """Trains a model, scores it on the test split, and returns its run folder.

    Args:
      config: all settings; None: the defaults (ResNet-18 on the built-in demo data).
      table: the pictures, to be used instead of those at `config.data.path`.
      out: the run folder, which must not exist yet, or hold an interrupted run with the same settings, which is then
        continued; None: a new one in saved_models/.
      after_epoch: called after each epoch, when it is stored, with the rows of history.csv so far. An error that it
        raises ends the run, which can then be resumed.
    Returns: Run, the paths of the files that were made.
    Raises: KmedError: bad settings or data, a full disk, a loss that is not finite. An error before
      the end of the first epoch leaves no folder behind.
    Example:
      >>> run = kmed.fit(kmed.load_config(overrides=["train.epochs=1"]))
    """
    config = config or Config()
    if table is not None or config.data.path is None:
        config = with_task(config, demo_task(config.task) if table is None else table.task)
    given, config = config, with_recipe(config)
    check_settings(config)
    begun = find_begun(config, out) if processes.leads() else None
    continues = processes.agree(CONTINUES if begun is not None and not has_ended(begun) else BEGINS)
    if continues == ENDED:
        return Run(pathlib.Path(out))
    if continues == CONTINUES:
        say(f"{out} holds this run, which was interrupted: it is continued.")
        return resume(out, table=table, after_epoch=after_epoch)
    if out is not None and processes.leads():
        check_vacant(pathlib.Path(out))  # before the pictures are read, which may take a while
    config = with_absolute_paths(with_normalization(config))
    describe_recipe(given)
    if table is None:
        table = open_table(config)
        config = with_task(config, table.task)
        check_task_settings(config)
    if not processes.leads():
        with scratch_run() as run:
            return train(run, *start(run, config, table), after_epoch=after_epoch)
    folder = pathlib.Path(out) if out is not None else default_folder(config.data.name or table.name, config.model.name)
    with claimed(folder) as run:
        config.write(run.config)  # first, since it makes the folder a run that can be resumed
        return train(run, *start(run, config, table), after_epoch=after_epoch)


def start(run: Run, config: Config, table: Table) -> tuple[Config, Table]:
    """Checks and splits the table, writes what is known before training, and returns (settings, split table).

    The settings hold the range of 16-bit pictures that was found.
    """
    if not run.environment.exists():  # else it names the command that began the run
        write_json(run.environment, stamped(runtime.environment()))
    point_latest(run.folder)
    table, unreadable = prepare_table(table, config, processes.look_together)
    check_monitor(config, table)
    check_columns(table.rows, config.evaluate)
    config = with_range(config, table)
    check_lessons(config, table)
    if leak := leak_of_weights(config, table):
        warn(
            f"Warning: {leak} If they are the same images, the scores will be too good, and no ensemble takes this run."
        )
    print_counts(table)
    config.write(run.config)
    write_classes(run, config, table.class_names)
    record_teacher(run, config)
    if len(unreadable):
        files.write_frame(run.unreadable, unreadable)
    write_splits(table, run.splits, labels=True)  # last: it shows `resume` that all of this is there
    say(f"Run folder: {run.folder}")
    return config, table


def find_begun(config: Config, out) -> Run | None:
    """Returns the run that these settings have begun in the folder `out`, finished or not; None: there is none."""
    if out is None or not (run := Run(pathlib.Path(out))).config.exists():
        return None
    wanted = with_absolute_paths(with_recipe(config))
    given, stored = wanted.flat(), run.read_config().flat()
    same = all(value == stored[name] or (name, value) in RESOLVED for name, value in given.items())
    return run if same else None


def resume(folder, *, table: Table | None = None, after_epoch: Callable[[list[dict]], None] | None = None) -> Run:
    """Continues an interrupted run from its last finished epoch, with the run's own settings.

    Args:
      folder: the run folder.
      table: the pictures, to be used instead of those that the run's settings name.
      after_epoch: as for `fit`.
    Returns: Run, the paths of the files that were made.
    Raises: RunError: there is no such run, it has already ended, it was started for another task, or another process is
      training it. DataError: the pictures cannot be read, or their classes or labels are not those that the run was
      started with.
    """
    run = open_run(folder)
    if not processes.leads():
        return resume_beside(run, table, after_epoch)
    with held(run):
        clear_run(run)
        if has_ended(run):
            raise RunError(
                f"{folder} has already ended; its results are in {run.summary}. Start a new run instead."
                f"{hint_at_page(run)}"
            )
        if run.result.exists():
            say(f"{folder} has its scores, but was interrupted after that: its figures are drawn.")
            run_evaluation.draw_again(run)
            catch_up(run)
            remove_leftovers(run)
            return run
        config, begun = run.read_config(), processes.agree(run.splits.exists())
        if begun:
            check_same_task(run, config.task, f"in {run.config}")
            check_before(run)
        check_settings(config)
        table = open_table(config) if table is None else table
        prepared = continue_with(run, config, table) if begun else start(run, config, table)
        return train(run, *prepared, after_epoch=after_epoch)


def resume_beside(run: Run, table: Table | None, after_epoch=None) -> Run:
    """Takes part in `resume` as a process that does not write the run folder."""
    if run.result.exists():
        return run
    config, begun = run.read_config(), processes.agree(run.splits.exists())
    check_settings(config)
    table = open_table(config) if table is None else table
    with scratch_run() as own:
        prepared = continue_with(run, config, table) if begun else start(own, config, table)
        return train(own, *prepared, checkpoints=run.checkpoints, after_epoch=after_epoch)


@contextlib.contextmanager
def scratch_run():
    """Yields a Run in a temporary folder, for what a process that does not lead would write."""
    with files.temporary_folder() as folder:
        (folder / "run").mkdir()
        yield Run(folder / "run")


def continue_with(run: Run, config: Config, table: Table) -> tuple[Config, Table]:
    """Returns (settings, split table) of a run that has begun, once the data are known to be still the same."""
    check_same_task(run, table.task, "of the data")
    table = run_table(run, table)
    check_same_labels(table, run.splits)
    check_same_teacher(run, config)
    check_lessons(config, table)
    return config, table


def check_same_task(run: Run, task: str, place: str) -> None:
    """Raises RunError unless `task`, which was found in `place`, is the task that the run was started with."""
    started = check(Classes, read_json(run.classes), run.classes).task
    if task != started:
        raise RunError(
            f"The run was started as {started}, but the task {place} is now {task}. Change it back, or start a new run."
        )


def check_before(run: Run) -> None:
    """Raises RunError if a file that the end of training will need is damaged, which is found before the training."""
    run.read_classes()
    run.read_json(run.environment)
    run.read_splits()


def check_settings(config: Config) -> None:
    """Raises ConfigError if settings contradict each other; each of them alone has been checked before."""
    if config.task == "auto":
        check_loss(config)  # the rest is checked as soon as the labels have been read
    else:
        check_task_settings(config)
    name = resolve_name(config.model.name)
    arguments = {"dropout", "weights", "normalization", "image_size", "task", "num_classes", "class_names"}
    arguments |= {"activation", "name"}
    if doubled := sorted(arguments & set(config.model.options)):
        raise ConfigError(
            f"model.options.{doubled[0]} has a setting of its own (for dropout it is model.dropout). Use that instead."
        )
    check_model(name, config.data.image_size, config.model.options)
    check_views(config)
    for setting in ("freeze_epochs", "freeze_batch_norm"):
        if (value := getattr(config.train, setting)) and not config.model.weights:
            raise ConfigError(
                f"train.{setting} needs a pretrained backbone. Received: {value} without weights. Give model.weights, "
                f"or set it to {type(value)(0)}."
            )
    check_teacher(config)
    check_trackers(config)
    if config.data.fold is not None and config.data.splits is None:
        raise ConfigError("data.fold names a fold of a splits file. Give data.splits too.")


def check_task_settings(config: Config) -> None:
    """Raises ConfigError if the loss or the monitored score does not fit the task."""
    check_loss(config)
    task = get_task(config.task)
    # Raises ConfigError if the loss does not allow the label smoothing.
    task.make_loss(config.train.loss, label_smoothing=config.train.label_smoothing, positive_weights=[1.0])
    legal = ["val_loss", *(f"val_{metric.name}" for metric in task.make_metrics(["any"]))]
    if config.train.monitor not in legal:
        hint = suggest(config.train.monitor, legal)
        raise ConfigError(f"train.monitor must be {' or '.join(legal)}. Received: {config.train.monitor!r}.{hint}")


def check_monitor(config: Config, table: Table) -> None:
    """Raises ConfigError if the labels of the validation split leave the monitored score undefined in every epoch."""
    training, validation = table.split("train"), table.split("val")
    scores = quick_scores(config, training, validation, np.full(validation.labels.shape, 0.5, np.float32))
    defined = [f"val_{name}" for name, value in scores.items() if math.isfinite(value)]
    if config.train.monitor not in defined:
        raise ConfigError(
            f"train.monitor={config.train.monitor} is undefined for the labels of this validation split, whatever the "
            "model predicts: an AUROC needs a finding that some of the images have and others do not have. Set "
            f"train.monitor to {' or '.join(defined)}, or give another validation split."
        )


def check_loss(config: Config) -> None:
    """Raises ConfigError if the task has no loss of that name; while the task is not known, if no task has one."""
    known = TASKS.values() if config.task == "auto" else [get_task(config.task)]
    legal = [loss for task in known for loss in task.losses]
    if config.train.loss not in ("auto", *legal):
        owner = "" if config.task == "auto" else f" of {config.task}"
        hint = suggest(config.train.loss, legal)
        raise ConfigError(f"train.loss{owner} must be {' or '.join(legal)}. Received: {config.train.loss!r}.{hint}")


def with_task(config: Config, task: str) -> Config:
    """Returns the settings with `task` in place of "auto"."""
    return config.model_copy(update={"task": task}) if config.task == "auto" else config


def with_normalization(config: Config) -> Config:
    """Returns the settings with the normalisation that belongs to the weights written out.

    The model can then be rebuilt, by a resumed run or in another dtype, without the source of the weights.

    Raises: WeightsError: there are no such weights, or they are damaged or those of another family, which is thus found
      before the pictures are read.
    """
    if config.model.weights is None:
        return config
    found = check_weights(config.model.weights, config.model.name)
    if config.model.normalization is not None:
        return config
    own = normalization_of(found)
    chosen = None if own is None else tuple(map(list, own))
    return config.model_copy(update={"model": config.model.model_copy(update={"normalization": chosen})})


def with_range(config: Config, table: Table) -> Config:
    """Returns the settings with the table's range in place of "auto"."""
    return config.model_copy(update={"data": config.data.model_copy(update={"range": range_text(table.range or FULL)})})


def with_absolute_paths(config: Config) -> Config:
    """Returns the settings with absolute paths to the data, the teacher and an earlier run that the weights come from.

    The run then resumes in any folder, and what it has learnt from is known for good.
    """
    data = config.data
    given = {"path": data.path, "splits": data.splits, "labels_csv": data.labels_csv}
    given |= {name: value for name, value in (("group", data.group), ("cluster", data.cluster)) if _is_file(value)}
    found: dict = {name: _absolute(value) for name, value in given.items() if value}
    if data.corrections is not None:
        found["corrections"] = [_absolute(file) for file in data.corrections]
    changes: dict = {"data": data.model_copy(update=found)}
    if config.train.teacher is not None:  # saved_models/latest will soon be another run
        teacher = str(pathlib.Path(config.train.teacher).expanduser().resolve())
        changes["train"] = config.train.model_copy(update={"teacher": teacher})
    if config.model.weights is not None and is_earlier_run(config.model.weights):
        weights = str(pathlib.Path(config.model.weights).resolve())
        changes["model"] = config.model.model_copy(update={"weights": weights})
    return config.model_copy(update=changes)


def _absolute(path: str) -> str:
    return str(pathlib.Path(path).expanduser().absolute())


def _is_file(value: str | None) -> bool:
    return value is not None and not value.startswith("regex:") and pathlib.Path(value).is_file()
