"""Labels that look wrong: planted ones are found from out-of-fold probabilities, by cluster and not by file."""

import sys

import numpy as np
import pandas as pd
import pytest

from kmed.errors import ConfigError
from kmed.evaluation.label_errors import make_units, suspect_labels
from kmed.evaluation.predictions import Predictions
from kmed.tasks import get_task

NAMES = {"multiclass": ("a", "b", "c", "d"), "multilabel": ("Mass", "Edema", "No Finding")}


def draw(task, *, clusters=400, per_cluster=1, share=0.03, skill=5.0, seed=0):
    """Returns (Predictions with planted wrong labels, the set of (cluster, class) that are wrong).

    The pictures of a cluster share a label, and part of the model's error.
    """
    rng, names = np.random.default_rng(seed), NAMES[task]
    number, codes = len(names), np.repeat(np.arange(clusters), per_cluster)
    wrong = rng.choice(clusters, int(share * clusters), replace=False)
    if task == "multiclass":
        truth = rng.integers(0, number, clusters)
        given = truth.copy()
        given[wrong] = (truth[wrong] + rng.integers(1, number, len(wrong))) % number
        true, given = np.eye(number)[truth], np.eye(number)[given]
    else:
        findings = (rng.random((clusters, 2)) < 0.3).astype(float)
        true = np.column_stack([findings, findings.sum(axis=1) == 0]).astype(float)
        given = true.copy()
        given[wrong, 0] = 1 - given[wrong, 0]
    noise = rng.normal(0, 0.7, (clusters, number))[codes] + rng.normal(0, 1, (len(codes), number))
    logits = skill * (true[codes] - 0.5) + noise
    probs = 1 / (1 + np.exp(-logits))
    if task == "multiclass":
        probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = pd.DataFrame({"path": [f"{row:05d}" for row in range(len(codes))], "split": "test"})
    rows = rows.assign(group=codes.astype(str), cluster=codes.astype(str))
    return Predictions(rows, given[codes], probs, names, get_task(task)), set(wrong.astype(str))


def suspects(predictions, **settings):
    return suspect_labels(
        make_units(predictions), predictions.class_names, exclusive=predictions.task.exclusive, **settings
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("task", "per_cluster"), [("multiclass", 1), ("multiclass", 8), ("multilabel", 4)])
def test_planted_labels_are_found_at_the_default_cut(task, per_cluster, seed):
    pytest.importorskip("cleanlab", reason="cleanlab is not installed: pip install 'kmed[labels]'")
    predictions, wrong = draw(task, clusters=800, per_cluster=per_cluster, seed=seed)
    found = set(suspects(predictions)["cluster"])
    hits = len(found & wrong)
    assert hits / len(found) > 0.7 and hits / len(wrong) > 0.7, (hits, len(found), len(wrong))


def test_a_number_lists_all_labels_below_it():
    predictions, _ = draw("multiclass")
    rows = suspects(predictions, cut=0.2)
    own = (predictions.probs * predictions.labels).sum(axis=1)
    assert set(rows["path"]) == set(predictions.rows["path"][own < 0.2])
    assert rows["quality"].is_monotonic_increasing and (rows["quality"] < 0.2).all()
    assert (rows["label"] == rows["given"]).all() and (rows["suggested"] != rows["given"]).all()


def test_a_cluster_with_one_label_is_one_row_and_one_with_several_is_judged_by_picture():
    labels = np.eye(2)[[0, 0, 0, 1, 0]]
    rows = pd.DataFrame({"path": list("vwxyz"), "split": "test", "group": "g", "cluster": list("ppqqr")})
    probs = np.array([[0.2, 0.8], [0.4, 0.6], [0.7, 0.3], [0.1, 0.9], [0.6, 0.4]])
    units = make_units(Predictions(rows, labels, probs, ("a", "b"), get_task("multiclass")))
    assert units.rows["path"].tolist() == ["v", "x", "y", "z"] and units.rows["pictures"].tolist() == [2, 1, 1, 1]
    np.testing.assert_allclose(units.probs[0], [0.3, 0.7])
    again = Predictions(
        pd.concat([rows, rows]),
        np.tile(labels, (2, 1)),
        np.concatenate([probs, probs[::-1]]),
        ("a", "b"),
        get_task("multiclass"),
    )
    repeated = make_units(dataclass_reset(again))
    assert repeated.rows.equals(units.rows)  # each picture was judged twice
    np.testing.assert_allclose(repeated.probs[1], (probs[2] + probs[2]) / 2)
    np.testing.assert_allclose(repeated.probs[2], (probs[3] + probs[1]) / 2)


def dataclass_reset(predictions):
    return Predictions(
        predictions.rows.reset_index(drop=True), predictions.labels, predictions.probs, predictions.class_names,
        predictions.task,
    )  # fmt: skip


def test_unknown_labels_are_not_judged_and_no_finding_fits_what_is_suggested():
    names = NAMES["multilabel"]
    labels = np.array([[0, np.nan, 1], [1, 0, 0], [0, 1, 0]])
    probs = np.array([[0.99, 0.99, 0.6], [0.9, 0.1, 0.1], [0.1, 0.9, 0.1]])
    rows = pd.DataFrame({"path": list("abc"), "split": "test", "group": list("abc"), "cluster": list("abc")})
    found = suspects(Predictions(rows, labels, probs, names, get_task("multilabel")), cut=0.5)
    assert found[["path", "given", "suggested"]].to_numpy().tolist() == [["a", "No Finding", "Mass"]]
    assert found["quality"].tolist() == pytest.approx([0.01])


def test_without_cleanlab_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(ConfigError, match=r"pip install 'kmed\[labels\]'"):
        suspects(draw("multiclass")[0])


@pytest.mark.parametrize("cut", ["many", 0, 1, "1.5", None, float("nan")])
def test_cuts_that_are_not_legal(cut):
    with pytest.raises(ConfigError, match="cut must be auto, or a number between 0 and 1"):
        suspects(draw("multiclass")[0], cut=cut)
