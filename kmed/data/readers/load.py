"""load_table: reads class folders, a CSV with pictures, or an .npz file as one Table."""

import dataclasses
import pathlib
from collections.abc import Callable

from kmed.data.readers.blood_cells import apply_map
from kmed.data.readers.csv_choice import csv_above, list_csv
from kmed.data.readers.csv_table import read_csv_file, read_csv_layout
from kmed.data.readers.folders import has_images, read_folder_layout
from kmed.data.readers.groups import resolve_groups
from kmed.data.readers.npz import read_npz
from kmed.data.readers.source import GROUPS_CSV, NOT_FINDINGS, DataSource
from kmed.data.readers.text import plain
from kmed.data.readers.unlabelled import read_unlabelled
from kmed.data.readers.walk import few
from kmed.data.table import Table
from kmed.errors import DataError, suggest
from kmed.tasks import TASKS


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way in which data may be stored on disk.

    Attributes:
      looks: its name in messages: for a file with the article ("a .csv"), for a folder what the folder holds.
      read: returns the Table of a DataSource, or None if its folder has another layout.
      suffix: the suffix of the data file, in lower case; None if the data are a folder.
    """

    looks: str
    read: Callable[[DataSource], Table | None]
    suffix: str | None = None


def read_classes(source: DataSource) -> Table | None:
    """Returns the Table of class folders, or None if there are none or if a CSV counts instead.

    A CSV counts if it is named, or if it lies above the class folders and most of its rows name their pictures.

    Raises: DataError: as `read_folder_layout`, unless there is a CSV.
    """
    if source.labels_csv is not None or source.columns:
        return None
    table, refused = None, None
    try:
        table = read_folder_layout(source)
    except DataError as error:
        refused = error
    if not source.split_folders and csv_above(source.path, table):
        return None
    if refused is not None:
        raise refused
    return None if table is None else table.with_notes(*_unread_note(source))


def _unread_note(source):
    """Returns a line about CSV files beside the class folders, unless they hold the groups."""
    known = {GROUPS_CSV, *(pathlib.PurePath(name).name for name in (source.group, source.cluster) if name)}
    names = [file.name for file in list_csv(source.path) if file.name not in known]
    return [f"CSV files beside the class folders are not read as labels: {few(names)}."] if names else []


# In the order in which they are tried. To add a data source, add a module beside this one and a row here.
LAYOUTS = (
    Layout("a .csv", read_csv_file, ".csv"),
    Layout("an .npz", read_npz, ".npz"),
    Layout("class folders (CLASS/picture or SPLIT/CLASS/picture)", read_classes),
    Layout("CSV with a column of paths and one of labels", read_csv_layout),
)


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
    not_findings=NOT_FINDINGS,
    mapped: bool = False,
    unlabelled: bool = False,
) -> Table:
    """Returns the Table of a data set on disk. No picture is opened, except those of an .npz file.

    Args:
      path: an .npz file (MedMNIST's, or one that `kmed data pack` wrote), a .csv of paths and labels,
        or a folder: of CLASS/picture, of SPLIT/CLASS/picture, or with a CSV beside the pictures.
      name: the name of the data in results; default: the name of the folder or file.
      task: "multiclass" or "multilabel"; default: what the labels show.
      class_names: the legal classes, in the desired order; default: the classes found, sorted.
      split_folders: {folder: split}, such as {"Fold1": "train"}; train, val, test and their usual
        spellings are known, other folders are left out with a note.
      labels_csv: the CSV with the labels, if the folder has several or if it is elsewhere.
      path_column, label_column, label_columns, split_column: the columns of the CSV; default: those with usual names.
      group: what a split keeps together: a column, a CSV of path,group[,cluster], or a regular
        expression with one (capture group) that is searched for in the path. Default: a column such as
        "Patient ID", groups.csv beside the pictures, kmed's map of the blood cells, else each file alone.
      cluster: what intervals resample, inside a group; given in the same ways. Default: the group.
      no_finding: whether "No Finding" in a multilabel CSV is a "label" or the "empty" set of labels.
      not_findings: labels of a multilabel CSV that may stand beside "No Finding", since they are no disease.
      mapped: whether the names will be mapped to the classes of a finished model, by `kmed.data.class_map`. Then class
        folders are legal for task="multilabel" (each picture has the label of its folder, and none of the other
        folders'), and a class may be in any split.
      unlabelled: whether the pictures have no labels, as `kmed.data.readers.unlabelled` reads them; `task` and
        `class_names` are then those of a finished model.
    Raises: DataError: one line that says what is wrong with which file, and what to do.
    Example:
      >>> table = load_table("data/blood_cells")
      >>> table.class_names
      ('EOSINOPHIL', 'LYMPHOCYTE', 'MONOCYTE', 'NEUTROPHIL')
    """
    path = pathlib.Path(path).expanduser()
    class_names = None if class_names is None else [plain(str(name)) for name in class_names]
    _check_settings(path, task, class_names)
    source = DataSource(
        path,
        task=task,
        class_names=class_names,
        split_folders=split_folders,
        labels_csv=labels_csv,
        path_column=path_column,
        label_column=label_column,
        label_columns=label_columns,
        split_column=split_column,
        group=group,
        cluster=cluster,
        no_finding=no_finding,
        not_findings=not_findings,
        mapped=mapped,
        unlabelled=unlabelled,
    )
    table = read_unlabelled(source) if unlabelled else _read(source)
    if len(table) == 0:
        raise DataError(f"{path} holds no pictures.")
    if table.exclusive and not (mapped or unlabelled):
        _check_learnable(table)
    table = table.replace(name=name or _name(path, table))
    known = apply_map(table) if group is None and cluster is None and not table.grouped else None
    if known is not None:
        return known.replace(name=name or known.name)
    return resolve_groups(table, group, cluster)


def _check_settings(path, task, class_names):
    if not path.exists():
        near = suggest(path.name, [other.name for other in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise DataError(f"There is no data at {path}." + near)
    if task is not None and task not in TASKS:
        raise DataError(f"task must be one of {', '.join(TASKS)}. Received: task={task!r}." + suggest(task, TASKS))
    if class_names is not None and len(set(class_names)) != len(class_names):
        raise DataError(f"class_names must differ from each other. Received: {tuple(class_names)}.")


def _read(source):
    """Returns the Table of the first layout that fits. Raises DataError if none does."""
    suffix = source.path.suffix.lower() if source.path.is_file() else None
    for layout in LAYOUTS:
        if layout.suffix == suffix and (table := layout.read(source)) is not None:
            return table
    raise DataError(_nothing_found(source.path) if suffix is None else _unknown_kind(source.path))


def _check_learnable(table):
    """Raises DataError if a class occurs only outside training, mostly because a folder is spelt in two ways."""
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
                f"Class {name!r} occurs only outside training ({int(all_images)} pictures), so it cannot be learned. "
                f"Classes in training: {', '.join(others)}." + suggest(twin, others)
            )


def _name(path, table):
    """Returns the name of the given folder, or of the nearest one above whose name says more than "images" or "."."""
    if path.is_file():
        return table.name
    folder = path.resolve()
    while folder.name.lower() in ("images", "data", "train", "test") and folder.parent.name:
        folder = folder.parent
    return folder.name or "data"


def _unknown_kind(path):
    kinds = ["a folder", *(layout.looks for layout in LAYOUTS if layout.suffix is not None)]
    return f"Data must be {', '.join(kinds[:-1])} or {kinds[-1]}. Received: {path}."


def _nothing_found(path):
    names = ", ".join(sorted(entry.name for entry in path.iterdir())[:6]) or "nothing"
    pictures = "There are pictures, but" if has_images(path) else "There are no pictures,"
    looked_for = dict.fromkeys(f"no {layout.looks}" for layout in LAYOUTS if layout.suffix is None)
    return f"No data set is found in {path}. {pictures} {' and '.join(looked_for)}. It holds: {names}."
