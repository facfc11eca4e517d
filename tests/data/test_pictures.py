"""The store that gathers the pictures of a table by row: every cache, the disk cache's name, what is left behind."""

import errno
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_tables import table_of

from kmed.data import pictures as module
from kmed.data.images import Resizing, read_image, read_row, resize_array
from kmed.data.pictures import Pictures
from kmed.data.table import Table
from kmed.errors import DataError, RunError

SMALL = Resizing((5, 5))


def test_every_cache_holds_the_same_pixels(tmp_path):
    table = table_of(tmp_path)
    rows = np.array([4, 0, 0, 2])
    expected = np.stack([read_image(table.files[row], SMALL) for row in rows])
    for cache in ("auto", "memory", "disk", "none"):
        pictures = Pictures(table, SMALL, cache)
        assert pictures.place == ("memory" if cache == "auto" else cache)
        np.testing.assert_array_equal(pictures.gather(rows), expected)


def test_a_tables_own_images_are_used_and_resized_only_where_needed():
    array = np.random.default_rng(3).integers(0, 256, (4, 6, 6, 3), np.uint8)
    rows = pd.DataFrame({"path": list("0123"), "group": "", "cluster": "", "split": ""})
    table = Table(rows, np.eye(2, dtype=np.float32)[[0, 1, 0, 1]], ("a", "b"), "multiclass", "npz", images=array)
    same = Pictures(table, Resizing((6, 6)), "disk")
    assert same.place == "table" and np.shares_memory(same._pixels, array)
    smaller = Resizing((3, 3))
    resized = Pictures(table, smaller, "memory").gather(np.arange(4))
    np.testing.assert_array_equal(resized, [resize_array(picture, smaller) for picture in array])
    np.testing.assert_array_equal(read_row(table, 2), array[2])
    np.testing.assert_array_equal(read_row(table, 2, smaller), resized[2])


def test_the_disk_cache_is_kept_reused_and_renewed(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    table, folder = table_of(tmp_path / "pictures"), tmp_path / "cache"
    first = Pictures(table, SMALL, "disk", folder).gather(np.arange(5))
    (kept,) = folder.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(Pictures, "_fill", lambda *_: pytest.fail("decoded again"))
        np.testing.assert_array_equal(Pictures(table, SMALL, "disk", folder).gather(np.arange(5)), first)
    Pictures(table, Resizing((5, 5), interpolation="nearest"), "disk", folder)
    Image.new("RGB", (8, 6), (1, 2, 3)).save(table.files[0])
    changed = Pictures(table, SMALL, "disk", folder).gather(np.arange(5))
    assert (changed[0] != first[0]).any() and (changed[1:] == first[1:]).all()
    assert len(list(folder.iterdir())) == 3 and kept.exists()


def test_a_temporary_disk_cache_goes_with_its_object(tmp_path, monkeypatch):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    pictures = Pictures(table_of(tmp_path), SMALL, "disk")
    assert len(list((tmp_path / "temporary").rglob("*.npy"))) == 1
    del pictures
    assert not list((tmp_path / "temporary").iterdir())


def test_a_bad_picture_leaves_no_half_cache(tmp_path):
    (tmp_path / "pictures").mkdir()
    table = table_of(tmp_path / "pictures")
    table.files[3].write_bytes(b"broken")
    for cache in ("memory", "disk"):
        with pytest.raises(DataError, match=r"3\.png cannot be read"):
            Pictures(table, SMALL, cache, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    assert Pictures(table, SMALL, "none").gather(np.array([0, 1])).shape == (2, 5, 5, 3)


@pytest.mark.parametrize(
    "memory, disk, expected", [(10**6, 10**6, "memory"), (1000, 10**6, "disk"), (1000, 1000, "none")]
)
def test_auto_chooses_by_what_is_free(tmp_path, monkeypatch, memory, disk, expected):
    monkeypatch.setattr(module, "free_memory", lambda: memory)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("usage", (), {"free": disk}))
    pictures = Pictures(table_of(tmp_path, 10), Resizing((10, 10)), "auto", tmp_path / "cache")  # 3,000 bytes
    assert pictures.place == expected


def test_an_unknown_cache_is_refused(tmp_path):
    with pytest.raises(DataError, match="Did you mean 'memory'"):
        Pictures(table_of(tmp_path), SMALL, "memry")


def test_a_disk_cache_on_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor, start, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    rows = pd.DataFrame({"path": ["a.png"], "group": ["a"], "cluster": ["a"], "split": [""]})
    table = Table(rows, np.ones((1, 1), np.float32), ("x",), "multilabel", "one", root=tmp_path)
    monkeypatch.setattr("kmed.data.pictures.os.posix_fallocate", full, raising=False)
    with pytest.raises(RunError, match="disk is full"):
        Pictures(table, Resizing((8, 8)), "disk", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("cache", ["auto", "disk", "none"])
def test_as_needed_each_picture_is_read_when_it_is_first_asked_for(tmp_path, monkeypatch, cache):
    table, read = table_of(tmp_path), []
    monkeypatch.setattr(module, "read_image", lambda path, resizing: read.append(path) or read_image(path, resizing))
    pictures = Pictures(table, SMALL, cache, as_needed=True)
    assert read == [] and pictures.place == ("none" if cache == "none" else "memory")
    for rows in (np.array([2, 0]), np.array([0, 2, 3])):
        expected = np.stack([read_image(table.files[row], SMALL) for row in rows])
        np.testing.assert_array_equal(pictures.gather(rows), expected)
    assert len(read) == (5 if cache == "none" else 3)
    table.files[1].unlink()
    for _ in range(2):  # a picture that could not be read is not taken for one that was
        with pytest.raises(DataError, match="1.png"):
            pictures.gather(np.array([3, 1]))
