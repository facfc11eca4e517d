"""ResNet-18 to ResNet-152 (He et al., 2016), equal to PyTorch's and timm's layer by layer."""

import re

import keras
from keras_hub.models import ResNetBackbone

from kmed.models.layers import name_parts, swap_batch_norm, with_config
from kmed.models.registry import MODELS

HEAD = "fc"


def build(name: str, image_size: tuple[int, int], *, batch_norm: str = "fused") -> keras.Model:
    """Returns the convolutional part: (N, H, W, 3) -> (N, H/32, W/32, 512 or 2048), sizes rounded up.

    Convolutions are initialised as in He et al. (2015), and the last normalisation of each residual
    branch starts at zero, so that each block begins as the identity (Goyal et al., 2017).

    Args:
      name: a ResNet of `kmed.models.registry.MODELS`, whose row holds its block and the blocks per stage.
      image_size: (height, width) in pixels.
      batch_norm: "fused", or "keras" for Keras' own layer.
    """
    block, num_blocks = MODELS[name].variant
    backbone = ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=list(num_blocks),
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=block,
        image_shape=(*image_size, 3),
        name="backbone",
    )
    last_norm = re.compile(r"stack\d+_block\d+_" + ("2" if block == "basic_block" else "3") + "_bn")

    def adapt(layer):
        if isinstance(layer, keras.layers.Conv2D):
            he = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
            return with_config(layer, kernel_initializer=keras.initializers.serialize(he))
        if last_norm.fullmatch(layer.name):
            return with_config(layer, gamma_initializer="zeros")
        return None

    return swap_batch_norm(backbone, image_size=image_size, batch_norm=batch_norm, adapt=adapt)


def torch_name(layer_name: str) -> str:
    """Returns the name that timm and torchvision give to a layer of the backbone.

    Example:
      >>> torch_name("stack1_block0_0_bn")
      'layer2.0.downsample.1'
    """
    if layer_name.startswith("conv1_"):
        return {"conv1_conv": "conv1", "conv1_bn": "bn1"}[layer_name]
    stack, block, number, kind = name_parts(r"stack(\d+)_block(\d+)_(\d)_(conv|bn)", layer_name)
    prefix = f"layer{int(stack) + 1}.{block}"
    if number == "0":  # there the shortcut is a sequence of convolution and normalisation
        return f"{prefix}.downsample.{0 if kind == 'conv' else 1}"
    return f"{prefix}.{kind}{number}"
