"""Writes a Table and its pictures as one .npz file, and reads such files and those of MedMNIST."""

import pathlib
import zipfile
import zlib

import numpy as np
import pandas as pd

from kmed.data.images import Resizing, read_row
from kmed.data.readers.source import DataSource, refuse
from kmed.data.table import COLUMNS, SPLITS, Table
from kmed.errors import DataError
from kmed.files import replacing
from kmed.progress import track

METADATA = "metadata_"  # the prefix of metadata columns, such as sex and age
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

    Raises: DataError: keys of neither kind, labels that do not fit the task, or settings that only apply to folders.
    """
    refuse("an .npz file", split_folders=source.split_folders, labels_csv=source.labels_csv, **source.columns)
    path, class_names, task = source.path, source.class_names, source.task
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz ({type(error).__name__}).") from error
    if set(KEYS) <= set(arrays):
        return _from_pack(arrays, task, class_names)
    if any(f"{split}_images" in arrays for split in SPLITS):
        return _from_medmnist(arrays, path, class_names, task)
    raise DataError(
        f"{path} has neither MedMNIST's keys (train_images, train_labels, ...) nor those of a pack "
        f"({', '.join(KEYS)}). Its keys: {', '.join(sorted(arrays)) or 'none'}."
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
        **columns,
    }


def _from_pack(arrays, task, class_names):
    stored = str(arrays["task"])
    names = tuple(str(name) for name in arrays["class_names"])
    if task not in (None, stored):
        raise DataError(f"The pack's task is {stored!r}. Received: task={task!r}.")
    if class_names is not None and tuple(class_names) != names:
        raise DataError(f"The pack's classes are {', '.join(names)}. Received: class_names={tuple(class_names)}.")
    if arrays["images"].dtype != np.uint8 or len(arrays["images"]) != len(arrays["labels"]):
        raise DataError(
            f"The pack must hold one uint8 picture per label, {len(arrays['labels'])} in all. "
            f"Received: {arrays['images'].dtype} {arrays['images'].shape}."
        )
    columns = {name: arrays[name] for name in COLUMNS}
    columns |= {name.removeprefix(METADATA): values for name, values in arrays.items() if name.startswith(METADATA)}
    rows = pd.DataFrame({name: values.astype(object) for name, values in columns.items()})
    return Table(
        rows, arrays["labels"], names, stored, str(arrays["name"]),
        images=arrays["images"], grouped=bool(arrays["grouped"]),
    )  # fmt: skip


def _from_medmnist(arrays, path, class_names, task):
    splits = [split for split in SPLITS if f"{split}_images" in arrays]
    for split in splits:
        if f"{split}_labels" not in arrays or len(arrays[f"{split}_labels"]) != len(arrays[f"{split}_images"]):
            raise DataError(f"{path} needs {split}_labels with one row for each of {split}_images.")
    images = np.concatenate([_three_channels(arrays[f"{split}_images"], path) for split in splits])
    raw = np.concatenate([arrays[f"{split}_labels"].reshape(len(arrays[f"{split}_labels"]), -1) for split in splits])
    labels, task = _medmnist_labels(raw, task, path)
    names = tuple(class_names) if class_names else tuple(str(index) for index in range(labels.shape[1]))
    if len(names) != labels.shape[1]:
        raise DataError(f"{path} has {labels.shape[1]} classes. Received: {len(names)} class_names.")
    number = [str(index) for index in range(len(images))]
    split = np.repeat(splits, [len(arrays[f"{split}_images"]) for split in splits]).astype(object)
    rows = pd.DataFrame({"path": number, "group": number, "cluster": number, "split": split})
    return Table(rows, labels, names, task, path.stem, images=images)


def _medmnist_labels(raw, task, path):
    """Returns (float32 (N, K), task): one column holds class numbers, several hold 0 and 1."""
    if raw.shape[1] > 1:
        if not np.isin(raw, (0, 1)).all():
            raise DataError(f"{path}: labels in several columns must be 0 or 1. Received: {np.unique(raw)[:5]}.")
        if task == "multiclass" and not (raw.sum(axis=1) == 1).all():
            raise DataError(f"{path}: task='multiclass' needs one label per picture. Use task='multilabel'.")
        return raw.astype(np.float32), task or "multilabel"
    if task == "multilabel":
        raise DataError(f"{path}: task='multilabel' needs one column per label, not one column of class numbers.")
    numbers = raw[:, 0]
    if not np.issubdtype(raw.dtype, np.integer) or numbers.min() < 0:
        raise DataError(f"{path}: labels must be class numbers from 0. Received: {raw.dtype}.")
    return np.eye(int(numbers.max()) + 1, dtype=np.float32)[numbers], "multiclass"


def _three_channels(images, path):
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(
            f"{path}: pictures must be uint8 (N, H, W) or (N, H, W, 3). Received: {images.dtype} {images.shape}."
        )
    images = images[..., None] if images.ndim == 3 else images
    return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
