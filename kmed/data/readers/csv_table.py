"""Reads CSV files of pictures and labels as a Table."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

import pandas as pd

from kmed.data.readers.csv_choice import choose_csv
from kmed.data.readers.csv_columns import (
    ID_NAMES,
    MAY_BE_EMPTY,
    PATH_NAMES,
    SPLIT_COLUMNS,
    bare_name,
    find_column,
    group_columns,
    label_columns,
    optional_column,
    usual_column,
)
from kmed.data.readers.csv_join import read_parts, splits_of_lists, with_ids, with_pictures
from kmed.data.readers.csv_labels import (
    check_contradictions,
    labels_of_columns,
    labels_of_words,
    unknown_not_findings,
    without_negative,
)
from kmed.data.readers.csv_rows import unite_rows
from kmed.data.readers.folder_names import SPLIT_NAMES
from kmed.data.readers.levels import splits_above
from kmed.data.readers.pictures import locate
from kmed.data.readers.source import DataSource, refuse
from kmed.data.readers.text import WHOLE, plain
from kmed.data.readers.walk import few
from kmed.data.table import COLUMNS, Table
from kmed.errors import DataError

# Folders that data sets name after a patient, such as patient00001 and p10000032.
PATIENT_FOLDER = re.compile(r"(?:^|/)((?:patient|subject|sub)[-_ ]?\w*\d\w*|p\d{6,})/", re.IGNORECASE)


def read_csv_file(source: DataSource) -> Table:
    """Returns the Table of a .csv, with paths relative to its folder. Raises DataError like read_labels_csv."""
    refuse("a .csv file", split_folders=source.split_folders, labels_csv=source.labels_csv)
    return read_labels_csv(source, [source.path], source.path.parent)


def read_csv_layout(source: DataSource) -> Table | None:
    """Returns the Table of the CSV beside a folder's pictures, or None if there is none.

    Raises: DataError: as `read_labels_csv`; or it is not clear which CSV is meant.
    """
    refuse("data without split folders", split_folders=source.split_folders)
    files = choose_csv(source)
    if not files:
        return None
    return read_labels_csv(source, files, files[0].parent if source.labels_csv is None else source.path)


def read_labels_csv(source: DataSource, files: list[pathlib.Path], root: pathlib.Path) -> Table:
    """Returns a Table with one row per picture of the CSV, in the order of their paths; other columns are metadata.

    Args:
      source: what the user says about the data. Columns that are not named are found by their usual names. Label
        columns hold 0, 1, or nothing or -1 for unknown (NaN). In a multilabel CSV "No Finding" is a label of its own,
        the last one if labels are words. If no_finding is "empty", or class_names leaves it out, it means that every
        label is 0. A group or cluster that is not a column of the CSV is left to `resolve_groups`.
      files: the CSV, or one for each split.
      root: the folder of the pictures, which are found as `kmed.data.readers.pictures.find_pictures` says.
    Raises: DataError: a missing column or file, an unknown or empty label, a path outside `root`, rows that contradict
      each other, a finding beside "No Finding", or a task that the labels do not fit.
    """
    notes: list[str] = []
    where = " and ".join(file.name for file in files)
    own = read_parts(files, notes)
    if own.empty:
        raise DataError(f"{files[0]} has no rows.")
    frame = with_pictures(own, files[0], source, notes)
    by_name = PATH_NAMES if usual_column(frame.columns, PATH_NAMES) else (*PATH_NAMES, *ID_NAMES)
    path_column = find_column(frame, source.path_column, by_name, "path_column", where)
    chosen = label_columns(own, source, path_column, where)
    read = labels_of_words if isinstance(chosen, str) else labels_of_columns
    labels = read(frame[chosen], frame[path_column], source)
    frame = with_ids(frame, path_column, files[0], source, notes)
    paths, found = locate(list(frame[path_column]), root, files[0])
    groups = find_row_groups(frame, paths, source, where)
    splits = _splits(frame, path_column, source, files[0], paths, notes)
    used = [chosen] if isinstance(chosen, str) else chosen
    metadata = frame.drop(columns=[*used, path_column, *COLUMNS], errors="ignore").map(plain).reset_index(drop=True)
    roles = pd.DataFrame({"group": groups.group, "cluster": groups.cluster, "split": splits})
    united, values, rows, repeated = unite_rows(paths, labels, pd.concat([roles, metadata], axis=1), list(roles))
    rows.insert(0, "path", united)
    cells = dict(zip(paths[::-1], frame[path_column].iloc[::-1]))
    labels = _finished(dataclasses.replace(labels, values=values), [cells[path] for path in united], source)
    if not isinstance(chosen, str) and source.label_columns is None:
        notes.append(f"The labels are the columns of 0 and 1: {few(chosen)}. label_columns names others.")
    notes.insert(0, f"Layout: {where} names {len(united):,} pictures in {root}.")
    notes += [*labels.notes, *found, *repeated, *groups.notes]
    name = root.resolve().name
    return Table(
        rows, labels.values, labels.names, labels.task, name, root=root, grouped=groups.known, notes=tuple(notes)
    )


def _finished(labels, cells, source):
    """Returns the labels of the pictures with their task, checked; `cells` is how the CSV calls the pictures."""
    if labels.task != "multilabel":
        return dataclasses.replace(labels, task="multiclass")
    labels = without_negative(labels) if source.no_finding == "empty" else labels
    check_contradictions(labels, cells, source.not_findings)
    lines = unknown_not_findings(labels, source.not_findings)
    return dataclasses.replace(labels, notes=(*labels.notes, *lines))


@dataclasses.dataclass(frozen=True)
class RowGroups:
    """The group and the cluster of each row, whether they are known, and lines to show to the user."""

    group: list[str]
    cluster: list[str]
    known: bool
    notes: tuple[str, ...] = ()


def find_row_groups(frame: pd.DataFrame, paths: Sequence[str], source: DataSource, where: str) -> RowGroups:
    """Returns the groups of the rows: a column that is named or has a usual name, folders of patients, or the paths.

    Args:
      frame: (N, ...) the rows of a CSV.
      paths: (N,) the picture of each.
      source: what the user says about the groups.
      where: what messages call the CSV.
    Raises: DataError: the column of the groups has empty cells.
    """
    group_column, cluster_column = group_columns(frame, source)
    folders = [PATIENT_FOLDER.search(path) for path in paths]
    known, notes = group_column is not None, []
    if known:
        groups, notes = _filled(frame, group_column, where, paths)
        notes.insert(0, f"Groups are taken from the column {group_column!r} of {where}.")
    elif source.group is None and all(folders):
        groups, known = [match[1] for match in folders if match], True
        notes.append(f"Groups are the folders of patients in the paths, such as {groups[0]}.")
    else:
        groups = list(paths)
    clusters, more = _filled(frame, cluster_column, where, paths) if cluster_column else (groups, [])
    return RowGroups(groups, clusters, known, (*notes, *more))


def _filled(frame, column, where, paths):
    """Returns (values of a column of ids, notes). Raises DataError if cells are empty, other than of lesions."""
    values = _whole([plain(value) for value in frame[column]])
    empty = values.count("")
    if not empty:
        return values, _case_note(values, column)
    if bare_name(column) not in MAY_BE_EMPTY:
        raise DataError(f"Column {column!r} of {where} is empty in {empty} rows. Fill them, or give another group.")
    values = [value or path for value, path in zip(values, paths)]
    return values, [f"{empty:,} pictures without {column} count as independent.", *_case_note(values, column)]


def _whole(values):
    """Returns the ids; 12.0 is 12 if both occur, as where tables with and without empty cells are put together."""
    whole = [WHOLE.sub(r"\1", value) for value in values]
    return whole if len(set(whole)) < len(set(values)) else values


def _case_note(values, column):
    """Returns a line about ids that differ only in case or leading zeros, which may be one patient."""
    spellings = {}
    for value in dict.fromkeys(values):
        spellings.setdefault(value.casefold().lstrip("0"), []).append(value)
    twins = next((names for names in spellings.values() if len(names) > 1), None)
    if twins is None:
        return []
    how = "case" if twins[0].casefold() == twins[1].casefold() else "leading zeros"
    return [f"{twins[0]!r} and {twins[1]!r} in the column {column!r} differ only in {how}, and count as two."]


def _splits(frame, path_column, source, csv_path, paths, notes):
    column = optional_column(frame, source.split_column, SPLIT_COLUMNS, "split_column", csv_path.name)
    if column is None:
        listed = splits_of_lists(frame[path_column], csv_path, notes)
        if not listed and (above := splits_above(paths)):
            notes.append(f"The splits are those of the folders: {', '.join(dict.fromkeys(above))}.")
            return above
        return listed or [""] * len(frame)
    names = [plain(value).lower() for value in frame[column]]
    return [SPLIT_NAMES.get(name, name) for name in names]
