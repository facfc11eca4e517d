"""The folds of a cross-validation: which pictures take part, and which stay held out."""

import numpy as np

from kmed.data.splits import HELD_OUT, assign_folds, check_known, check_no_leak, choose_fold
from kmed.data.table import SPLITS, Table
from kmed.errors import DataError
from kmed.metrics.intervals import check_clusters


def draw_folds(table: Table, num_folds: int, seed: int, *, all_splits: bool = False) -> Table:
    """Returns the table with the text column `fold` of `assign_folds`; the split "test" becomes "held_out".

    Args:
      table: a table whose `split` is that of the data, "" where they have none.
      num_folds: how many folds there are.
      seed: the rows and the seed determine the folds.
      all_splits: whether test pictures get a fold too. Pictures of further splits, which may show the same patients,
        are then left out, with a note.
    Raises: DataError: too few folds, a class with fewer groups than folds, or a fold that cannot judge a model.
    """
    if all_splits:
        table = _pool(table)
    table = assign_folds(table, num_folds, seed)
    splits = table.rows["split"].replace("test", HELD_OUT).to_numpy(dtype=object)
    table = table.with_columns(split=splits)
    check_no_leak(table)
    for fold in range(num_folds):  # now, not after hours of training
        part = choose_fold(table, fold)
        check_known(part)
        for name in {"val", "test"} & set(part.rows["split"]):
            check_clusters(part.split(name).rows["cluster"])
    return table


def judged_by_folds(splits) -> str:
    """Returns the split in which the run of a fold judges that fold: "val" beside held-out pictures, else "test"."""
    return "val" if HELD_OUT in set(splits) else "test"


def _pool(table: Table) -> Table:
    """Returns the pictures of train, val and test as training pictures; the others are left out, with a note."""
    splits = table.rows["split"]
    pooled = splits.isin([*SPLITS, ""]).to_numpy()
    if not pooled.any():
        raise DataError(f"{table.name} has no pictures in train, val or test: its splits are {', '.join(set(splits))}.")
    table, others = table.take(pooled), splits[~pooled]
    table = table.with_columns(split=np.full(len(table), "train", dtype=object))
    if len(others):
        names = ", ".join(sorted(set(others)))
        table = table.with_notes(
            f"{len(others):,} pictures of {names} are left out: the folds hold those of train, val and test."
        )
    return table
