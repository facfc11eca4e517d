"""Reads the CSV files of a data set as one table: parts by split, and ids and groups that another file holds."""

import pathlib
import re
from collections.abc import Sequence

import pandas as pd

from kmed.data.readers.csv_choice import FORM, list_csv, parts_of_one, shared_keys
from kmed.data.readers.csv_columns import GROUP_NAMES, PATH_NAMES, SPLIT_COLUMNS, usual_column
from kmed.data.readers.csv_file import read_csv
from kmed.data.readers.folder_names import SPLIT_NAMES
from kmed.data.readers.source import DataSource
from kmed.data.readers.text import plain
from kmed.errors import DataError

GROUPS = "groups.csv"  # belongs to kmed.data.readers.groups
# Lists of pictures, a name per line, called after a split: test_list.txt, train_val_list.txt.
LIST_NAME = re.compile(r"(train_?val|[a-z]+)(?:_?list)?\.txt", re.IGNORECASE)
LISTED = {**SPLIT_NAMES, "train_val": "train", "trainval": "train"}


def read_parts(files: Sequence[pathlib.Path], notes: list[str]) -> pd.DataFrame:
    """Returns the rows of one file, or of several with a column "split" after their names; adds lines to `notes`."""
    splits = parts_of_one(files)
    frames = [read_csv(file, notes) for file in files]
    if not splits:
        return frames[0]
    names = " and ".join(file.name for file in files)
    if usual_column(frames[0].columns, SPLIT_COLUMNS) is None:
        frames = [frame.assign(split=splits[file]) for file, frame in zip(files, frames)]
        notes.append(f"{names} are read together; each is the split that its name says.")
    return pd.concat(frames, ignore_index=True)


def with_pictures(frame: pd.DataFrame, csv_path: pathlib.Path, source: DataSource, notes: list[str]) -> pd.DataFrame:
    """Returns the table with a column of pictures from another CSV beside it, joined by the ids that both have.

    So labels of studies become labels of their pictures. The table is returned as it is if it names pictures itself,
    or if no other CSV fits.

    Raises: DataError: an id has several rows of labels.
    """
    if source.path_column is not None or usual_column(frame.columns, PATH_NAMES) is not None:
        return frame
    for file, other in _siblings(csv_path, frame):
        keys = shared_keys(frame, other)
        if usual_column(other.columns, PATH_NAMES) is None or not keys:
            continue
        other, frame = read_csv(file, notes), frame.assign(**{key: frame[key].map(plain) for key in keys})
        if frame.duplicated(keys).any():
            raise DataError(f"{csv_path.name} has several rows with the same {' and '.join(keys)}. Give one row each.")
        other = other.assign(**{key: other[key].map(plain) for key in keys})
        own = [name for name in other.columns if name in keys or name not in frame.columns]
        joined = other[own].merge(frame, on=keys, how="inner", validate="many_to_one")
        notes.append(f"The pictures are those of {file.name}, which has the same {' and '.join(keys)}.")
        if len(joined) < len(other):
            notes.append(
                f"{len(other) - len(joined):,} of {len(other):,} pictures of {file.name} have no labels in "
                f"{csv_path.name} and are left out."
            )
        without = len(frame) - len(joined.drop_duplicates(keys))
        if without:
            notes.append(f"{without:,} of {len(frame):,} rows of {csv_path.name} have no pictures in {file.name}.")
        return joined
    return frame


def with_ids(
    frame: pd.DataFrame, path_column: str, csv_path: pathlib.Path, source: DataSource, notes: list[str]
) -> pd.DataFrame:
    """Returns the table with a group or split that it lacks and that another CSV beside it has for all its pictures."""
    for file, head in _siblings(csv_path, frame):
        gained = _lacking(frame.columns, source) & _present(head.columns, source)
        if path_column not in head.columns or not gained:
            continue
        other = read_csv(file)
        keys = other[path_column].map(plain)
        if keys.duplicated().any() or not frame[path_column].map(plain).isin(keys).all():
            continue
        new = [name for name in other.columns if name not in frame.columns]
        rows = other.set_index(keys).loc[frame[path_column].map(plain), new].reset_index(drop=True)
        frame = pd.concat([frame.reset_index(drop=True), rows], axis=1)
        notes.append(f"{', '.join(new)}: taken from {file.name}, which lists the same pictures.")
    return frame


def splits_of_lists(names: pd.Series, csv_path: pathlib.Path, notes: list[str]) -> list[str] | None:
    """Returns the split of each picture by the lists beside the CSV, such as test_list.txt; None if there are none.

    Args:
      names: (N,) the pictures, as the CSV names them.
      csv_path: the CSV.
      notes: a list that a line about the lists is added to.
    Raises: DataError: a picture is in the lists of two splits.
    """
    keys = names.map(plain)
    found: dict[str, str] = {}
    used: list[str] = []
    known = set(keys)
    for file in sorted(csv_path.parent.glob("*.txt")):
        match = LIST_NAME.fullmatch(file.name)
        split = LISTED.get(match[1].lower().removesuffix("_list").removesuffix("_")) if match else None
        if split is None:
            continue
        lines = [plain(line) for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
        listed = known.intersection(lines)
        twice = [name for name in listed if found.get(name, split) != split]
        if twice:
            raise DataError(f"{min(twice)} is in {file.name} and in the list of another split. Correct the lists.")
        found |= dict.fromkeys(listed, split)
        used += [file.name] if listed else []
    if not used:
        return None
    notes.append(f"Splits are taken from {' and '.join(used)}.")
    return [found.get(key, "") for key in keys]


def _siblings(csv_path, frame):
    """Returns [(file, its first row)] of the other CSV files in the folder, which may share columns with `frame`."""
    others = [file for file in list_csv(csv_path.parent) if file != csv_path and file.name != GROUPS]
    heads = [(file, read_csv(file, max_rows=1)) for file in others if not FORM.search(file.name)]
    return [(file, head) for file, head in heads if set(head.columns) & set(frame.columns)]


def _lacking(columns, source):
    """Returns which of group, cluster and split the table lacks."""
    return {"group", "cluster", "split"} - _present(columns, source)


def _present(columns, source):
    usual = {"group": GROUP_NAMES, "cluster": ("cluster",), "split": SPLIT_COLUMNS}
    asked = {"group": source.group, "cluster": source.cluster, "split": source.split_column}
    return {
        role
        for role, names in usual.items()
        if (plain(asked[role]) in columns if asked[role] is not None else usual_column(columns, names) is not None)
    }
