"""Reads class folders, with or without split folders above them, as a Table."""

import os
import pathlib
import re
from collections import Counter

import numpy as np
import pandas as pd

from kmed.data.readers.source import DataSource, refuse
from kmed.data.readers.walk import IMAGE_SUFFIXES, is_image, subfolders, walk
from kmed.data.table import SPLITS, Table
from kmed.errors import DataError, suggest

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "test_simple": "test_simple",
}
MAX_DEPTH = 5


def read_split_layout(source: DataSource) -> Table | None:
    """Returns the Table of SPLIT/CLASS/picture, or None if there is none or a CSV is asked for.

    Raises: DataError: as `read_split_folders`; or the task needs labels that class folders cannot hold.
    """
    if source.labels_csv is not None or source.columns:
        return None
    root = find_split_root(source.path, source.split_folders)
    if root is None:
        return None
    _check_task(source)
    return read_split_folders(root, split_folders=source.split_folders, class_names=source.class_names)


def read_class_layout(source: DataSource) -> Table | None:
    """Returns the Table of CLASS/picture, or None if there is none. Raises DataError like read_split_layout."""
    refuse("data without split folders", split_folders=source.split_folders)
    root = find_class_root(source.path)
    if root is None:
        return None
    _check_task(source)
    return read_class_folders(root, class_names=source.class_names)


def find_split_root(path: pathlib.Path, split_folders=None) -> pathlib.Path | None:
    """Returns the nearest folder at or below `path` that holds split folders of class folders, or None."""
    names = set(split_folders or {})
    return _nearest(
        path,
        lambda folder: any(
            (child.name in names or child.name.lower() in SPLIT_NAMES) and any(map(has_images, subfolders(child)))
            for child in subfolders(folder)
        ),
    )


def find_class_root(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the nearest folder at or below `path` with two or more folders of pictures, or None."""
    return _nearest(path, lambda folder: sum(any(map(is_image, child.iterdir())) for child in subfolders(folder)) >= 2)


def read_split_folders(root: pathlib.Path, *, split_folders=None, class_names=None) -> Table:
    """Returns a Table of SPLIT/CLASS/picture; the splits are those of the folders.

    Args:
      root: the folder that holds the split folders.
      split_folders: {folder: split}, for folders whose name does not show their split.
      class_names: the legal classes, in the order of the label columns; default: the sorted folder names.
    Raises: DataError: an empty class folder, an unknown class or folder.
    """
    split_folders = dict(split_folders or {})
    children = subfolders(root)
    _check_mapping(split_folders, [child.name for child in children])
    splits: dict[str, str] = {}
    left_out: list[str] = []
    for child in children:
        split = split_folders.get(child.name) or SPLIT_NAMES.get(child.name.lower())
        if split is None:
            left_out.append(child.name)
        else:
            splits[child.name] = split
    found: list[tuple[str, str, str]] = []
    other: Counter[str] = Counter()
    for folder, split in splits.items():
        found += [(path, label, split) for path, label in _list_classes(root / folder, root, other)]
    notes = [f"Folders in {root.name}/ that are not splits are left out: {', '.join(left_out)}."] if left_out else []
    return _build(found, root, class_names, [*notes, *_other_note(other)])


def read_class_folders(root: pathlib.Path, *, class_names=None) -> Table:
    """Returns a Table of CLASS/picture without splits. Raises DataError like read_split_folders."""
    other: Counter[str] = Counter()
    found = [(path, label, "") for path, label in _list_classes(root, root, other)]
    return _build(found, root, class_names, _other_note(other))


def has_images(folder: pathlib.Path) -> bool:
    """Returns whether `folder` or a folder inside it holds a picture."""
    return bool(walk(folder).pictures)


def _check_task(source):
    if source.task == "multilabel":
        raise DataError(
            f"task='multilabel' does not fit class folders, where each picture has one class ({source.path}). "
            "Use task='multiclass', or give the labels as a CSV."
        )


def _nearest(path, fits):
    """Returns the folder of the lowest depth that fits, or None. Raises DataError if several at one depth fit."""
    level = [path]
    for _ in range(MAX_DEPTH + 1):
        fitting = [folder for folder in level if fits(folder)]
        if len(fitting) > 1:
            names = ", ".join(str(folder.relative_to(path)) for folder in fitting[:4])
            raise DataError(f"Several folders in {path} hold class folders: {names}. Name the one to use.")
        if fitting:
            return fitting[0]
        level = [child for folder in level for child in subfolders(folder)]
    return None


def _check_mapping(split_folders, names):
    for folder, split in split_folders.items():
        if folder not in names:
            raise DataError(
                f"split_folders names a folder that does not exist. Received: {folder!r}; the folders are "
                f"{', '.join(names)}." + suggest(folder, names)
            )
        if not re.fullmatch(r"[a-z][a-z0-9_]*", str(split)):
            raise DataError(
                f"A split's name must be {', '.join(SPLITS)} or another word in lower case. "
                f"Received: split_folders[{folder!r}]={split!r}." + suggest(split, SPLITS)
            )


def _list_classes(folder, root, other):
    """Returns [(path relative to root, class)] for the class folders in `folder`; counts other files in `other`."""
    found = []
    for class_folder in subfolders(folder):
        names = _list_images(class_folder, other)
        if not names:
            raise DataError(
                f"The class folder {class_folder} holds no pictures "
                f"({', '.join(sorted(IMAGE_SUFFIXES))}). Fill it or remove it."
            )
        start = class_folder.relative_to(root).as_posix()
        found += [(f"{start}/{name}", class_folder.name) for name in names]
    loose = [path.name for path in folder.iterdir() if path.is_file() and path.suffix.lower() != ".csv"]
    other.update(pathlib.PurePath(name).suffix.lower() or name for name in loose)
    return found


def _list_images(folder, other):
    """Returns the sorted POSIX paths of the pictures in `folder` and in the folders inside it."""
    names = []
    for parent, _, files in os.walk(folder):
        start = pathlib.Path(parent).relative_to(folder)
        for name in files:
            if is_image(name):
                names.append((start / name).as_posix())
            else:
                other[pathlib.PurePath(name).suffix.lower() or name] += 1
    return sorted(names)


def _other_note(other):
    if not other:
        return []
    kinds = ", ".join(sorted(other)[:5])
    return [f"{sum(other.values())} files outside the class folders or of other types are ignored ({kinds})."]


def _build(found, root, class_names, notes):
    paths, labels, splits = zip(*sorted(found)) if found else ((), (), ())
    present = sorted(set(labels))
    names = tuple(class_names) if class_names else tuple(present)
    for label in present:
        if label not in names:
            raise DataError(
                f"Unknown class folder {label!r}; the classes are {', '.join(names)}." + suggest(label, names)
            )
    if len(names) < 2:
        raise DataError(f"{root} holds {len(names)} class folder(s) with pictures; at least two classes are needed.")
    column = {name: index for index, name in enumerate(names)}
    onehot = np.zeros((len(paths), len(names)), np.float32)
    onehot[np.arange(len(paths)), [column[label] for label in labels]] = 1
    rows = pd.DataFrame({"path": paths, "group": paths, "cluster": paths, "split": splits})
    return Table(rows, onehot, names, "multiclass", root.name, root=root, notes=tuple(notes))
