"""EfficientNet-B0 to B7 (Tan & Le, 2019) with PyTorch's symmetric padding, equal to timm's layer by layer."""

import functools
import math
import re
import string
from collections.abc import Mapping
from typing import NamedTuple

import keras
import numpy as np
from keras_hub.models import EfficientNetBackbone

from kmed.errors import ModelError, WeightsError
from kmed.models.layers import BATCH_NORM, StochasticDepth, check_fraction, swap_batch_norm, with_config
from kmed.models.mobile_blocks import STAGES, STEM_FILTERS, drop_rates, timm_name
from kmed.models.registry import MODELS

HEAD = "classifier"
torch_name = timm_name


class Scaling(NamedTuple):
    """Factors on B0's number of blocks and of channels, and the side of the image in pixels."""

    depth: float
    width: float
    resolution: int


def compound_scaling(phi: float, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15) -> Scaling:
    """Returns depth = alpha^phi, width = beta^phi, resolution = 224 * gamma^phi (Tan & Le, 2019, eq. 3).

    Since alpha * beta^2 * gamma^2 is about 2, each step of phi doubles the multiply-adds. The
    published B1 to B7 follow the formula only roughly, since their coefficients were rounded and
    searched by hand (depth, width, resolution):

      phi 1, B2: formula 1.20, 1.10, 258; published 1.2, 1.1, 260
      phi 3, B4: formula 1.73, 1.33, 341; published 1.8, 1.4, 380
      phi 6, B7: formula 2.99, 1.77, 518; published 3.1, 2.0, 600

    So `build_model("efficientnetb4", ...)` takes the published ones from a table, and this function
    is for custom sizes.

    Args:
      phi: how far to scale; 0 is B0, and negative values are smaller.
      alpha, beta, gamma: the bases of depth, width and resolution, each at least 1.
    Returns: Scaling(depth, width, resolution), the resolution rounded to a whole pixel.
    Raises: ModelError: a base below 1, or a phi that leads to a side outside 8 to 4096 pixels.
    Example:
      >>> depth, width, side = compound_scaling(1)
      >>> depth, round(width, 2), side
      (1.2, 1.1, 258)
      >>> model = build_model("efficientnetb0", 4, (side, side), width=width, depth=depth)
    """
    for name, base in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        if not (math.isfinite(base) and base >= 1):
            raise ModelError(f"{name} must be a number of at least 1. Received: {name}={base!r}")
    if not math.isfinite(phi) or not 8 <= 224 * gamma**phi <= 4096:
        raise ModelError(f"phi must lead to an image of 8 to 4096 pixels. Received: phi={phi!r}")
    return Scaling(alpha**phi, beta**phi, round(224 * gamma**phi))


def build(
    name: str,
    image_size: tuple[int, int],
    *,
    stochastic_depth_rate: float | None = None,
    width: float | None = None,
    depth: float | None = None,
    batch_norm: str = "fused",
) -> keras.Model:
    """Returns the convolutional part: (N, H, W, 3) -> (N, H/32, W/32, C), sizes rounded up; C = 1280 for B0.

    Args:
      name: an EfficientNet of `kmed.models.registry.MODELS`, whose row holds the published values.
      image_size: (height, width) in pixels.
      stochastic_depth_rate: in [0, 1); the drop rate grows from 0 at the first block to nearly this
        value at the last. None: 0.06 for B0, and the published 0.2 for the others.
      width, depth: factors on B0's channels and blocks; None: the published ones of `name`.
      batch_norm: "fused", or "keras" for Keras' own layer.
    """
    published_width, published_depth, published_rate = MODELS[name].variant
    stochastic_depth_rate = published_rate if stochastic_depth_rate is None else stochastic_depth_rate
    check_fraction(stochastic_depth_rate=stochastic_depth_rate)
    width = published_width if width is None else width
    depth = published_depth if depth is None else depth
    for option, factor in (("width", width), ("depth", depth)):
        if not (isinstance(factor, (int, float)) and 0.1 <= factor <= 10):
            raise ModelError(f"{option} must be a factor between 0.1 and 10. Received: {option}={factor!r}")
    num_blocks = [math.ceil(stage.num_blocks * depth) for stage in STAGES]
    if max(num_blocks) > len(string.ascii_lowercase):
        raise ModelError(f"depth leads to a stage of more than 26 blocks. Received: depth={depth!r}")
    backbone = _keras_hub_backbone(image_size, width, depth, stochastic_depth_rate)
    rates = drop_rates(num_blocks, stochastic_depth_rate)
    adapt = functools.partial(_adapt, rates=rates, same=_stride_one_depthwise(backbone))
    return swap_batch_norm(backbone, image_size=image_size, batch_norm=batch_norm, adapt=adapt)


def _keras_hub_backbone(image_size, width: float, depth: float, stochastic_depth_rate: float) -> keras.Model:
    return EfficientNetBackbone(
        stackwise_width_coefficients=[width] * 7,
        stackwise_depth_coefficients=[depth] * 7,
        stackwise_kernel_sizes=[stage.kernel_size for stage in STAGES],
        stackwise_num_repeats=[stage.num_blocks for stage in STAGES],
        stackwise_input_filters=[STEM_FILTERS, *(stage.filters for stage in STAGES[:-1])],
        stackwise_output_filters=[stage.filters for stage in STAGES],
        stackwise_expansion_ratios=[stage.expansion for stage in STAGES],
        stackwise_strides=[stage.stride for stage in STAGES],
        stackwise_squeeze_and_excite_ratios=[0.25] * 7,
        stackwise_block_types=["v1"] * 7,
        min_depth=None,
        use_depth_divisor_as_min_depth=True,
        cap_round_filter_decrease=True,
        stem_conv_padding="valid",
        dropout=min(stochastic_depth_rate, 1e-3),  # only decides whether there is a layer to replace, see _adapt
        input_shape=(*image_size, 3),
        name="backbone",
    )


def _stride_one_depthwise(backbone: keras.Model) -> set[str]:
    """Returns the names of the depthwise convolutions of stride 1, for which padding "same" is symmetric."""
    return {
        layer.name
        for layer in backbone.layers
        if isinstance(layer, keras.layers.DepthwiseConv2D) and tuple(layer.strides) == (1, 1)
    }


def _adapt(layer: keras.layers.Layer, rates: dict[str, float], same: set[str]) -> keras.layers.Layer | None:
    """Returns the layer that replaces one of KerasHub's, or None to keep that one.

    KerasHub leaves the momentum inside the blocks at Keras' 0.99, and divides a block's number by the
    number of blocks in B0, so that B7's last blocks would be dropped 3.4 times as often as intended.
    It also pads in a separate layer; a convolution that pads its own input saves one copy in the
    forward pass and one in the backward pass.
    """
    if layer.name in same:
        return with_config(layer, padding="same")
    if layer.name.removesuffix("_pad") in same:
        return keras.layers.Activation("linear", name=layer.name, dtype=layer.dtype_policy)
    if isinstance(layer, keras.layers.BatchNormalization):
        return with_config(layer, **BATCH_NORM)
    if isinstance(layer, keras.layers.Dropout):
        return StochasticDepth(rates[layer.name.removesuffix("drop")], name=layer.name, dtype=layer.dtype_policy)
    return None


def rename(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a checkpoint under timm's names, if it has those of torchvision.

    Raises: WeightsError: a B5, B6 or B7 of torchvision, whose batch normalisation has another epsilon.
    """
    if "features.0.0.weight" not in arrays:
        return dict(arrays)
    if any(key.startswith("features.7.2.") for key in arrays):
        raise WeightsError("torchvision's efficientnet_b5 to b7 have another epsilon (0.001). Give timm's weights.")
    return {_timm_key(key): array for key, array in arrays.items()}


def _timm_key(key: str) -> str:
    outer = {
        "features.0.0": "conv_stem", "features.0.1": "bn1", "features.8.0": "conv_head", "features.8.1": "bn2",
        "classifier.1": HEAD,
    }  # fmt: skip
    layer, _, leaf = key.rpartition(".")
    if layer in outer:
        return f"{outer[layer]}.{leaf}"
    match = re.fullmatch(r"features\.(\d)\.(\d+)\.block\.(\d)\.(\w+)", layer)
    if match is None:
        return key  # what does not fit is named when the tensors are matched
    stage, block, part, inner = match.groups()
    number = int(part) + (stage == "1")  # the first stage does not expand
    parts = {
        "00": "conv_pw", "01": "bn1", "10": "conv_dw", "11": "bn2", "30": "conv_pwl", "31": "bn3",
        "2fc1": "se.conv_reduce", "2fc2": "se.conv_expand",
    }  # fmt: skip
    if stage == "1":
        parts |= {"11": "bn1", "30": "conv_pw", "31": "bn2"}
    name = parts.get(f"{number}{inner}")
    return key if name is None else f"blocks.{int(stage) - 1}.{block}.{name}.{leaf}"
