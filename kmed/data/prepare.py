"""From settings to the table that a run works on: read, checked, split."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable

import pandas as pd

from kmed.config import FULL, load_config
from kmed.data.class_map import apply_class_map
from kmed.data.corrections import apply_corrections
from kmed.data.demo.sets import demo_task, ensure_demo
from kmed.data.images import Resizing
from kmed.data.pixel_range import with_range
from kmed.data.readable import check_readable, look_at, peaks
from kmed.data.readers.load import load_table
from kmed.data.readers.npz import pack
from kmed.data.readers.source import DataSource
from kmed.data.readers.unlabelled import why_unlabelled
from kmed.data.splits import assign_splits, check_known, check_no_leak, read_splits
from kmed.data.table import SPLITS, Table
from kmed.errors import ConfigError, DataError, KmedError, suggest
from kmed.metrics.intervals import check_clusters
from kmed.progress import say
from kmed.tasks import check_labels, get_task


def open_table(config) -> Table:
    """Returns the table that `config.data` names, not yet checked for broken files and not yet split.

    If the task is "auto", the labels decide, and a message says which task is used.

    Raises: DataError: the data cannot be used. ConfigError: the settings are for data that are not given.
    """
    settings = config.data
    if settings.path is None and settings.name is not None:
        raise ConfigError(f"The settings are for {settings.name!r}, but no data are given: give --data.")
    if settings.path is None:
        path = ensure_demo(seed=0, task=demo_task(config.task))
        say(f"No --data given: using the built-in demo data in {path}.")
    else:
        path = settings.path
    table = load_table(
        path,
        name=settings.name,
        task=None if config.task == "auto" else config.task,
        class_names=settings.class_names if settings.class_map is None or settings.unlabelled else None,
        split_folders=settings.split_folders,
        labels_csv=settings.labels_csv,
        path_column=settings.path_column,
        label_column=settings.label_column,
        label_columns=settings.label_columns,
        split_column=settings.split_column,
        group=settings.group,
        cluster=settings.cluster,
        no_finding=settings.no_finding,
        not_findings=settings.not_findings,
        mapped=settings.class_map is not None,
        unlabelled=settings.unlabelled,
    )
    if settings.unlabelled and settings.class_map:
        raise DataError(f"The map names {next(iter(settings.class_map))!r}, but {path} is read without labels.")
    if settings.class_map is not None and not settings.unlabelled:
        table = _with_classes(table, config)
    for file in settings.corrections or ():
        table = apply_corrections(table, file)
    if config.task == "auto" and settings.path is not None:
        say(f"Task: {table.task}, since {get_task(table.task).reason}. Set task to choose another.")
    return table


def _with_classes(table: Table, config) -> Table:
    """Returns the table with the classes that `data.class_map` gives it."""
    names = config.data.class_names
    if names is None:  # in the order of the data
        named = [config.data.class_map.get(name, name) for name in table.class_names]
        names = list(dict.fromkeys(name for name in named if name is not None))
    return apply_class_map(table, config.data.class_map, names, table.task if config.task == "auto" else config.task)


def explain_unlabelled(config) -> str:
    """Returns a sentence that says why the data of `config.data` have no labels for its classes, or "".

    Raises: DataError: as `kmed.data.readers.unlabelled.why_unlabelled` does.
    """
    settings = config.data
    keys = ("split_folders", "labels_csv", "path_column", "label_column", "label_columns", "split_column", "unlabelled")
    given = {key: getattr(settings, key) for key in keys}
    source = DataSource(pathlib.Path(settings.path).expanduser(), **given)
    return why_unlabelled(source, [*settings.class_names, *(settings.class_map or ())])


def prepare_table(table: Table, config, look: Callable[[Table], pd.DataFrame] = look_at) -> tuple[Table, pd.DataFrame]:
    """Returns (table, unreadable): the readable pictures with their splits and range, and those that are left out.

    If they cannot be used, the table's notes are printed: how the data were read may be the reason.

    Args:
      table: from `open_table`.
      config: the settings.
      look: what opens the pictures, and returns what `look_at` does.
    Raises: DataError: unreadable files (unless `data.skip_unreadable`), a class with too few groups,
      a splits file of other data, or a group on two sides. ScoreError: val or test has only one cluster.
    """
    try:
        return _prepare(table, config, look)
    except KmedError:
        _print_notes(table)
        raise


def prepare_folds(table: Table, config, draw: Callable[[Table, pd.DataFrame], Table]) -> tuple[Table, pd.DataFrame]:
    """Returns (table, unreadable) as `prepare_table` does, with folds in place of splits.

    Args:
      table: from `open_table`.
      config: the settings; the splits of `data.splits`, if it is set, replace those of the data.
      draw: function (readable pictures, the others with their path and reason) that gives the former their folds.
    """
    try:
        settings = config.data
        table, unreadable, facts = _readable(table, config)
        if settings.splits is not None:
            table = read_splits(table, settings.splits, unreadable=tuple(unreadable["path"]))
        table = draw(table, unreadable)
        return with_range(table, peaks(facts), settings.range), unreadable
    except KmedError:
        _print_notes(table)
        raise


def prepare_unjudged(table: Table, config) -> tuple[Table, Table, pd.DataFrame]:
    """Returns (table, everything, unreadable) as `prepare_table` does, but opens no picture outside train and val.

    Args:
      table: from `open_table`.
      config: the settings.
    Returns: the pictures of train and val with their range; the rows of all splits, without the unreadable ones of
      train and val and without pixels; and which those unreadable ones are.
    """
    try:
        check_labels(table.task if config.task == "auto" else config.task, table.labels)
        everything = _split(table, config)
        table = everything.take(everything.rows["split"].isin(["train", "val"]).to_numpy())
        table, unreadable, facts = _readable(table, config)
        readable = ~everything.rows["path"].isin(unreadable["path"]).to_numpy()
        everything = everything.replace(images=None).take(readable)
        return with_range(table, peaks(facts), config.data.range), everything, unreadable
    except KmedError:
        _print_notes(table)
        raise


def _readable(table, config, look=look_at):
    """Returns (table, unreadable, facts): the readable pictures, the others, and what `look` says of all."""
    check_labels(table.task if config.task == "auto" else config.task, table.labels)
    facts = look(table)
    return *check_readable(table, config.data.skip_unreadable, facts), facts


def _prepare(table, config, look):
    table, unreadable, facts = _readable(table, config, look)
    table = _split(table, config, tuple(unreadable["path"]))
    return with_range(table, peaks(facts), config.data.range), unreadable


def _split(table, config, unreadable=()):
    """Returns the table with its splits, which have been checked; of the `unreadable` paths, it holds none."""
    settings = config.data
    if settings.splits is not None:
        table = read_splits(table, settings.splits, fold=settings.fold, unreadable=unreadable)
    else:
        table = assign_splits(
            table, val_fraction=settings.val_fraction, test_fraction=settings.test_fraction, seed=config.seed
        )
    check_no_leak(table)
    check_known(table)
    for name in {"val", "test"} & set(table.rows["split"]):  # raise now, not after hours of training
        check_clusters(table.split(name).rows["cluster"])
    for name in sorted(set(table.rows["split"]) - {*SPLITS, "test_simple"}):
        note = f"Split {name!r} is not used for training. It is scored only if `kmed evaluate` is asked to."
        table = table.with_notes(note + suggest(name, SPLITS))
    return table


def print_counts(table: Table) -> None:
    """Prints the notes of the table and its counts per split."""
    _print_notes(table)
    say(f"\n{table.name}: {len(table)} pictures, {len(table.class_names)} classes")
    say(table.counts().to_string() + "\n")


def read_split_table(config) -> Table:
    """Returns the table that `config.data` names, read, checked and split, and prints its notes."""
    table, _ = prepare_table(open_table(config), config)
    _print_notes(table)
    say("")
    return table


def _print_notes(table: Table) -> None:
    for note in table.notes:
        say(note)


def pack_data(
    path, out, *, image_size, config=None, settings: Iterable[str | tuple[str, object]] = ()
) -> tuple[Table, pathlib.Path]:
    """Reads, checks and splits a data set, and writes its images and labels as one npz file.

    Args:
      path: a folder, a CSV or an npz.
      out: the file to write; ".npz" is added if it is missing.
      image_size: (height, width) in pixels to which the images are resized, or "HxW".
      config: a YAML file whose data section is used.
      settings: overrides such as "data.fit=crop".
    Returns: (Table with its splits, the file).
    Raises: DataError: the data cannot be used, or an image cannot be read.
    """
    resolved = load_config(config, [*settings, ("data.image_size", image_size), ("data.path", str(path))])
    table = read_split_table(resolved)
    resizing = dataclasses.replace(Resizing.from_settings(resolved.data), range=table.range or FULL)
    return table, pack(table, out, resizing)
