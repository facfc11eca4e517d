"""Files are written whole or not at all, whatever happens meanwhile."""

import errno
import json

import numpy as np
import pytest

from kmed.errors import RunError
from kmed.files import replacing, write_json, write_text


def full_disk(temporary):
    temporary.write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_target_of_a_link_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_file_appears_whole(tmp_path):
    write_text(tmp_path / "deep" / "a.txt", "ä")
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "ä"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RunError, match="disk is full"), replacing(tmp_path / "a.txt") as temporary:
        full_disk(temporary)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_any_error_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "x").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_replaces_a_folder(tmp_path):
    for text in ("one", "two"):
        with replacing(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["two"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_parent_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "a")


def test_json_takes_numpy_and_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": np.float32(0.5), "y": [float("nan"), np.array([1, 2])], "z": np.nan})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.5, "y": [None, [1, 2]], "z": None}
