"""Layers that several families share, and functions that rebuild a KerasHub backbone with them."""

import re
from collections.abc import Callable

import keras
from keras import ops

from kmed.errors import ModelError, suggest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# As in PyTorch, where momentum is the share of the new value (0.1); in Keras it is the share of the old one.
BATCH_NORM = {"epsilon": 1e-5, "momentum": 0.9}


@keras.saving.register_keras_serializable("kmed")
class Normalize(keras.layers.Layer):
    """Returns (images / 255 - mean) / std, computed in float32 and cast to the compute dtype.

    Args:
      mean, std: three numbers each, of red, green and blue in [0, 1].
    Input: uint8 or float (N, H, W, 3) in [0, 255].
    """

    def __init__(self, mean=IMAGENET_MEAN, std=IMAGENET_STD, **kwargs):
        # Without autocast=False, mixed precision would round the pixels before they are scaled.
        super().__init__(autocast=False, **kwargs)
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)

    def call(self, images):
        scale = [1.0 / (255.0 * std) for std in self.std]
        shift = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        scaled = ops.cast(images, "float32") * ops.convert_to_tensor(scale, "float32")
        return ops.cast(scaled + ops.convert_to_tensor(shift, "float32"), self.compute_dtype)

    def compute_output_spec(self, images):
        return keras.KerasTensor(images.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "mean": list(self.mean), "std": list(self.std)}


@keras.saving.register_keras_serializable("kmed")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch normalisation, computed by TensorFlow's fused kernel where possible.

    The fused kernel reads and writes bfloat16 or float16 directly and keeps its sums in float32,
    while Keras' own layer casts its inputs to float32 and back. Without TensorFlow, and for inputs
    that the kernel does not support, Keras' own code runs.

    The two differ in the moving variance: the fused kernel updates it with the unbiased variance, as
    PyTorch does, which is N/(N-1) times the biased one that Keras uses (N: values per channel in the
    batch). Normalisation itself uses the biased variance in both.

    As in Keras, `trainable = False` also means inference mode: moving averages are used and kept.
    """

    def call(self, inputs, training=None, mask=None):
        if not self._can_fuse(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        learns = bool(training and self.trainable)
        outputs, mean, variance = self._fused(inputs, learns)
        if learns:
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance)
        return ops.cast(outputs, self.compute_dtype)

    def _can_fuse(self, inputs, mask) -> bool:
        return (
            keras.backend.backend() == "tensorflow"
            and mask is None
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and not (self.synchronized or self.renorm)
            and keras.backend.standardize_dtype(inputs.dtype) in ("float32", "bfloat16", "float16")
            and self.moving_mean.dtype == "float32"
        )

    def _fused(self, inputs, is_training: bool):
        """Returns (outputs, moving mean, moving variance); training normalises by the batch and updates both."""
        import tensorflow as tf

        num_channels = inputs.shape[-1]
        result = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ops.convert_to_tensor(self.gamma) if self.scale else tf.ones([num_channels]),
            offset=ops.convert_to_tensor(self.beta) if self.center else tf.zeros([num_channels]),
            mean=ops.convert_to_tensor(self.moving_mean),
            variance=ops.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            exponential_avg_factor=1.0 - self.momentum,
            data_format="NHWC",
            is_training=is_training,
        )
        return result.y, result.batch_mean, result.batch_variance


BATCH_NORMS = {"fused": BatchNormalization, "keras": keras.layers.BatchNormalization}


@keras.saving.register_keras_serializable("kmed")
class StochasticDepth(keras.layers.Layer):
    """Drops the whole residual branch of an image with probability `rate` in training.

    Branches that are kept are divided by 1 - rate, so the expectation is the same as in inference
    (Huang et al., 2016, "Deep networks with stochastic depth").

    Args:
      rate: in [0, 1).
      seed: seed of the layer's own generator; None: Keras' global seed.
    """

    def __init__(self, rate, seed=None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ModelError(f"The rate of stochastic depth must be in [0, 1). Received: rate={rate}")
        self.rate = float(rate)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        one_per_image = (ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
        return keras.random.dropout(inputs, self.rate, noise_shape=one_per_image, seed=self.seed_generator)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable("kmed")
def gelu(inputs):
    """Returns inputs * P(Z <= inputs) for a standard normal Z (Hendrycks & Gimpel, 2016).

    It uses erf, since Keras' own exact GELU uses erfc, which the ONNX converter lacks.
    """
    return 0.5 * inputs * (1.0 + ops.erf(inputs * 0.7071067811865476))


@keras.saving.register_keras_serializable("kmed")
class ClassToken(keras.layers.Layer):
    """Returns the first token: (N, 1 + P, D) -> (N, D)."""

    def call(self, tokens):
        return tokens[:, 0]

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[2])


@keras.saving.register_keras_serializable("kmed")
class Tokens(keras.layers.Layer):
    """Puts a learned class token before the patches and adds a learned position to each.

    Args:
      grid: (rows, columns) of patches, needed to resize the positions to another image size.
    Input: (N, rows * columns, D). Output: (N, 1 + rows * columns, D).
    """

    def __init__(self, grid, **kwargs):
        super().__init__(**kwargs)
        self.grid = tuple(int(side) for side in grid)

    def build(self, input_shape):
        _, num_patches, width = input_shape
        tiny = keras.initializers.RandomNormal(stddev=1e-6)
        self.cls_token = self.add_weight((1, 1, width), initializer=tiny, name="cls_token")
        self.pos_embed = self.add_weight((1, 1 + num_patches, width), initializer=small_normal(), name="pos_embed")

    def call(self, patches):
        width = patches.shape[-1]
        token = ops.broadcast_to(self.cls_token, (ops.shape(patches)[0], 1, width))
        token = ops.cast(token, patches.dtype)
        return ops.concatenate([token, patches], axis=1) + self.pos_embed  # (N, 1 + P, D)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[1] + 1, input_shape[2])

    def get_config(self):
        return {**super().get_config(), "grid": list(self.grid)}


@keras.saving.register_keras_serializable("kmed")
class Attention(keras.layers.Layer):
    """Multi-head self-attention with one matrix for queries, keys and values (Vaswani et al., 2017).

    Args:
      num_heads: D must be a multiple of it.
      dropout: rate on the attention weights in training.
    Input and output: (N, T, D). `gates`, if given, are factors (N, heads, T, T) on the attention
    weights: the gradient with respect to them, at 1, shows how much each weight matters.
    """

    def __init__(self, num_heads, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = int(num_heads)
        self.dropout = float(dropout)

    def build(self, input_shape):
        width = input_shape[-1]
        self.qkv = keras.layers.Dense(3 * width, kernel_initializer=small_normal(), dtype=self.dtype_policy, name="qkv")
        self.proj = keras.layers.Dense(width, kernel_initializer=small_normal(), dtype=self.dtype_policy, name="proj")
        self.drop = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy, name="drop")
        self.qkv.build(input_shape)
        self.proj.build(input_shape)

    def call(self, x, training=False, gates=None):
        _, num_tokens, width = x.shape
        head_dim = width // self.num_heads
        qkv = ops.reshape(self.qkv(x), (-1, num_tokens, 3, self.num_heads, head_dim))  # (N, T, 3, heads, d)
        q, k, v = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), 3)  # each (N, heads, T, d)
        # The queries are scaled: T * d products instead of T * T.
        scores = ops.matmul(q * head_dim**-0.5, ops.swapaxes(k, -1, -2))  # (N, heads, T, T)
        weights = ops.softmax(scores, axis=-1)
        weights = self.drop(weights if gates is None else weights * gates, training=training)
        mixed = ops.transpose(ops.matmul(weights, v), (0, 2, 1, 3))  # (N, T, heads, d)
        return self.proj(ops.reshape(mixed, (-1, num_tokens, width)))  # (N, T, D)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads, "dropout": self.dropout}


def choose_batch_norm(batch_norm: str) -> type[keras.layers.Layer]:
    """Returns the layer class that the option `batch_norm` names: "fused", or "keras" for Keras' own."""
    if batch_norm not in BATCH_NORMS:
        hint = suggest(batch_norm, BATCH_NORMS)
        raise ModelError(
            f"batch_norm must be one of {', '.join(BATCH_NORMS)}.{hint} Received: batch_norm={batch_norm!r}"
        )
    return BATCH_NORMS[batch_norm]


def swap_batch_norm(
    backbone: keras.Model,
    *,
    image_size: tuple[int, int] | None = None,
    batch_norm: str = "fused",
    adapt: Callable[[keras.layers.Layer], keras.layers.Layer | None] | None = None,
) -> keras.Model:
    """Returns a copy of a functional model, freshly initialised, with the chosen batch normalisation.

    Args:
      backbone: a functional model; it is not changed.
      image_size: (height, width) of the copy's input; None keeps the input.
      batch_norm: "fused" or "keras".
      adapt: function that takes a layer and returns its replacement, or None to copy it.
    """
    norm_class = choose_batch_norm(batch_norm)
    inputs = None if image_size is None else keras.Input((*image_size, 3), dtype=compute_dtype(), name="images")

    def clone(layer):
        layer = (adapt(layer) if adapt else None) or layer
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        return (norm_class if is_norm else type(layer)).from_config(layer.get_config())

    return keras.models.clone_model(backbone, input_tensors=inputs, clone_function=clone)


def freeze_batch_norm(model: keras.Model) -> None:
    """Makes every batch normalisation of the backbone keep its weights and statistics, which training then uses too.

    Statistics of a few small batches are worse than those that pretrained weights came with. Compile the model after
    it; setting `trainable` of the backbone undoes it.

    Args:
      model: what `build_model` returned.
    Example:
      >>> model = kmed.build_model("efficientnetlite0", 4, weights="imagenet")
      >>> kmed.freeze_batch_norm(model)
      >>> model.compile(keras.optimizers.AdamW(3e-4), "categorical_crossentropy")
    """
    for layer in model.get_layer("backbone").layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def name_parts(pattern: str, layer_name: str) -> tuple[str, ...]:
    """Returns the groups that the regular expression `pattern` finds in the name of a layer.

    Raises: ModelError: the name does not match.
    """
    match = re.fullmatch(pattern, layer_name)
    if match is None:
        raise ModelError(f"The layer {layer_name!r} has no name in PyTorch: it does not match {pattern!r}.")
    return match.groups()


def with_config(layer: keras.layers.Layer, **changes) -> keras.layers.Layer:
    """Returns a new layer of the same class and configuration, except for `changes`."""
    return type(layer).from_config({**layer.get_config(), **changes})


def compute_dtype() -> str:
    """Returns the dtype that layers compute in under Keras' global policy."""
    return keras.config.dtype_policy().compute_dtype


def small_normal() -> keras.initializers.Initializer:
    """Returns the initializer of a transformer's matrices and positions: a truncated normal of deviation 0.02."""
    return keras.initializers.TruncatedNormal(stddev=0.02)


def check_fraction(**rates) -> None:
    """Raises ModelError unless each keyword's value is in [0, 1)."""
    for name, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise ModelError(f"{name} must be in [0, 1). Received: {name}={rate!r}")


def check_positive(**counts) -> None:
    """Raises ModelError unless each keyword's value is an integer of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ModelError(f"{name} must be an integer of at least 1. Received: {name}={count!r}")
