"""The store of decoded pictures that runs share: built once, by content and size, whole files only."""

import concurrent.futures
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_tables import table_of

from kmed.data import pictures as module
from kmed.data import shared_cache
from kmed.data.images import Resizing, read_image
from kmed.data.pictures import Pictures
from kmed.errors import DataError, RunError

SMALL = Resizing((5, 5))
ALL = np.arange(5)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of all stores."""
    monkeypatch.setenv(shared_cache.FOLDER, str(tmp_path / "stores"))
    return tmp_path / "stores"


@pytest.fixture
def table(tmp_path):
    (tmp_path / "pictures").mkdir()
    return table_of(tmp_path / "pictures")


@pytest.fixture
def read(monkeypatch):
    """The files that are decoded, in their order."""
    files = []
    monkeypatch.setattr(module, "read_image", lambda path, resizing: files.append(path) or read_image(path, resizing))
    return files


def stored(folder):
    return sorted(folder.rglob("*.pictures"))


def test_a_second_run_decodes_nothing_wherever_the_files_are(table, folder, read, tmp_path, caplog):
    caplog.set_level("INFO", "kmed")
    expected = np.stack([read_image(path, SMALL) for path in table.files])
    first = Pictures(table, SMALL, "shared")
    assert first.place == "shared" and len(read) == 5
    np.testing.assert_array_equal(first.gather(ALL), expected)
    np.testing.assert_array_equal(first.gather(np.array([4, 0, 0])), expected[[4, 0, 0]])
    assert "shared by all runs: 5 (0.00 GB)" in caplog.text and "5 of them new" in caplog.text
    moved = shutil.copytree(tmp_path / "pictures", tmp_path / "moved")
    other = table.replace(root=moved).take(np.array([3, 1]))
    np.testing.assert_array_equal(Pictures(other, SMALL, "shared").gather(np.arange(2)), expected[[3, 1]])
    assert len(read) == 5 and len(stored(folder)) == 1
    assert caplog.text.count(str(folder)) == 2 and "0 of them new" in caplog.text


def test_only_what_is_new_is_decoded_and_equal_files_once(table, read, folder):
    Pictures(table.take(ALL[:2]), SMALL, "shared")
    table.files[4].write_bytes(table.files[3].read_bytes())
    Image.new("RGB", (8, 6), (1, 2, 3)).save(table.files[0])  # other content under a known name
    pictures = Pictures(table, SMALL, "shared")
    assert sorted(path.name for path in read[2:]) == ["0.png", "2.png", "4.png"]
    np.testing.assert_array_equal(pictures.gather(ALL), [read_image(path, SMALL) for path in table.files])
    assert len(stored(folder)) == 2


def test_what_pixels_depend_on_has_a_store_of_its_own(table, folder):
    settings = (
        SMALL,
        Resizing((5, 6)),
        Resizing((5, 5), "crop"),
        Resizing((5, 5), interpolation="box"),
        Resizing((5, 5), range=(0, 9)),
        Resizing((5, 5), decode="reduced"),
    )
    for resizing in settings:
        found = Pictures(table, resizing, "shared").gather(ALL)
        np.testing.assert_array_equal(found, [read_image(path, resizing) for path in table.files])
    assert len(list(folder.iterdir())) == len(settings)


def test_pictures_in_memory_are_known_by_their_pixels(folder):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    digests = {shared_cache._digest(each) for each in (*images, images[0].reshape(4, 16, 3), images[0].view(np.int8))}
    assert len(digests) == 5 and shared_cache._digest(images[1]) in digests


def test_files_have_a_limited_size(table, folder, monkeypatch):
    monkeypatch.setattr(shared_cache, "_BYTES_PER_FILE", 160)  # two pictures of 75 bytes
    found = Pictures(table, SMALL, "shared").gather(ALL)
    np.testing.assert_array_equal(found, [read_image(path, SMALL) for path in table.files])
    assert sorted(path.stat().st_size for path in stored(folder)) == [107, 214, 214]


def test_a_bad_picture_leaves_whole_files_only(table, folder, monkeypatch, read):
    monkeypatch.setattr(shared_cache, "_BYTES_PER_FILE", 75)
    content = table.files[3].read_bytes()
    table.files[3].write_bytes(b"broken")
    with pytest.raises(DataError, match=r"3\.png cannot be read"):
        Pictures(table, SMALL, "shared")
    (store,) = folder.iterdir()
    assert len(stored(folder)) == 3 and {path.suffix for path in store.iterdir()} == {".pictures"}
    table.files[3].write_bytes(content)
    read.clear()
    Pictures(table, SMALL, "shared")
    assert sorted(path.name for path in read) == ["3.png", "4.png"]


def test_a_file_of_another_size_is_not_used(table, folder):
    Pictures(table, SMALL, "shared")
    (path,) = stored(folder)
    path.write_bytes(path.read_bytes()[:-1])
    found = Pictures(table, SMALL, "shared").gather(ALL)
    np.testing.assert_array_equal(found, [read_image(path, SMALL) for path in table.files])


def test_several_at_once_decode_each_picture_once(table, read, folder):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: Pictures(table, SMALL, "shared").gather(ALL), range(4)))
    assert len(read) == 5 and len(stored(folder)) == 1
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])


def test_a_full_disk_is_one_line_that_says_what_to_do(table, folder, monkeypatch):
    monkeypatch.setattr(shared_cache.shutil, "disk_usage", lambda _: type("usage", (), {"free": 100}))
    with pytest.raises(DataError, match=r"do not fit into .*stores.* set KMED_CACHE .*data\.cache=auto"):
        Pictures(table, SMALL, "shared")
    assert not stored(folder)


def test_a_folder_that_cannot_be_written_is_one_line(table, folder):
    folder.write_text("a file")
    with pytest.raises(RunError, match="cannot be written"):
        Pictures(table, SMALL, "shared")


def test_the_folder_is_that_of_the_user_unless_it_is_named(folder, monkeypatch, tmp_path):
    assert shared_cache.shared_folder() == folder
    monkeypatch.delenv(shared_cache.FOLDER)
    monkeypatch.setattr(shared_cache.pathlib.Path, "home", lambda: tmp_path)
    assert shared_cache.shared_folder() == tmp_path / ".cache" / "kmed" / "pictures"


def test_a_missing_file_is_named(table):
    table.files[2].unlink()
    with pytest.raises(DataError, match=r"There is no picture .*2\.png"):
        Pictures(table, SMALL, "shared")
