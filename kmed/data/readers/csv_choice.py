"""Which CSV files of a folder hold the labels."""

import pathlib
import re
from collections.abc import Sequence

import pandas as pd

from kmed.data.readers.csv_columns import ID_NAMES, LABEL_NAMES, PATH_NAMES, bare_name, holds_labels, usual_column
from kmed.data.readers.csv_file import SUFFIXES, read_csv
from kmed.data.readers.folder_names import SPLIT_NAMES
from kmed.data.readers.source import DataSource
from kmed.data.readers.text import plain, spelling_key
from kmed.data.readers.walk import IMAGE_SUFFIXES, is_hidden, subfolders
from kmed.data.table import Table
from kmed.errors import DataError

DEPTH = 3  # levels of folders in which CSV files are looked for, the data folder among them
HEAD = 200  # rows that show what a CSV holds
FORM = re.compile(r"submission", re.IGNORECASE)  # the empty forms of competitions, which look like labels
KEY = re.compile(r"(id|uid|accession|accessionnumber|patient|subject|study|visit)$")


def choose_csv(source: DataSource) -> list[pathlib.Path]:
    """Returns the CSV that is named, or the only one with the columns that are named, else those that are found.

    Several are parts of one table, a file for each split. The list is empty if there is none.

    Raises: DataError: several could be meant.
    """
    path = source.path
    if source.labels_csv is not None:
        given = pathlib.Path(source.labels_csv).expanduser()
        return [given if given.is_file() or not (path / given).is_file() else path / given]
    if not source.columns:
        return find_labels_csv(path)
    files = list_csv(
        path
    )  # the user describes a CSV, so the only one present is meant, whatever its columns are called
    fitting = files if len(files) == 1 else [file for file in files if _has_columns(file, source.columns)]
    if len(fitting) == 1 or parts_of_one(fitting):
        return fitting
    raise DataError(
        f"{', '.join(source.columns)} describes a CSV, but {path} holds {len(files)}. Name it with labels_csv."
    )


def find_labels_csv(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the CSV nearest to `path` that names pictures and labels, or those that hold a split each, or [].

    Raises: DataError: several CSV files at the same depth qualify.
    """
    level = [path]
    for _ in range(DEPTH):
        fitting = _with_labels([file for folder in level for file in list_csv(folder)])
        if len(fitting) > 1:
            fitting = [file for file in fitting if not FORM.search(file.name)] or fitting
        if len(fitting) > 1 and not parts_of_one(fitting):
            names = ", ".join(str(file.relative_to(path)) for file in fitting[:4])
            raise DataError(f"Several CSV files in {path} could hold the labels: {names}. Choose one with labels_csv.")
        if fitting:
            return fitting
        level = [child for folder in level for child in subfolders(folder)]
    return []


def csv_above(path: pathlib.Path, table: Table | None) -> list[pathlib.Path]:
    """Returns the CSV files of labels that count more than the class folders in `path`.

    They are those from `path` down to the folder that holds the class folders, if most of their rows name pictures
    there. If several do, and all say what the class folders say, none counts: they are lists of parts of the set.

    Args:
      path: the data folder.
      table: what the class folders hold; None if there are none: then the files are those of `find_labels_csv`.
    Raises: DataError: as `find_labels_csv`.
    """
    if table is None or table.root is None:
        return find_labels_csv(path)
    folders = [folder for folder in (table.root, *table.root.parents) if folder == path or folder.is_relative_to(path)]
    known = set(map(_stem, table.rows["path"]))
    for folder in reversed(folders):
        fitting = [file for file in _with_labels(list_csv(folder)) if _names_pictures(file, known)]
        if len(fitting) > 1 and not parts_of_one(fitting) and all(_says_the_folders(file, table) for file in fitting):
            return []
        if fitting:
            return fitting
    return []


def list_csv(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the CSV files directly in a folder, sorted; hidden ones (`._x.csv` of macOS archives) do not count."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.name.lower().endswith(SUFFIXES) and not is_hidden(file.name) and file.is_file()
    )


def parts_of_one(files: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Returns {file: split} if only the split in their names tells the files apart (train.csv, valid.csv), else {}."""
    splits, rests = {}, set()
    for file in files:
        words = re.split(r"[^a-z0-9]+", file.name.lower())
        named = [word for word in words if word in SPLIT_NAMES]
        if len(named) != 1:
            return {}
        splits[file] = SPLIT_NAMES[named[0]]
        rests.add((file.parent, tuple(word for word in words if word not in named)))
    if len(files) < 2 or len(rests) > 1 or len(set(splits.values())) < len(files):
        return {}
    columns = {frozenset(read_csv(file, max_rows=1).columns) for file in files}
    return splits if len(columns) == 1 else {}


def shared_keys(one: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """Returns the columns of ids that two tables share, such as the study, by which their rows belong together."""
    return [name for name in one.columns if name in other.columns and KEY.search(bare_name(name))]


def _names_pictures(file, known):
    """Returns whether at least half of the first rows name one of the pictures (in lower case, without suffix).

    A file that names none itself counts if another beside it does, which it may be joined with.
    """
    heads = [read_csv(file, max_rows=HEAD)]
    if usual_column(heads[0].columns, PATH_NAMES) is None:
        heads += [read_csv(other, max_rows=HEAD) for other in list_csv(file.parent) if other != file]
    for head in heads:
        column = usual_column(head.columns, PATH_NAMES) or usual_column(head.columns, ID_NAMES)
        names = [] if column is None else [_stem(value) for value in head[column]]
        found = sum(name in known for name in names)
        if names and found >= 0.5 * len(names):
            return True
    return False


def _stem(path):
    """Returns the name of a picture in lower case, without folders and suffix."""
    name = plain(path).replace("\\", "/").rpartition("/")[2].lower()
    stem, _, suffix = name.rpartition(".")
    return stem if f".{suffix}" in IMAGE_SUFFIXES else name


def _says_the_folders(file, table):
    """Returns whether a CSV gives each picture the class that its folder has."""
    frame = read_csv(file)
    path_column, label_column = usual_column(frame.columns, PATH_NAMES), usual_column(frame.columns, LABEL_NAMES)
    if path_column is None or label_column is None:
        return False
    folder = {_stem(path): table.class_names[index] for path, index in zip(table.rows["path"], table.class_indices)}
    says = [(folder.get(_stem(path)), label) for path, label in zip(frame[path_column], frame[label_column])]
    return all(spelling_key(name) == spelling_key(label) for name, label in says if name is not None)


def _has_columns(file, asked):
    columns = read_csv(file, max_rows=1).columns
    names = [name for value in asked.values() for name in ([value] if isinstance(value, str) else value)]
    return all(plain(name) in columns for name in names)


def _with_labels(files):
    """Returns the files with labels that name pictures themselves, else through another file, else by an id."""
    heads = {file: read_csv(file, max_rows=HEAD) for file in files}
    labelled = [file for file, head in heads.items() if holds_labels(head)]
    naming = [file for file, head in heads.items() if usual_column(head.columns, PATH_NAMES) is not None]
    own = [file for file in labelled if file in naming]
    joined = [
        file
        for file in labelled
        if any(other.parent == file.parent and shared_keys(heads[file], heads[other]) for other in naming)
    ]
    by_id = [file for file in labelled if usual_column(heads[file].columns, ID_NAMES) is not None]
    return own or joined or by_id
