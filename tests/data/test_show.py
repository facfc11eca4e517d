"""The text counts what the table holds; the pictures show every class and every split."""

import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kmed.data.show import describe, draw_contact_sheet, draw_splits, show
from kmed.data.table import Table
from kmed.errors import DataError


@pytest.fixture
def table():
    """24 pictures of two classes with one colour per class, 2 per group, in three splits or none yet."""
    number = np.arange(24)
    names = number.astype(str).astype(object)
    groups = np.array([f"g{index // 2}" for index in number], dtype=object)
    split = np.array([["train", "val", "test", ""][index // 2 % 4] for index in number], dtype=object)
    rows = pd.DataFrame({"path": names, "group": groups, "cluster": names, "split": split})
    images = np.zeros((24, 12, 16, 3), np.uint8)
    images[number, :, :, number % 2] = 200
    labels = np.eye(2, dtype=np.float32)[number % 2]
    return Table(
        rows, labels, ("red", "green"), "multiclass", "colours", images=images, grouped=True, notes=("Mind the gap.",)
    )


def test_the_text_counts(table):
    lines = [line.split() for line in describe(table).splitlines()]
    assert lines[0][:2] == ["colours:", "24"]
    cells = {line[0]: line[1:] for line in lines if line}
    assert cells["red"] == ["3", "3", "3", "3", "12"]
    assert cells["images"] == ["6", "6", "6", "6", "24"]
    assert cells["groups"] == ["3", "3", "3", "3", "12"]
    assert cells["clusters"] == ["6", "6", "6", "6", "24"]
    assert "Mind the gap." in describe(table)


def test_unknown_labels_are_counted(table):
    labels = table.labels.copy()
    labels[:5, 0] = np.nan
    assert "5 labels are unknown." in describe(table.replace(labels=labels, task="multilabel"))


def test_the_sheet_shows_each_class_in_its_row_and_each_split(table):
    figure = draw_contact_sheet(table)
    axes = np.array(figure.axes).reshape(2, 8)
    for row, channel in zip(axes, (0, 1)):
        shown = [axis for axis in row if axis.images]
        titles = [axis.get_title() for axis in shown]
        assert titles == sorted(titles, key=["train", "val", "test", "no split"].index)
        assert {title: titles.count(title) for title in titles} == dict.fromkeys(
            ["train", "val", "test", "no split"], 2
        )
        for axis in shown:
            # Padding is black, so the brightest channel is the picture's.
            assert np.asarray(axis.images[0].get_array()).reshape(-1, 3).max(axis=0).argmax() == channel


def test_the_bars_are_the_counts(table):
    left, right = draw_splits(table).axes
    assert sorted(bar.get_height() for bar in left.patches) == [3] * 8
    assert [bar.get_height() for bar in right.patches] == [3, 3, 3, 3]


def test_files_are_written_without_touching_pyplot(table, tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    paths = show(table, tmp_path / "shown")
    assert sorted(path.name for path in (tmp_path / "shown").iterdir()) == [
        "contact_sheet.png",
        "counts.txt",
        "splits.png",
    ]
    assert ("matplotlib.pyplot" in sys.modules) == before
    for path in paths:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
                assert min(image.size) > 200
                assert len(set(np.asarray(image.convert("L")).ravel())) > 10


def test_pictures_that_are_files_and_a_broken_one(table, tmp_path):
    for name, image in zip(table.rows["path"], table.images):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    files = table.replace(images=None, root=tmp_path).with_columns(path=table.rows["path"] + ".png")
    assert len([axis for axis in draw_contact_sheet(files).axes if axis.images]) == 16
    for name in files.rows["path"]:
        (tmp_path / name).write_text("broken")
    with pytest.raises(DataError, match="cannot be read as a picture"):
        show(files, tmp_path / "shown")
