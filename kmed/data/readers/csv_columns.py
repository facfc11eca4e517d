"""Which columns of a CSV hold the pictures, the labels, the split and the groups: those with usual names."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from kmed.data.readers.source import DataSource
from kmed.data.readers.text import plain
from kmed.errors import DataError, suggest

# Compared in lower case, without spaces, underscores and hyphens; the first that is present is taken.
PATH_NAMES = (
    *("path", "image", "file", "filename", "imagepath", "filepath", "imageindex", "imageid", "imagename", "img"),
    *("imgid", "dicomid", "isicid", "idcode"),
)
ID_NAMES = ("id", "patientid")  # they name the pictures if no other column does
LABEL_NAMES = (
    *("label", "labels", "class", "findinglabels", "category", "diagnosis", "dx", "target"),
    *("classname", "diagnostic"),
)
SPLIT_COLUMNS = ("split",)
GROUP_NAMES = ("group", "patientid", "patient", "subjectid", "subject", "slideid", "lesionid")
MAY_BE_EMPTY = ("lesionid",)  # an image without such an id is one of its own
NO_VALUE = frozenset({"", "nan", "na", "n/a", "#n/a", "<na>", "null"})  # what programs write into empty cells
UNKNOWN = {*NO_VALUE, "-1", "-1.0"}
MOSTLY = 0.8  # a column in which at least this share of the cells is 0, 1 or empty is meant to hold labels
BINARY = {"0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0, **dict.fromkeys(UNKNOWN, np.nan)}
# Columns that are named as labels may also hold these; others that do are metadata, such as `smoker`.
TRUTH = {**BINARY, **dict.fromkeys(("true", "yes", "y"), 1.0), **dict.fromkeys(("false", "no", "n"), 0.0)}


def find_column(frame: pd.DataFrame, asked: str | None, usual: Sequence[str], setting: str, where: str) -> str:
    """Returns the column that was asked for, or the first with a usual name.

    Raises: DataError: there is no such column; the message lists the columns and suggests the nearest.
    """
    columns = list(frame.columns)
    if asked is not None:
        if plain(asked) in columns:
            return plain(asked)
        raise DataError(
            f"{where} has no column {asked!r} ({setting}). Its columns: {', '.join(columns)}." + suggest(asked, columns)
        )
    found = usual_column(columns, usual)
    if found is None:
        raise DataError(
            f"{where} has no column with a usual name for {setting} ({', '.join(usual)}). "
            f"Its columns: {', '.join(columns)}. Name it with {setting}."
        )
    return found


def usual_column(columns: Sequence[str], usual: Sequence[str]) -> str | None:
    """Returns the column with the first of the usual names, or None."""
    found = {bare_name(column): column for column in reversed(list(columns))}
    return next((found[name] for name in usual if name in found), None)


def bare_name(column: str) -> str:
    """Returns the name of a column as usual names are written: "Patient ID" and "patient_id" are both "patientid"."""
    return re.sub(r"[\s_\-]", "", str(column)).lower()


def optional_column(frame, asked, usual, setting, where) -> str | None:
    """Returns the column as `find_column`, or None if none is asked for and none has a usual name."""
    found = usual_column(frame.columns, usual)
    return find_column(frame, asked, usual, setting, where) if asked else found


def group_columns(frame: pd.DataFrame, source: DataSource) -> tuple[str | None, str | None]:
    """Returns the columns of group and cluster: those asked for or with a usual name; None if there is none."""
    group = usual_column(frame.columns, GROUP_NAMES) if source.group is None else plain(source.group)
    cluster = "cluster" if source.cluster is None else plain(source.cluster)
    return (group if group in frame.columns else None, cluster if cluster in frame.columns else None)


def holds_labels(frame: pd.DataFrame) -> bool:
    """Returns whether a column has a usual name of labels, or two or more hold 0 and 1."""
    return usual_column(frame.columns, LABEL_NAMES) is not None or len(binary_columns(frame)) >= 2


def label_columns(frame: pd.DataFrame, source: DataSource, path_column: str | None, where: str) -> str | list[str]:
    """Returns the name of the single column of words, or the list of the columns of 0 and 1.

    Raises: DataError: there are none, or they hold something else.
    """
    one, several = source.label_column, source.label_columns
    if several is not None and len(several) == 1:
        column = find_column(frame, several[0], (), "label_columns", where)
        if source.task == "multiclass" or column not in binary_columns(frame):
            return column
    if several is None and (one is not None or usual_column(frame.columns, LABEL_NAMES)):
        return find_column(frame, one, LABEL_NAMES, "label_column", where)
    if several is not None:
        return _asked_columns(frame, several, where)
    columns = [column for column in binary_columns(frame) if column != path_column]
    _refuse_strange_cells(frame, {*columns, path_column}, where)
    if len(columns) < 2:
        raise DataError(
            f"{where} has no label column with a usual name ({', '.join(LABEL_NAMES)}) and no columns of 0 and 1. "
            f"Its columns: {', '.join(frame.columns)}. Name it with label_column or label_columns."
        )
    return columns


def binary_columns(frame: pd.DataFrame) -> list[str]:
    """Returns the columns that hold nothing but 0, 1 and empty cells, and at least one 0 or 1."""
    columns = []
    for column in frame.columns:
        values = {plain(value).lower() for value in frame[column].unique()}
        if values <= set(BINARY) and not values <= UNKNOWN and not column.startswith("Unnamed: "):
            columns.append(column)
    return columns


def _asked_columns(frame, asked, where):
    columns = [find_column(frame, column, (), "label_columns", where) for column in asked]
    for column in columns:
        legal = frame[column].map(plain).str.lower().isin(list(TRUTH))
        if not legal.all():
            raise DataError(
                f"Column {column!r} of {where} must hold 0, 1 or nothing (or yes, no, true, false). "
                f"Received: {frame[column][~legal].iloc[0]!r}."
            )
    return columns


def _refuse_strange_cells(frame, known, where):
    """Raises DataError for a column of 0 and 1 with a few other cells: it holds labels with a mistake, not metadata."""
    for column in frame.columns:
        cells = frame[column].map(plain).str.lower()
        legal = cells.isin(list(BINARY))
        if column not in known and MOSTLY <= legal.mean() < 1 and cells.isin(["0", "1"]).any():
            raise DataError(
                f"Column {column!r} of {where} holds 0, 1 or nothing, except in {(~legal).sum()} cells. Received: "
                f"{frame[column][~legal].iloc[0]!r}. Correct it, or name the labels with label_columns."
            )
