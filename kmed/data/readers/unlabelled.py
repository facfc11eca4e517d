"""Pictures without labels: a folder, a CSV with a column of paths or a list of paths, as a Table of unknown labels."""

import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from kmed.data.readers.csv_choice import choose_csv, find_labels_csv, list_csv
from kmed.data.readers.csv_columns import (
    ID_NAMES,
    LABEL_NAMES,
    NO_VALUE,
    PATH_NAMES,
    binary_columns,
    find_column,
    usual_column,
)
from kmed.data.readers.csv_file import SUFFIXES, read_csv
from kmed.data.readers.csv_labels import Labels
from kmed.data.readers.csv_rows import unite_rows
from kmed.data.readers.csv_table import find_row_groups
from kmed.data.readers.lists import describe_missing, place_paths, read_list
from kmed.data.readers.masks import find_masks, mask_note
from kmed.data.readers.pictures import locate
from kmed.data.readers.source import GROUPS_CSV, DataSource
from kmed.data.readers.text import plain, spelling_key
from kmed.data.readers.walk import few, is_image, repeated_note, walk
from kmed.data.table import COLUMNS, Table
from kmed.errors import DataError

# ---- Whether there are labels ------------------------------------------------------------------------


def why_unlabelled(source: DataSource, names: Iterable[str]) -> str:
    """Returns a sentence that says why data have no labels for a model; "" if they have some, or cannot be read.

    Class folders, or columns of 0 and 1, are labels if one of them has one of these names. A column that is called as
    labels usually are holds labels whatever they are called, unless it is empty.

    Args:
      source: where the data are, and what the user says about them.
      names: what labels may be called: the classes of the model, and names that the user maps to them.
    Raises: DataError: a CSV cannot be read, or several could hold the labels.
    """
    path, known = source.path, set(map(spelling_key, names))
    if source.unlabelled:
        return f"{path} is read without labels, since data.unlabelled is true."
    if path.is_dir():
        return _why_folder(source, known)
    if not path.exists() or path.name.lower().endswith(".npz") or is_image(path):
        return ""
    if not _is_csv(path):
        return f"{path.name} is a list of paths: its pictures are read without labels."
    return "" if _has_labels(read_csv(path), source, known) else f"{_no_column(path)}: its pictures have no labels."


def _why_folder(source: DataSource, known: set[str]) -> str:
    path = source.path
    if source.split_folders or not (pictures := walk(path).pictures):
        return ""
    if source.labels_csv is not None or source.columns:
        files = choose_csv(source)
        labelled = any(_has_labels(read_csv(file), source, known) for file in files)
        return "" if labelled else f"{_no_column(files[0])}: its pictures have no labels."
    folders = {name for picture in pictures for name in picture.split("/")[:-1]}
    if any(spelling_key(name) in known for name in folders):
        return ""
    if any(_has_labels(read_csv(file), source, known) for file in find_labels_csv(path)):
        return ""
    if not folders:
        return f"{path} has no class folders and no CSV of labels: its pictures are read without labels."
    return (
        f"No folder in {path} has the name of a class ({few(sorted(folders))}), and there is no CSV of labels: its "
        "pictures are read without labels. If the folders are classes, say which with --map THEIRS=OURS."
    )


def _has_labels(frame: pd.DataFrame, source: DataSource, known: set[str]) -> bool:
    if source.label_column is not None or source.label_columns is not None:
        return True
    column = usual_column(frame.columns, LABEL_NAMES)
    if column is not None and not frame[column].map(plain).str.lower().isin(list(NO_VALUE)).all():
        return True
    return any(spelling_key(name) in known for name in binary_columns(frame))


def _no_column(file: pathlib.Path) -> str:
    return f"{file.name} has no column of labels ({', '.join(LABEL_NAMES[:3])}, ... or a class of the model)"


def _is_csv(path: pathlib.Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


# ---- Reading -------------------------------------------------------------------------------------------


def read_unlabelled(source: DataSource) -> Table:
    """Returns a Table of pictures whose labels are all unknown (NaN), in the order of their paths.

    A folder gives the pictures in it and in all folders below, whose names say nothing but the patient, as in
    patient0001/. A CSV gives those in its column of paths; its other columns are metadata. Any other file is a list of
    paths, as `kmed predict --manifest` takes it.

    Args:
      source: where they are; its task and class_names are those of the model that they are for.
    Raises: DataError: there are no pictures, a listed one does not exist, or task and classes are not given.
    """
    if source.task is None or source.class_names is None:
        raise DataError(
            "data.unlabelled needs the task and the classes of a finished run: it is for `kmed recalibrate --method "
            "prior`. All else needs labels: leave it out."
        )
    if source.path.is_dir() and source.labels_csv is None and not source.columns:
        return _read_folder(source)
    if source.path.is_dir() or _is_csv(source.path):
        return _read_csv(source)
    if source.path.suffix.lower() == ".npz" or is_image(source.path):
        kind = "one picture" if is_image(source.path) else "an .npz file, which holds labels"
        raise DataError(
            f"Pictures without labels are a folder, a CSV with a column of paths or a text file with one path per "
            f"line. Received: {source.path}, which is {kind}."
        )
    return _read_list(source)


def _read_folder(source: DataSource) -> Table:
    path, found = source.path, walk(source.path)
    masks = find_masks(found.pictures)
    hidden = set(masks)
    pictures = [picture for picture in found.pictures if picture not in hidden]
    repeated = found.repeated(pictures)
    kept = [picture for picture in pictures if picture not in repeated]
    if not kept:
        raise DataError(f"{path} holds no pictures. Give the folder that holds them.")
    unread = [file.name for file in list_csv(path) if file.name != GROUPS_CSV]
    notes = [
        f"Layout: {len(kept):,} pictures without labels in {path} and the folders in it.",
        *([f"CSV files beside them are not read: {few(unread)}. Give one as the data to use it."] if unread else []),
        *repeated_note(repeated),
        *mask_note(masks),
        *found.notes(),
    ]
    return _build(source, pd.DataFrame(index=range(len(kept))), kept, path, path.name, notes)


def _read_csv(source: DataSource) -> Table:
    files = choose_csv(source) if source.path.is_dir() else [source.path]
    notes: list[str] = []
    if len(files) != 1:
        raise DataError(f"Give one CSV of pictures without labels. Received: {few([file.name for file in files])}.")
    file, frame = files[0], read_csv(files[0], notes)
    if frame.empty:
        raise DataError(f"{file} has no rows.")
    names = PATH_NAMES if usual_column(frame.columns, PATH_NAMES) else (*PATH_NAMES, *ID_NAMES)
    column = find_column(frame, source.path_column, names, "path_column", file.name)
    values, root = list(frame[column]), source.path if source.path.is_dir() else file.parent
    paths, missing = place_paths(values, root)
    if missing or not all(map(plain, values)):  # names without a suffix, or of another place
        paths, found = locate(values, root, file)
        notes += found
    notes.insert(0, f"Layout: {file.name} names {len(set(paths)):,} pictures in {root}, without labels.")
    return _build(source, frame.drop(columns=column), paths, root, file.name, notes)


def _read_list(source: DataSource) -> Table:
    values, root = read_list(source.path), source.path.parent
    paths, missing = place_paths(values, root)
    if missing:
        raise DataError(describe_missing(missing, source.path, len(values)))
    notes = [f"Layout: {source.path.name} lists {len(set(paths)):,} pictures, without labels."]
    return _build(source, pd.DataFrame(index=range(len(paths))), paths, root, source.path.name, notes)


def _build(
    source: DataSource, frame: pd.DataFrame, paths: Sequence[str], root: pathlib.Path, where: str, notes: list[str]
) -> Table:
    """Returns the Table of the pictures.

    Args:
      frame: (N, ...) the other columns of a CSV.
      paths: (N,) where the pictures are; one may occur several times.
      root: the folder that they are relative to.
      where: what messages call the data.
      notes: lines to show to the user.
    """
    names, task = tuple(source.class_names or ()), str(source.task)
    groups = find_row_groups(frame, list(paths), source, where)
    metadata = frame.drop(columns=[*COLUMNS], errors="ignore").map(plain).reset_index(drop=True)
    roles = pd.DataFrame({"group": groups.group, "cluster": groups.cluster, "split": ""}, index=metadata.index)
    unknown = np.full((len(paths), len(names)), np.nan, np.float32)
    united, _, rows, repeated = unite_rows(
        paths, Labels(unknown, names, "multilabel"), pd.concat([roles, metadata], axis=1), list(roles)
    )
    rows.insert(0, "path", united)
    if repeated:
        notes = [*notes, f"{len(paths):,} rows name {len(united):,} pictures, each of which counts once."]
    unknown = unknown[: len(united)]
    name = root.resolve().name or "data"
    notes = [*notes, *groups.notes]
    return Table(rows, unknown, names, task, name, root=root, grouped=groups.known, notes=tuple(notes))
