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


# ---- A teacher --------------------------------------------------------------------------------------


def softened(probs, temperature, exclusive):
    """Returns float64 (N, K, J), the probabilities of the J answers to each question: K classes, or yes and no."""
    if exclusive:
        powers = probs.astype(float)[:, None, :] ** (1 / temperature)
    else:
        powers = np.stack([probs.astype(float), 1 - probs.astype(float)], axis=-1) ** (1 / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


def divergence_oracle(taught, probs, temperature, exclusive):
    """Returns (N,): KL by its definition; powers 1/T of probabilities are what logits divided by T give."""
    wanted, found = softened(taught, temperature, exclusive), softened(probs, temperature, exclusive)
    return (wanted * np.log(wanted / found)).sum(axis=-1).mean(axis=-1)


def draw_both(exclusive, num_images=40, num_classes=5):
    """Returns (labels, the teacher's probabilities, the student's), float32 (N, K)."""
    labels, probs, logits = draw(num_images, num_classes, unknown=0 if exclusive else 0.3)
    taught = draw(num_images, num_classes, seed=1)[2]
    if not exclusive:
        return labels, 1 / (1 + np.exp(-taught)), probs
    exponents = [np.exp(each) for each in (taught, logits)]
    one_hot = np.eye(num_classes, dtype="float32")[np.arange(num_images) % num_classes]
    return one_hot, *(each / each.sum(axis=1, keepdims=True) for each in exponents)


HARD = {True: keras.losses.CategoricalCrossentropy(), False: MaskedBinaryCrossentropy()}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("exclusive", [True, False], ids=["multiclass", "multilabel"])
def test_distillation_equals_its_definition(exclusive, temperature):
    labels, taught, probs = draw_both(exclusive)
    weights = np.random.default_rng(2).random(len(labels)).astype("float32")
    each = divergence_oracle(taught, probs, temperature, exclusive)
    task = TASKS["multiclass" if exclusive else "multilabel"]
    for sample_weight in (None, weights):
        loss = task.make_distillation(HARD[exclusive], temperature=temperature, weight=0.3)
        hard = float(HARD[exclusive](labels, probs, sample_weight=sample_weight))
        soft = np.mean(each * (1 if sample_weight is None else sample_weight))
        value = float(loss(np.concatenate([labels, taught], axis=1), probs, sample_weight=sample_weight))
        assert value == pytest.approx(0.7 * hard + 0.3 * temperature**2 * soft, rel=1e-4)


@pytest.mark.parametrize("exclusive", [True, False], ids=["multiclass", "multilabel"])
def test_the_weight_goes_from_the_labels_alone_to_the_teacher_alone(exclusive):
    labels, taught, probs = draw_both(exclusive)
    both, name = np.concatenate([labels, taught], axis=1), "softmax" if exclusive else "sigmoid"
    labels_only = losses.DistillationLoss(HARD[exclusive], name, weight=0.0)(both, probs)
    assert float(labels_only) == float(HARD[exclusive](labels, probs))  # to the bit
    teacher_only = losses.DistillationLoss(HARD[exclusive], name, weight=1.0)
    other = np.concatenate([1 - labels, taught], axis=1)  # NaN where unknown, in both
    assert float(teacher_only(both, probs)) == float(teacher_only(other, probs)) > 0
    agreed = np.concatenate([labels, probs], axis=1)
    assert float(teacher_only(agreed, probs)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("exclusive", [True, False], ids=["multiclass", "multilabel"])
def test_at_a_high_temperature_the_logits_are_compared(exclusive):
    labels, taught, probs = draw_both(exclusive)
    logits = [np.log(each) - (0 if exclusive else np.log(1 - each)) for each in (taught, probs)]
    apart = logits[0] - logits[1]
    # What T^2 KL tends to (Hinton et al., 2015, section 2.1): it does not shrink with T.
    limit = ((apart - apart.mean(axis=1, keepdims=True)) ** 2).mean() / 2 if exclusive else (apart**2).mean() / 8
    for temperature in (50.0, 100.0):
        loss = losses.DistillationLoss(HARD[exclusive], "softmax" if exclusive else "sigmoid", temperature, weight=1.0)
        assert float(loss(np.concatenate([labels, taught], axis=1), probs)) == pytest.approx(limit, rel=0.1)


@pytest.mark.parametrize("exclusive", [True, False], ids=["multiclass", "multilabel"])
def test_certain_answers_have_a_finite_loss_and_gradient(exclusive):
    tf = pytest.importorskip("tensorflow", reason="gradients are taken with TensorFlow")
    certain = tf.constant([[0.0, 1.0], [1.0, 0.0]])
    logits = tf.Variable([[150.0, -150.0], [-30.0, 30.0]])
    loss = losses.DistillationLoss(HARD[exclusive], "softmax" if exclusive else "sigmoid")
    with tf.GradientTape() as tape:
        probs = (keras.activations.softmax if exclusive else keras.activations.sigmoid)(logits)
        value = loss(tf.concat([certain, certain], axis=1), probs)
    assert np.isfinite(value) and np.isfinite(tape.gradient(value, logits)).all()


def test_a_distillation_loss_survives_its_config():
    labels, taught, probs = draw_both(False)
    loss = losses.DistillationLoss(MaskedBinaryCrossentropy(positive_weights=[1, 2, 3, 4, 5]), "sigmoid", 2.0, 0.25)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    both = np.concatenate([labels, taught], axis=1)
    assert float(again(both, probs)) == float(loss(both, probs))


@pytest.mark.parametrize("wrong", [{"activation": "relu"}, {"temperature": 0}, {"weight": -0.1}, {"weight": 1.1}])
def test_bad_arguments_of_distillation(wrong):
    with pytest.raises(ConfigError, match="a temperature above 0 and a weight in"):
        losses.DistillationLoss(HARD[True], **{"activation": "softmax", **wrong})
