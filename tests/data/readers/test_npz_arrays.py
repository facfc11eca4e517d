"""Arrays that need pickle, that claim more than they hold or that unfold to too much are not even read."""

import io
import zipfile

import numpy as np
import pytest

from kmed.data.images import Resizing
from kmed.data.readers.load import load_table
from kmed.data.readers.npz import pack
from kmed.data.readers.npz_arrays import opened
from kmed.data.table import Table
from kmed.errors import DataError

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
NUMBERS = np.array([[0], [1], [0], [1], [0], [1]])
ONEHOT = np.eye(2, dtype=np.uint8)[NUMBERS[:, 0]]


def save(path, **changes):
    """Writes train and val pictures with MedMNIST's keys; a change to None leaves a key out."""
    arrays = {"train_images": PICTURES, "train_labels": NUMBERS, "val_images": PICTURES, "val_labels": NUMBERS}
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return path


def pictures_of(*sizes):
    mixed = np.empty(len(sizes), object)
    mixed[:] = [np.zeros((size, size, 3), np.uint8) for size in sizes]
    return mixed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_images": pictures_of(*range(8, 14))}, ["train_images", "pictures of several sizes", "unpickled"]),
        ({"train_labels": NUMBERS.astype(object)}, ["train_labels", "unpickled"]),
        ({"val_images": PICTURES[:, :4]}, ["differ", "(6, 8, 8, 3)", "(6, 4, 8, 3)"]),
        ({"val_labels": ONEHOT}, ["differ", "(6, 1)", "(6, 2)"]),
        ({"val_labels": None}, ["val_labels"]),
        ({"val_labels": NUMBERS[:4]}, ["val_labels", "(4, 1)"]),
        ({"val_images": np.uint8(3)}, ["val_labels", "()"]),
        ({"val_labels": np.int64(3)}, ["val_labels", "()"]),
        ({"val_images": PICTURES.astype(np.float32)}, ["uint8", "float32"]),
        ({"val_images": PICTURES.astype(np.uint16)}, ["uint8", "uint16"]),
        ({"val_images": PICTURES.astype(str)}, ["uint8"]),
        ({"val_images": PICTURES[..., :2]}, ["(6, 8, 8, 2)"]),
        ({"val_labels": NUMBERS * np.nan}, ["class numbers", "nan"]),
        ({"val_labels": NUMBERS.astype(str)}, ["labels must be numbers"]),
        ({"val_labels": np.zeros((6, 0), int)}, ["differ"]),
        ({"train_labels": NUMBERS - 1}, ["class numbers from 0"]),
        ({"train_labels": NUMBERS * 10**9}, ["1000000000", "10,000 classes"]),
        ({"train_labels": ONEHOT * 2, "val_labels": ONEHOT}, ["0 or 1"]),
        ({key: value[:0] for key, value in zip(("train_images", "val_images"), (PICTURES, PICTURES))}
         | dict.fromkeys(("train_labels", "val_labels"), NUMBERS[:0]), ["no pictures"]),
        ({"train_images": None, "val_images": None}, ["neither MedMNIST's keys", "train_labels"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path, changes, words):
    with pytest.raises(DataError) as caught:
        load_table(save(tmp_path / "a.npz", **changes))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_split_is_left_out_and_named(tmp_path):
    table = load_table(save(tmp_path / "a.npz", val_images=PICTURES[:0], val_labels=NUMBERS[:0]))
    assert len(table) == 6 and set(table.rows["split"]) == {"train"}
    assert any("'val'" in note and "empty" in note for note in table.notes)


def test_columns_with_one_1_in_each_row_mean_one_class_as_in_a_csv(tmp_path):
    changes = {"train_labels": ONEHOT, "val_labels": ONEHOT}
    assert load_table(save(tmp_path / "a.npz", **changes)).task == "multiclass"
    assert load_table(save(tmp_path / "a.npz", **changes), task="multilabel").task == "multilabel"
    for value in (0, 1, np.nan):  # none, several and unknown findings
        some = ONEHOT.astype(np.float32)
        some[0] = value
        table = load_table(save(tmp_path / "a.npz", train_labels=some, val_labels=ONEHOT.astype(np.float32)))
        assert table.task == "multilabel"
        np.testing.assert_array_equal(table.labels[0], [value, value])


@pytest.fixture
def packed(tmp_path):
    rows = load_table(save(tmp_path / "a.npz")).rows
    table = Table(rows, np.eye(2, dtype=np.float32)[[0, 1] * 6], ("a", "b"), "multiclass", "made",
                  images=np.concatenate([PICTURES, PICTURES]), range=(0, 4095))  # fmt: skip
    return pack(table, tmp_path / "packed.npz", Resizing((8, 8)))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("labels", None, "lacks labels"),
        ("class_names", None, "lacks class_names"),
        ("task", np.array("segmentation"), "task must be one of"),
        ("labels", np.zeros((12, 3), np.float32), "one column for each of 2 classes"),
        ("labels", np.zeros((12, 2), np.float32), "label"),
        ("labels", np.full((12, 2), 7, np.float32), "0, 1 or NaN"),
        ("labels", np.full((12, 2), "x"), "labels must be numbers"),
        ("labels", np.float32(1), "one uint8 picture per label"),
        ("images", np.zeros((12, 8, 8), np.uint8), "one uint8 picture per label"),
        ("images", np.zeros((12, 8, 8, 3), np.float32), "one uint8 picture per label"),
        ("split", np.array(["train"] * 3), "split must be 12 values"),
        ("group", np.array("one"), "group must be 12 values"),
        ("metadata_age", np.zeros((12, 2)), "age must be 12 values"),
    ],
)
def test_a_pack_with_a_field_changed_is_one_line(packed, key, value, words):
    with np.load(packed) as archive:
        arrays = {**archive, key: value}
    np.savez(packed, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(DataError, match=words) as caught:
        load_table(packed)
    assert "\n" not in str(caught.value)


def test_a_pack_keeps_the_range_that_it_was_made_with(packed):
    assert load_table(packed).range == (0, 4095)


def member(shape, content, dtype="|u1"):
    """Returns the bytes of an array file that claims this shape."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (member((10**6, 1000, 1000, 3), b"\0" * 64), "claims uint8"),
        (member((2**62, 4), b""), "claims"),
        (member((1,), b"", "<U1000000000"), "cannot be read as .npz"),
        (member((2**21,), b"\0" * 2**21), "unfolds from .* attack"),
        (member((4,), b"\0" * 99), "claims"),
        (b"\x93NUMPY\x01\0\xff\xff" + b"(" * 60000, "cannot be read as .npz"),
        (b"\x93NUMPY\x07\0", "cannot be read as .npz"),
        (b"", "cannot be read as .npz"),
    ],
)
def test_bombs_are_refused_by_their_header(tmp_path, monkeypatch, content, words):
    monkeypatch.setattr("kmed.data.readers.npz_arrays.LARGE", 2**20)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", content)
        archive.writestr("train_labels.npy", member((1, 1), b"\0"))
    assert path.stat().st_size < 2**20
    with pytest.raises(DataError, match=words), opened(path) as arrays:
        arrays.read("train_images")


def test_arrays_above_the_free_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("kmed.data.readers.npz_arrays.free_memory", lambda: 100)
    with pytest.raises(DataError, match="memory are free"):
        load_table(save(tmp_path / "a.npz"))


def test_damaged_files_are_one_line(tmp_path):
    content = save(tmp_path / "a.npz").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 4):
            damaged[place] = rng.integers(256)
        (tmp_path / "a.npz").write_bytes(damaged[: rng.integers(1, len(content))] if rng.random() < 0.2 else damaged)
        try:
            load_table(tmp_path / "a.npz")
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50
