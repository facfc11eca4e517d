"""Keras layers that change a batch of pictures as the draws of kmed/data/augment.py say."""

import keras
from keras import ops

from kmed.data.augment import COLOUR, DENSITY, ERASE, LEVELS, MID_GREY, MIX, TRANSFORM, Augmentation


@keras.saving.register_keras_serializable("kmed")
class Geometry(keras.layers.Layer):
    """Flips, rotates, zooms, stretches and shifts in one bilinear interpolation; images are mirrored at the border."""

    def call(self, images, draws):
        images = ops.cast(images, "float32")  # (B, H, W, 3)
        transforms = ops.pad(draws[:, TRANSFORM], ((0, 0), (0, 2)))  # (B, 8): no perspective
        return ops.image.affine_transform(
            images, transforms, interpolation="bilinear", fill_mode="reflect", data_format="channels_last"
        )


@keras.saving.register_keras_serializable("kmed")
class Colour(keras.layers.Layer):
    """Changes brightness, contrast, saturation and hue with one matrix, and clips to 0..255."""

    def call(self, images, draws):
        colours = draws[:, COLOUR]
        matrices = ops.transpose(ops.reshape(colours[:, :9], (-1, 3, 3)), (0, 2, 1))
        shape = ops.shape(images)
        pixels = ops.reshape(images, (shape[0], shape[1] * shape[2], 3))  # (B, H W, 3)
        pixels = ops.clip(ops.matmul(pixels, matrices) + colours[:, None, 9:], 0.0, 255.0)
        return ops.reshape(pixels, shape)


@keras.saving.register_keras_serializable("kmed")
class Density(keras.layers.Layer):
    """Changes optical densities, -log((pixel + 1) / 256), with one matrix and an offset; white stays nearly white."""

    def call(self, images, draws):
        change = draws[:, DENSITY]
        matrices = ops.reshape(change[:, :9], (-1, 3, 3))
        shape = ops.shape(images)
        pixels = ops.reshape(ops.cast(images, "float32"), (shape[0], shape[1] * shape[2], 3))  # (B, H W, 3)
        densities = ops.matmul(-ops.log((pixels + 1.0) / 256.0), matrices) + change[:, None, 9:]
        return ops.reshape(ops.clip(256.0 * ops.exp(-densities) - 1.0, 0.0, 255.0), shape)


@keras.saving.register_keras_serializable("kmed")
class Erase(keras.layers.Layer):
    """Paints each row's box mid-grey."""

    def call(self, images, draws):
        return ops.where(_inside(images, draws[:, ERASE]), MID_GREY, images)


@keras.saving.register_keras_serializable("kmed")
class Mix(keras.layers.Layer):
    """MixUp and CutMix: mixes each row with the next one of its batch, and the last with the first."""

    def call(self, images, draws):
        mix = draws[:, MIX]
        own = ops.where(_inside(images, mix[:, 1:5]), 0.0, mix[:, 0][:, None, None, None])  # (B, H, W, 1)
        return own * images + (1 - own) * ops.roll(images, -1, axis=0)

    def mix_rows(self, values, draws):
        """Returns labels (B, K) or weights (B,), mixed in the same proportions as the pictures."""
        share = draws[:, MIX][:, 5]
        share = share[:, None] if len(values.shape) == 2 else share
        return share * values + (1 - share) * ops.roll(values, -1, axis=0)


def _inside(images, boxes):
    """Returns bool (B, H, W, 1): the pixels inside each row's box (B, 4)."""
    rows = ops.arange(images.shape[1], dtype="float32")[None, :]
    columns = ops.arange(images.shape[2], dtype="float32")[None, :]
    down = (rows >= boxes[:, 0:1]) & (rows < boxes[:, 1:2])
    across = (columns >= boxes[:, 2:3]) & (columns < boxes[:, 3:4])
    return (down[:, :, None] & across[:, None, :])[..., None]


class Augmenter:
    """The layers that an augmentation needs, applied in order.

    Example:
      >>> augmentation = Augmentation("medium")
      >>> plan = plan_epoch(len(images), (120, 160), augmentation, epoch=3, shuffle=False)
      >>> changed, labels = Augmenter(augmentation)(images, plan.draws, labels)
    """

    def __init__(self, augmentation: Augmentation):
        level = augmentation.level
        # Under a mixed-precision policy a layer would cast its draws to 16 bits, which is too coarse for positions.
        self.layers = [Geometry(dtype="float32"), Colour(dtype="float32")] if level != "none" else []
        self.layers += [Density(dtype="float32")] if augmentation.density != "none" and level != "none" else []
        self.layers += [Erase(dtype="float32")] if LEVELS[level].erase else []
        self.mix = Mix(dtype="float32") if augmentation.mixes else None

    def __call__(self, images, draws, *rows):
        """Returns the images and each of `rows`, changed.

        Args:
          images: uint8 or float32 (B, H, W, 3) in 0..255.
          draws: float32 (B, 40), the draws of a plan.
          *rows: labels (B, K) and weights (B,); only mixing changes them.
        Returns: a tuple (images, *rows); the images are float32 in 0..255, or as given if nothing is changed.
        """
        for layer in self.layers:
            images = layer(images, draws)
        if self.mix is not None:
            images = self.mix(ops.cast(images, "float32"), draws)
            rows = tuple(self.mix.mix_rows(values, draws) for values in rows)
        return images, *rows
