"""A small vision transformer (Dosovitskiy et al., 2021), with the structure of timm's VisionTransformer."""

import keras
import numpy as np
from keras import layers, ops

from kmed.errors import ModelError
from kmed.models.layers import (
    Attention,
    StochasticDepth,
    Tokens,
    check_fraction,
    check_positive,
    compute_dtype,
    gelu,
    name_parts,
    small_normal,
)

HEAD = "head"
EPSILON = 1e-6  # of layer normalisation


def build(
    name: str,
    image_size: tuple[int, int],
    *,
    patch_size: int = 8,
    width: int = 128,
    depth: int = 6,
    num_heads: int = 16,
    mlp_ratio: float = 4,
    dropout: float = 0.3,
    attention_dropout: float = 0.3,
    stochastic_depth_rate: float = 0.0,
) -> keras.Model:
    """Returns the encoder: (N, H, W, 3) -> (N, 1 + P, width), P = H/patch * W/patch, class token first.

    The defaults are those of the small transformer that this project measures.

    Args:
      name: "vit".
      image_size: (height, width) in pixels, multiples of the patch size.
      patch_size: side of a square patch in pixels.
      width: length of a token; a multiple of num_heads.
      depth: number of blocks.
      num_heads: of each block's attention.
      mlp_ratio: hidden width of the MLP / width.
      dropout: rate after the positions, the attention's projection and both layers of the MLP.
      attention_dropout: rate on the attention weights; it takes more time than anything else in training.
      stochastic_depth_rate: drop rate of the last block's branches, growing linearly from 0.
    Raises: ModelError: a size that the patches do not tile, or an option out of range.
    """
    check_positive(width=width, depth=depth, num_heads=num_heads)
    check_fraction(dropout=dropout, attention_dropout=attention_dropout, stochastic_depth_rate=stochastic_depth_rate)
    if not (isinstance(mlp_ratio, (int, float)) and mlp_ratio > 0):
        raise ModelError(f"mlp_ratio must be a number above 0. Received: mlp_ratio={mlp_ratio!r}")
    if width % num_heads:
        raise ModelError(f"width must be a multiple of num_heads. Received: width={width}, num_heads={num_heads}")
    grid = check_size(image_size, patch_size)
    images = keras.Input((*image_size, 3), dtype=compute_dtype(), name="images")
    x = layers.Conv2D(width, patch_size, patch_size, kernel_initializer=small_normal(), name="patch_embed")(images)
    x = layers.Reshape((grid[0] * grid[1], width), name="flatten")(x)  # (N, P, width)
    x = Tokens(grid, name="tokens")(x)  # (N, 1 + P, width)
    x = layers.Dropout(dropout, name="tokens_drop")(x)
    for number in range(depth):
        drop_path = stochastic_depth_rate * number / max(1, depth - 1)
        x = _block(f"block{number}", x, num_heads, mlp_ratio, dropout, attention_dropout, drop_path)
    x = layers.LayerNormalization(epsilon=EPSILON, name="norm")(x)
    return keras.Model(images, x, name="backbone")


def _block(name: str, x, num_heads: int, mlp_ratio: float, dropout: float, attention_dropout: float, drop_path: float):
    """Returns x after attention and MLP, two pre-norm residual branches: (N, T, width) -> (N, T, width)."""
    width = x.shape[-1]
    y = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_norm1")(x)
    y = Attention(num_heads, attention_dropout, name=f"{name}_attn")(y)
    y = layers.Dropout(dropout, name=f"{name}_attn_drop")(y)
    x = layers.Add(name=f"{name}_add1")([x, StochasticDepth(drop_path, name=f"{name}_path1")(y)])
    y = layers.LayerNormalization(epsilon=EPSILON, name=f"{name}_norm2")(x)
    y = layers.Dense(int(width * mlp_ratio), kernel_initializer=small_normal(), name=f"{name}_fc1")(y)  # (N, T, hidden)
    y = layers.Activation(gelu, name=f"{name}_gelu")(y)
    y = layers.Dropout(dropout, name=f"{name}_fc1_drop")(y)
    y = layers.Dense(width, kernel_initializer=small_normal(), name=f"{name}_fc2")(y)  # (N, T, width)
    y = layers.Dropout(dropout, name=f"{name}_fc2_drop")(y)
    return layers.Add(name=f"{name}_add2")([x, StochasticDepth(drop_path, name=f"{name}_path2")(y)])


def resize_positions(positions: np.ndarray, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> np.ndarray:
    """Returns learned positions for another grid of patches, by bicubic interpolation.

    Args:
      positions: (1, 1 + P, D); that of the class token comes first and is kept.
      old_grid, new_grid: (rows, columns), P = rows * columns.
    """
    width = positions.shape[-1]
    patches = np.asarray(positions[:, 1:], "float32").reshape(1, *old_grid, width)  # (1, rows, columns, D)
    resized = ops.image.resize(patches, new_grid, interpolation="bicubic", antialias=True, data_format="channels_last")
    resized = ops.convert_to_numpy(resized).reshape(1, -1, width)  # (1, P', D)
    return np.concatenate([positions[:, :1], resized], axis=1)


def torch_name(layer_name: str) -> str:
    """Returns the name that timm gives to a layer of the encoder; "" for the tokens, which timm keeps at the root.

    Example:
      >>> torch_name("block3_attn/qkv")
      'blocks.3.attn.qkv'
    """
    outer = {"patch_embed": "patch_embed.proj", "norm": "norm", "tokens": ""}
    if layer_name in outer:
        return outer[layer_name]
    number, part = name_parts(r"block(\d+)_(.+)", layer_name)
    part = {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}.get(part, part.replace("/", "."))
    return f"blocks.{number}.{part}"


def check_size(image_size: tuple[int, int], patch_size: int = 8, **_) -> tuple[int, int]:
    """Returns (rows, columns) of patches. Raises ModelError if they do not tile the image."""
    check_positive(patch_size=patch_size)
    if any(side % patch_size for side in image_size):
        down = [max(1, side // patch_size) * patch_size for side in image_size]
        up = [-(-side // patch_size) * patch_size for side in image_size]
        raise ModelError(
            f"vit needs sides that are multiples of its patch size, {patch_size}. "
            f"Received: image_size={image_size[0]}x{image_size[1]}. "
            f"The nearest sizes are {down[0]}x{down[1]} and {up[0]}x{up[1]}."
        )
    return image_size[0] // patch_size, image_size[1] // patch_size
