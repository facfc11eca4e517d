"""Labels that were corrected by hand, in the CSV that `kmed data labels` writes."""

import pathlib

import numpy as np

from kmed.data.readers.csv_file import read_csv
from kmed.data.readers.text import spelt_as
from kmed.data.table import Table
from kmed.errors import DataError, shorten, suggest
from kmed.labels import join_names

COLUMNS = ("label", "given", "cluster", "pictures", "path")  # those that are read; the others explain
LEFT_OUT = "?"  # a label that nobody knows: the pictures are left out


def apply_corrections(table: Table, path) -> Table:
    """Returns the table with the labels that were edited in a CSV of `kmed data labels`, and a note on how many.

    A row of one picture is for that path. A row of several is for the pictures of its cluster, which all had the label
    `given`.

    Args:
      table: the pictures with the labels of the data.
      path: the CSV; its column `label` holds the names of the classes, joined by "|", or "?" to leave the pictures out.
    Raises: DataError: the file cannot be read, a label is none of the classes or does not fit the task, or the pictures
      are not those that the file was made for, or no longer have the label `given`.
    """
    path = pathlib.Path(path)
    frame = read_csv(path)
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise DataError(f"{path} is no CSV of `kmed data labels`: it has no column {missing[0]!r}.")
    given = np.array(join_names(table.labels, table.class_names), dtype=object)
    for name, column in (("path", table.rows["path"]), ("cluster", table.rows["cluster"])):
        frame[name] = spelt_as(frame[name], column)
    labels, left_out = table.labels.copy(), np.zeros(len(table), bool)
    changed = np.zeros(len(table), bool)
    for number, row in enumerate(frame[frame["label"] != frame["given"]].to_dict("records"), 1):
        mask = _pictures_of(table, row, path)
        if (given[mask] != row["given"]).any():
            raise DataError(
                f"{path}: {row['path']} was given as {row['given'] or 'no label'}, but the data now say "
                f"{given[mask][given[mask] != row['given']][0] or 'no label'}. Run kmed data labels again."
            )
        if (changed & mask).any():
            raise DataError(f"{path} corrects {row['path']} twice, the second time in its change number {number}.")
        changed |= mask
        if row["label"] == LEFT_OUT:
            left_out |= mask
        else:
            labels[mask] = _parse(row["label"], labels[mask], table, path)
    return _with_labels(table, labels, changed, left_out, path)


def _with_labels(table, labels, changed, left_out, path):
    corrected = changed & ~left_out
    note = f"{path.name}: the labels of {corrected.sum():,} pictures are corrected"
    note += f", and {left_out.sum():,} pictures are left out." if left_out.any() else "."
    return table.replace(labels=labels).with_notes(note).take(~left_out)


def _pictures_of(table: Table, row: dict, path) -> np.ndarray:
    """Returns the mask (N,) of the pictures that a row is for."""
    alone = row["pictures"] in ("1", "1.0")
    column, name = (table.rows["path"], row["path"]) if alone else (table.rows["cluster"], row["cluster"])
    mask = (column == name).to_numpy()
    if not mask.any():
        kind = "picture" if alone else "cluster"
        raise DataError(f"{path} corrects the {kind} {shorten(name)}, which is not in {table.name}. Use its own data.")
    return mask


def _parse(text: str, before: np.ndarray, table: Table, path) -> np.ndarray:
    """Returns float32 (M, K): the rows `before` with the classes that `text` names; what was unknown stays so."""
    names = [name.strip() for name in text.split("|") if name.strip()]
    for name in names:
        if name not in table.class_names:
            raise DataError(
                f"{path}: label must name classes of the data, joined by '|', or be '{LEFT_OUT}'. Received: "
                f"{shorten(name)}.{suggest(name, table.class_names)}"
            )
    if table.exclusive and len(names) != 1:
        raise DataError(f"{path}: each label must name one class. Received: {shorten(text)}.")
    row = np.isin(table.class_names, names).astype(np.float32)
    return np.where(np.isnan(before) & (row == 0), np.nan, row).astype(np.float32)
