"""A small transformer, which is fast, and checkpoints that fit it."""

import json

import keras
import numpy as np
from safetensors.numpy import save_file

from kmed.models.build import build_model

SMALL = {"width": 8, "depth": 1, "num_heads": 2}
SIZE = (16, 24)  # 2x3 patches


def shapes(num_classes=3, num_patches=6, width=8):
    """Returns {name: shape} as timm writes them for a transformer with the options SMALL."""
    block = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    outer = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + num_patches, width),
        "patch_embed.proj.weight": (width, 3, 8, 8),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (num_classes, width),
        "head.bias": (num_classes,),
    }
    return outer | {f"blocks.0.{name}": shape for name, shape in block.items()}


def state(**kwargs):
    rng = np.random.default_rng(7)
    return {name: rng.normal(size=shape).astype("float32") for name, shape in shapes(**kwargs).items()}


def small(num_classes=3, size=SIZE, **kwargs):
    keras.utils.set_random_seed(1)
    return build_model("vit", num_classes, size, **SMALL, **kwargs)


def written(folder, arrays, config=None):
    """Writes `arrays` to a safetensors file, and `config`, if given, beside it; returns the path."""
    save_file(arrays, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"
