"""One model made of several: the mean of members, over views of a picture, as a single graph of raw pixels.

A combined model keeps the names of layers that the rest of kmed relies on: "pool" (all features), "head" (logits) and
"probs". Its members are models of their own, from the scaling of the pixels to their features.
"""

import re

import keras
import numpy as np
from keras import ops

from kmed.errors import ConfigError
from kmed.models.registry import ENSEMBLE

AVERAGES = ("probabilities", "logits")
VIEWS = ("none", "flips", "dihedral")
MEMBERS = "members"  # the layer whose output holds the logits of each member
_PART = re.compile(r"member\d+_(\w+)")


def combine(members, activation: str, *, average: str = "logits", views: str = "none") -> keras.Model:
    """Returns a keras.Model that gives the mean of its members for raw pictures.

    Its layers are "images" -> "views" -> "member1_NAME", "member2_NAME", ... -> "pool" -> "members" (the logits of each
    member) -> "head" (logits) -> "probs". A single member without views is returned as it is. The backbones are shared
    with `members`.

    Args:
      members: M models of `build_model`, of the same input and the same classes.
      activation: "softmax" or "sigmoid".
      average: "probabilities" or "logits", of which the members' mean is taken.
      views: one of VIEWS; the features of a picture's views are averaged before each member's head, which is the mean
        of their logits, since the head is linear.
    Input: uint8 or float (N, height, width, 3) in [0, 255]. Output: float32 (N, K).
    """
    if len(members) == 1 and views == "none":
        return members[0]
    height, width, _ = members[0].input_shape[1:]
    images = keras.Input((height, width, 3), dtype="float32", name="images")  # (N, H, W, 3)
    num_views = len(transforms(views, (height, width)))
    x = Views(views, name="views")(images) if num_views > 1 else images  # (V * N, H, W, 3)
    features = []
    for number, member in enumerate(members, 1):
        part = keras.Model(member.inputs, member.get_layer("pool").output, name=f"member{number}_{member.name}")
        features.append(MeanOfViews(num_views, dtype="float32", name=f"views{number}")(part(x)))  # (N, D)
    x = keras.layers.Concatenate(dtype="float32", name="pool")(features)  # (N, D of all members)
    x = _logits(x, [member.get_layer("head") for member in members], average, activation)  # (N, K)
    probs = keras.layers.Activation(activation, dtype="float32", name="probs")(x)
    return keras.Model(images, probs, name=ENSEMBLE)


def _logits(features, heads, average: str, activation: str):
    """Returns the logits (N, K) of the members' concatenated features; of one member, as its own head computes them."""
    units = heads[0].units
    if len(heads) == 1:
        layer = keras.layers.Dense(units, dtype="float32", name="head")
        logits = layer(features)
    else:
        layer = Heads([head.kernel.shape[0] for head in heads], units, dtype="float32", name=MEMBERS)
        logits = MeanOfMembers(average, activation, dtype="float32", name="head")(layer(features))
    layer.set_weights([array for head in heads for array in head.get_weights()])
    return logits


def members_of(model: keras.Model) -> list[keras.Model]:
    """Returns the members of a model of `combine`, each as `build_model` made it up to its logits; else the model."""
    matches = [(layer, _PART.fullmatch(layer.name)) for layer in getattr(model, "layers", ())]
    parts = [(layer, match[1]) for layer, match in matches if match]
    if not parts:
        return [model]
    weights = model.get_layer(MEMBERS if len(parts) > 1 else "head").get_weights()
    members = []
    for number, (part, name) in enumerate(parts):
        kernel, bias = weights[2 * number : 2 * number + 2]
        head = keras.layers.Dense(len(bias), dtype="float32", name="head")
        members.append(keras.Model(part.inputs, head(part.output), name=name))
        head.set_weights([kernel, bias])
    return members


def with_views(model: keras.Model, activation: str, views: str) -> keras.Model:
    """Returns a model of `build_model` or `combine` that averages over views of each picture; see `combine`."""
    if views == "none":
        return model
    average = getattr(model.get_layer("head"), "average", "logits")
    return combine(members_of(model), activation, average=average, views=views)


def is_combined(model: keras.Model) -> bool:
    """Returns whether `combine` made a model."""
    return any(_PART.fullmatch(layer.name) for layer in model.layers)


def transforms(views: str, image_size) -> list[tuple[bool, bool, bool]]:
    """Returns (transposed, upside down, mirrored) of each view, the picture itself first.

    "flips" adds the mirror image. "dihedral" adds every flip and turn that keeps the size: 4 views of a rectangle, 8
    of a square.
    """
    if views == "none":
        return [(False, False, False)]
    if views == "flips":
        return [(False, False, False), (False, False, True)]
    turns = (False, True) if image_size[0] == image_size[1] else (False,)
    return [(turned, down, across) for turned in turns for down in (False, True) for across in (False, True)]


def check_views(config) -> None:
    """Raises ConfigError if the pictures have a top, which `evaluate.views` would turn upside down."""
    if config.evaluate.views == "dihedral" and config.augment.orientation != "free":
        raise ConfigError(
            "evaluate.views=dihedral turns pictures upside down, but they have a top: augment.orientation is "
            f"{config.augment.orientation}. Set evaluate.views to none or flips, or train with orientation=free."
        )


@keras.saving.register_keras_serializable("kmed")
class Views(keras.layers.Layer):
    """Stacks the views of pictures: (N, H, W, 3) -> (V * N, H, W, 3), the pictures themselves first."""

    def __init__(self, views, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.views = views

    def call(self, images):
        stacked = []
        for turned, down, across in transforms(self.views, images.shape[1:3]):
            axes = [axis for axis, flipped in ((1, down), (2, across)) if flipped]
            view = ops.transpose(images, (0, 2, 1, 3)) if turned else images
            stacked.append(ops.flip(view, axes) if axes else view)
        return ops.concatenate(stacked, axis=0)

    def compute_output_spec(self, images):
        return keras.KerasTensor(images.shape, images.dtype)

    def get_config(self):
        return {**super().get_config(), "views": self.views}


@keras.saving.register_keras_serializable("kmed")
class MeanOfViews(keras.layers.Layer):
    """Averages over stacked views: (V * N, D) -> (N, D).

    V is a power of two, and halves are averaged, so the mean of equal features is these features to the bit.
    """

    def __init__(self, num_views, **kwargs):
        super().__init__(**kwargs)
        self.num_views = num_views

    def call(self, features):
        count = self.num_views
        if count == 1:
            return features
        x = ops.reshape(features, (count, -1, features.shape[-1]))  # (V, N, D)
        while count > 1:
            count //= 2
            x = (x[:count] + x[count:]) * 0.5
        return x[0]

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "num_views": self.num_views}


@keras.saving.register_keras_serializable("kmed")
class Heads(keras.layers.Layer):
    """The heads of all members: concatenated features (N, D1 + D2 + ...) -> logits (N, M, K).

    Args:
      sizes: D1, D2, ..., the number of features of each member.
      num_classes: K.
    """

    def __init__(self, sizes, num_classes, **kwargs):
        super().__init__(**kwargs)
        self.sizes, self.num_classes = [int(size) for size in sizes], int(num_classes)
        self.pairs = []

    def build(self, input_shape):
        for number, size in enumerate(self.sizes, 1):
            kernel = self.add_weight((size, self.num_classes), name=f"kernel{number}")
            bias = self.add_weight((self.num_classes,), initializer="zeros", name=f"bias{number}")
            self.pairs.append((kernel, bias))

    def call(self, features):
        ends = np.cumsum(self.sizes)
        logits = [
            ops.matmul(features[:, end - size : end], kernel) + bias  # (N, K)
            for size, end, (kernel, bias) in zip(self.sizes, ends.tolist(), self.pairs, strict=True)
        ]
        return ops.stack(logits, axis=1)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], len(self.sizes), self.num_classes)

    def get_config(self):
        return {**super().get_config(), "sizes": self.sizes, "num_classes": self.num_classes}


@keras.saving.register_keras_serializable("kmed")
class MeanOfMembers(keras.layers.Layer):
    """Returns the logits of the members' mean: (N, M, K) -> (N, K).

    For "probabilities" these are the logarithms of the mean probabilities (softmax), or the log-odds of them (sigmoid),
    computed without leaving the logarithmic scale, so that they stay exact near 0 and 1.

    Args:
      average: "probabilities" or "logits".
      activation: "softmax" or "sigmoid".
    """

    def __init__(self, average, activation, **kwargs):
        super().__init__(**kwargs)
        self.average, self.activation = average, activation

    def call(self, logits):
        if self.average == "logits":
            return ops.mean(logits, axis=1)
        if self.activation == "softmax":
            return _log_mean(logits - _log_sum(logits, axis=2))
        soft = ops.log(1.0 + ops.exp(-ops.abs(logits)))  # log(1 + exp(-|z|)), with operations that every format has
        return _log_mean(ops.minimum(logits, 0.0) - soft) - _log_mean(-ops.maximum(logits, 0.0) - soft)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[2])

    def get_config(self):
        return {**super().get_config(), "average": self.average, "activation": self.activation}


def _log_sum(values, axis):
    """Returns the logarithm of the sum of exp(values) along an axis, which stays."""
    highest = ops.max(values, axis=axis, keepdims=True)
    return highest + ops.log(ops.sum(ops.exp(values - highest), axis=axis, keepdims=True))


def _log_mean(logs):
    """Returns (N, K), the logarithm of the mean over members of exp(logs), (N, M, K)."""
    return _log_sum(logs, axis=1)[:, 0] - float(np.log(logs.shape[1]))
