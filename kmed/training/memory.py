"""How much memory a training run will take, told before it starts."""

import math

import keras

PROCESS_BYTES = 1.0e9  # Python, the backend and its buffers, measured on TensorFlow with a tiny model


def estimate_memory(model: keras.Model, batch_size: int, *, cached_bytes: int = 0, averaged: bool = True) -> float:
    """Returns the bytes a training process is likely to hold; measured peaks were within a third of it.

    Weights count five times in float32 (weight, gradient, AdamW's two moments, a copy while
    updating) and twice more with a weight average and the best epoch's; what every layer puts out is kept for the
    backward pass, in the layer's compute dtype.

    Args:
      model: built model.
      batch_size: images a step.
      cached_bytes: decoded pictures kept in memory.
      averaged: whether a moving average of the weights is kept.
    """
    weights = 4 * model.count_params() * (5 + 2 * averaged)
    outputs = sum(_output_bytes(layer) for layer in model._flatten_layers() if not isinstance(layer, keras.Model))
    return PROCESS_BYTES + weights + batch_size * outputs + cached_bytes


def _output_bytes(layer) -> int:
    """Returns the bytes of one image's output of a layer; 0 for a layer that is part of no graph."""
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError):
        return 0
    size = 2 if "16" in str(layer.compute_dtype) else 4
    return math.prod(dimension or 1 for dimension in shape[1:]) * size
