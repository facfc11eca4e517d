"""One row per picture: the rows of a CSV that name the same picture, such as one per box, become one."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kmed.data.readers.csv_labels import Labels
from kmed.errors import DataError


def unite_rows(
    paths: Sequence[str], labels: Labels, columns: pd.DataFrame, fixed: Sequence[str]
) -> tuple[list[str], np.ndarray, pd.DataFrame, list[str]]:
    """Returns (paths, labels (M, K), columns, notes) with one row per picture, in the order of the paths.

    A label that one row of a picture has, the picture has. Other columns keep each different value, joined by "|".

    Args:
      paths: (N,) the picture of each row.
      labels: (N, K) labels; unless the task is multilabel, each picture has one.
      columns: (N, ...) text, such as the group, the split and the metadata.
      fixed: those of `columns` in which the rows of a picture may not differ.
    Raises: DataError: the rows of a picture have different labels, though there is one per picture, or differ in one
      of the columns `fixed`.
    """
    names, numbers = np.unique(np.asarray(paths, dtype=object), return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    starts = np.searchsorted(numbers[order], np.arange(len(names)))
    if len(names) == len(paths):
        return names.tolist(), labels.values[order], columns.iloc[order].reset_index(drop=True), []
    with np.errstate(invalid="ignore"):
        values = np.fmax.reduceat(labels.values[order], starts, axis=0)
    if labels.task != "multilabel":
        _check_one_label(names, values, labels)
    for column in fixed:
        _check_same(paths, columns[column], column)
    grouped = columns.assign(_number=numbers).groupby("_number")
    united = grouped.agg(lambda cells: "|".join(dict.fromkeys(cells))).reset_index(drop=True)
    note = f"{len(paths):,} rows name {len(names):,} pictures: the labels of a picture's rows are united."
    return names.tolist(), values, united, [note]


def _check_one_label(names, values, labels):
    wrong = np.flatnonzero((values == 1).sum(axis=1) > 1)
    if len(wrong) == 0:
        return
    several = ", ".join(name for name, value in zip(labels.names, values[wrong[0]]) if value == 1)
    raise DataError(
        f"{len(wrong)} pictures with different labels are named more than once in the CSV: {names[wrong[0]]} "
        f"({several}){', ...' if len(wrong) > 1 else ''}. Correct them, or set task=multilabel if a picture may have "
        "several labels."
    )


def _check_same(paths, cells, column):
    pairs = pd.DataFrame({"path": paths, "value": cells.to_numpy()}).drop_duplicates()
    wrong = pairs[pairs["path"].duplicated(keep=False)]
    if wrong.empty:
        return
    path = wrong["path"].iloc[0]
    values = ", ".join(map(repr, wrong["value"][wrong["path"] == path]))
    raise DataError(
        f"{wrong['path'].nunique()} pictures are named more than once in the CSV, with different values of {column}: "
        f"{path} ({values}). Correct them."
    )
