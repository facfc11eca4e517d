"""Reads class folders, with or without split folders and patients' folders, as a Table."""

import pathlib
import re
from collections import Counter

import numpy as np
import pandas as pd

from kmed.data.readers.levels import Found, Levels, read_levels
from kmed.data.readers.masks import find_masks, mask_note
from kmed.data.readers.source import DataSource, find_groups_csv, refuse
from kmed.data.readers.text import unite_spellings
from kmed.data.readers.walk import IMAGE_SUFFIXES, Walk, few, repeated_note, subfolders, walk
from kmed.data.table import SPLITS, Table
from kmed.errors import DataError, suggest


def read_folder_layout(source: DataSource) -> Table | None:
    """Returns the Table of class folders, or None if there are none.

    Raises: DataError: as `read_class_folders`; or the task needs labels that class folders cannot hold.
    """
    table = read_class_folders(
        source.path,
        split_folders=source.split_folders,
        class_names=source.class_names,
        group_by_folder=source.group is None,
    )
    if table is not None and source.task == "multilabel" and not source.mapped:
        raise DataError(
            f"task='multilabel' does not fit class folders, where each picture has one class ({source.path}). "
            "Use task='multiclass', or give the labels as a CSV."
        )
    return table


def read_class_folders(
    folder: pathlib.Path, *, split_folders=None, class_names=None, group_by_folder: bool = True
) -> Table | None:
    """Returns a Table of CLASS/picture or SPLIT/CLASS/picture, in or below a folder, or None if there is none.

    Folders inside the classes may be groups, as `kmed.data.readers.levels.read_levels` explains. Masks beside pictures
    are left out. The table's notes say how the folders were read, and what was left out.

    Args:
      folder: the folder. The table's root is the folder inside it that holds the classes or splits.
      split_folders: {folder: split}, for folders whose name does not show their split.
      class_names: the legal classes, in the order of the label columns; default: the sorted folder names.
      group_by_folder: whether such folders are the table's groups, unless there is a groups.csv.
    Raises: DataError: an empty class folder, an unknown class or folder, or one that can be read in several ways.
    """
    found = walk(folder)
    masks = find_masks(found.pictures)
    hidden = set(masks)
    pictures = [path for path in found.pictures if path not in hidden]
    levels = read_levels(pictures, str(folder), split_folders=split_folders, class_names=class_names)
    if levels is None or (split_folders and not levels.shape.startswith("SPLIT")):
        refuse("data without split folders", split_folders=split_folders)
        return None
    root = folder / levels.root
    _check_mapping(split_folders or {}, [child.name for child in subfolders(root)])
    _check_empty(found, levels, folder)
    kept, repeated = _once(levels.found, found)
    by_folder = group_by_folder and find_groups_csv(root) is None and any(picture.group for picture in kept)
    notes = [
        f"Layout: {levels.shape} in {root}.",
        *(_group_note(kept) if by_folder else _inner_note(levels)),
        *_left_out_notes(levels, pictures, root),
        *repeated_note(repeated),
        *mask_note(masks),
        *found.notes(),
        *_others_note(found),
    ]
    return _build(kept, levels.root, root, class_names, by_folder, notes)


def has_images(folder: pathlib.Path) -> bool:
    """Returns whether `folder` or a folder inside it holds a picture."""
    return bool(walk(folder).pictures)


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


def _check_empty(found: Walk, levels: Levels, folder: pathlib.Path) -> None:
    """Raises DataError for a class folder without pictures: they may be missing, or of a type that is not read."""
    filled = {path.rpartition("/")[0] for path in found.pictures}
    filled |= {parent for path in filled for parent in _parents(path)}
    for path in found.folders:
        if path.rpartition("/")[0] in levels.class_parents and path not in filled and path not in found.back:
            raise DataError(
                f"The class folder {folder / path} holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))}). Fill it or "
                "remove it."
            )


def _parents(path):
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _once(pictures: list[Found], found: Walk) -> tuple[list[Found], dict[str, str]]:
    """Returns (pictures without those that are there again behind a link, {such a picture: the one that is kept}).

    Raises: DataError: one file is in two classes or in two splits.
    """
    by_path = {picture.path: picture for picture in pictures}
    repeated = found.repeated(by_path)
    for path, kept in repeated.items():
        one, other = by_path[path], by_path[kept]
        if (one.label, one.split) != (other.label, other.split):
            what = "classes" if one.label != other.label else "splits"
            raise DataError(f"{kept} and {path} are one file, by a link, but in two {what}. Remove one of them.")
    return [picture for picture in pictures if picture.path not in repeated], repeated


# ---- Notes ----------------------------------------------------------------------------------------------


def _group_note(pictures):
    groups = sorted({picture.group for picture in pictures if picture.group})
    alone = sum(picture.group is None for picture in pictures)
    rest = f" {alone:,} pictures that are in no such folder are groups of their own." if alone else ""
    return [
        f"Groups: {len(groups):,} folders, such as {groups[0]}; a name that occurs in several classes or splits is one "
        f"group.{rest} Set group for others (regex:(.*) for each picture alone)."
    ]


def _inner_note(levels):
    if not levels.inner:
        return []
    return [
        f"The folders inside the classes ({few(levels.inner)}) are not used as groups, since they are not named like "
        "patients. If they are, set group='regex:(.*)/'; if they are the classes, list them in class_names."
    ]


def _left_out_notes(levels, pictures, root):
    notes = []
    if levels.other_folders:
        named = ", ".join(f"{name} ({count:,} pictures)" for name, count in sorted(levels.other_folders.items()))
        notes.append(f"Folders in {root.name}/ that are not splits are left out: {named}.")
    loose = levels.without_class
    if loose:
        notes.append(f"Pictures outside the class folders are left out ({len(loose):,}): {few(loose)}.")
    return notes


def _others_note(found):
    """Returns a line about files that are no pictures, except for CSV files in the folder itself."""
    names = [path for path in found.others if "/" in path or not path.lower().endswith(".csv")]
    names += [path for path in found.hidden if not path.endswith("/")]
    kinds = Counter(pathlib.PurePosixPath(name).suffix.lower() or pathlib.PurePosixPath(name).name for name in names)
    listed = ", ".join(kind for kind, _ in kinds.most_common(5))
    if not names:
        return []
    files = "1 file of another type is" if len(names) == 1 else f"{len(names):,} files of other types are"
    return [f"{files} ignored ({listed})."]


# ---- The table ------------------------------------------------------------------------------------------


def _build(pictures, start, root, class_names, by_folder, notes):
    pictures = sorted(pictures, key=lambda picture: picture.path)
    united, more = unite_spellings([picture.label for picture in pictures], class_names)
    labels = [united[picture.label] for picture in pictures]
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
    onehot = np.zeros((len(pictures), len(names)), np.float32)
    onehot[np.arange(len(pictures)), [column[label] for label in labels]] = 1
    paths = [picture.path[len(start) :].lstrip("/") if start else picture.path for picture in pictures]
    groups = [picture.group or path for picture, path in zip(pictures, paths)] if by_folder else paths
    splits = [picture.split for picture in pictures]
    rows = pd.DataFrame({"path": paths, "group": groups, "cluster": groups, "split": splits})
    return Table(
        rows, onehot, names, "multiclass", root.name, root=root, grouped=by_folder, notes=(*notes, *more)
    )  # fmt: skip
