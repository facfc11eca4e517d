"""Laws of splits: no group on two sides, no row lost or moved, each class on each side, the seed decides."""

import numpy as np
import pandas as pd
import pytest
from conftest import real_data
from sklearn.model_selection import StratifiedGroupKFold

from kmed.data.readers.load import load_table
from kmed.data.splits import (
    assign_folds,
    assign_splits,
    check_known,
    check_no_leak,
    check_same_labels,
    choose_fold,
    read_splits,
    write_splits,
)
from kmed.data.table import Table
from kmed.errors import DataError


def make_table(groups, labels, split="", task="multiclass", clusters=None):
    """Returns a table without pictures; `labels` are class numbers, or rows of 0 and 1."""
    labels = np.asarray(labels)
    labels = np.eye(labels.max() + 1)[labels] if labels.ndim == 1 else labels
    groups = np.asarray(groups).astype(str).astype(object)
    rows = pd.DataFrame(
        {
            "path": [f"{index:05d}.png" for index in range(len(groups))],
            "group": groups,
            "cluster": groups if clusters is None else clusters,
            "split": split,
        }
    )
    names = tuple("abcdefghijklmn"[: labels.shape[1]])
    return Table(rows, labels.astype(np.float32), names, task, "made", grouped=True)


def random_table(seed=0, num_groups=120, task="multiclass", split=""):
    """Returns groups of 1 to 30 pictures and classes of different sizes; of several labels, some are unknown."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 31, num_groups)
    groups = np.repeat(np.arange(num_groups), sizes)
    if task == "multiclass":
        return make_table(groups, np.repeat(rng.choice(4, num_groups, p=[0.55, 0.25, 0.12, 0.08]), sizes), split)
    labels = (rng.random((len(groups), 5)) < np.array([0.4, 0.2, 0.1, 0.05, 0.02])).astype(np.float32)
    labels[rng.random(labels.shape) < 0.05] = np.nan
    return make_table(groups, labels, split, task="multilabel")


def sides(table):
    return {name: set(rows["group"]) for name, rows in table.rows.groupby("split")}


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_no_row_is_lost(task, seed):
    table = random_table(seed, task=task)
    result = assign_splits(table, seed=seed)
    groups = sides(result)
    assert set(groups) == {"train", "val", "test"}
    assert sum(map(len, groups.values())) == len(set.union(*groups.values()))
    pd.testing.assert_frame_equal(result.rows.drop(columns="split"), table.rows.drop(columns="split"))
    np.testing.assert_array_equal(result.labels, table.labels)
    for name in groups:
        assert (np.nansum(result.split(name).labels, axis=0) > 0).all()


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_shares_are_near_what_was_asked(task):
    table = random_table(3, task=task, num_groups=400)
    result = assign_splits(table, val_fraction=0.25, test_fraction=0.2)
    total = np.nansum(table.labels, axis=0)
    for name, share in (("test", 0.2), ("val", 0.8 * 0.25)):
        part = result.split(name)
        assert abs(len(part) / len(table) - share) < 0.02
        assert np.abs(np.nansum(part.labels, axis=0) / total - share).max() < 0.05


def test_the_seed_decides():
    table = random_table()
    first, again, other = (assign_splits(table, seed=seed).rows["split"] for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)


def test_a_rare_class_has_a_group_on_each_side():
    """Class b has three groups for three sides: each side must get one of them, whatever their sizes."""
    groups = np.concatenate([np.arange(40), [40] * 50, [41], [42]])
    labels = np.concatenate([np.zeros(40, int), np.ones(52, int)])
    for seed in range(10):
        result = assign_splits(make_table(groups, labels), seed=seed)
        assert all(result.split(name).labels[:, 1].sum() > 0 for name in ("train", "val", "test"))


def test_too_few_groups_are_named():
    table = make_table([*range(20), 20, 20, 21, 21], [0] * 20 + [1] * 4)
    with pytest.raises(DataError, match=r"Class 'b' has 2 group\(s\).*each of 3 parts needs one.*fraction"):
        assign_splits(table)
    assert set(assign_splits(table, val_fraction=0).rows["split"]) == {"train", "test"}


def test_a_class_that_one_group_shares_with_all_is_not_split_silently():
    table = make_table([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1])
    result = assign_splits(table, seed=0)
    assert sorted(result.rows.groupby("split")["group"].nunique()) == [1, 1, 1]


def test_a_rare_finding_may_be_missing_on_a_side():
    labels = np.zeros((60, 2))
    labels[::2, 0], labels[0, 1] = 1, 1
    result = assign_splits(make_table(range(60), labels, task="multilabel"))
    assert result.split("train").labels[:, 1].sum() == 1


def single(values, num_images=30, task="multilabel"):
    """Returns a multilabel table with one column per row of `values`, which are repeated to fill it."""
    columns = [np.resize(np.array(row, float), num_images) for row in values]
    return make_table(np.arange(num_images), np.stack(columns, axis=1), task=task)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values",
    [
        [[0, 1]],  # a single finding
        [[0, 0, 0, 1]],
        [[1]],  # always there
        [[0]],  # never
        [[np.nan, 1]],  # unknown in half of the images
        [[np.nan, 0]],
        [[1] + [0] * 29],  # in one image
        [[1] + [np.nan] * 29],
        [[1], [0, 1]],  # two findings, one of them always there
        [[np.nan], [0, 1]],
        [[1], [1], [1]],
        [[0], [0]],
        [[0, 1], [1, 0]],
        [[0, 1], [0, 1]],
    ],
)
@pytest.mark.parametrize("num_images", [30, 7])
def test_findings_of_every_kind_can_be_split(values, num_images):
    table = assign_splits(single(values, num_images))
    sizes = table.rows["split"].value_counts()
    assert set(sizes.index) == {"train", "val", "test"} and sizes.sum() == num_images
    assert sizes["train"] > sizes["val"] and sizes["train"] > sizes["test"]
    folds = assign_folds(table.with_columns(split=""), num_folds=3)
    assert set(folds.rows["fold"]) == {"0", "1", "2"}


def test_a_single_finding_is_stratified():
    table = assign_splits(single([[0, 0, 0, 1]], 200), val_fraction=0.2, test_fraction=0.2)
    for name in ("train", "val", "test"):
        assert table.split(name).labels.mean() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_without_a_known_label_is_named(split):
    table = assign_splits(single([[0, 1], [0, 0, 1]]))
    labels = table.labels.copy()
    labels[(table.rows["split"] == split).to_numpy(), 0] = np.nan
    check_known(table.replace(labels=labels))  # one of the two findings is known
    labels[(table.rows["split"] == split).to_numpy()] = np.nan
    with pytest.raises(DataError, match=f"of split {split} are unknown"):
        check_known(table.replace(labels=labels))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_labels_that_have_changed_are_found(task, tmp_path):
    table = random_table(num_groups=20, task=task)
    write_splits(table, tmp_path / "splits.csv", labels=True)
    check_same_labels(table, tmp_path / "splits.csv")
    order = np.random.default_rng(0).permutation(len(table))
    check_same_labels(table.take(order), tmp_path / "splits.csv")  # the order of rows does not matter
    for row, value in ((0, 1 - table.labels[0]), (3, np.full(len(table.class_names), np.nan))):
        labels = table.labels.copy()
        labels[row] = value
        with pytest.raises(DataError, match=f"^The labels of 1 of {len(table)} pictures have changed.*0000{row}.png"):
            check_same_labels(table.replace(labels=labels), tmp_path / "splits.csv")
    write_splits(table, tmp_path / "older.csv")  # as earlier versions did, without labels
    check_same_labels(table.replace(labels=1 - table.labels), tmp_path / "older.csv")


def test_labels_are_compared_where_a_name_is_spelt_in_another_way(tmp_path):
    composed, decomposed = "n\u00e4vus.png", "na\u0308vus.png"  # as Linux and macOS write it
    table = random_table(num_groups=20)
    paths = table.rows["path"].tolist()
    write_splits(table.with_columns(path=[composed, *paths[1:]]), tmp_path / "splits.csv", labels=True)
    table = table.with_columns(path=[decomposed, *paths[1:]])
    check_same_labels(table, tmp_path / "splits.csv")
    with pytest.raises(DataError, match="labels of 1 of"):
        labels = table.labels.copy()
        labels[0] = 1 - labels[0]
        check_same_labels(table.replace(labels=labels), tmp_path / "splits.csv")


def test_fractions_of_zero_and_illegal_ones():
    table = random_table()
    assert set(assign_splits(table, val_fraction=0, test_fraction=0).rows["split"]) == {"train"}
    for settings in ({"val_fraction": 1.0}, {"test_fraction": -0.1}, {"val_fraction": float("nan")}):
        with pytest.raises(DataError, match=f"{next(iter(settings))} must be"):
            assign_splits(table, **settings)


def given_splits():
    """Train and test share group 3 (3 rows, 2 clusters of train); test_simple repeats test's groups."""
    train = [(group, label) for group, label in zip(range(20), [0, 1] * 10) for _ in range(3)]
    test = [(3, 1), (30, 0), (31, 1)]
    rows = [(*row, "train") for row in train] + [(*row, "test") for row in test] + [(30, 0, "test_simple")]
    groups, labels, split = zip(*rows)
    clusters = [f"{group}.{index % 2 if group == 3 else 0}" for index, group in enumerate(groups)]
    return make_table(groups, labels, np.array(split, dtype=object), clusters=clusters)


def test_a_given_test_split_stays_and_its_groups_leave_training():
    table = given_splits()
    result = assign_splits(table)
    pd.testing.assert_frame_equal(result.split("test").rows, table.split("test").rows)
    assert len(result.split("test_simple")) == 1
    assert len(result) == len(table) - 3
    assert "3" not in sides(result)["train"] | sides(result)["val"]
    note = "3 of 60 train files (2 clusters in 1 groups: 3) are left out, because test shows the same groups."
    assert note in result.notes
    check_no_leak(result)


def test_a_given_val_split_stays_and_leaks_of_it_leave_too():
    table = make_table(
        [0, 1, 2, 2, 3, 3, 4], [0, 1, 0, 1, 0, 1, 1], np.array(["train"] * 3 + ["val"] * 2 + ["test"] * 2)
    )
    result = assign_splits(table.with_columns(split=table.rows["split"].astype(object)))
    assert sides(result) == {"train": {"0", "1"}, "val": {"2"}, "test": {"3", "4"}}
    assert len(result) == 5


def test_undecided_rows_are_training_rows():
    table = make_table(range(30), [0, 1] * 15, np.array([""] * 24 + ["test"] * 6, dtype=object))
    result = assign_splits(table)
    assert (result.rows["split"][:24] != "test").all()
    assert (result.rows["split"][24:] == "test").all()


def test_data_without_training_rows():
    table = make_table(range(4), [0, 1, 0, 1], "test")
    with pytest.raises(DataError, match="no pictures to train on; its splits are test"):
        assign_splits(table)
    overlap = make_table([0, 1, 0, 1], [0, 1, 0, 1], np.array(["train", "train", "test", "test"], dtype=object))
    with pytest.raises(DataError, match="no training pictures|no pictures to train on"):
        assign_splits(overlap)


def test_a_class_that_loses_all_its_training_groups_is_named():
    groups, labels = [0, 1, 2, 3, 9, 9, 4], [0, 0, 0, 0, 1, 1, 0]
    table = make_table(groups, labels, np.array(["train"] * 5 + ["test"] * 2, dtype=object))
    with pytest.raises(DataError, match="Class 'b' has no training pictures"):
        assign_splits(table)


@pytest.mark.parametrize(
    ("split", "leak"),
    [
        (["train", "val"], "both in train and in val"),
        (["train", "test"], "both in train and in test"),
        (["val", "test"], "both in val and in test"),
        (["train", "test_simple"], "both in train and in test_simple"),
        (["val", "test_simple"], "both in val and in test_simple"),
        (["test", "test_simple"], None),
    ],
)
def test_leaks_are_found(split, leak):
    table = make_table([7, 7, 8, 9], [0, 1, 0, 1], np.array([*split, "train", "val"], dtype=object))
    if leak is None:
        check_no_leak(table)
    else:
        with pytest.raises(DataError, match=rf"1 groups are {leak} \(7\)"):
            check_no_leak(table)


def test_what_is_written_is_read(tmp_path):
    table = given_splits()
    split = assign_splits(table, seed=5)
    write_splits(split, tmp_path / "splits.csv")
    back = read_splits(table, tmp_path / "splits.csv")
    pd.testing.assert_frame_equal(back.rows, split.rows)
    np.testing.assert_array_equal(back.labels, split.labels)
    assert any(note.startswith("3 pictures") for note in back.notes)
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    again = read_splits(shuffled, tmp_path / "splits.csv").rows.sort_values("path", ignore_index=True)
    pd.testing.assert_frame_equal(again, split.rows.sort_values("path", ignore_index=True))


def test_splits_may_list_pictures_that_cannot_be_read_any_more(tmp_path):
    table, path = random_table(), tmp_path / "splits.csv"
    split = assign_splits(table)
    write_splits(split, path)
    left = np.arange(len(table)) >= 3
    readable, unreadable = table.take(left), tuple(table.rows["path"][:3])
    back = read_splits(readable, path, unreadable=unreadable)
    pd.testing.assert_frame_equal(back.rows, split.rows[left].reset_index(drop=True))
    with pytest.raises(DataError, match=r"lists 1 of \d+ pictures that are not in made: 00002.png"):
        read_splits(readable, path, unreadable=unreadable[:2])


def test_splits_of_other_data_are_refused(tmp_path):
    table = random_table()
    path = tmp_path / "splits.csv"
    write_splits(assign_splits(table), path)
    with pytest.raises(DataError, match=r"lists 10 of \d+ pictures that are not in made: 00000.png"):
        read_splits(table.take(np.arange(10, len(table))), path)
    frame = pd.read_csv(path, dtype=str)
    pd.concat([frame, frame.head(1)]).to_csv(path, index=False)
    with pytest.raises(DataError, match="1 pictures more than once: 00000.png"):
        read_splits(table, path)
    frame.drop(columns="group").to_csv(path, index=False)
    with pytest.raises(DataError, match="Missing: group"):
        read_splits(table, path)
    frame.assign(split=["train", "test"] * (len(frame) // 2) + ["train"] * (len(frame) % 2)).to_csv(path, index=False)
    with pytest.raises(DataError, match="both in train and in test"):
        read_splits(table, path)
    with pytest.raises(DataError, match="There is no file"):
        read_splits(table, tmp_path / "none.csv")


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_folds_cover_all_rows_by_whole_groups(task):
    folded = assign_folds(random_table(1, task=task), 4, seed=3)
    assert set(folded.rows["fold"]) == set("0123")
    assert folded.rows.groupby("group")["fold"].nunique().max() == 1
    for fold in range(4):
        assert (np.nansum(folded.labels[folded.rows["fold"] == str(fold)], axis=0) > 0).all()


def test_folds_are_as_even_as_scikit_learns():
    table = random_table(2)
    folded = assign_folds(table, 5)

    def unevenness(parts):
        share = np.array([table.labels[part].sum(axis=0) / table.labels.sum(axis=0) for part in parts])
        return np.square(share - 0.2).mean()

    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    theirs = [part for _, part in splitter.split(table.labels, table.class_indices, table.rows["group"])]
    ours = [np.flatnonzero(folded.rows["fold"] == str(fold)) for fold in range(5)]
    assert unevenness(ours) < 2 * unevenness(theirs) + 1e-3


def test_a_fold_is_test_and_the_next_is_val(tmp_path):
    folded = assign_folds(random_table(), 4)
    write_splits(assign_splits(folded), tmp_path / "splits.csv")
    tested = []
    for fold in range(4):
        table = choose_fold(folded, fold)
        rows = table.rows
        assert set(rows["fold"][rows["split"] == "test"]) == {str(fold)}
        assert set(rows["fold"][rows["split"] == "val"]) == {str((fold + 1) % 4)}
        tested += list(table.split("test").rows["path"])
    assert sorted(tested) == sorted(folded.rows["path"])
    write_splits(folded, tmp_path / "folds.csv")
    read = read_splits(random_table(), tmp_path / "folds.csv", fold=2)
    pd.testing.assert_frame_equal(read.rows, choose_fold(folded, 2).rows)


def test_with_a_given_test_split_a_fold_is_val():
    folded = assign_folds(given_splits(), 3)
    assert set(folded.rows["fold"][folded.rows["split"] != "train"]) == {""}
    table = choose_fold(folded, 1)
    assert len(table.split("test")) == 3
    assert set(table.split("val").rows["fold"]) == {"1"}
    assert set(table.split("train").rows["fold"]) == {"0", "2"}


def test_folds_that_cannot_be_used():
    table = random_table()
    with pytest.raises(DataError, match="at least 2 folds"):
        assign_folds(table, 1)
    with pytest.raises(DataError, match="no folds"):
        choose_fold(table, 0)
    with pytest.raises(DataError, match="the folds are 0, 1, 2. Received: fold=3"):
        choose_fold(assign_folds(table, 3), 3)
    with pytest.raises(DataError, match="3 folds are needed"):
        choose_fold(assign_folds(table, 2), 0)
    with pytest.raises(DataError, match=r"Class 'b' has 4 group\(s\).*each of 5 parts"):
        assign_folds(make_table(range(24), [0] * 20 + [1] * 4), 5)


def test_the_real_blood_cells_lose_62_files_of_3_photographs(blood_cells):
    table = assign_splits(load_table(blood_cells))
    assert any(note.startswith("62 of 9,957 train files (3 clusters in 3 groups") for note in table.notes)
    counts = table.counts()
    assert counts.loc["train", "images"] + counts.loc["val", "images"] == 9957 - 62
    assert counts.loc["test", "images"] == 2487
    val = table.split("val")
    photographs = val.rows["cluster"].groupby(val.class_indices).nunique()
    assert (photographs >= [10, 4, 3, 25]).all()
    assert not set(table.split("train").rows["group"]) & set(table.split("test_simple").rows["group"])


def test_the_real_chest_xrays_are_split_by_patient():
    table = assign_splits(load_table(real_data("nih_cxr_sample")), seed=1)
    patients = table.rows.groupby("Patient ID")["split"].nunique()
    assert patients.max() == 1
    assert (table.split("val").labels.sum(axis=0) > 0).all()
    assert (table.split("test").labels.sum(axis=0) > 0).all()
