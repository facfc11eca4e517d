"""Pictures of one data set that another one also holds, found without comparing either set with itself."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kmed.data.audit.copies import COPY, IDENTICAL, find_alike, find_identical
from kmed.data.table import Table


def draw(seed, size=160):
    """Returns a grey picture full of blobs."""
    import cv2

    noise = np.random.default_rng(seed).normal(0, 1, (size, size)).astype(np.float32)
    blobs = cv2.GaussianBlur(noise, (0, 0), 2.0)
    grey = np.clip(128 + 45 * blobs / blobs.std(), 20, 240).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def table_of(folder):
    paths = sorted(path.name for path in folder.iterdir())
    rows = pd.DataFrame({"path": paths, "group": paths, "cluster": paths, "split": ""})
    return Table(rows, np.ones((len(paths), 1), np.float32), ("a",), "multilabel", "drawn", root=folder)


@pytest.fixture
def tables(tmp_path):
    known, new = tmp_path / "known", tmp_path / "new"
    known.mkdir(), new.mkdir()
    for seed in range(8):
        Image.fromarray(draw(seed)).save(known / f"{seed}.png")
    for seed in range(100, 104):
        Image.fromarray(draw(seed)).save(new / f"other{seed}.png")
    (new / "a_file.png").write_bytes((known / "3.png").read_bytes())
    Image.fromarray(draw(5)).rotate(90).point(lambda value: 0.9 * value).save(new / "turned.png")
    Image.fromarray(np.full((60, 60, 3), 77, np.uint8)).save(new / "blank.png")
    return table_of(new), table_of(known)


def named(found, tables):
    return {tables[0].rows["path"][one.row]: (tables[1].rows["path"][one.known], one.kind) for one in found}


def test_the_same_bytes_are_found_without_decoding(tables):
    assert named(find_identical(*tables), tables) == {"a_file.png": ("3.png", IDENTICAL)}


def test_what_shows_the_same_is_found_and_the_rest_is_not(tables):
    found, featureless = find_alike(*tables)
    assert named(found, tables) == {"a_file.png": ("3.png", COPY), "turned.png": ("5.png", COPY)}
    assert tables[0].rows["path"][featureless].tolist() == ["blank.png"]


def test_pixels_in_memory_are_compared_too(tables):
    stacks = [np.stack([draw(seed) for seed in seeds]) for seeds in ((3, 50), (1, 2, 3))]
    both = [table.take(np.arange(len(stack))).replace(images=stack) for table, stack in zip(tables, stacks)]
    assert [(one.row, one.known) for one in find_identical(*both)] == [(0, 2)]
    assert [(one.row, one.known) for one in find_alike(*both)[0]] == [(0, 2)]


def test_two_blank_sets_have_nothing_to_compare(tables):
    blank = tables[0].take(tables[0].rows["path"].to_numpy() == "blank.png")
    assert find_alike(blank, blank) == ([], [0])
