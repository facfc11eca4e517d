"""DenseNet-121 to DenseNet-201 (Huang et al., 2017), equal to torchvision's and timm's layer by layer."""

import re
from collections.abc import Mapping

import keras
import numpy as np
from keras import layers

from kmed.models.layers import BATCH_NORM, choose_batch_norm, compute_dtype, name_parts
from kmed.models.registry import MODELS

HEAD = "classifier"

BOTTLENECK = 4  # a layer's 1x1 convolution has this many times the channels that the layer adds


def build(name: str, image_size: tuple[int, int], *, batch_norm: str = "fused") -> keras.Model:
    """Returns the convolutional part: (N, H, W, 3) -> (N, H/32, W/32, C), sizes rounded down; C = 1024 for 121.

    Args:
      name: a DenseNet of `kmed.models.registry.MODELS`, whose row holds its channels and the layers per block.
      image_size: (height, width) in pixels, at least 32 each.
      batch_norm: "fused", or "keras" for Keras' own layer.
    """
    stem_dim, growth_rate, num_layers = MODELS[name].variant
    norm_class = choose_batch_norm(batch_norm)
    images = keras.Input((*image_size, 3), dtype=compute_dtype(), name="images")
    x = layers.ZeroPadding2D(3, name="stem_pad")(images)
    x = _conv(stem_dim, 7, "stem_conv", strides=2, padding="valid")(x)  # (N, H/2, W/2, stem)
    x = _norm_relu(norm_class, "stem", x)
    x = layers.ZeroPadding2D(1, name="pool_pad")(x)  # zeros are below every value after a ReLU
    x = layers.MaxPooling2D(3, strides=2, name="pool")(x)  # (N, H/4, W/4, stem)
    for number, count in enumerate(num_layers, 1):
        x = _dense_block(norm_class, f"block{number}", x, count, growth_rate)  # (N, h, w, c + count * growth)
        if number < len(num_layers):
            x = _transition(norm_class, f"transition{number}", x)  # (N, h/2, w/2, c/2)
    x = _norm_relu(norm_class, "final", x)
    return keras.Model(images, x, name="backbone")


def _dense_block(norm_class, name: str, x, count: int, growth_rate: int):
    """Returns x with the outputs of `count` layers appended, each of which reads the outputs of all before it."""
    for number in range(1, count + 1):
        prefix = f"{name}_layer{number}"
        y = _norm_relu(norm_class, f"{prefix}_1", x)
        y = _conv(BOTTLENECK * growth_rate, 1, f"{prefix}_1_conv")(y)  # (N, h, w, 4 * growth)
        y = _norm_relu(norm_class, f"{prefix}_2", y)
        y = _conv(growth_rate, 3, f"{prefix}_2_conv")(y)  # (N, h, w, growth)
        x = layers.Concatenate(name=f"{prefix}_concat")([x, y])  # (N, h, w, c + growth)
    return x


def _transition(norm_class, name: str, x):
    """Returns x at half the size with half the channels."""
    num_channels = x.shape[-1] // 2
    x = _norm_relu(norm_class, name, x)
    x = _conv(num_channels, 1, f"{name}_conv")(x)  # (N, h, w, c/2)
    return layers.AveragePooling2D(2, name=f"{name}_pool")(x)  # (N, h/2, w/2, c/2)


def _norm_relu(norm_class, name: str, x):
    x = norm_class(**BATCH_NORM, name=f"{name}_norm")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)


def _conv(num_channels: int, kernel_size: int, name: str, strides: int = 1, padding: str = "same") -> layers.Layer:
    he = keras.initializers.HeNormal()  # as torchvision initialises its DenseNets
    return layers.Conv2D(num_channels, kernel_size, strides, padding, use_bias=False, kernel_initializer=he, name=name)


def torch_name(layer_name: str) -> str:
    """Returns the name that timm and torchvision give to a layer of the backbone.

    Example:
      >>> torch_name("block1_layer2_1_norm")
      'features.denseblock1.denselayer2.norm1'
    """
    outer = {"stem_conv": "features.conv0", "stem_norm": "features.norm0", "final_norm": "features.norm5"}
    if layer_name in outer:
        return outer[layer_name]
    if match := re.fullmatch(r"transition(\d)_(conv|norm)", layer_name):
        return f"features.transition{match[1]}.{match[2]}"
    block, layer, number, kind = name_parts(r"block(\d)_layer(\d+)_(\d)_(conv|norm)", layer_name)
    return f"features.denseblock{block}.denselayer{layer}.{kind}{number}"


def rename(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a checkpoint under timm's names; torchvision's files still say "norm.1" for "norm1"."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key): array for key, array in arrays.items()}
