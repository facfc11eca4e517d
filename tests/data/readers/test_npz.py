"""A pack holds what the table and the pictures hold, for both tasks, and is whole or absent."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kmed.data.images import Resizing, read_image
from kmed.data.readers.load import load_table
from kmed.data.readers.npz import pack
from kmed.data.table import COLUMNS, Table
from kmed.errors import DataError


@pytest.fixture
def table(tmp_path):
    """Five pictures of different sizes with two labels, one of them unknown."""
    rng = np.random.default_rng(0)
    names = [f"p{index}.png" for index in range(5)]
    for index, name in enumerate(names):
        Image.fromarray(rng.integers(0, 256, (20 + index, 30, 3), dtype=np.uint8)).save(tmp_path / name)
    rows = pd.DataFrame(
        {
            "path": names,
            "group": ["à", "à", "b", "b", "c"],
            "cluster": ["à1", "à2", "b1", "b1", "c1"],
            "split": ["train", "train", "val", "", "test"],
            "age": range(5),
        }
    )
    labels = np.array([[0, 1], [1, 1], [np.nan, 0], [0, 0], [1, 0]], np.float32)
    return Table(rows, labels, ("Mass", "Edema"), "multilabel", "chests", root=tmp_path, grouped=True)


@pytest.mark.parametrize(("fit", "interpolation"), [("pad", "bilinear"), ("crop", "nearest"), ("stretch", "bicubic")])
def test_a_pack_is_the_table_and_its_pictures(table, tmp_path, fit, interpolation):
    resizing = Resizing((16, 24), fit, interpolation)
    path = pack(table, tmp_path / "out" / "set", resizing)
    assert path == tmp_path / "out" / "set.npz"
    back = load_table(path)
    assert back.images.shape == (5, 16, 24, 3)
    for image, file in zip(back.images, table.files):
        np.testing.assert_array_equal(image, read_image(file, resizing))
    np.testing.assert_array_equal(back.labels, table.labels)
    assert back.labels.dtype == np.float32
    pd.testing.assert_frame_equal(back.rows[list(COLUMNS)], table.rows[list(COLUMNS)], check_dtype=False)
    assert back.rows["age"].tolist() == ["0", "1", "2", "3", "4"]
    for name in ("class_names", "task", "name", "grouped"):
        assert getattr(back, name) == getattr(table, name)
    assert load_table(path, name="mine").name == "mine"


def test_a_pack_of_a_pack_is_the_same(table, tmp_path):
    once = load_table(pack(table, tmp_path / "one.npz", Resizing((16, 24))))
    twice = load_table(pack(once, tmp_path / "two.npz", Resizing((16, 24))))
    np.testing.assert_array_equal(once.images, twice.images)
    pd.testing.assert_frame_equal(once.rows, twice.rows)


def test_an_ungrouped_pack_says_so(table, tmp_path):
    path = pack(
        table.replace(grouped=False).with_columns(group=table.rows["path"], cluster=table.rows["path"]),
        tmp_path / "u",
        Resizing((8, 8)),
    )
    back = load_table(path)
    assert not back.grouped
    assert any("independent" in note for note in back.notes)


def test_a_broken_picture_leaves_no_pack(table, tmp_path):
    table.files[3].write_bytes(table.files[3].read_bytes()[:200])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match="p3.png"):
        pack(table, tmp_path / "set.npz", Resizing((16, 24)))
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(DataError, match="fit"):
        pack(table, tmp_path / "set.npz", Resizing((16, 24), fit="squeeze"))
    with pytest.raises(DataError, match="image_size=None"):
        pack(table, tmp_path / "set.npz", Resizing())


def test_settings_that_contradict_a_pack(table, tmp_path):
    path = pack(table, tmp_path / "set.npz", Resizing((8, 8)))
    with pytest.raises(DataError, match="task is 'multilabel'. Received: task='multiclass'"):
        load_table(path, task="multiclass")
    with pytest.raises(DataError, match="classes are Mass, Edema"):
        load_table(path, class_names=["Edema", "Mass"])


def test_a_pack_with_too_few_pictures(table, tmp_path):
    path = pack(table, tmp_path / "set.npz", Resizing((8, 8)))
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **{**arrays, "images": arrays["images"][:3]})
    with pytest.raises(DataError, match="one uint8 picture per label, 5 in all"):
        load_table(path)


def test_arrays_that_are_left_out_are_named(tmp_path):
    pictures, labels = np.zeros((2, 4, 4), np.uint8), np.array([[0], [1]])
    np.savez(tmp_path / "a.npz", train_images=pictures, train_labels=labels, valid_images=pictures, valid_labels=labels)
    assert "Arrays of a.npz that are left out: valid_images, valid_labels." in load_table(tmp_path / "a.npz").notes
