"""Laws of the losses: known labels alone count; scikit-learn as the oracle."""

import keras
import numpy as np
import pytest
import sklearn.metrics

from kmed.errors import ConfigError
from kmed.losses import MaskedBinaryCrossentropy


def draw(num_images=40, num_classes=5, unknown=0.3, seed=0):
    """Returns (labels, probs, logits), float32 (N, K), with a share of the labels unknown."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (num_images, num_classes)).astype("float32")
    labels[rng.random(labels.shape) < unknown] = np.nan
    logits = rng.normal(0, 2, labels.shape).astype("float32")
    return labels, 1 / (1 + np.exp(-logits)), logits


def test_equals_scikit_learn_on_the_known_labels_alone():
    labels, probs, _ = draw()
    known = ~np.isnan(labels)
    expected = sklearn.metrics.log_loss(labels[known], probs[known])
    assert float(MaskedBinaryCrossentropy()(labels, probs)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_keras_where_all_labels_are_known(label_smoothing, weighted):
    labels, probs, _ = draw(unknown=0)
    weight = np.random.default_rng(1).random(len(labels)).astype("float32") if weighted else None
    expected = keras.losses.BinaryCrossentropy(label_smoothing=label_smoothing)(labels, probs, sample_weight=weight)
    value = MaskedBinaryCrossentropy(label_smoothing=label_smoothing)(labels, probs, sample_weight=weight)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_logits_equal_probabilities():
    labels, probs, logits = draw()
    from_logits = MaskedBinaryCrossentropy(from_logits=True, label_smoothing=0.05)(labels, logits)
    assert float(from_logits) == pytest.approx(
        float(MaskedBinaryCrossentropy(label_smoothing=0.05)(labels, probs)), rel=1e-4
    )


def test_weight_zero_equals_removal_up_to_the_divisor():
    labels, probs, _ = draw()
    weight = (np.arange(len(labels)) % 2).astype("float32")
    known = ~np.isnan(labels)
    kept = MaskedBinaryCrossentropy()(labels[1::2], probs[1::2])
    expected = float(kept) * known[1::2].sum() / known.sum()  # as in Keras, weights do not enter the divisor
    assert float(MaskedBinaryCrossentropy()(labels, probs, sample_weight=weight)) == pytest.approx(expected, rel=1e-5)


def test_prediction_for_an_unknown_label_does_not_matter():
    labels, probs, _ = draw()
    other = np.where(np.isnan(labels), 1 - probs, probs)
    assert float(MaskedBinaryCrossentropy()(labels, probs)) == float(MaskedBinaryCrossentropy()(labels, other))


def test_all_unknown_is_zero():
    labels = np.full((3, 2), np.nan, "float32")
    assert float(MaskedBinaryCrossentropy()(labels, np.full((3, 2), 0.7, "float32"))) == 0


@pytest.mark.parametrize("from_logits", [False, True])
def test_unknown_labels_have_no_gradient(from_logits):
    inputs = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    labels = np.tile(np.array([[1.0, np.nan]], "float32"), (6, 1))
    activation = None if from_logits else "sigmoid"
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation=activation)])
    model.compile(keras.optimizers.SGD(0.5), loss=MaskedBinaryCrossentropy(from_logits=from_logits))
    before = keras.ops.convert_to_numpy(model.layers[-1].kernel).copy()
    assert np.isfinite(model.train_on_batch(inputs, labels))
    after = keras.ops.convert_to_numpy(model.layers[-1].kernel)
    assert np.abs(after - before)[:, 0].min() > 0
    np.testing.assert_array_equal(after[:, 1], before[:, 1])


def test_survives_serialisation():
    loss = MaskedBinaryCrossentropy(from_logits=True, label_smoothing=0.2, reduction="sum")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is MaskedBinaryCrossentropy
    assert again.get_config() == loss.get_config()


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0, float("nan")])
def test_label_smoothing_out_of_range(label_smoothing):
    with pytest.raises(ConfigError, match="Received: label_smoothing="):
        MaskedBinaryCrossentropy(label_smoothing=label_smoothing)
