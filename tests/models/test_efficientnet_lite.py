"""EfficientNet-Lite: its layers are the published ones, and its published weights find their places."""

import json
import math
import pathlib
import re

import keras
import numpy as np
import pytest
import torch_writer

from kmed.errors import ModelError, WeightsError
from kmed.models import torch_files
from kmed.models.build import build_model
from kmed.models.efficientnet_lite import BATCH_NORM, cell_offset, rename, round_filters, scaled_blocks
from kmed.models.layers import StochasticDepth
from kmed.models.mobile_blocks import block_names
from kmed.models.weights import load_weights

SIZE = (32, 40)
REFERENCE = json.loads(
    (pathlib.Path(__file__).parents[1] / "reference" / "efficientnet_lite0.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def backbone():
    return build_model("efficientnetlite0", 3, SIZE).get_layer("backbone")


def of_class(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


@pytest.mark.parametrize(
    ("width", "depth", "filters", "blocks"),
    [  # Google's efficientnet/lite code, worked out by hand
        (1.0, 1.0, [16, 24, 40, 80, 112, 192, 320], [1, 2, 2, 3, 3, 4, 1]),
        (1.0, 1.1, [16, 24, 40, 80, 112, 192, 320], [1, 3, 3, 4, 4, 5, 1]),
        (1.1, 1.2, [16, 24, 48, 88, 120, 208, 352], [1, 3, 3, 4, 4, 5, 1]),
    ],
)
def test_widths_and_depths_are_the_published_ones(width, depth, filters, blocks):
    assert [round_filters(width * plain) for plain in (16, 24, 40, 80, 112, 192, 320)] == filters
    assert scaled_blocks(depth) == blocks


@pytest.mark.parametrize(("name", "last"), [("efficientnetlite0", 320), ("efficientnetlite2", 352)])
def test_stem_and_head_keep_their_width(name, last):
    layers = {layer.name: layer for layer in build_model(name, 3, SIZE).get_layer("backbone").layers}
    assert layers["stem_conv"].filters == 32 and layers["top_conv"].filters == 1280
    assert layers["block7a_project"].filters == last


def test_no_squeeze_no_swish_and_the_epsilon_of_the_weights(backbone):
    assert not of_class(backbone, (keras.layers.GlobalAveragePooling2D, keras.layers.Multiply))
    assert {layer.max_value for layer in of_class(backbone, keras.layers.ReLU)} == {6.0}
    assert not of_class(backbone, keras.layers.Activation)
    norms = of_class(backbone, keras.layers.BatchNormalization)
    assert {(norm.epsilon, norm.momentum) for norm in norms} == {(1e-3, 0.9)} == {tuple(BATCH_NORM.values())}
    # one behind each convolution, and none behind a projection is followed by ReLU6
    assert len(norms) == len(of_class(backbone, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)))
    assert len(of_class(backbone, keras.layers.ReLU)) == len(norms) - 16


def test_drop_rates_grow_linearly_over_the_blocks_with_a_shortcut():
    layers = build_model("efficientnetlite0", 3, SIZE, stochastic_depth_rate=0.4).get_layer("backbone").layers
    names = block_names(scaled_blocks(1.0))
    rates = {layer.name.removesuffix("drop"): layer.rate for layer in layers if isinstance(layer, StochasticDepth)}
    shortcuts = {layer.name.removesuffix("add") for layer in layers if isinstance(layer, keras.layers.Add)}
    assert set(rates) == shortcuts and len(shortcuts) == 9
    for name, rate in rates.items():
        assert rate == pytest.approx(0.4 * names.index(name) / len(names))
    with pytest.raises(ModelError, match="stochastic_depth_rate=1"):
        build_model("efficientnetlite0", 3, SIZE, stochastic_depth_rate=1)


@pytest.mark.parametrize("side", [257, 300, 320, 333])
def test_cells_are_centred_where_the_heat_maps_put_them(side):
    """The five halvings of the network along one axis, with kernels of ones: where do the cells look?"""
    images = keras.Input((side, 1, 1))
    x = images
    for size in (3, 3, 5, 3, 5):
        x = keras.layers.Conv2D(1, (size, 1), (2, 1), "same", use_bias=False, kernel_initializer="ones")(x)
    impulses = np.eye(side, dtype="float32")[:, :, None, None]
    cells = keras.Model(images, x).predict(impulses, verbose=0, batch_size=side)[:, :, 0, 0]  # (side, cells)
    assert cells.shape[1] == math.ceil(side / 32)
    for number in range(2, cells.shape[1] - 2):  # the whole field of these lies inside
        centre = np.average(np.arange(side), weights=cells[:, number])
        assert centre == pytest.approx(32 * number + cell_offset(side), abs=1e-3)


def published(tmp_path, transposed=True):
    """Writes the reference's weights as the published files are: old format, kernels stored transposed."""
    import deterministic_weights

    arrays = deterministic_weights.state(REFERENCE["state"])
    path = tmp_path / "efficientnet-lite0.pth"
    path.write_bytes(
        torch_writer.old_file(
            torch_writer.state_dict(arrays, old=True, transposed=transposed),
            torch_writer.blocks(arrays, transposed=transposed),
        )
    )
    return path


def relative_error(path):
    """Returns how far the logits with these weights are from the reference's, as a fraction of the largest."""
    import deterministic_weights

    model = build_model(
        "efficientnet_lite0", 4, REFERENCE["input_shape"][1:3], activation=None, normalization=([0.5] * 3, [0.5] * 3)
    )
    load_weights(model, path)
    pixels = (deterministic_weights.images(*REFERENCE["input_shape"]) * 0.5 + 0.5) * 255
    logits, expected = np.asarray(model(pixels.astype("float32"))), np.array(REFERENCE["logits"])
    return np.abs(logits - expected).max() / np.abs(expected).max()


def test_a_published_file_gives_the_reference_logits(tmp_path):
    assert relative_error(published(tmp_path)) <= 1e-4


def test_a_reader_that_ignores_the_strides_would_be_found(tmp_path, monkeypatch):
    """The planted mistake: a network that loads without a word, and is nonsense."""

    def contiguous(tensor, load):
        return load(tensor.storage)[tensor.offset :][: math.prod(tensor.shape)].reshape(tensor.shape)

    monkeypatch.setattr(torch_files, "_to_array", contiguous)
    assert relative_error(published(tmp_path)) > 0.1
    (tmp_path / "contiguous").mkdir()
    assert relative_error(published(tmp_path / "contiguous", transposed=False)) <= 1e-4  # only the strides matter


def test_every_published_name_is_known():
    renamed = rename({name: None for name, _ in REFERENCE["state"]})
    assert len(renamed) == len(REFERENCE["state"])
    assert not [name for name in renamed if name.startswith("_")]
    assert {"conv_stem.weight", "blocks.0.0.conv_pw.weight", "blocks.6.0.bn3.running_var", "classifier.bias"} <= set(
        renamed
    )
    assert rename(renamed) == renamed  # timm's names are left as they are


def test_another_number_of_blocks_fits_none():
    with pytest.raises(WeightsError, match=re.escape("The weights have 3 blocks, which fits no EfficientNet-Lite.")):
        rename({"_conv_stem.weight": None, "_blocks.2._bn1.weight": None})
