"""EfficientNet-Lite 0 to 2 (Google, 2020): EfficientNet for phones, with weights that survive rounding to 8 bits.

Compared with EfficientNet there is no squeeze-and-excitation, and ReLU6 takes the place of swish. Convolutions pad as
TensorFlow does ("same"): where a side is even, a convolution of stride 2 pads only below and on the right.
"""

import math
import re
import string
from collections.abc import Mapping

import keras
import numpy as np
from keras import layers

from kmed.errors import WeightsError
from kmed.models.layers import StochasticDepth, check_fraction, choose_batch_norm, compute_dtype
from kmed.models.mobile_blocks import HEAD_FILTERS, STAGES, STEM_FILTERS, block_names, drop_rates, timm_name
from kmed.models.registry import MODELS

HEAD = "classifier"
torch_name = timm_name

BATCH_NORM = {"epsilon": 1e-3, "momentum": 0.9}  # the epsilon of the published weights
LARGEST = 6.0  # of ReLU6


def build(
    name: str, image_size: tuple[int, int], *, stochastic_depth_rate: float = 0.2, batch_norm: str = "fused"
) -> keras.Model:
    """Returns the convolutional part: (N, H, W, 3) -> (N, H/32, W/32, 1280), sizes rounded up.

    Args:
      name: an EfficientNet-Lite of `kmed.models.registry.MODELS`, whose row holds the published width and depth.
      image_size: (height, width) in pixels.
      stochastic_depth_rate: in [0, 1); the drop rate grows from 0 at the first block to nearly this value at the last.
      batch_norm: "fused", or "keras" for Keras' own layer.
    Raises: ModelError: an option that is out of range.
    """
    check_fraction(stochastic_depth_rate=stochastic_depth_rate)
    norm_class = choose_batch_norm(batch_norm)
    width, depth = MODELS[name].variant
    num_blocks = scaled_blocks(depth)
    rates = drop_rates(num_blocks, stochastic_depth_rate)

    images = keras.Input((*image_size, 3), dtype=compute_dtype(), name="images")
    x = _convolve(images, STEM_FILTERS, 3, 2, "stem_conv")  # (N, H/2, W/2, 32)
    x = _normalize(x, norm_class, "stem_bn")
    names = iter(block_names(num_blocks))
    for stage, count in zip(STAGES, num_blocks, strict=True):
        filters = round_filters(stage.filters * width)
        for number in range(count):
            block, stride = next(names), stage.stride if number == 0 else 1
            x = _block(x, filters, stage.kernel_size, stride, stage.expansion, block, rates[block], norm_class)
    x = _convolve(x, HEAD_FILTERS, 1, 1, "top_conv")  # (N, H/32, W/32, 1280)
    return keras.Model(images, _normalize(x, norm_class, "top_bn"), name="backbone")


def scaled_blocks(depth: float) -> list[int]:
    """Returns the number of blocks per stage; the first and the last stage are never scaled."""
    last = len(STAGES) - 1
    return [
        stage.num_blocks if index in (0, last) else math.ceil(stage.num_blocks * depth)
        for index, stage in enumerate(STAGES)
    ]


def round_filters(filters: float) -> int:
    """Returns the multiple of 8 nearest to `filters`, or the next one if that would lose more than a tenth."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded


def cell_offset(side: int) -> float:
    """Returns the pixel, along an axis of `side` pixels, at which the first cell of the last map is centred.

    Each of the five halvings is centred on the odd positions if its input has an even number of them, and on the even
    positions otherwise.
    """
    offset, step = 0, 1
    for _ in range(5):
        offset += step if side % 2 == 0 else 0
        step, side = 2 * step, math.ceil(side / 2)
    return offset


def rename(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a checkpoint under timm's names, if it has those of Google's weights as they were ported to PyTorch.

    Raises: WeightsError: another number of blocks than any EfficientNet-Lite has.
    """
    if "_conv_stem.weight" not in arrays:
        return dict(arrays)
    last = max((int(match[1]) for key in arrays if (match := re.match(r"_blocks\.(\d+)\.", key))), default=-1)
    blocks = next((counts for counts in map(scaled_blocks, _depths()) if sum(counts) == last + 1), None)
    if blocks is None:
        raise WeightsError(f"The weights have {last + 1} blocks, which fits no EfficientNet-Lite.")
    places = [(stage, number) for stage, count in enumerate(blocks) for number in range(count)]
    return {_timm_key(key, places): array for key, array in arrays.items()}


def _depths() -> list[float]:
    return [entry.variant[1] for entry in MODELS.values() if entry.family == "efficientnetlite"]


def _timm_key(key: str, places: list[tuple[int, int]]) -> str:
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": HEAD}
    inner = {
        "_expand_conv": "expand_conv", "_bn0": "expand_bn", "_depthwise_conv": "dwconv", "_bn1": "dwconv_bn",
        "_project_conv": "project", "_bn2": "project_bn",
    }  # fmt: skip
    layer, _, leaf = key.rpartition(".")
    if layer in outer:
        return f"{outer[layer]}.{leaf}"
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", layer)
    if match is None or match[2] not in inner:
        return key  # what does not fit is named when the tensors are matched
    stage, number = places[int(match[1])]
    name = f"block{stage + 1}{string.ascii_lowercase[number]}_{inner[match[2]]}"
    return f"{timm_name(name)}.{leaf}"


def _block(x, filters: int, kernel_size: int, stride: int, expansion: int, name: str, rate: float, norm_class):
    """Returns the output of one block: (N, H, W, C) -> (N, H/stride, W/stride, filters)."""
    inputs, channels = x, x.shape[-1]
    if expansion != 1:
        x = _convolve(x, expansion * channels, 1, 1, f"{name}expand_conv")
        x = _normalize(x, norm_class, f"{name}expand_bn")
    x = layers.DepthwiseConv2D(
        kernel_size, stride, "same", use_bias=False, depthwise_initializer=_initializer(), name=f"{name}dwconv"
    )(x)
    x = _normalize(x, norm_class, f"{name}dwconv_bn")
    x = _convolve(x, filters, 1, 1, f"{name}project")
    x = norm_class(**BATCH_NORM, name=f"{name}project_bn")(x)
    if stride != 1 or channels != filters:
        return x
    if rate:
        x = StochasticDepth(rate, name=f"{name}drop")(x)
    return layers.Add(name=f"{name}add")([x, inputs])


def _convolve(x, filters: int, kernel_size: int, stride: int, name: str):
    return layers.Conv2D(
        filters, kernel_size, stride, "same", use_bias=False, kernel_initializer=_initializer(), name=name
    )(x)


def _normalize(x, norm_class, name: str):
    x = norm_class(**BATCH_NORM, name=name)(x)
    return layers.ReLU(LARGEST, name=f"{name.removesuffix('_bn')}_activation")(x)


def _initializer() -> keras.initializers.Initializer:
    # He et al. (2015) by the outputs, as EfficientNet's own code draws its convolutions.
    return keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")
