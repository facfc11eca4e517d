"""Splits that cannot leak: each group stays on one side, and each side has every class.

Groups are chosen so that each side gets its share of the images and also of the groups of each class.
scikit-learn's StratifiedGroupKFold balances only images, and only if each has a single label. In the
blood cells, however, sixteen photographs of a class account for a quarter of the images, and an X-ray
may have several labels. The best of several tries is taken. Each try is improved by moving single
groups; for multilabel data, one more try starts from iterative stratification of the groups.
"""

import math
import pathlib

import numpy as np
import pandas as pd

from kmed.data.readers.csv_file import read_csv
from kmed.data.readers.text import plain, spelt_as
from kmed.data.table import SPLITS, Table
from kmed.errors import DataError, suggest
from kmed.files import write_frame

SPLIT_COLUMNS = ("path", "group", "cluster", "split")
LABEL = "label_"
HELD_OUT = "held_out"  # the split of test pictures that the runs of a cross-validation must not see
JUDGED_BY = "judged_by"  # in the splits of an ensemble: the members that may judge a picture, such as "1|3"
_OPTIONAL = ("fold", JUDGED_BY)
TRIES = 20
GROUP_VISITS = 8_000  # limits the number of tries: one try with many groups is as good as twenty with few


def assign_splits(table: Table, *, val_fraction: float = 0.2, test_fraction: float = 0.2, seed: int = 0) -> Table:
    """Returns the table with every row in a split; rows that would leak are left out and noted.

    A split that comes with the data is kept whole. Missing splits are made from the training rows by
    group: first test, then val. Rows of train and val are removed if their group occurs in a later
    split. Other splits (test_simple) are kept, and are never trained on.

    Args:
      table: a table whose `split` is "" for undecided rows.
      val_fraction: share of the rows outside test; 0 makes no val split.
      test_fraction: share of the rows, used if the data have no test split; 0 makes none.
      seed: the rows and the seed determine the split.
    Raises: DataError: a class with too few groups, or no rows to train on.
    """
    _check_fractions(val_fraction, test_fraction)
    table = _drop_shared(_name_undecided(table))
    present = set(table.rows["split"])
    fractions = {"test": test_fraction, "val": val_fraction}
    wanted = [name for name in ("test", "val") if name not in present and fractions[name] > 0]
    for index, name in enumerate(wanted):
        table = _hold_out(table, name, fractions[name], len(wanted) - index, np.random.default_rng([seed, index]))
    check_no_leak(table)
    _check_trainable(table)
    return table


def assign_folds(table: Table, num_folds: int = 5, seed: int = 0) -> Table:
    """Returns the table with the text column `fold`, "0" to str(num_folds - 1): grouped and stratified.

    A test split that comes with the data gets no fold (""), and neither do other splits; all other
    rows get one. See choose_fold for how a fold is used.

    Raises: DataError: fewer than 2 folds, or a class with fewer groups than folds.
    """
    if num_folds < 2:
        raise DataError(f"Cross-validation needs at least 2 folds. Received: num_folds={num_folds}.")
    table = _name_undecided(table)
    table = _drop_shared(table.with_columns(split=table.rows["split"].replace("val", "train").to_numpy(dtype=object)))
    pool = (table.rows["split"] == "train").to_numpy()
    folds = np.full(len(table), "", dtype=object)
    rng = np.random.default_rng([seed, num_folds])
    left = pool.copy()
    for fold in range(num_folds - 1):
        parts = num_folds - fold
        chosen = _choose(table.take(left), 1 / parts, parts - 1, rng)
        index = np.flatnonzero(left)[chosen]
        folds[index] = str(fold)
        left[index] = False
    folds[left] = str(num_folds - 1)
    return table.with_columns(fold=folds)


def choose_fold(table: Table, fold: int) -> Table:
    """Returns the table split for one round of cross-validation.

    If the data come with a test split, or one that is held out, it is kept, and fold `fold` is val. Otherwise
    fold `fold` is test and the next one (cyclically) is val, so that the best epoch is not chosen by the test rows.

    Raises: DataError: no such fold, or two folds and no test split.
    """
    if "fold" not in table.rows.columns:
        raise DataError("The table has no folds. Make them with assign_folds first.")
    names = sorted(set(table.rows["fold"]) - {""}, key=int)
    if str(fold) not in names:
        raise DataError(f"There is no such fold; the folds are {', '.join(names)}. Received: fold={fold}.")
    column = table.rows["fold"].to_numpy()
    splits = np.where(column == "", table.rows["split"].to_numpy(), "train").astype(object)
    if {"test", HELD_OUT} & set(splits):
        splits[column == str(fold)] = "val"
    else:
        if len(names) < 3:
            raise DataError(
                "Without a test split, one fold is test and one is val, so 3 folds are needed. Received: 2 folds."
            )
        splits[column == str(fold)] = "test"
        splits[column == names[(names.index(str(fold)) + 1) % len(names)]] = "val"
    table = table.with_columns(split=splits)
    check_no_leak(table)
    return table


def check_no_leak(table: Table) -> None:
    """Raises DataError if a group is on two of these sides: train, val, and the splits that judge them.

    test and other splits may share groups, since neither is trained on.
    """
    groups = {name: set(rows["group"]) for name, rows in table.rows.groupby("split") if name}
    for learned in ("train", "val"):
        for judged in groups:
            if judged == learned or (learned == "val" and judged == "train"):
                continue
            shared = sorted(groups.get(learned, set()) & groups[judged])
            if shared:
                raise DataError(
                    f"{len(shared)} groups are both in {learned} and in {judged} ({_few(shared)}): the score would be "
                    "too good. Split the data by group."
                )


def check_known(table: Table) -> None:
    """Raises DataError if all labels of a split are unknown: nothing could be learned from it, or judged by it."""
    for name in SPLITS:
        labels = table.labels[(table.rows["split"] == name).to_numpy()]
        if len(labels) and np.isnan(labels).all():
            raise DataError(
                f"All labels of the {len(labels)} pictures of split {name} are unknown. Add known labels to it, or "
                "split the data in another way."
            )


def write_splits(table: Table, path, *, labels: bool = False) -> None:
    """Writes path, group, cluster, split (and fold and judged_by, where they are known) of each row as a CSV.

    Args:
      table: rows with their splits.
      path: the file.
      labels: whether to add a column label_NAME per class, which `check_same_labels` reads: 1, 0, or empty if unknown.
    """
    columns = [*SPLIT_COLUMNS, *(name for name in _OPTIONAL if name in table.rows.columns)]
    frame = table.rows[columns]
    if labels:
        names = [f"{LABEL}{name}" for name in table.class_names]
        frame = pd.concat([frame, pd.DataFrame(table.labels, columns=names, index=frame.index).astype("Int8")], axis=1)
    write_frame(path, frame)


def check_same_labels(table: Table, path) -> None:
    """Raises DataError if a picture's labels are not those in the splits file that `write_splits` wrote with labels.

    Files of earlier versions hold no labels; they are not compared.
    """
    frame = read_csv(pathlib.Path(path))
    frame = frame.set_index(pd.Index(spelt_as(frame["path"], table.rows["path"]))).loc[table.rows["path"]]
    names = [f"{LABEL}{name}" for name in table.class_names]
    if not set(names) <= set(frame.columns):
        return
    stored = frame[names].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    same = (stored == table.labels) | (np.isnan(stored) & np.isnan(table.labels))
    changed = table.rows["path"][~same.all(axis=1)]
    if len(changed):
        raise DataError(
            f"The labels of {len(changed)} of {len(table)} pictures have changed since {path} was written: "
            f"{_few(changed)}. Restore the labels that the run was started with, or start a new run."
        )


def read_splits(table: Table, path, fold: int | None = None, unreadable: tuple[str, ...] = ()) -> Table:
    """Returns the table with the splits, groups and clusters of a file that write_splits wrote.

    Pictures that the file does not list are left out, with a note: they were left out of the split too.

    Args:
      fold: the fold to hold out, if the file has folds; see choose_fold.
      unreadable: paths of pictures that the table has lost since they cannot be read; the file may list them.
    Raises: DataError: a missing file or column, a listed picture that the data do not have, or a leak.
    """
    frame = read_csv(pathlib.Path(path))
    missing = [name for name in SPLIT_COLUMNS if name not in frame.columns]
    if missing:
        raise DataError(f"{path} needs the columns {', '.join(SPLIT_COLUMNS)}. Missing: {', '.join(missing)}.")
    frame["path"] = spelt_as(frame["path"], [*table.rows["path"], *unreadable])
    twice = frame["path"][frame["path"].duplicated()]
    if len(twice):
        raise DataError(f"{path} lists {len(twice)} pictures more than once: {_few(twice)}.")
    frame = frame[~frame["path"].isin(unreadable)]
    lost = frame["path"][~frame["path"].isin(table.rows["path"])]
    if len(lost):
        raise DataError(
            f"{path} lists {len(lost)} of {len(frame)} pictures that are not in {table.name}: {_few(lost)}. "
            "Use the data that were split."
        )
    listed = table.rows["path"].isin(frame["path"]).to_numpy()
    chosen = frame.set_index("path").loc[table.rows["path"][listed]]
    columns = {name: chosen[name].map(plain).to_numpy(dtype=object) for name in frame.columns if name != "path"}
    table = table.take(listed).with_columns(
        **{key: columns[key] for key in (*SPLIT_COLUMNS[1:], *_OPTIONAL) if key in columns}
    )
    table = table.replace(grouped=bool((table.rows["group"] != table.rows["path"]).any()))
    if not listed.all():
        table = table.with_notes(
            f"{(~listed).sum()} pictures that {pathlib.Path(path).name} does not list are left out."
        )
    if fold is not None:
        return choose_fold(table, fold)
    check_no_leak(table)
    return table


def _check_fractions(val_fraction, test_fraction):
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value < 1 or not math.isfinite(value):
            raise DataError(f"{name} must be at least 0 and below 1. Received: {name}={value}.")


def _name_undecided(table):
    splits = table.rows["split"].replace("", "train")
    if not splits.isin(["train", "val"]).any():
        raise DataError(
            f"{table.name} has no pictures to train on; its splits are {', '.join(sorted(set(splits)))}. "
            f"Say which folder is train with split_folders." + suggest("train", set(splits))
        )
    return table.with_columns(split=splits.to_numpy(dtype=object))


def _drop_shared(table):
    """Leaves out the rows of train (and val) whose group also occurs in a split that judges them."""
    notes, keep = [], np.ones(len(table), bool)
    splits, groups = table.rows["split"].to_numpy(), table.rows["group"]
    others = sorted(set(splits) - set(SPLITS))
    for learned, judges in (("train", ["test", *others, "val"]), ("val", ["test", *others])):
        for judge in judges:
            shown = set(groups[splits == judge])
            shared = keep & (splits == learned) & groups.isin(shown).to_numpy()
            if shared.any():
                keep &= ~shared
                notes.append(_shared_note(table.rows[shared], int((splits == learned).sum()), learned, judge))
    return table.take(keep).with_notes(*notes) if notes else table


def _shared_note(rows, num_all, learned, judge):
    groups = sorted(set(rows["group"]))
    return (
        f"{len(rows):,} of {num_all:,} {learned} files ({rows['cluster'].nunique()} clusters in {len(groups)} groups: "
        f"{_few(groups)}) are left out, because {judge} shows the same groups."
    )


def _check_trainable(table):
    """Raises DataError if a class has no training rows left, since test or val shows the groups of all of them."""
    if not table.exclusive:
        return
    seen = table.labels[(table.rows["split"] == "train").to_numpy()].sum(axis=0)
    for name, learned, count in zip(table.class_names, seen, table.labels.sum(axis=0)):
        if count and not learned:
            raise DataError(
                f"Class {name!r} has no training pictures outside the groups that test and val show. Add pictures of "
                "other groups, or remove the class."
            )


def _hold_out(table, name, fraction, parts, rng):
    """Moves about `fraction` of the training rows into split `name`; the rest must have groups for `parts` parts."""
    pool = (table.rows["split"] == "train").to_numpy()
    if not pool.any():
        raise DataError(
            f"{table.name} has no training pictures for the split {name}. Set {name}_fraction=0, or add some."
        )
    chosen = _choose(table.take(pool), fraction, parts, rng)
    splits = table.rows["split"].to_numpy(dtype=object).copy()
    splits[np.flatnonzero(pool)[chosen]] = name
    return table.with_columns(split=splits)


def _choose(table, fraction, later, rng):
    """Returns the mask (N,) of rows to take: whole groups, about `fraction` of each class.

    `later` is the number of parts that are made from the rest; each class must keep a group for each of them.
    """
    codes, names = pd.factorize(table.rows["group"], sort=True)
    images = np.zeros((len(names), len(table.class_names)))
    np.add.at(images, codes, np.nan_to_num(table.labels))
    num_groups = (images > 0).sum(axis=0)
    _check_groups(table, num_groups, later + 1)
    sizes = np.bincount(codes, minlength=len(names))
    shares = [_shares(images), _shares(images > 0), _shares(sizes[:, None])]
    features = np.concatenate(shares, axis=1)
    tries = max(1, min(TRIES, GROUP_VISITS // len(names)))
    starts = [np.zeros(len(names), bool)] * tries
    if not table.exclusive and len(names) * min(fraction, 1 - fraction) >= 1:
        starts.append(_stratified(images > 0, fraction, rng))
    results = [_search(features, images > 0, fraction, later, rng, start) for start in starts]
    taken = min(results, key=lambda result: result[1])[0]
    if table.exclusive:
        _check_taken(table, images, taken)
    return taken[codes]


def _shares(counts):
    total = counts.sum(axis=0)
    return np.where(total > 0, counts / np.maximum(total, 1), 0.0)


def _stratified(has, fraction, rng):
    """Returns the mask (G,) of the groups that iterative stratification (Sechidis et al., 2011) takes.

    It balances groups that have several labels, but ignores how many images a group has.
    """
    from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

    random_state = int(rng.integers(2**31 - 1))
    splitter = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=fraction, random_state=random_state)
    taken = np.zeros(len(has), bool)
    # It refuses a single column, so a single finding gets its opposite as the second one.
    columns = has if has.shape[1] > 1 else np.concatenate([has, ~has], axis=1)
    taken[next(splitter.split(has, columns.astype(int)))[1]] = True
    return taken


def _search(features, has, fraction, later, rng, start):
    """Returns (mask (G,), cost): groups are taken or put back in random order as long as that lowers the cost.

    The cost is the mean squared difference between `fraction` and the taken share of each class's
    images and groups, and of all images, plus 1 for each class and part that would be left without a group.

    Args:
      features: (G, F), the share that each group has of each total.
      has: bool (G, K), whether the group has the class.
      start: bool (G,), the groups that are taken at the start.
    """
    num_groups = len(features)
    target = np.where(features.sum(axis=0) > 0, fraction, 0.0)
    total = has.sum(axis=0)
    steps = has.astype(int)

    # A class with too few groups for every part goes to training first, then to this part.
    wanted = np.minimum(1, np.maximum(total - 1, 0))
    reserved = np.minimum(later, total - wanted)

    def cost_of(share, inside):
        short = np.maximum(wanted - inside, 0) + np.maximum(reserved - (total - inside), 0)
        return float(np.mean((share - target) ** 2) + short.sum())

    taken = start.copy()
    share, inside = features[taken].sum(axis=0), steps[taken].sum(axis=0)
    cost = cost_of(share, inside)
    order = rng.permutation(num_groups)
    for _ in range(10):
        before = cost
        for group in order:
            sign = -1 if taken[group] else 1
            new_share, new_inside = share + sign * features[group], inside + sign * steps[group]
            new_cost = cost_of(new_share, new_inside)
            if new_cost < cost:
                share, inside, cost = new_share, new_inside, new_cost
                taken[group] = not taken[group]
        if cost == before:
            break
    return taken, cost


def _check_groups(table, num_groups, needed):
    """Raises DataError if there are too few groups for the parts; in a multiclass set, also for each class.

    In a multilabel set a rare finding may be missing from a part; its score is then NaN.
    """
    if table.exclusive:
        for name, count in zip(table.class_names, num_groups):
            if 0 < count < needed:
                _too_few(table, name, count, needed)
    if len(set(table.rows["group"])) < needed:
        _too_few(table, None, len(set(table.rows["group"])), needed)


def _check_taken(table, images, taken):
    for index, name in enumerate(table.class_names):
        if images[:, index].any() and not (images[taken, index].any() and images[~taken, index].any()):
            _too_few(table, name, int((images[:, index] > 0).sum()), 2)


def _too_few(table, name, count, needed):
    what = "The data have" if name is None else f"Class {name!r} has"
    raise DataError(
        f"{what} {count} group(s) in the rows to split, but each of {needed} parts needs one of its own. "
        "Add pictures of other groups, ask for fewer parts (a fraction of 0, fewer folds), or remove the class."
    )


def _few(values):
    values = [str(value) for value in values]
    return ", ".join(values[:3]) + (", ..." if len(values) > 3 else "")
