"""The names of classes in somebody else's data, and the classes of a model that they stand for."""

import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from kmed.data.readers.text import plain
from kmed.data.table import Table
from kmed.errors import ConfigError, DataError, shorten, suggest
from kmed.reading import parse_yaml, read_text
from kmed.tasks import get_task

_EXAMPLE = "such as Normal='No Finding', or Other= for a name that stands for none of the classes"


def read_class_map(given: Mapping | str | pathlib.Path | Iterable[str] = ()) -> dict[str, str | None]:
    """Returns {name in the data: class of the model, or None} from what `--map` takes.

    Args:
      given: texts "theirs=ours", where nothing after the sign means that the name stands for no class; or YAML files
        that hold the same as a mapping, with null for no class; or the mapping itself.
    Raises: ConfigError: a text without "=", a file that holds no mapping, or a name that is mapped twice.
    """
    if isinstance(given, Mapping):
        return _checked(given, "The map of class names")
    found: dict[str, str | None] = {}
    for text in [given] if isinstance(given, (str, pathlib.Path)) else given:
        for theirs, ours in _parse(text).items():
            if theirs in found and found[theirs] != ours:
                raise ConfigError(f"{theirs!r} is mapped twice: to {found[theirs]!r} and to {ours!r}. Give it once.")
            found[theirs] = ours
    return found


def _parse(text: str | pathlib.Path) -> dict[str, str | None]:
    if str(text).endswith((".yaml", ".yml")):
        content = read_text(text, ConfigError)
        try:
            return _checked(parse_yaml(content), str(text))
        except ValueError as problem:
            raise ConfigError(f"{text} cannot be read{problem}.") from None
    theirs, sign, ours = str(text).partition("=")
    if not sign or not plain(theirs):
        raise ConfigError(f"--map needs THEIRS=OURS or a YAML file, {_EXAMPLE}. Received: {shorten(str(text))}.")
    return {plain(theirs): plain(ours) or None}


def _checked(mapping, origin: str) -> dict[str, str | None]:
    """Returns the mapping with its names as text. Raises ConfigError if it is none."""
    legal = isinstance(mapping, Mapping) and all(
        isinstance(ours, (str, int, float, type(None))) and not isinstance(ours, bool) for ours in mapping.values()
    )
    if not legal:
        raise ConfigError(f"{origin} must map each name to one class or to null. Received: {shorten(mapping)}.")
    return {plain(str(theirs)): None if ours is None else plain(str(ours)) for theirs, ours in mapping.items()}


def apply_class_map(table: Table, mapping: Mapping[str, str | None], class_names, task: str) -> Table:
    """Returns the table with the classes of a model in the place of its own names, and notes on what was left out.

    A name that is a class of the model stands for it, unless the map says otherwise. If several names stand for one
    class, a picture has the class if it has one of them, and it is unknown if none is 1 and one is unknown. A class
    that no name stands for is unknown (NaN) where labels are independent; where classes exclude each other, no
    picture has it. Pictures whose class stands for nothing are left out where classes exclude each other.

    Args:
      table: the pictures, with the names in the data.
      mapping: what `read_class_map` returned.
      class_names: the K classes of the model.
      task: the task of the model.
    Raises: DataError: names that are neither classes nor mapped, a map from a name that the data lack or to a class
      that the model lacks, or data in which pictures have several labels for a model of exclusive classes.
    """
    target = _targets(table, mapping, class_names)
    exclusive = get_task(task).exclusive
    if exclusive and not table.exclusive:
        raise DataError(
            f"The model gives each picture one class, but pictures in {table.name} have several labels, none or "
            "unknown ones. Give data with one class per picture."
        )
    labels = np.full((len(table), len(class_names)), 0.0 if exclusive else np.nan, np.float32)
    for k, name in enumerate(class_names):
        if sources := [column for column, theirs in enumerate(table.class_names) if target[theirs] == name]:
            labels[:, k] = _any_of(table.labels[:, sources])
    kept = labels.sum(axis=1) == 1 if exclusive else np.ones(len(table), bool)
    if not kept.any():
        raise DataError(f"No picture in {table.name} is left: its class names are all mapped to nothing.")
    mapped = table.replace(labels=labels, class_names=tuple(class_names), task=task).take(kept)
    return mapped.with_notes(*_notes(table, target, class_names, int((~kept).sum()), exclusive))


def _targets(table: Table, mapping: Mapping[str, str | None], class_names) -> dict[str, str | None]:
    """Returns {name in the data: class or None} for each name in the data."""
    names, classes = list(table.class_names), list(class_names)
    for theirs, ours in mapping.items():
        if theirs not in names:
            raise DataError(
                f"The map names {theirs!r}, which {table.name} lacks. Its names are {', '.join(names)}."
                + suggest(theirs, names)
            )
        if ours is not None and ours not in classes:
            raise DataError(
                f"The map gives {theirs!r} the class {ours!r}, which the model lacks. Its classes are "
                f"{', '.join(classes)}." + suggest(ours, classes)
            )
    unknown = [name for name in names if name not in mapping and name not in classes]
    if unknown:
        raise DataError(
            f"{table.name} has class names that the model does not know ({len(unknown)}): {', '.join(unknown)}. Its "
            f"classes are {', '.join(classes)}. Say what each of them stands for with --map THEIRS=OURS, {_EXAMPLE}."
        )
    return {name: mapping.get(name, name) for name in names}


def _any_of(columns: np.ndarray) -> np.ndarray:
    """Returns (N,): 1 where one of the columns (N, C) is 1, else NaN where one is unknown, else 0."""
    unknown = np.isnan(columns).any(axis=1)
    return np.where((columns == 1).any(axis=1), 1.0, np.where(unknown, np.nan, 0.0))


def _notes(table: Table, target, class_names, num_left_out: int, exclusive: bool) -> list[str]:
    renamed = [f"{theirs} -> {ours}" for theirs, ours in target.items() if ours not in (None, theirs)]
    dropped = [theirs for theirs, ours in target.items() if ours is None]
    lacking = [name for name in class_names if name not in target.values()]
    notes = [f"Class names: {'; '.join(renamed)}."] if renamed else []
    if dropped:
        rest = f", and {num_left_out:,} pictures of them are left out" if exclusive else ""
        notes.append(f"Mapped to no class: {', '.join(dropped)}{rest}.")
    if lacking:
        kind = "classes" if exclusive else "findings"
        rest = "so macro scores leave them out" if exclusive else "so they are unknown here, and no score counts them"
        notes.append(f"{table.name} lacks {kind} of the model ({len(lacking)}), {rest}: {', '.join(lacking)}.")
    return notes
