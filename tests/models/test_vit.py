import keras
import numpy as np
import pytest

from kmed.errors import ModelError
from kmed.models.build import build_model
from kmed.models.layers import Attention, StochasticDepth
from kmed.models.vit import resize_positions

SMALL = {"width": 16, "depth": 3, "num_heads": 4}


def test_attention_equals_keras_multi_head_attention():
    x = np.random.default_rng(0).normal(size=(2, 7, 12)).astype("float32")
    ours = Attention(3)
    ours.build(x.shape)
    rng = np.random.default_rng(1)
    for weight in ours.weights:
        weight.assign(rng.normal(size=weight.shape))
    theirs = keras.layers.MultiHeadAttention(3, 4)
    theirs(x, x)
    kernels = np.split(np.asarray(ours.qkv.kernel), 3, axis=1)
    biases = np.split(np.asarray(ours.qkv.bias), 3)
    parts = [
        part
        for kernel, bias in zip(kernels, biases, strict=True)
        for part in (kernel.reshape(12, 3, 4), bias.reshape(3, 4))
    ]
    theirs.set_weights([*parts, np.asarray(ours.proj.kernel).reshape(3, 4, 12), np.asarray(ours.proj.bias)])
    np.testing.assert_allclose(ours(x), theirs(x, x), rtol=1e-4, atol=1e-4)


def test_attention_drops_weights_in_training_only():
    x = np.random.default_rng(0).normal(size=(1, 50, 8)).astype("float32")
    layer = Attention(2, dropout=0.5)
    inference = np.asarray(layer(x))
    np.testing.assert_array_equal(layer(x, training=False), inference)
    draws = np.stack([np.asarray(layer(x, training=True)) for _ in range(300)])
    assert not np.allclose(draws[0], draws[1])
    np.testing.assert_allclose(draws.mean(axis=0), inference, atol=6 * draws.std() / 300**0.5)


def test_every_hyperparameter_has_an_effect():
    model = build_model("vit", 3, (24, 36), patch_size=12, mlp_ratio=2, dropout=0.1, attention_dropout=0.2, **SMALL)
    backbone = model.get_layer("backbone")
    assert backbone.output_shape == (None, 1 + 2 * 3, 16)
    assert backbone.get_layer("block2_fc1").units == 32
    assert backbone.get_layer("block0_attn").num_heads == 4
    assert backbone.get_layer("block0_attn").dropout == 0.2
    rates = {layer.rate for layer in backbone.layers if isinstance(layer, keras.layers.Dropout)}
    assert rates == {0.1}
    assert "block3_attn" not in [layer.name for layer in backbone.layers]


def test_defaults_are_the_documented_ones():
    backbone = build_model("vit", 4, (16, 16)).get_layer("backbone")
    assert {layer.rate for layer in backbone.layers if isinstance(layer, keras.layers.Dropout)} == {0.3}
    assert backbone.get_layer("block5_attn").dropout == 0.3


def test_stochastic_depth_grows_to_the_last_block():
    layers = build_model("vit", 3, (16, 16), stochastic_depth_rate=0.2, **SMALL).get_layer("backbone").layers
    assert [layer.rate for layer in layers if isinstance(layer, StochasticDepth)] == [0, 0, 0.1, 0.1, 0.2, 0.2]


@pytest.mark.parametrize(
    ("size", "message"),
    [((30, 40), "24x40 and 32x40"), ((30, 44), "24x40 and 32x48"), ((17, 9), "16x8 and 24x16")],
)
def test_an_image_size_that_patches_do_not_tile_gets_the_nearest_sizes(size, message):
    with pytest.raises(ModelError, match=message):
        build_model("vit", 3, size, **SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"depth": 1.5}, "depth=1.5"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
        ({"attention_dropout": 1.0}, "attention_dropout=1.0"),
        ({"attention_droput": 0.1}, "Did you mean 'attention_dropout'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ModelError, match=message):
        build_model("vit", 3, (16, 16), **{**SMALL, **options})


def test_positions_resized_to_their_own_grid_are_unchanged():
    positions = np.random.default_rng(0).normal(size=(1, 1 + 12, 5)).astype("float32")
    np.testing.assert_allclose(resize_positions(positions, (3, 4), (3, 4)), positions, atol=1e-6)


def test_resized_positions_keep_token_and_slope():
    rows, columns = np.meshgrid(np.arange(8.0), np.arange(10.0), indexing="ij")
    patches = np.stack([rows, columns], axis=-1).reshape(1, 80, 2).astype("float32")
    positions = np.concatenate([np.full((1, 1, 2), 7, "float32"), patches], axis=1)
    resized = resize_positions(positions, (8, 10), (16, 20))
    assert resized.shape == (1, 1 + 320, 2)
    np.testing.assert_array_equal(resized[:, 0], 7)
    inner = resized[0, 1:].reshape(16, 20, 2)[4:-4, 4:-4]
    np.testing.assert_allclose(np.diff(inner[..., 0], axis=0), 0.5, atol=1e-4)
    np.testing.assert_allclose(np.diff(inner[..., 1], axis=1), 0.5, atol=1e-4)
