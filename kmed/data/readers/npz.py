"""Writes a Table and its pictures as one .npz file, and reads such files and those of MedMNIST."""

import pathlib
import zipfile

import numpy as np
import pandas as pd

from kmed.data.images import Resizing, read_row
from kmed.data.readers.npz_arrays import opened
from kmed.data.readers.source import DataSource, refuse
from kmed.data.readers.walk import few
from kmed.data.table import COLUMNS, SPLITS, Table
from kmed.errors import DataError
from kmed.files import replacing
from kmed.progress import track
from kmed.tasks import TASKS, check_labels

METADATA = "metadata_"  # the prefix of metadata columns, such as sex and age
RANGE = "range"  # what became black and white in pictures with more than 8 bits per value
MAX_CLASSES = 10_000
KEYS = ("images", "labels", "class_names", "task", "name", "grouped", *COLUMNS)


def pack(table: Table, out, resizing: Resizing) -> pathlib.Path:
    """Writes the table with decoded pictures as one .npz and returns its path.

    Pictures are written one by one, so only one is in memory at a time. Metadata columns are stored as text.

    Args:
      table: any table.
      out: the file to write; ".npz" is added if it is missing.
      resizing: the size of the written pictures, and how they are resized.
    Raises: DataError: a picture that cannot be read, or a resizing that keeps each picture's own size.
    """
    out = pathlib.Path(out)
    out = out if out.suffix == ".npz" else out.with_name(out.name + ".npz")
    shape = (len(table), *resizing.common_size, 3)
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for key, value in _describe(table).items():
            with archive.open(f"{key}.npy", "w") as file:
                np.lib.format.write_array(file, value, allow_pickle=False)
        with archive.open("images.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for row in track(range(len(table)), "Packing pictures"):
                file.write(read_row(table, row, resizing).tobytes())
    return out


def read_npz(source: DataSource) -> Table:
    """Returns the Table of a pack, or of a file with MedMNIST's keys (train_images, train_labels, ...).

    Raises: DataError: keys of neither kind, arrays that do not fit each other or the task, or settings that only apply
      to folders.
    """
    refuse("an .npz file", split_folders=source.split_folders, labels_csv=source.labels_csv, **source.columns)
    path = source.path
    with opened(path) as archive:
        missing = set(KEYS) - set(archive.keys)
        if not missing:
            return _from_pack(archive, source)
        if any(f"{split}_images" in archive.keys for split in SPLITS):
            return _from_medmnist(archive, source)
        if len(missing) <= len(KEYS) // 2:
            raise DataError(f"{path} is no whole pack: it lacks {', '.join(sorted(missing))}. Make it again.")
        raise DataError(
            f"{path} has neither MedMNIST's keys (train_images, train_labels, ...) nor those of a pack "
            f"({', '.join(KEYS)}). Its keys: {', '.join(sorted(archive.keys)[:20]) or 'none'}."
        )


def _describe(table):
    columns = {name: table.rows[name].to_numpy().astype(np.str_) for name in COLUMNS}
    others = [name for name in table.rows.columns if name not in COLUMNS]
    columns |= {
        f"{METADATA}{name}": table.rows[name].fillna("").astype(str).to_numpy().astype(np.str_) for name in others
    }
    return {
        "labels": table.labels.astype(np.float32),
        "class_names": np.array(table.class_names, dtype=np.str_),
        "task": np.array(table.task),
        "name": np.array(table.name),
        "grouped": np.array(table.grouped),
        **({} if table.range is None else {RANGE: np.array(table.range)}),
        **columns,
    }


def _from_pack(archive, source):
    path, wanted = source.path, [key for key in archive.keys if key in (*KEYS, RANGE) or key.startswith(METADATA)]
    arrays = {key: archive.read(key) for key in wanted}
    stored, names = str(arrays["task"]), tuple(str(name) for name in arrays["class_names"].reshape(-1))
    if source.task not in (None, stored):
        raise DataError(f"The pack's task is {stored!r}. Received: task={source.task!r}.")
    if source.class_names is not None and tuple(source.class_names) != names:
        raise DataError(
            f"The pack's classes are {', '.join(names)}. Received: class_names={tuple(source.class_names)}."
        )
    images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.shape[:1] != labels.shape[:1]:
        raise DataError(
            f"The pack must hold one uint8 picture per label, {len(labels) if labels.ndim else 0} in all. "
            f"Received: {images.dtype} {images.shape}."
        )
    _check_pack(path, stored, labels, names)
    columns = {name: arrays[name] for name in COLUMNS}
    columns |= {name.removeprefix(METADATA): values for name, values in arrays.items() if name.startswith(METADATA)}
    for name, values in columns.items():
        if values.shape != (len(labels),):
            raise DataError(f"{path}: {name} must be {len(labels)} values, one per picture. Received: {values.shape}.")
    rows = pd.DataFrame({name: values.astype(str).astype(object) for name, values in columns.items()})
    limits = arrays.get(RANGE, np.zeros(0))
    return Table(
        rows, labels.astype(np.float32), names, stored, str(arrays["name"]), images=images,
        range=(int(limits[0]), int(limits[1])) if limits.shape == (2,) else None, grouped=bool(arrays["grouped"].any()),
    )  # fmt: skip


def _check_pack(path, task, labels, names):
    """Raises DataError if the labels of a pack are not those of its task."""
    if task not in TASKS:
        raise DataError(f"{path}: task must be one of {', '.join(TASKS)}. Received: {task!r}.")
    if labels.dtype.kind not in "fiub" or labels.shape[1:] != (len(names),):
        raise DataError(
            f"{path}: labels must be numbers, one row per picture and one column for each of {len(names)} classes. "
            f"Received: {labels.dtype} {labels.shape}."
        )
    check_labels(task, labels.astype(np.float32))


def _from_medmnist(archive, source):
    path, notes, arrays = source.path, [], {}
    for split in (split for split in SPLITS if f"{split}_images" in archive.keys):
        if f"{split}_labels" not in archive.keys:
            raise DataError(f"{path} needs {split}_labels with one row for each of {split}_images.")
        images, labels = archive.read(f"{split}_images"), archive.read(f"{split}_labels")
        if images.ndim == 0 or labels.ndim == 0 or len(labels) != len(images):
            raise DataError(
                f"{path} needs {split}_labels with one row for each of {split}_images. "
                f"Received: {labels.shape} for {images.shape}."
            )
        if len(images):
            arrays[split] = _three_channels(images, path), labels.reshape(len(labels), -1)
        else:
            notes.append(f"Split {split!r} of {path.name} is empty and left out.")
    if not arrays:
        raise DataError(f"{path} holds no pictures.")
    known = {f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")}
    if others := [key for key in archive.keys if key not in known]:
        notes.append(f"Arrays of {path.name} that are left out: {few(others)}.")
    images, raw = (_join(path, {split: pair[place] for split, pair in arrays.items()}) for place in (0, 1))
    labels, task = _medmnist_labels(raw, source.task, path, source.class_names)
    names = tuple(source.class_names) if source.class_names else tuple(str(index) for index in range(labels.shape[1]))
    if len(names) != labels.shape[1]:
        raise DataError(f"{path} has {labels.shape[1]} classes. Received: {len(names)} class_names.")
    number = [str(index) for index in range(len(images))]
    split = np.repeat(list(arrays), [len(pair[0]) for pair in arrays.values()]).astype(object)
    rows = pd.DataFrame({"path": number, "group": number, "cluster": number, "split": split})
    return Table(rows, labels, names, task, path.stem, images=images, notes=tuple(notes))


def _join(path, arrays):
    """Returns the arrays of all splits as one. Raises DataError if their rows differ in shape."""
    if len({array.shape[1:] for array in arrays.values()}) > 1:
        shapes = ", ".join(f"{split} {array.shape}" for split, array in arrays.items())
        raise DataError(
            f"{path}: the splits differ in the size of their pictures or labels ({shapes}). Make them equal."
        )
    return np.concatenate(list(arrays.values()))


def _medmnist_labels(raw, task, path, class_names):
    """Returns (float32 (N, K), task): one column holds class numbers, several hold 0 and 1, or NaN for unknown."""
    if raw.dtype.kind not in "fiub" or not raw.shape[1]:
        raise DataError(f"{path}: labels must be numbers. Received: {raw.dtype} {raw.shape}.")
    if raw.shape[1] > 1:
        known = raw[~np.isnan(raw)] if raw.dtype.kind == "f" else raw
        if not np.isin(known, (0, 1)).all():
            raise DataError(f"{path}: labels in several columns must be 0 or 1. Received: {np.unique(known)[:5]}.")
        single = known.size == raw.size and bool((raw.sum(axis=1) == 1).all())
        if task == "multiclass" and not single:
            raise DataError(f"{path}: task='multiclass' needs one label per picture. Use task='multilabel'.")
        return raw.astype(np.float32), task or ("multiclass" if single else "multilabel")
    if task == "multilabel":
        raise DataError(f"{path}: task='multilabel' needs one column per label, not one column of class numbers.")
    numbers = raw[:, 0]
    if not np.issubdtype(raw.dtype, np.integer) or numbers.min() < 0:
        raise DataError(f"{path}: labels must be class numbers from 0. Received: {raw.dtype} {np.unique(numbers)[:5]}.")
    count = max(int(numbers.max()) + 1, len(class_names or ()))
    if count > MAX_CLASSES:
        raise DataError(f"{path}: class numbers reach {count - 1}; at most {MAX_CLASSES:,} classes are read.")
    labels = np.zeros((len(numbers), count), np.float32)
    labels[np.arange(len(numbers)), numbers.astype(np.int64)] = 1
    return labels, "multiclass"


def _three_channels(images, path):
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(
            f"{path}: pictures must be uint8 (N, H, W) or (N, H, W, 3). Received: {images.dtype} {images.shape}."
        )
    images = images[..., None] if images.ndim == 3 else images
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
