"""A store keeps what is done, however the process ended, and nothing of another audit."""

import numpy as np
import pytest

from kmed.data.audit.store import ARRAYS, LINES, Place, Store, pack_arrays, read_bytes, unpack_arrays
from kmed.errors import RunError


@pytest.fixture
def filled(tmp_path):
    store = Store(tmp_path / "store", "plan")
    for row in range(3):
        store.add({"row": row}, bytes([row]) * (row + 1))
    store.add({"pairs": [[0, 1, 2]]})
    store.close()
    return store


def rows(store):
    return [record["row"] for record in store.records if "row" in record]


def test_what_is_done_comes_back(filled):
    again = Store(filled.folder, "plan")
    assert rows(again) == [0, 1, 2] and again.records[-1] == {"pairs": [[0, 1, 2]]}
    place = Place(*again.records[3]["place"])
    assert read_bytes(again.arrays, place) == b"\2\2\2"
    assert again.add({"row": 3}, b"more").start == 6
    again.close()


@pytest.mark.parametrize(("cut", "kept"), [(1, 3), (5, 3), (30, 2)])
def test_a_line_that_was_cut_short_is_removed(filled, cut, kept):
    path = filled.folder / LINES
    path.write_bytes(path.read_bytes()[:-cut])
    again = Store(filled.folder, "plan")
    assert rows(again) == [0, 1, 2][:kept] and "pairs" not in again.records[-1]
    again.add({"row": 9}, b"x")
    again.close()
    assert rows(Store(filled.folder, "plan"))[-1] == 9


def test_a_line_without_its_array_is_removed(filled):
    path = filled.folder / ARRAYS
    path.write_bytes(path.read_bytes()[:4])
    assert rows(Store(filled.folder, "plan")) == [0, 1]


@pytest.mark.parametrize("content", [b"{}\n", b"rubbish\n", b"[1]\n", b'{"plan":"other"}\n', b"\xff\xfe\n", b""])
def test_another_plan_or_rubbish_starts_anew(filled, content, caplog):
    (filled.folder / LINES).write_bytes(content)
    (filled.folder / "notes.txt").write_text("somebody's")
    again = Store(filled.folder, "plan")
    assert again.records == [] and "starts anew" in caplog.text
    assert (filled.folder / "notes.txt").exists()
    again.close()
    assert [set(record) for record in Store(filled.folder, "plan").records] == [{"plan"}]


def test_a_damaged_array_is_one_line(filled):
    (filled.folder / ARRAYS).write_bytes(b"\0" * 6)
    with pytest.raises(RunError, match="arrays.bin is damaged"):
        read_bytes(filled.arrays, Place(*Store(filled.folder, "plan").records[2]["place"]))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        Store(tmp_path / "file" / "store", "plan")


def test_arrays_are_packed():
    first, second = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((0, 4), np.uint8)
    found = unpack_arrays(pack_arrays(first, second), (np.float32, (2, 3)), (np.uint8, (0, 4)))
    np.testing.assert_array_equal(found[0], first)
    assert found[1].shape == (0, 4)
