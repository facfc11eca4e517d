"""load_table: class folders, a CSV with pictures, or an .npz become one Table."""

import pathlib

from kmed.data.readers.blood_cells import apply_map
from kmed.data.readers.csv_labels import find_labels_csv, read_csv, read_labels_csv, usual_group
from kmed.data.readers.folders import (
    find_class_root,
    find_split_root,
    has_images,
    read_class_folders,
    read_split_folders,
)
from kmed.data.readers.groups import resolve_groups
from kmed.data.readers.npz import read_npz
from kmed.data.table import Table
from kmed.errors import DataError, suggest

TASKS = ("multiclass", "multilabel")


def load_table(
    path,
    *,
    name: str | None = None,
    task: str | None = None,
    class_names=None,
    split_folders=None,
    labels_csv=None,
    path_column: str | None = None,
    label_column: str | None = None,
    label_columns=None,
    split_column: str | None = None,
    group: str | None = None,
    cluster: str | None = None,
    no_finding: str = "label",
) -> Table:
    """Returns the Table of a data set on disk; no picture is opened but those of an .npz.

    Args:
      path: an .npz file (MedMNIST's, or one that `kmed data pack` wrote), a .csv of paths and labels,
        or a folder: of CLASS/picture, of SPLIT/CLASS/picture, or with a CSV beside the pictures.
      name: what results call the data; default: the folder's or file's name.
      task: "multiclass" or "multilabel"; default: what the labels show.
      class_names: the legal classes in the order wanted; default: those found, sorted.
      split_folders: {folder: split}, such as {"Fold1": "train"}; train, val, test and their usual
        spellings are known, other folders are left out with a note.
      labels_csv: the CSV of a folder that has several, or that lies elsewhere.
      path_column, label_column, label_columns, split_column: the CSV's columns; default: by name.
      group: what a split keeps together: a column, a CSV of path,group[,cluster], or a regular
        expression with one (capture group) searched for in the path. Default: a column such as
        "Patient ID", groups.csv beside the pictures, kmed's map of the blood cells, else each file alone.
      cluster: what intervals resample, inside a group, told in the same ways; default: the group.
      no_finding: of a multilabel CSV: whether "No Finding" is a "label", or the "empty" set of labels.
    Raises: DataError: one line that says what is wrong with which file, and what to do.
    Example:
      >>> table = load_table("data/blood_cells")
      >>> table.class_names
      ('EOSINOPHIL', 'LYMPHOCYTE', 'MONOCYTE', 'NEUTROPHIL')
    """
    path = pathlib.Path(path).expanduser()
    _check_settings(path, task, class_names)
    columns = {"path_column": path_column, "label_column": label_column, "label_columns": label_columns}
    columns = {key: value for key, value in {**columns, "split_column": split_column}.items() if value is not None}
    table = _read(path, task, class_names, split_folders, labels_csv, columns, group, cluster, no_finding)
    if len(table) == 0:
        raise DataError(f"{path} holds no pictures.")
    if table.task == "multiclass":
        _check_learnable(table)
    table = table.replace(name=name or _name(path, table))
    mapped = apply_map(table) if group is None and cluster is None and not table.grouped else None
    if mapped is not None:
        return mapped.replace(name=name or mapped.name)
    return resolve_groups(table, group, cluster)


def _check_settings(path, task, class_names):
    if not path.exists():
        near = suggest(path.name, [other.name for other in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise DataError(f"There is no data at {path}." + near)
    if task is not None and task not in TASKS:
        raise DataError(f"task must be one of {', '.join(TASKS)}. Received: task={task!r}." + suggest(task, TASKS))
    if class_names is not None and len(set(class_names)) != len(class_names):
        raise DataError(f"class_names must differ from each other. Received: {tuple(class_names)}.")


def _read(path, task, class_names, split_folders, labels_csv, columns, group, cluster, no_finding):
    """Returns the Table of the first layout that fits: what the user named, then folders, then what is found."""
    if path.is_file():
        if path.suffix.lower() == ".npz":
            _refuse("an .npz file", split_folders=split_folders, labels_csv=labels_csv, **columns)
            return read_npz(path, class_names=class_names, task=task)
        if path.suffix.lower() == ".csv":
            _refuse("a .csv file", split_folders=split_folders, labels_csv=labels_csv)
            return _read_csv(path, path.parent, task, class_names, columns, group, cluster, no_finding)
        raise DataError(f"Data must be a folder, a .csv or an .npz. Received: {path}.")
    if labels_csv is None and not columns:
        root = find_split_root(path, split_folders)
        if root is not None:
            _check_folder_task(task, path)
            return read_split_folders(root, split_folders=split_folders, class_names=class_names)
    _refuse("data without split folders", split_folders=split_folders)
    csv_path = _find_csv(path, labels_csv, columns)
    if csv_path is not None:
        root = path if labels_csv is not None else csv_path.parent
        return _read_csv(csv_path, root, task, class_names, columns, group, cluster, no_finding)
    root = find_class_root(path)
    if root is not None:
        _check_folder_task(task, path)
        return read_class_folders(root, class_names=class_names)
    raise DataError(_nothing_found(path))


def _read_csv(csv_path, root, task, class_names, columns, group, cluster, no_finding):
    """Reads the CSV; a group or cluster that is no column of it is left to resolve_groups."""
    frame = read_csv(csv_path)
    group_column = usual_group(frame) if group is None else group if group in frame.columns else None
    cluster = "cluster" if cluster is None else cluster
    cluster_column = cluster if cluster in frame.columns else None
    return read_labels_csv(
        csv_path, root, task=task, class_names=class_names, **columns,
        group_column=group_column, cluster_column=cluster_column, no_finding=no_finding,
    )  # fmt: skip


def _find_csv(path, labels_csv, columns):
    if labels_csv is not None:
        given = pathlib.Path(labels_csv).expanduser()
        return given if given.is_file() or not (path / given).is_file() else path / given
    if columns:  # the user describes a CSV, so the only one there is meant, whatever its columns are called
        files = sorted(path.glob("*.csv"))
        if len(files) == 1:
            return files[0]
        raise DataError(
            f"{', '.join(columns)} describes a CSV, and {path} holds {len(files)}. Name it with labels_csv."
        )
    return find_labels_csv(path)


def _refuse(what, **settings):
    given = [key for key, value in settings.items() if value]
    if given:
        raise DataError(f"{', '.join(given)} does not apply to {what}. Leave it out.")


def _check_folder_task(task, path):
    if task == "multilabel":
        raise DataError(
            f"task='multilabel' does not fit class folders, where each picture has one class ({path}). "
            "Use task='multiclass', or give the labels as a CSV."
        )


def _check_learnable(table):
    """Raises where a class is judged but never shown: a folder spelt in two ways, mostly."""
    splits = table.rows["split"].to_numpy()
    seen = table.labels[(splits == "train") | (splits == "")].sum(axis=0)
    total = table.labels.sum(axis=0)
    if not seen.any():
        return
    for name, learned, all_images in zip(table.class_names, seen, total):
        if learned == 0 and all_images:
            others = [other for other, count in zip(table.class_names, seen) if count]
            twin = next((other for other in others if other.lower() == name.lower()), name)
            raise DataError(
                f"Class {name!r} occurs only outside training ({int(all_images)} pictures): it cannot be learned. "
                f"Classes in training: {', '.join(others)}." + suggest(twin, others)
            )


def _name(path, table):
    """Returns the name of the folder the user gave; "images" and "." say nothing, so the next one up is taken."""
    if path.is_file():
        return table.name
    folder = path.resolve()
    while folder.name.lower() in ("images", "data", "train", "test") and folder.parent.name:
        folder = folder.parent
    return folder.name or "data"


def _nothing_found(path):
    names = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) or "nothing"
    pictures = "There are pictures, but no" if has_images(path) else "There are no pictures, no"
    return (
        f"No data set is found in {path}. {pictures} class folders (CLASS/picture or SPLIT/CLASS/picture) and no CSV "
        f"with a column of paths and one of labels. It holds: {names}."
    )
