"""The folds of a cross-validation: held-out pictures get none, groups stay whole, every fold can judge a model."""

import numpy as np
import pytest
from test_splits import make_table, random_table

from kmed.data.folds import draw_folds, judged_by_folds
from kmed.data.splits import choose_fold, read_splits, write_splits
from kmed.errors import DataError, ScoreError


def with_test(table, every=5, name="test"):
    """Returns the table with every fifth group in a test split."""
    test = table.rows["group"].astype(int) % every == 0
    return table.with_columns(split=np.where(test, name, "train").astype(object))


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_test_pictures_are_held_out_and_folds_share_no_group(task, tmp_path):
    table = with_test(random_table(task=task))
    drawn = draw_folds(table, 4, seed=3)
    held_out = drawn.rows["split"] == "held_out"
    assert sorted(drawn.rows["path"][held_out]) == sorted(table.split("test").rows["path"])
    assert set(drawn.rows["fold"][held_out]) == {""} and set(drawn.rows["fold"][~held_out]) == set("0123")
    assert drawn.rows.groupby("group")["fold"].nunique().max() == 1
    assert judged_by_folds(drawn.rows["split"]) == "val"
    write_splits(drawn, tmp_path / "folds.csv")
    judged = []
    for fold in range(4):
        part = read_splits(table, tmp_path / "folds.csv", fold=fold)
        assert part.rows["split"].tolist() == choose_fold(drawn, fold).rows["split"].tolist()
        assert set(part.rows["split"]) == {"train", "val", "held_out"}
        judged += list(part.split("val").rows["path"])
    assert sorted(judged) == sorted(drawn.rows["path"][~held_out])


def test_all_splits_are_pooled_and_others_left_out():
    table = random_table()
    groups = table.rows["group"].astype(int)
    splits = np.select([groups % 5 == 0, groups % 5 == 1, groups % 5 == 2], ["test", "val", "test_simple"], "")
    table = table.with_columns(split=splits.astype(object))
    drawn = draw_folds(table, 3, seed=0, all_splits=True)
    assert sorted(drawn.rows["path"]) == sorted(table.rows["path"][splits != "test_simple"])
    assert set(drawn.rows["fold"]) == set("012") and judged_by_folds(drawn.rows["split"]) == "test"
    assert drawn.notes[-1].startswith(f"{(splits == 'test_simple').sum()} pictures of test_simple are left out")
    assert set(choose_fold(drawn, 0).rows["split"]) == {"train", "val", "test"}


def test_the_seed_decides():
    table = with_test(random_table())
    drawn = [draw_folds(table, 3, seed=seed).rows["fold"].tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_folds_that_cannot_judge_are_refused():
    with pytest.raises(DataError, match="3 folds are needed"):
        draw_folds(random_table(), 2, seed=0)
    assert set(draw_folds(with_test(random_table()), 2, seed=0).rows["fold"]) == {"", "0", "1"}
    with pytest.raises(ScoreError, match="at least two"):  # each fold has a single cluster
        draw_folds(make_table(range(6), [0, 1] * 3, clusters="one"), 3, seed=0)
    with pytest.raises(DataError, match="no pictures in train, val or test: its splits are other"):
        draw_folds(random_table(split="other"), 3, seed=0, all_splits=True)
