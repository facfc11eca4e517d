"""The numbers that `kmed models` prints: parameters and multiply-adds, measured on the built model."""

import math

import keras
import pandas as pd

from kmed.files import replacing
from kmed.models.build import FACTS_PATH, build_model, list_models
from kmed.models.layers import Attention
from kmed.models.registry import MODELS, resolve_name

NUM_CLASSES = 4


def measure(name: str) -> dict:
    """Returns one row of the table of facts: `name` at its default image size, with 4 classes."""
    name = resolve_name(name)
    model = build_model(name, NUM_CLASSES, activation=None)
    height, width = MODELS[name].image_size
    return {
        "name": name,
        "trainable_parameters": sum(math.prod(weight.shape) for weight in model.trainable_weights),
        "total_parameters": model.count_params(),
        "multiply_adds": multiply_adds(model),
        "image_size": f"{height}x{width}",
    }


def multiply_adds(model: keras.Model) -> int:
    """Returns the number of multiply-adds of convolutions, matrices and attention for one image.

    Bias, normalisation, activations and pooling are not counted, as usual.
    """
    return sum(_of_layer(layer) for layer in model.layers)


def write_facts(path=FACTS_PATH) -> None:
    """Measures every model and writes the table; run it when a model is added or changed."""
    rows = []
    for name in list_models():
        rows.append(measure(name))
        keras.backend.clear_session()
    with replacing(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def _of_layer(layer: keras.layers.Layer) -> int:
    if isinstance(layer, keras.Model):
        return multiply_adds(layer)
    if isinstance(layer, Attention):
        _, num_tokens, width = layer.output.shape
        # queries, keys, values and the projection: 4 D x D; scores and mixing: 2 T x T x D
        return num_tokens * 4 * width * width + 2 * num_tokens * num_tokens * width
    if isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
        _, height, width, _ = layer.output.shape
        # The kernel (h, w, in, out) is used once per position; a depthwise one has out = 1.
        return height * width * math.prod(layer.kernel.shape)
    if isinstance(layer, keras.layers.Dense):
        return math.prod(layer.output.shape[1:-1]) * math.prod(layer.kernel.shape)
    return 0
