"""Reads a CSV of paths and labels as a Table: one label per row, labels joined by "|", or 0/1 columns."""

import os
import pathlib
import re

import numpy as np
import pandas as pd

from kmed.data.readers.folders import SPLIT_NAMES, is_image, subfolders
from kmed.data.readers.source import DataSource, refuse
from kmed.data.table import COLUMNS, Table
from kmed.errors import DataError, suggest
from kmed.labels import NEGATIVE, negative_label

# Compared in lower case, without spaces, underscores and hyphens; the first that is present is taken.
PATH_NAMES = ("path", "image", "file", "filename", "imagepath", "filepath", "imageindex", "imageid", "imagename", "img")
LABEL_NAMES = ("label", "labels", "class", "findinglabels", "category", "diagnosis", "dx", "target")
SPLIT_COLUMNS = ("split",)
GROUP_NAMES = ("group", "patientid", "patient", "subjectid", "subject", "slideid")
JOINT = "|"
UNKNOWN = {"", "nan", "na", "-1", "-1.0"}
MOSTLY = 0.8  # a column in which at least this share of the cells is 0, 1 or empty is meant to hold labels
BINARY = {"0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0, **dict.fromkeys(UNKNOWN, np.nan)}


def read_csv_file(source: DataSource) -> Table:
    """Returns the Table of a .csv, with paths relative to its folder. Raises DataError like read_labels_csv."""
    refuse("a .csv file", split_folders=source.split_folders, labels_csv=source.labels_csv)
    return read_labels_csv(source, source.path, source.path.parent)


def read_csv_layout(source: DataSource) -> Table | None:
    """Returns the Table of the CSV beside a folder's pictures, or None if there is none.

    Raises: DataError: as `read_labels_csv`; or it is not clear which CSV is meant.
    """
    refuse("data without split folders", split_folders=source.split_folders)
    csv_path = _choose_csv(source)
    if csv_path is None:
        return None
    return read_labels_csv(source, csv_path, csv_path.parent if source.labels_csv is None else source.path)


def _choose_csv(source):
    """Returns the CSV that is named, or the only one if columns are named, else the one that is found, or None."""
    path = source.path
    if source.labels_csv is not None:
        given = pathlib.Path(source.labels_csv).expanduser()
        return given if given.is_file() or not (path / given).is_file() else path / given
    if source.columns:  # the user describes a CSV, so the only one present is meant, whatever its columns are called
        files = sorted(path.glob("*.csv"))
        if len(files) == 1:
            return files[0]
        raise DataError(
            f"{', '.join(source.columns)} describes a CSV, but {path} holds {len(files)}. Name it with labels_csv."
        )
    return find_labels_csv(path)


def find_labels_csv(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the CSV nearest to `path` with a column of paths and one of labels, or None.

    Raises: DataError: several CSV files at the same depth qualify.
    """
    level = [path]
    for _ in range(3):
        fitting = [
            file for folder in level for file in sorted(folder.glob("*.csv")) if file.is_file() and _has_labels(file)
        ]
        if len(fitting) > 1:
            names = ", ".join(str(file.relative_to(path)) for file in fitting[:4])
            raise DataError(f"Several CSV files in {path} could hold the labels: {names}. Choose one with labels_csv.")
        if fitting:
            return fitting[0]
        level = [child for folder in level for child in subfolders(folder)]
    return None


def read_labels_csv(source: DataSource, csv_path: pathlib.Path, root: pathlib.Path) -> Table:
    """Returns a Table of the CSV's rows, in the order of their paths; other columns are metadata.

    Args:
      source: what the user says about the data. Columns that are not named are found by their usual names. Label
        columns hold 0, 1, or nothing or -1 for unknown (NaN). In a multilabel CSV "No Finding" is a label of its own,
        the last one if labels are words. If no_finding is "empty", or class_names leaves it out, it means that every
        label is 0. A group or cluster that is not a column of the CSV is left to `resolve_groups`.
      csv_path: the CSV.
      root: the folder of the pictures. Each path is looked up in it, then in its folder images/, then by name in all
        folders below.
    Raises: DataError: a missing column or file, an unknown or empty label, a path outside `root`,
      a path that occurs twice, a finding beside "No Finding", or a task that the labels do not fit.
    """
    frame = read_csv(csv_path)
    if frame.empty:
        raise DataError(f"{csv_path} has no rows.")
    where = csv_path.name
    path_column = find_column(frame, source.path_column, PATH_NAMES, "path_column", where)
    chosen = _label_columns(frame, source, path_column, where)
    read = _from_words if isinstance(chosen, str) else _from_columns
    labels, names, task = read(frame[chosen], frame[path_column], source.task, source.class_names)
    if task == "multilabel":
        labels, names = _without_negative(labels, names) if source.no_finding == "empty" else (labels, names)
        _check_contradictions(labels, names, frame[path_column])
    used = {chosen} if isinstance(chosen, str) else set(chosen)
    split_column = _optional(frame, source.split_column, SPLIT_COLUMNS, "split_column", where)
    group_column, cluster_column = _group_columns(frame, source)
    splits = [_split_name(value) for value in frame[split_column]] if split_column else [""] * len(frame)
    paths = locate(frame[path_column], root)
    rows = frame.drop(columns=[*used, path_column, *COLUMNS], errors="ignore")
    rows.insert(0, "path", paths)
    rows.insert(1, "group", _filled(frame, group_column, where) if group_column else paths)
    rows.insert(2, "cluster", _filled(frame, cluster_column, where) if cluster_column else rows["group"])
    rows.insert(3, "split", splits)
    order = np.argsort(np.asarray(paths), kind="stable")
    table = Table(rows.iloc[order].reset_index(drop=True), labels[order], names, task, root.resolve().name, root=root)
    if group_column is None:
        return table
    return table.replace(grouped=True).with_notes(f"Groups are taken from the column {group_column!r} of {where}.")


def read_csv(path: pathlib.Path) -> pd.DataFrame:
    """Returns the CSV with every cell as text, "" if empty. Raises DataError if it is not a CSV."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:  # pandas' parser and decoding errors are ValueErrors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} cannot be read as a CSV ({reason}).") from error


def find_column(frame, asked, usual, setting, where) -> str:
    """Returns the column that was asked for, or the first with a usual name.

    Raises: DataError: there is no such column; the message lists the columns and suggests the nearest.
    """
    columns = list(frame.columns)
    if asked is not None:
        if asked in columns:
            return asked
        raise DataError(
            f"{where} has no column {asked!r} ({setting}). Its columns: {', '.join(columns)}." + suggest(asked, columns)
        )
    found = _usual(frame, usual)
    if found is None:
        raise DataError(
            f"{where} has no column with a usual name for {setting} ({', '.join(usual)}). "
            f"Its columns: {', '.join(columns)}. Name it with {setting}."
        )
    return found


def _group_columns(frame, source):
    """Returns the columns of group and cluster: those asked for or with a usual name; None if there is none."""
    group = _usual(frame, GROUP_NAMES) if source.group is None else source.group
    cluster = "cluster" if source.cluster is None else source.cluster
    return tuple(column if column in frame.columns else None for column in (group, cluster))


def locate(values, root: pathlib.Path) -> list[str]:
    """Returns the POSIX path relative to `root` of each named picture.

    Args:
      values: (N,) paths or file names, with or without the suffix.
      root: the data folder.
    Raises: DataError: a path leaves `root`, a file is missing, or one is named twice.
    """
    starts = ["", "images/"]
    index, found, missing = None, [], []
    for value in values:
        name = _inside(str(value), root)
        path = next((start + name for start in starts if (root / (start + name)).is_file()), None)
        if path is None:
            index = _index(root) if index is None else index
            path = index.get(name) or index.get(pathlib.PurePosixPath(name).name)
        if path is None:
            missing.append(str(value))
        found.append(path)
    if missing:
        raise DataError(
            f"{len(missing)} of {len(found)} pictures named in the CSV are not in {root}: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else '.'}"
        )
    twice = pd.Series(found)[pd.Series(found).duplicated()]
    if len(twice):
        raise DataError(f"{len(twice)} pictures are named more than once in the CSV: {', '.join(twice.iloc[:3])}.")
    return found


def _filled(frame, column, where):
    empty = int((frame[column].str.strip() == "").sum())
    if empty:
        raise DataError(f"Column {column!r} of {where} is empty in {empty} rows. Fill them, or give another group.")
    return frame[column]


def _has_labels(path):
    frame = read_csv(path).head(200)
    if _usual(frame, PATH_NAMES) is None:
        return False
    return _usual(frame, LABEL_NAMES) is not None or len(_binary(frame)) >= 2


def _label_columns(frame, source, path_column, where):
    """Returns the name of the single column of words, or the list of the columns of 0 and 1."""
    label_column, label_columns = source.label_column, source.label_columns
    if label_columns is not None and len(label_columns) == 1:
        find_column(frame, label_columns[0], (), "label_columns", where)
        if source.task == "multiclass" or label_columns[0] not in _binary(frame):
            return label_columns[0]
    if label_columns is None and (label_column is not None or _usual(frame, LABEL_NAMES)):
        return find_column(frame, label_column, LABEL_NAMES, "label_column", where)
    return _binary_columns(frame, label_columns, path_column, where)


def _usual(frame, usual):
    plain = {re.sub(r"[\s_\-]", "", str(column)).lower(): column for column in reversed(list(frame.columns))}
    return next((plain[name] for name in usual if name in plain), None)


def _optional(frame, asked, usual, setting, where):
    return find_column(frame, asked, usual, setting, where) if asked or _usual(frame, usual) else None


def _split_name(value):
    return SPLIT_NAMES.get(value.strip().lower(), value.strip().lower())


def _binary(frame):
    """Returns the columns that hold nothing but 0, 1 and empty cells, and at least one 0 or 1."""
    columns = []
    for column in frame.columns:
        values = {value.strip().lower() for value in frame[column].unique()}
        if values <= set(BINARY) and not values <= UNKNOWN:
            columns.append(column)
    return columns


def _refuse_strange_cells(frame, known, where):
    """Raises DataError for a column of 0 and 1 with a few other cells: it holds labels with a mistake, not metadata."""
    for column in frame.columns:
        cells = frame[column].str.strip().str.lower()
        legal = cells.isin(list(BINARY))
        if column not in known and MOSTLY <= legal.mean() < 1 and cells.isin(["0", "1"]).any():
            raise DataError(
                f"Column {column!r} of {where} holds 0, 1 or nothing, except in {(~legal).sum()} cells. Received: "
                f"{frame[column][~legal].iloc[0]!r}. Correct it, or name the labels with label_columns."
            )


def _binary_columns(frame, asked, path_column, where):
    if asked is None:
        columns = [column for column in _binary(frame) if column != path_column]
        _refuse_strange_cells(frame, set(columns) | {path_column}, where)
        if len(columns) < 2:
            raise DataError(
                f"{where} has no label column with a usual name ({', '.join(LABEL_NAMES)}) and no columns of 0 and 1. "
                f"Its columns: {', '.join(frame.columns)}. Name it with label_column or label_columns."
            )
        return columns
    for column in asked:
        find_column(frame, column, (), "label_columns", where)
        legal = frame[column].str.strip().str.lower().isin(list(BINARY))
        if not legal.all():
            raise DataError(
                f"Column {column!r} of {where} must hold 0, 1 or nothing. Received: {frame[column][~legal].iloc[0]!r}."
            )
    return list(asked)


def _from_words(values, paths, task, class_names):
    """Returns (labels, class names, task) from one column of words, which may be joined by "|"."""
    words = [[word.strip() for word in value.split(JOINT)] for value in values]
    empty = [path for path, row in zip(paths, words) if not all(row)]
    if empty:
        raise DataError(
            f"{len(empty)} rows of the CSV have an empty label: {', '.join(empty[:3])}. Fill or remove them."
        )
    several = next((path for path, row in zip(paths, words) if len(row) > 1), None)
    negative = any(row[0].lower() in NEGATIVE for row in words)
    if task == "multiclass" and several is not None:
        raise DataError(
            f"task='multiclass' needs one label per picture, but {several} has several. Use task='multilabel'."
        )
    task = task or ("multilabel" if several is not None or negative else "multiclass")
    names = tuple(class_names) if class_names else _sorted_names(words, task)
    if task == "multilabel" and negative_label(names) is None:  # then "No Finding" means that every label is 0
        words = [[word for word in row if word.lower() not in NEGATIVE] for row in words]
    elif task == "multilabel":  # all spellings become one
        spelling = names[negative_label(names)]
        words = [[spelling if word.lower() in NEGATIVE else word for word in row] for row in words]
    column = {name: index for index, name in enumerate(names)}
    labels = np.zeros((len(words), len(names)), np.float32)
    for index, row in enumerate(words):
        for word in row:
            if word not in column:
                raise DataError(
                    f"Unknown label {word!r} of {paths.iloc[index]}; the classes are {', '.join(names)}."
                    + suggest(word, names)
                )
            labels[index, column[word]] = 1
    return labels, names, task


def _sorted_names(words, task):
    """Returns the names that occur, sorted; in a multilabel set "No Finding" comes last, in one spelling only."""
    found = sorted({word for row in words for word in row})
    if task == "multiclass":
        return tuple(found)
    negative = [word for word in found if word.lower() in NEGATIVE]
    return tuple([word for word in found if word.lower() not in NEGATIVE] + negative[:1])


def _without_negative(labels, names):
    negative = negative_label(names)
    if negative is None:
        return labels, names
    return np.delete(labels, negative, axis=1), tuple(name for name in names if name != names[negative])


def _check_contradictions(labels, names, paths):
    negative = negative_label(names)
    if negative is None:
        return
    wrong = (labels[:, negative] == 1) & (np.nansum(labels, axis=1) > 1)
    if wrong.any():
        raise DataError(
            f"{wrong.sum()} rows of the CSV have both {names[negative]!r} and a finding, such as "
            f"{paths[wrong].iloc[0]}. Correct them."
        )


def _from_columns(frame, paths, task, class_names):
    """Returns (labels, class names, task) from columns of 0, 1 and unknown."""
    names = tuple(class_names) if class_names else tuple(frame.columns)
    for name in names:
        if name not in frame.columns:
            raise DataError(
                f"There is no label column {name!r}; the label columns are {', '.join(frame.columns)}."
                + suggest(name, frame.columns)
            )
    cells = [frame[name].str.strip().str.lower().map(BINARY) for name in names]
    labels = np.stack([cell.to_numpy(np.float32) for cell in cells], axis=1)
    single = (np.nansum(labels, axis=1) == 1) & ~np.isnan(labels).any(axis=1)
    if task == "multiclass" and not single.all():
        wrong = paths[~single]
        raise DataError(
            f"task='multiclass' needs exactly one 1 per row, but {len(wrong)} rows differ, such as {wrong.iloc[0]}. "
            "Use task='multilabel'."
        )
    return labels, names, task or ("multiclass" if single.all() else "multilabel")


def _inside(value, root):
    """Returns the POSIX path relative to `root`. Raises DataError if it leads out of `root`."""
    path = pathlib.PurePosixPath(value.strip().replace("\\", "/"))
    if path.is_absolute() and path.is_relative_to(root.absolute().as_posix()):
        path = path.relative_to(root.absolute().as_posix())
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", value.strip()):
        raise DataError(f"A path in the CSV leaves the data folder {root}. Received: {value!r}.")
    return path.as_posix()


def _index(root):
    """Returns {file name, stem or path without suffix: path relative to root}; the first picture with a key is kept."""
    index = {}
    for parent, folders, files in os.walk(root):
        folders.sort()
        start = pathlib.Path(parent).relative_to(root)
        for name in sorted(filter(is_image, files)):
            path = (start / name).as_posix()
            for key in (name, pathlib.PurePath(name).stem, pathlib.PurePosixPath(path).with_suffix("").as_posix()):
                index.setdefault(key, path)
    return index
