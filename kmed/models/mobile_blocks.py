"""What EfficientNet and EfficientNet-Lite share: the stages of B0, drop rates of its blocks, names in checkpoints."""

import string
from typing import NamedTuple

from kmed.models.layers import name_parts


class Stage(NamedTuple):
    """One stage of EfficientNet-B0: blocks that expand, convolve each channel by itself, and project.

    The stride is that of the first block; `filters` are the channels of the output, `expansion` is the factor on the
    channels of the input.
    """

    num_blocks: int
    kernel_size: int
    stride: int
    expansion: int
    filters: int


# Tan & Le (2019), table 1 and section 4. The stem before them has 32 channels, the last convolution 1280.
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM_FILTERS, HEAD_FILTERS = 32, 1280


def block_names(num_blocks: list[int]) -> list[str]:
    """Returns the names of all blocks in order, "block1a_" first, as KerasHub writes them."""
    letters = string.ascii_lowercase
    return [f"block{stage}{letter}_" for stage, count in enumerate(num_blocks, 1) for letter in letters[:count]]


def drop_rates(num_blocks: list[int], rate: float) -> dict[str, float]:
    """Returns {block name: drop rate}; rates grow linearly with the block's number."""
    names = block_names(num_blocks)
    return {name: rate * number / len(names) for number, name in enumerate(names)}


def timm_name(layer_name: str) -> str:
    """Returns the name that timm gives to a layer of the backbone.

    Example:
      >>> timm_name("block2a_project_bn")
      'blocks.1.0.bn3'
    """
    outer = {"stem_conv": "conv_stem", "stem_bn": "bn1", "top_conv": "conv_head", "top_bn": "bn2"}
    if layer_name in outer:
        return outer[layer_name]
    stage, letter, part = name_parts(r"block(\d)([a-z])_(.+)", layer_name)
    # The first stage does not expand, so its parts have numbers lower by one.
    parts = {"dwconv": "conv_dw", "se_reduce": "se.conv_reduce", "se_expand": "se.conv_expand"}
    if stage == "1":
        parts |= {"dwconv_bn": "bn1", "project": "conv_pw", "project_bn": "bn2"}
    else:
        parts |= {"expand_conv": "conv_pw", "expand_bn": "bn1", "dwconv_bn": "bn2"}
        parts |= {"project": "conv_pwl", "project_bn": "bn3"}
    return f"blocks.{int(stage) - 1}.{string.ascii_lowercase.index(letter)}.{parts[part]}"
