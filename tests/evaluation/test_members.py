"""Which members may judge a picture (planted leaks are refused, folds are judged out of fold), and their mean."""

import numpy as np
import pandas as pd
import pytest
import scipy.special

from kmed.config import load_config
from kmed.data.splits import HELD_OUT, JUDGED_BY, assign_folds, choose_fold, write_splits
from kmed.data.table import Table
from kmed.errors import DataError, RunError
from kmed.evaluation import members
from kmed.runs import Run, write_classes
from kmed.tasks import TASKS

SPLITS = ["train"] * 4 + ["val"] * 2 + ["test"] * 2


@pytest.fixture
def table():
    """Sixteen groups of two pictures and two classes; the splits come with the data."""
    groups = np.repeat([f"g{number:02d}" for number in range(16)], 2)
    rows = pd.DataFrame({"path": [f"{row:02d}" for row in range(32)], "group": groups, "cluster": groups})
    rows["split"] = np.repeat(SPLITS * 2, 2)
    labels = np.eye(2, dtype=np.float32)[np.repeat([0, 1], 16)]
    return Table(
        rows, labels, ("a", "b"), "multiclass", "drawn", images=np.zeros((32, 8, 8, 3), np.uint8), grouped=True
    )


@pytest.fixture
def member(tmp_path):
    """A function that writes what an ensemble reads of a member's splits, and returns the Run."""

    def write(name, split_table, *settings):
        run = Run(tmp_path / name)
        config = load_config(overrides=["task=multiclass", "data.image_size=8x8", *settings])
        config.write(run.config)
        write_classes(run, config, split_table.class_names)
        write_splits(split_table, run.splits, labels=True)
        return run

    return write


def moved(table, **splits):
    """Returns the table with the groups of the keywords in these splits."""
    changed = table.rows["group"].map(splits).fillna(table.rows["split"])
    return table.with_columns(split=changed.to_numpy(dtype=object))


def test_members_of_one_split_judge_what_they_were_not_trained_on(table, member):
    judged = members.judge_pictures([member("one", table), member("two", table)], table)
    assert list(judged.table.rows["split"]) == list(table.rows["split"])
    assert set(judged.table.rows[JUDGED_BY]) == {"", "1|2"}
    assert ((judged.table.rows[JUDGED_BY] == "") == (table.rows["split"] == "train")).all()
    assert judged.prior.num_images == 16 and judged.prior.num_groups == 8


def test_members_with_other_validation_pictures_judge_each_others(table, member):
    other = moved(table, g00="val", g04="train")
    judged = members.judge_pictures([member("one", table), member("two", other)], table).table.rows
    of = dict(zip(judged["group"], zip(judged["split"], judged[JUDGED_BY])))
    assert of["g00"] == ("val", "2") and of["g04"] == ("val", "1") and of["g05"] == ("val", "1|2")
    assert of["g01"] == ("train", "") and of["g06"] == ("test", "1|2")
    np.testing.assert_array_equal(
        members.judges_of(Table(judged, table.labels, ("a", "b"), "multiclass", "x"), 2)[[0, 8, 10, 2]],
        [[False, True], [True, False], [True, True], [False, False]],
    )


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            {"g06": "train"},
            r"two was trained on 2 of the 8 held-out pictures .*, such as 12: its scores would be too good",
        ),
        ({"g06": "val"}, "two chose its epoch by 2 of the 8 held-out pictures"),
        ({"g06": "train", "g07": "val"}, "two was trained on 2 of and chose its epoch by 2 of the 8 held-out pictures"),
    ],
)
def test_a_member_that_has_seen_test_pictures_is_refused(table, member, splits, message):
    one, two = member("one", table), member("two", moved(table, **splits))
    for runs in ([one, two], [two, one]):
        with pytest.raises(RunError, match=message):
            members.judge_pictures(runs, table)


def test_a_picture_of_the_same_patient_counts_as_seen(table, member):
    finer = table.with_columns(group=table.rows["path"].to_numpy(dtype=object))
    leaky = finer.with_columns(split=np.where(finer.rows["path"] == "12", "train", finer.rows["split"]))
    with pytest.raises(RunError, match="two was trained on 2 of the 8 held-out pictures"):
        members.judge_pictures([member("one", table), member("two", leaky)], table)


@pytest.mark.parametrize("setting", ["train.teacher", "model.weights"])
def test_a_member_that_learnt_from_a_run_that_has_seen_pictures_does_not_judge_them(table, member, setting):
    leaky = member("leaky", moved(table, g06="train"))
    seen_val = member("seen_val", moved(table, g04="train"))
    for run in (leaky, seen_val):
        run.model.touch()
    one, two = member("one", table), member("two", table, f"{setting}={leaky.folder}")
    message = "two learnt from runs that were trained on 2 of the 8 held-out pictures .*, such as 12: its scores would"
    for runs in ([one, two], [two, one], [two]):
        with pytest.raises(RunError, match=message):
            members.judge_pictures(runs, table)
    three = member("three", table, f"{setting}={seen_val.folder}")
    judged = members.judge_pictures([one, three], table).table.rows.set_index("group")
    assert set(judged.loc["g04", JUDGED_BY]) == {"1"} and set(judged.loc["g05", JUDGED_BY]) == {"1|2"}
    assert judged["split"].tolist() == table.rows["split"].tolist()
    everything = member(
        "everything", table.with_columns(split=table.rows["split"].replace("val", "train").to_numpy(object))
    )
    everything.model.touch()
    with pytest.raises(RunError, match="so it cannot be calibrated. Add a member that has not seen them") as raised:
        members.judge_pictures([member("four", table, f"{setting}={everything.folder}")], table)
    assert "\n" not in str(raised.value)


def test_folds_without_a_test_split_are_judged_out_of_fold(table, member):
    folded = assign_folds(table.with_columns(split=np.full(32, "", dtype=object)), 4)
    runs = [member(f"fold{fold}", choose_fold(folded, fold), f"data.fold={fold}") for fold in range(4)]
    judged = members.judge_pictures(runs, table).table.rows
    assert set(judged["split"]) == {"val"}
    for fold, names in zip(folded.rows["fold"], judged[JUDGED_BY]):  # one has tested on it, one chose its epoch by it
        assert names.split("|") == sorted([str(int(fold) + 1), str((int(fold) - 1) % 4 + 1)])


@pytest.mark.parametrize("name", ["test", HELD_OUT])
def test_folds_beside_a_test_split_leave_it_untouched(table, member, name):
    folded = assign_folds(table, 3)
    parts = [choose_fold(folded, fold) for fold in range(3)]
    parts = [part.with_columns(split=part.rows["split"].replace("test", name).to_numpy(object)) for part in parts]
    runs = [member(f"fold{fold}", part) for fold, part in enumerate(parts)]
    judged = members.judge_pictures(runs, table)
    of_test = judged.table.rows[judged.table.rows["split"] == "test"]
    assert set(of_test["path"]) == set(table.rows["path"][table.rows["split"] == "test"])
    assert set(of_test[JUDGED_BY]) == {"1|2|3"}
    others = judged.table.rows[judged.table.rows["split"] != "test"]
    assert set(others["split"]) == {"val"}
    fold_of = dict(zip(folded.rows["path"], folded.rows["fold"]))
    assert all(names == str(int(fold_of[path]) + 1) for path, names in zip(others["path"], others[JUDGED_BY]))
    assert judged.prior.num_images == 24
    everything = moved(table, **dict.fromkeys(table.rows["group"], "train") | {"g00": "val"})
    with pytest.raises(RunError, match="seen was trained on 8 of the 8 held-out pictures"):
        members.judge_pictures([*runs, member("seen", everything)], table)


def test_members_of_other_pictures_or_labels_are_refused(table, member):
    one = member("one", table)
    fewer = member("fewer", table.take(np.arange(30)))
    for runs in ([one, fewer], [fewer, one]):
        with pytest.raises(DataError, match=r"fewer/splits.csv lacks 2 pictures of .*one/splits.csv, such as 30"):
            members.judge_pictures(runs, table)
    relabelled = member("relabelled", table.replace(labels=table.labels[::-1].copy()))
    with pytest.raises(DataError, match="The labels of 32 of 32 pictures have changed"):
        members.judge_pictures([one, relabelled], table)


# ---- The mean --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_only_those_that_may_judge_count(task):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (6, 3, 4))
    judges = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    link = scipy.special.expit if task.activation == "sigmoid" else lambda z: scipy.special.softmax(z, axis=-1)
    for row, mask in enumerate(judges):
        kept = logits[row][mask]
        found = {name: members.mean_probs(logits, judges, name, task)[row] for name in ("probabilities", "logits")}
        np.testing.assert_allclose(found["probabilities"], link(kept).mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(found["logits"], link(kept.mean(axis=0)), atol=1e-12)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_losses_of_averaging_are_scikit_learns(task):
    from sklearn.metrics import log_loss

    rng = np.random.default_rng(1)
    labels = np.eye(3)[rng.integers(0, 3, 90)]
    logits = rng.normal(0, 1.5, (90, 2, 3)) + 2 * labels[:, None]
    judges, names = np.ones((90, 2), bool), ("a", "b", "c")
    losses = members.validation_losses(logits, judges, labels, names, task)
    for average, loss in losses.items():
        probs = members.mean_probs(logits, judges, average, task)
        calibrated = task.fit_calibration(labels, probs, names).apply(probs)
        if task.exclusive:
            expected = log_loss(labels.argmax(axis=1), calibrated)
        else:
            expected = np.mean([log_loss(labels[:, k], calibrated[:, k]) for k in range(3)])
        assert loss == pytest.approx(expected, rel=1e-9)
    labels[0, 0] = np.nan
    if not task.exclusive:
        assert np.isfinite(list(members.validation_losses(logits, judges, labels, names, task).values())).all()


def test_disagreement_is_0_to_half():
    same, apart = np.array([[[9.0, -9, 0], [9, -9, 0]]]), np.array([[[40.0, -40, -40], [-40, 40, -40]]])
    for task in TASKS.values():
        np.testing.assert_allclose(members.disagreement(np.concatenate([same, apart]), task), [0, 0.5], atol=1e-9)
