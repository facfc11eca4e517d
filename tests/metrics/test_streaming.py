"""Laws of the streaming metrics: batches = whole, masked = filtered, weight 2 = twice; scikit-learn as the oracle."""

import keras
import numpy as np
import pytest
import sklearn.metrics

from kmed.errors import ConfigError
from kmed.metrics.streaming import ExactMatchRatio, HammingLoss, MacroAUROC

METRICS = [ExactMatchRatio, HammingLoss]


def draw(num_images=50, num_classes=4, unknown=0.3, seed=0):
    """Returns (labels, probs), float32 (N, K), with a share of unknown labels and some probs at 0.5."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (num_images, num_classes)).astype("float32")
    probs = np.clip(0.6 * labels + rng.integers(0, 6, labels.shape) / 10, 0, 1).astype("float32")
    labels[rng.random(labels.shape) < unknown] = np.nan
    return labels, probs


def value_of(metric, *batches):
    for batch in batches:
        metric.update_state(*batch)
    return float(metric.result())


def test_scikit_learn_agrees_with_weights():
    labels, probs = draw(unknown=0)
    weight = np.random.default_rng(1).random(len(labels)).astype("float32")
    guesses = probs >= 0.5
    exact = sklearn.metrics.accuracy_score(labels, guesses, sample_weight=weight)
    hamming = sklearn.metrics.hamming_loss(labels, guesses, sample_weight=weight)
    assert value_of(ExactMatchRatio(), (labels, probs, weight)) == pytest.approx(exact, rel=1e-5)
    assert value_of(HammingLoss(), (labels, probs, weight)) == pytest.approx(hamming, rel=1e-5)


def test_by_hand():
    labels = np.array([[1, 0], [1, np.nan], [np.nan, np.nan], [0, 0]], "float32")
    probs = np.array([[0.9, 0.1], [0.2, 0.9], [0.9, 0.9], [0.1, 0.5]], "float32")
    assert value_of(HammingLoss(), (labels, probs)) == pytest.approx(2 / 5)  # wrong: row 1's first, row 3's last
    assert value_of(ExactMatchRatio(), (labels, probs)) == pytest.approx(1 / 3)  # row 2 is unknown, and left out


@pytest.mark.parametrize("metric", METRICS)
def test_batches_equal_whole(metric):
    labels, probs = draw()
    parts = [(labels[:7], probs[:7]), (labels[7:8], probs[7:8]), (labels[8:], probs[8:])]
    assert value_of(metric(), *parts) == pytest.approx(value_of(metric(), (labels, probs)), rel=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_weights_repeat_and_remove_images(metric):
    labels, probs = draw()
    weight = np.arange(len(labels)) % 3
    repeated = (np.repeat(labels, weight, axis=0), np.repeat(probs, weight, axis=0))
    assert value_of(metric(), (labels, probs, weight)) == pytest.approx(value_of(metric(), repeated), rel=1e-5)


def test_masked_equals_filtered():
    labels, probs = draw()
    known = ~np.isnan(labels)
    filtered = (labels[known][:, None], probs[known][:, None])
    assert value_of(HammingLoss(), (labels, probs)) == pytest.approx(value_of(HammingLoss(), filtered), rel=1e-6)
    kept = known.all(axis=1)
    labels[~kept] = np.nan
    expected = value_of(ExactMatchRatio(), (labels[kept], probs[kept]))
    assert value_of(ExactMatchRatio(), (labels, probs)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_reset_and_nothing_known(metric):
    labels, probs = draw()
    made = metric()
    first = value_of(made, (labels, probs))
    made.reset_state()
    assert value_of(made, (np.full_like(labels, np.nan), probs)) == 0
    assert value_of(made, (labels, probs)) == first


def test_threshold_counts_as_predicted():
    labels, probs = np.ones((1, 1), "float32"), np.full((1, 1), 0.25, "float32")
    assert value_of(HammingLoss(threshold=0.25), (labels, probs)) == 0
    assert value_of(HammingLoss(threshold=0.26), (labels, probs)) == 1


@pytest.mark.parametrize("metric", METRICS)
def test_survives_serialisation_and_fits(metric):
    made = keras.metrics.deserialize(keras.metrics.serialize(metric(threshold=0.3)))
    assert type(made) is metric
    assert made.threshold == 0.3
    labels, _ = draw()
    inputs = np.random.default_rng(0).normal(size=(len(labels), 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="sigmoid")])
    model.compile(metrics=[made], loss=lambda y_true, y_pred: y_pred)
    value = model.evaluate(inputs, labels, batch_size=16, verbose=0, return_dict=True)[made.name]
    probs = model.predict(inputs, verbose=0)
    assert value == pytest.approx(value_of(metric(threshold=0.3), (labels, probs)), rel=1e-5)


def macro_auroc(labels, probs, weight=None):
    """Returns scikit-learn's mean over the labels that have both a 0 and a 1."""
    areas = []
    for truth, prob in zip(labels.T, probs.T):
        known = ~np.isnan(truth)
        if len(np.unique(truth[known])) == 2:
            weights = None if weight is None else weight[known]
            areas.append(sklearn.metrics.roc_auc_score(truth[known], prob[known], sample_weight=weights))
    return np.mean(areas)


@pytest.mark.parametrize("weighted", [False, True])
def test_macro_auroc_is_scikit_learns(weighted):
    labels, probs = draw(num_images=500)
    probs = probs * 0.04  # the probabilities of rare labels are all small
    weight = np.random.default_rng(2).integers(0, 3, len(labels)).astype("float32") if weighted else None
    made = MacroAUROC(4)
    for rows in (slice(0, 33), slice(33, 500)):
        made.update_state(labels[rows], probs[rows], None if weight is None else weight[rows])
    assert float(made.result()) == pytest.approx(macro_auroc(labels, probs, weight), abs=2e-3)
    assert made.num_left_out == 0


def test_macro_auroc_leaves_out_and_counts_labels_of_one_class():
    labels, probs = draw(num_images=200)
    labels[:, 1] = 0
    labels[:, 2] = np.where(np.isnan(labels[:, 2]), np.nan, 1)
    made = MacroAUROC(4)
    assert value_of(made, (labels, probs)) == pytest.approx(macro_auroc(labels, probs), abs=2e-3)
    assert made.num_left_out == 2
    stock = keras.metrics.AUC(multi_label=True, num_labels=4)  # why this metric exists
    stock.update_state(np.nan_to_num(labels), probs)
    assert float(stock.result()) < float(made.result()) - 0.2


def test_macro_auroc_ignores_labels_that_are_not_findings():
    labels, probs = draw(num_images=200)
    made = MacroAUROC(4, ignored=[3])
    assert value_of(made, (labels, probs)) == pytest.approx(macro_auroc(labels[:, :3], probs[:, :3]), abs=2e-3)
    again = keras.metrics.deserialize(keras.metrics.serialize(made))
    assert value_of(again, (labels, probs)) == float(made.result())
    with pytest.raises(ConfigError, match="needs at least one label"):
        MacroAUROC(1, ignored=[0])


def test_macro_auroc_of_constants_and_of_nothing():
    labels, probs = draw()
    assert value_of(MacroAUROC(4), (labels, np.full_like(probs, 0.3))) == 0.5
    nothing = MacroAUROC(4)
    assert np.isnan(value_of(nothing, (np.full_like(labels, np.nan), probs)))
    assert nothing.num_left_out == 4
