"""The table of a data set: names of files that are not UTF-8 are text in it, and the files are found again."""

import os
import shutil

import pytest
from PIL import Image

from kmed.data.readers.load import load_table
from kmed.data.splits import assign_splits, read_splits, write_splits

NAMES = (
    b"plain", "gr\u00f6\u00dfe".encode(), b"gr\xf6sse", b"\xff\xfe", b"a\xe4b\xf6c", b"\x80", b"\xc3(", b"\xed\xa0\x80",
    "\u7ec6\u80de".encode() + b"\xb2", "\ufffd".encode(), "\ufffdsse".encode(), b"with space\xa0", b"%F6", b"\\xf6",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_of_any_name_is_split_stored_and_read_again(name, tmp_path):
    folder = tmp_path / "data" / os.fsdecode(b"A" + name)
    try:
        folder.mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (9, 9)).save(folder / f"{number}.png")
        Image.new("RGB", (9, 9), "red").save(folder / os.fsdecode(name + b".png"))
    except OSError:
        pytest.skip("this file system takes no such name")
    shutil.copytree(folder, tmp_path / "data" / "B")
    table = assign_splits(load_table(tmp_path / "data"))
    assert len(table) == 12 and all(file.exists() for file in table.files)
    assert all(table.file(row) == file for row, file in enumerate(table.files))
    write_splits(table, tmp_path / "splits.csv", labels=True)
    again = read_splits(load_table(tmp_path / "data"), tmp_path / "splits.csv")
    assert again.rows["split"].tolist() == table.rows["split"].tolist() and again.files == table.files
    assert "".join([*table.class_names, *table.rows["path"], *table.notes]).encode()
