"""Laws of the losses: only known labels count; scikit-learn is the oracle."""

import dataclasses

import keras
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics

from kmed import losses
from kmed.config import load_config
from kmed.data.table import Table
from kmed.errors import ConfigError
from kmed.losses import AsymmetricLoss, MaskedBinaryCrossentropy
from kmed.tasks import TASKS
from kmed.training.fit import check_settings, with_task
from kmed.training.loop import make_loss

LOSSES = [MaskedBinaryCrossentropy(), MaskedBinaryCrossentropy(positive_weights=[1, 2, 3, 4, 5]), AsymmetricLoss()]


def draw(num_images=40, num_classes=5, unknown=0.3, seed=0):
    """Returns (labels, probs, logits), float32 (N, K), with a share of the labels unknown."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (num_images, num_classes)).astype("float32")
    labels[rng.random(labels.shape) < unknown] = np.nan
    logits = rng.normal(0, 2, labels.shape).astype("float32")
    return labels, 1 / (1 + np.exp(-logits)), logits


def test_equals_scikit_learn_on_the_known_labels():
    labels, probs, _ = draw()
    known = ~np.isnan(labels)
    expected = sklearn.metrics.log_loss(labels[known], probs[known])
    assert float(MaskedBinaryCrossentropy()(labels, probs)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_keras_if_all_labels_are_known(label_smoothing, weighted):
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
    expected = float(kept) * known[1::2].sum() / known.sum()  # as in Keras, weights do not change the divisor
    assert float(MaskedBinaryCrossentropy()(labels, probs, sample_weight=weight)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_prediction_for_an_unknown_label_does_not_matter(loss):
    labels, probs, _ = draw()
    other = np.where(np.isnan(labels), 1 - probs, probs)
    assert float(loss(labels, probs)) == float(loss(labels, other))


@pytest.mark.parametrize("loss", LOSSES)
def test_all_unknown_is_zero(loss):
    labels = np.full((3, 5), np.nan, "float32")
    assert float(loss(labels, np.full((3, 5), 0.7, "float32"))) == 0


@pytest.mark.parametrize("from_logits", [False, True])
def test_positive_weights_are_scikit_learns_sample_weights(from_logits):
    labels, probs, logits = draw()
    weights = np.array([1.0, 2.0, 0.5, 10.0, 3.0])
    known = ~np.isnan(labels)
    each = np.where(labels == 1, weights, 1.0)[known]
    expected = sklearn.metrics.log_loss(labels[known], probs[known], sample_weight=each) * each.sum() / known.sum()
    loss = MaskedBinaryCrossentropy(positive_weights=weights, from_logits=from_logits)
    assert float(loss(labels, logits if from_logits else probs)) == pytest.approx(expected, rel=1e-4)


def test_asymmetric_without_asymmetry_is_cross_entropy_and_focal():
    labels, probs, _ = draw(unknown=0)
    plain = AsymmetricLoss(gamma_positive=0, gamma_negative=0, margin=0)
    assert float(plain(labels, probs)) == pytest.approx(float(MaskedBinaryCrossentropy()(labels, probs)), rel=1e-4)
    focal = keras.losses.BinaryFocalCrossentropy(gamma=2.0)
    ours = AsymmetricLoss(gamma_positive=2, gamma_negative=2, margin=0)
    assert float(ours(labels, probs)) == pytest.approx(float(focal(labels, probs)), rel=1e-4)


def test_asymmetric_by_hand():
    labels, probs = np.array([[1.0, 0.0, 0.0]], "float32"), np.array([[0.8, 0.3, 0.04]], "float32")
    positive = -(0.2**1) * np.log(0.8)
    negative = -(0.25**4) * np.log(0.75)  # 0.3 - 0.05; the last one is below the margin and costs nothing
    loss = AsymmetricLoss(gamma_positive=1, gamma_negative=4, margin=0.05)
    assert float(loss(labels, probs)) == pytest.approx((positive + negative) / 3, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_finite_at_the_ends(loss):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5, activation="sigmoid")])
    model.compile(keras.optimizers.SGD(0.01), loss=loss)
    inputs = np.full((4, 5), 1e4, "float32")  # probabilities of exactly 0 and 1
    labels = np.array([[1, 0, np.nan, 1, 0]] * 4, "float32")
    assert np.isfinite(model.train_on_batch(inputs, labels))
    assert all(np.isfinite(keras.ops.convert_to_numpy(weight)).all() for weight in model.weights)


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


@pytest.mark.parametrize(
    "loss",
    [
        MaskedBinaryCrossentropy(from_logits=True, label_smoothing=0.2, reduction="sum", positive_weights=[1, 2]),
        AsymmetricLoss(gamma_positive=1, gamma_negative=3, margin=0.1, name="other"),
    ],
)
def test_survives_serialisation(loss):
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is type(loss)
    assert again.get_config() == loss.get_config()


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0, float("nan")])
def test_label_smoothing_out_of_range(label_smoothing):
    with pytest.raises(ConfigError, match="Received: label_smoothing="):
        MaskedBinaryCrossentropy(label_smoothing=label_smoothing)


@pytest.mark.parametrize("arguments", [{"margin": 1.0}, {"gamma_negative": -1.0}, {"gamma_positive": float("nan")}])
def test_asymmetric_arguments_out_of_range(arguments):
    with pytest.raises(ConfigError, match="powers of at least 0 and a margin"):
        AsymmetricLoss(**arguments)


def test_positive_weights_out_of_range():
    with pytest.raises(ConfigError, match="positive_weights must be above 0"):
        MaskedBinaryCrossentropy(positive_weights=[1.0, 0.0])


# ----- by name -----


def test_a_loss_is_a_function_and_its_rows(monkeypatch):
    """A loss of LOSSES that a task's row names is legal in the settings and used in training."""

    def make_brier(label_smoothing, positive_weights):
        return keras.losses.MeanSquaredError(name="brier")

    monkeypatch.setitem(losses.LOSSES, "brier", make_brier)
    task = dataclasses.replace(TASKS["multilabel"], losses=(*TASKS["multilabel"].losses, "brier"))
    monkeypatch.setitem(TASKS, "multilabel", task)
    for name in ("multilabel", "auto"):
        config = load_config(overrides=[f"task={name}", "train.loss=brier"])
        check_settings(config)
    labels, probs, _ = draw(unknown=0)
    rows = pd.DataFrame(
        dict.fromkeys(("path", "group", "cluster", "split"), [str(number) for number in range(len(labels))])
    )
    table = Table(rows, labels, tuple("abcde"), "multilabel", "drawn")
    loss = make_loss(with_task(config, "multilabel"), table)
    assert float(loss(labels, probs)) == pytest.approx(np.mean((labels - probs) ** 2), rel=1e-5)
    with pytest.raises(ConfigError, match="train.loss of multiclass must be crossentropy. Received: 'brier'."):
        check_settings(load_config(overrides=["task=multiclass", "train.loss=brier"]))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "multilabel",
            "train.loss of multilabel must be bce or weighted_bce or focal or asymmetric. Received: 'focall'. Did",
        ),
        ("multiclass", "train.loss of multiclass must be crossentropy. Received: 'focall'."),
        (
            "auto",
            "train.loss must be crossentropy or bce or .* or asymmetric. Received: 'focall'. Did you mean 'focal'",
        ),
    ],
)
def test_a_misspelt_loss_is_one_line(task, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_settings(load_config(overrides=[f"task={task}", "train.loss=focall"]))
    assert "\n" not in str(caught.value)
