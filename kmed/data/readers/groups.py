"""Which pictures belong together: groups, which a split must not cut, and clusters inside them."""

import pathlib
import re

import numpy as np
import pandas as pd

from kmed.data.readers.csv_file import read_csv
from kmed.data.readers.pictures import Pictures, find_pictures
from kmed.data.readers.source import find_groups_csv
from kmed.data.readers.text import plain
from kmed.data.table import Table
from kmed.errors import DataError, suggest

UNGROUPED = (
    "No group is given: each file is treated as independent. If several pictures show one patient or slide, "
    "say so with `group`, or the scores will look better than they are."
)
GROUP_COLUMNS = ("group", "field", "patient")
CLUSTER_COLUMNS = ("cluster", "source", "photograph")


def resolve_groups(table: Table, group: str | None = None, cluster: str | None = None) -> Table:
    """Returns the table with `group` and `cluster` filled from a CSV or a regular expression.

    Args:
      table: a table whose groups are its paths, or already a column of its CSV.
      group: a metadata column, a CSV file with columns path, group (or field) and perhaps cluster (or source),
        or a regular expression with one capture group that is searched for in each path, such as
        "regex:(patient\\\\d+)". Default: the groups of the table, or groups.csv beside the pictures.
      cluster: the same for clusters. Default: those of the CSV that holds the groups, else the groups.
    Raises: DataError: a path without a group, a pattern without a match, a cluster in two groups.
    """
    notes: list[str] = []
    if group is not None or cluster is not None:
        groups, clusters = _values(table, group, GROUP_COLUMNS, "group", notes) if group else (None, None)
        if cluster is not None:
            clusters, _ = _values(table, cluster, CLUSTER_COLUMNS, "cluster", notes)
        if groups is None:
            groups = table.rows["group"].to_numpy() if table.grouped else clusters
        table = _with_groups(table, groups, groups if clusters is None else clusters)
    elif not table.grouped and table.root is not None and (found := find_groups_csv(table.root)) is not None:
        groups, clusters = _from_csv(table, found, GROUP_COLUMNS, "group", notes)
        table = _with_groups(table, groups, groups if clusters is None else clusters)
        notes.append(f"Groups are read from {found.name}, which is beside the pictures.")
    _check_inside(table)
    return table.with_notes(*notes, *([] if table.grouped else [UNGROUPED]))


def _with_groups(table, groups, clusters):
    return table.with_columns(group=groups, cluster=clusters).replace(grouped=True)


def _values(table, spec, columns, setting, notes):
    """Returns (values, clusters or None) that `spec` describes: a column, a CSV or a regular expression."""
    if plain(spec) in table.rows.columns:
        values = table.rows[plain(spec)].astype(str).map(plain)
        if (values == "").any():
            raise DataError(f"Column {spec!r} ({setting}) is empty for {(values == '').sum()} pictures.")
        return values.to_numpy(), None
    if spec.startswith("regex:") or ("(" in spec and not spec.endswith(".csv")):
        return _from_pattern(table, spec.removeprefix("regex:"), setting), None
    if spec.endswith(".csv"):
        path = pathlib.Path(spec)
        if not path.is_file() and table.root is not None and (table.root / path).is_file():
            path = table.root / path
        return _from_csv(table, path, columns, setting, notes)
    names = [name for name in table.rows.columns if name not in ("path", "split")]
    raise DataError(
        f"{setting} must be a column, a CSV file or a regular expression with one capture group. "
        f"Received: {setting}={spec!r}; the columns are {', '.join(names)}." + suggest(spec, names)
    )


def compile_pattern(pattern: str, setting: str) -> re.Pattern:
    """Returns a regular expression with one capture group. Raises DataError, which names `setting`, if it is none."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"{setting} is not a valid regular expression ({error}). Received: {pattern!r}.") from error
    if compiled.groups != 1:
        raise DataError(f"{setting} needs one capture group (...), not {compiled.groups}. Received: {pattern!r}.")
    return compiled


def _from_pattern(table, pattern, setting):
    compiled = compile_pattern(pattern, setting)
    matches = [compiled.search(path) for path in table.rows["path"]]
    lost = [path for path, match in zip(table.rows["path"], matches) if match is None or not plain(match[1] or "")]
    if lost:
        raise DataError(
            f"{setting}={pattern!r} does not match {len(lost)} of {len(table)} paths: {', '.join(lost[:3])}."
        )
    return np.array([plain(match[1]) for match in matches], dtype=object)


def _from_csv(table, path, columns, setting, notes):
    frame = read_csv(path, notes)
    present = [name for name in (*columns, *CLUSTER_COLUMNS) if name in frame.columns]
    if "path" not in frame.columns or not present:
        raise DataError(
            f"{path} must have the columns path and {setting} (or {', '.join(columns[1:])}). "
            f"Received: {', '.join(frame.columns)}."
        )
    cluster = next((name for name in CLUSTER_COLUMNS if name in frame.columns and name != present[0]), None)
    frame = frame[["path", *dict.fromkeys([present[0], cluster or present[0]])]]
    frame = frame.assign(
        **{name: frame[name].map(plain) for name in frame.columns[1:]}, path=_aligned(table, frame, path)
    )
    frame = frame.dropna(subset="path").drop_duplicates().set_index("path")
    twice = frame.index[frame.index.duplicated()].unique()
    if len(twice):
        raise DataError(
            f"{path} names {len(twice)} pictures more than once, with different ids: {', '.join(twice[:3])}."
        )
    known = frame.index[(frame != "").all(axis=1)]
    lost = table.rows["path"][~table.rows["path"].isin(known)]
    if len(lost):
        raise DataError(
            f"{path} names no {setting} for {len(lost)} of {len(table)} pictures: {', '.join(lost.iloc[:3])}."
        )
    chosen = frame.loc[table.rows["path"]]
    return chosen[present[0]].to_numpy(), None if cluster is None else chosen[cluster].to_numpy()


def _aligned(table, frame, csv_path):
    """Returns the table's path of each row of the CSV, None for pictures that the table does not have."""
    pictures = Pictures(table.rows["path"], table.root)
    found = find_pictures([value for value in dict.fromkeys(frame["path"]) if plain(value)], pictures)
    if found.several:
        value, paths = next(iter(found.several.items()))
        raise DataError(
            f"{len(found.several)} pictures named in {csv_path} fit several files, such as {value!r}: "
            f"{', '.join(paths[:3])}. Write their paths relative to {table.root}."
        )
    known = set(table.rows["path"])
    return [path if (path := found.paths.get(value)) in known else None for value in frame["path"]]


def in_several_groups(rows: pd.DataFrame, values) -> list:
    """Returns those of the values (N,), such as clusters or cases, that pictures of several groups have, sorted."""
    groups = rows["group"].groupby(np.asarray(values)).nunique()
    return list(groups.index[groups > 1])


def _check_inside(table):
    if wide := in_several_groups(table.rows, table.rows["cluster"]):
        raise DataError(
            f"A cluster must lie inside one group, but {len(wide)} lie in several, such as {wide[0]!r}. "
            "Give a finer cluster or a wider group."
        )
