"""Pictures pooled into cases: pandas' groupby as oracle, unknown labels, and the choice between mean and largest."""

import numpy as np
import pandas as pd
import pytest
import scipy.special
import sklearn.metrics

from kmed.errors import ScoreError
from kmed.metrics.cases import POOLINGS, choose_pooling, pool_labels, pool_probs

NAMES = ("Mass", "Edema", "No Finding")


def draw(seed=0, num_images=90, num_cases=20):
    rng = np.random.default_rng(seed)
    index = np.concatenate([np.arange(num_cases), rng.integers(0, num_cases, num_images - num_cases)])
    findings = rng.random((num_images, 2)) < 0.1
    labels = np.column_stack([findings, ~findings.any(axis=1)]).astype(float)
    return labels, np.clip(0.3 * labels + 0.6 * rng.random(labels.shape), 0.01, 0.99), index


def grouped(values, index, how):
    return pd.DataFrame(values).groupby(index).agg(how).to_numpy()


@pytest.mark.parametrize("seed", range(3))
def test_findings_are_pooled_as_pandas_pools_them(seed):
    labels, probs, index = draw(seed)
    logits = np.log(probs / (1 - probs))
    mean = pool_probs(probs, index, NAMES, "mean", exclusive=False)
    np.testing.assert_allclose(mean, scipy.special.expit(grouped(logits, index, "mean")), rtol=1e-9)
    largest = pool_probs(probs, index, NAMES, "largest", exclusive=False)
    expected = np.column_stack([grouped(probs[:, :2], index, "max"), grouped(probs[:, 2:], index, "min")])
    np.testing.assert_allclose(largest, expected, rtol=1e-9)
    pooled = pool_labels(labels, index, NAMES, exclusive=False)
    expected = np.column_stack([grouped(labels[:, :2], index, "max"), grouped(labels[:, 2:], index, "min")])
    np.testing.assert_array_equal(pooled, expected)
    assert (pooled[:, 2] == (pooled[:, :2] == 0).all(axis=1)).all()  # still without contradictions


def test_classes_are_pooled_by_their_mean_log_probability():
    _, probs, index = draw()
    probs = probs / probs.sum(axis=1, keepdims=True)
    pooled = pool_probs(probs, index, ("a", "b", "c"), "mean", exclusive=True)
    means = np.exp(grouped(np.log(probs), index, "mean"))
    np.testing.assert_allclose(pooled, means / means.sum(axis=1, keepdims=True), rtol=1e-9)


def test_one_picture_per_case_changes_nothing():
    labels, probs, _ = draw()
    index = np.arange(len(labels))
    for pooling in POOLINGS:
        np.testing.assert_allclose(pool_probs(probs, index, NAMES, pooling, exclusive=False), probs, rtol=1e-9)
    np.testing.assert_array_equal(pool_labels(labels, index, NAMES, exclusive=False), labels)
    classes = np.eye(3)[np.arange(90) % 3]
    np.testing.assert_array_equal(pool_labels(classes, index, ("a", "b", "c"), exclusive=True), classes)


def test_a_label_is_unknown_where_unknown_pictures_could_change_it():
    unknown = np.nan
    labels = np.array([[1, unknown, 0], [unknown, 0, unknown], [0, 0, unknown], [0, unknown, 1]], float)
    pooled = pool_labels(labels, np.array([0, 0, 1, 1]), NAMES, exclusive=False)
    np.testing.assert_array_equal(pooled, [[1, unknown, 0], [0, unknown, unknown]])


def test_a_case_of_several_classes_has_none():
    labels = np.eye(3)[[0, 0, 1, 2]]
    pooled = pool_labels(labels, np.array([0, 0, 1, 1]), ("a", "b", "c"), exclusive=True)
    np.testing.assert_array_equal(pooled, [[1, 0, 0], [np.nan] * 3])


def test_the_pooling_with_the_higher_auroc_is_chosen():
    labels, probs, index = draw(2)
    chosen, areas = choose_pooling(labels, probs, index, NAMES, exclusive=False)
    truth = pool_labels(labels, index, NAMES, exclusive=False)[:, :2]
    for pooling in POOLINGS:
        pooled = pool_probs(probs, index, NAMES, pooling, exclusive=False)[:, :2]
        assert areas[pooling] == pytest.approx(sklearn.metrics.roc_auc_score(truth, pooled, average="macro"))
    assert areas[chosen] == max(areas.values())
    # A finding in one picture of ten: its case has it, and the mean hides it.
    index, labels, probs = np.repeat(np.arange(20), 10), np.zeros((200, 1)), np.full((200, 1), 0.1)
    labels[:100:10], probs[:100:10], probs[100:] = 1, 0.9, 0.4
    assert choose_pooling(labels, probs, index, ("Mass",), exclusive=False)[0] == "largest"
    assert choose_pooling(np.eye(2)[index % 2], probs[:, [0, 0]], index, ("a", "b"), exclusive=True) == ("mean", {})
    assert choose_pooling(labels * 0, probs, index, ("Mass",), exclusive=False) == ("mean", {})


@pytest.mark.parametrize(("pooling", "exclusive"), [("median", False), ("largest", True)])
def test_other_poolings_are_refused(pooling, exclusive):
    with pytest.raises(ScoreError, match=f"Findings are pooled by mean or largest.* Received: pooling='{pooling}'"):
        pool_probs(np.ones((2, 2)), np.array([0, 1]), ("a", "b"), pooling, exclusive=exclusive)
