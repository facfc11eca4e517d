"""A table of a few small pictures on disk, for the tests of reading."""

import pathlib

import numpy as np
import pandas as pd
from PIL import Image

from kmed.data.table import Table


def table_of(folder: pathlib.Path, count=5, size=(6, 8)) -> Table:
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{index}.png")
    rows = pd.DataFrame({"path": [f"{i}.png" for i in range(count)], "group": "", "cluster": "", "split": ""})
    return Table(rows, np.eye(2, dtype=np.float32)[np.arange(count) % 2], ("a", "b"), "multiclass", "tiny", folder)
