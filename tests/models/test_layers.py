import keras
import numpy as np
import pytest

from kmed.errors import ModelError
from kmed.models.layers import (
    BatchNormalization,
    Normalize,
    StochasticDepth,
    gelu,
    name_parts,
    swap_batch_norm,
)

only_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the fused kernel is TensorFlow's")
SHAPE = (4, 6, 5, 3)


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(2.0, 3.0, SHAPE).astype("float32")


def pair(shape=SHAPE, **kwargs):
    """Returns our layer and Keras' with the same random weights."""
    rng = np.random.default_rng(1)
    ours, stock = BatchNormalization(**kwargs), keras.layers.BatchNormalization(**kwargs)
    ours.build(shape)
    stock.build(shape)
    for mine, theirs in zip(ours.weights, stock.weights, strict=True):
        value = rng.uniform(0.5, 1.5, mine.shape)
        mine.assign(value)
        theirs.assign(value)
    return ours, stock


def test_inference_equals_keras(images):
    ours, stock = pair()
    np.testing.assert_allclose(ours(images, training=False), stock(images, training=False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}, {"momentum": 0.9, "epsilon": 1e-5}])
def test_training_equals_keras_except_for_the_unbiased_variance(images, options):
    ours, stock = pair(**options)
    old = np.asarray(ours.moving_variance)
    np.testing.assert_allclose(ours(images, training=True), stock(images, training=True), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours.moving_mean, stock.moving_mean, rtol=1e-5)
    count = np.prod(SHAPE[:3]) if keras.backend.backend() == "tensorflow" else np.inf
    unbiased = images.var(axis=(0, 1, 2)) / (1 - 1 / count)
    np.testing.assert_allclose(ours.moving_variance, old * ours.momentum + unbiased * (1 - ours.momentum), rtol=1e-4)


@only_tensorflow
def test_gradients_equal_keras(images):
    import tensorflow as tf

    target = np.random.default_rng(2).normal(size=SHAPE).astype("float32")
    gradients = []
    for layer in pair():
        inputs = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum((layer(inputs, training=True) - target) ** 2)
        gradients.append(tape.gradient(loss, [inputs, *(weight.value for weight in layer.trainable_weights)]))
    for mine, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-3, atol=1e-3)


def test_a_frozen_layer_runs_in_inference_mode(images):
    ours, _ = pair()
    expected = np.asarray(ours(images, training=False))
    ours.trainable = False
    before = [np.asarray(weight) for weight in ours.weights]
    np.testing.assert_array_equal(ours(images, training=True), expected)
    for weight, value in zip(ours.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


@only_tensorflow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_keeps_float32_statistics(images, dtype):
    ours, stock = pair(dtype=f"mixed_{dtype}")
    outputs = ours(images, training=True)
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
    assert {weight.dtype for weight in ours.weights} == {"float32"}
    expected = np.asarray(stock(images, training=True), "float32")
    np.testing.assert_allclose(np.asarray(outputs, "float32"), expected, atol=0.06)


@only_tensorflow
@pytest.mark.parametrize(
    ("shape", "options"),
    [((8, 3), {}), ((4, 3, 6, 5), {"axis": 1}), (SHAPE, {"synchronized": True}), (SHAPE, {"dtype": "float64"})],
)
def test_what_the_kernel_does_not_support_falls_back_to_keras(shape, options, monkeypatch):
    ours, stock = pair(shape, **options)
    monkeypatch.setattr(ours, "_fused", lambda *args: pytest.fail("the fused kernel was used"))
    x = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_array_equal(ours(x, training=True), stock(x, training=True))


@only_tensorflow
def test_the_fused_kernel_is_used(images, monkeypatch):
    ours, _ = pair()
    fused, calls = ours._fused, []
    monkeypatch.setattr(ours, "_fused", lambda *args: calls.append(1) or fused(*args))
    ours(images, training=True)
    ours(images, training=False)
    assert len(calls) == 2


def test_swap_keeps_names_weights_and_outputs_and_survives_saving(images, tmp_path):
    inputs = keras.Input(SHAPE[1:])
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    original = keras.Model(inputs, keras.layers.BatchNormalization(name="norm", epsilon=1e-4)(x))
    swapped = swap_batch_norm(original)
    assert type(swapped.get_layer("norm")) is BatchNormalization
    assert type(original.get_layer("norm")) is keras.layers.BatchNormalization
    assert swapped.get_layer("norm").epsilon == 1e-4
    assert [weight.path for weight in swapped.weights] == [weight.path for weight in original.weights]
    swapped.set_weights(original.get_weights())
    np.testing.assert_allclose(swapped(images), original(images), rtol=1e-4, atol=1e-5)
    swapped.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.get_layer("norm")) is BatchNormalization
    np.testing.assert_array_equal(loaded(images), swapped(images))


def test_a_name_without_the_pattern_is_refused():
    assert name_parts(r"block(\d)_(.+)", "block3_attn/qkv") == ("3", "attn/qkv")
    with pytest.raises(ModelError, match="'stem_conv' has no name in PyTorch"):
        name_parts(r"block(\d)_(.+)", "stem_conv")


def test_swap_refuses_an_unknown_choice():
    with pytest.raises(ModelError, match="Did you mean 'fused'"):
        swap_batch_norm(keras.Sequential([keras.Input((4, 4, 3))]), batch_norm="fussed")


def test_stochastic_depth_drops_whole_images_and_keeps_the_expectation():
    layer = StochasticDepth(0.25, seed=3)
    x = np.random.default_rng(0).uniform(1, 2, (2000, 2, 2, 1)).astype("float32")
    ratios = (np.asarray(layer(x, training=True)) / x).reshape(2000, -1).round(4)
    assert (ratios.max(axis=1) == ratios.min(axis=1)).all()
    assert set(np.unique(ratios)) == {0.0, np.float32(1.3333)}
    assert ratios.mean() == pytest.approx(1.0, abs=0.05)
    np.testing.assert_array_equal(layer(x, training=False), x)
    np.testing.assert_array_equal(StochasticDepth(0.0)(x, training=True), x)


def test_stochastic_depth_of_three_axes_and_its_config():
    layer = StochasticDepth.from_config(StochasticDepth(0.5, seed=1, name="path").get_config())
    assert (layer.rate, layer.seed, layer.name) == (0.5, 1, "path")
    ratios = np.asarray(layer(np.ones((64, 5, 2), "float32"), training=True))
    assert {tuple(np.unique(row)) for row in ratios} == {(0.0,), (2.0,)}
    with pytest.raises(ModelError, match="rate=1"):
        StochasticDepth(1)


def test_normalize_equals_the_formula_for_bytes_and_floats():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype("uint8")
    expected = (pixels / 255 - np.array(mean)) / np.array(std)
    layer = Normalize(mean, std)
    np.testing.assert_allclose(layer(pixels), expected, atol=1e-6)
    np.testing.assert_array_equal(layer(pixels), layer(pixels.astype("float32")))
    half = Normalize(mean, std, dtype="mixed_bfloat16")
    rounded = keras.ops.cast(keras.ops.convert_to_tensor(expected.astype("float32")), "bfloat16")
    difference = np.asarray(half(pixels.astype("float32")), "float32") - np.asarray(rounded, "float32")
    assert np.abs(difference).max() <= 2**-7  # one unit in the last place below 4: scaled before rounding


def test_gelu_equals_the_normal_distribution():
    from scipy.stats import norm

    x = np.linspace(-5, 5, 101, dtype="float32")
    np.testing.assert_allclose(gelu(keras.ops.convert_to_tensor(x)), x * norm.cdf(x), atol=1e-6)
