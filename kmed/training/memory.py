"""An estimate of the memory that a training run will take, made before it starts."""

import math

import keras

PROCESS_BYTES = 1.0e9  # Python, the backend and its buffers, measured on TensorFlow with a tiny model


def estimate_memory(
    model: keras.Model, batch_size: int, *, cached_bytes: int = 0, averaged: bool = True, accumulated: bool = False
) -> float:
    """Returns the likely peak memory of a training process, in bytes; measured peaks were within a third of it.

    Weights count five times in float32 (the weight, its gradient, AdamW's two moments, a copy during the update),
    and twice more with a weight average (the average, and that of the best epoch), and once more if gradients
    accumulate. The outputs of all layers are kept for the backward pass, in the layer's compute dtype.

    Args:
      model: built model.
      batch_size: images per step.
      cached_bytes: size of the decoded pictures kept in memory.
      averaged: whether a moving average of the weights is kept.
      accumulated: whether gradients of several steps wait for one update.
    """
    weights = 4 * model.count_params() * (5 + 2 * averaged + accumulated)
    outputs = sum(_output_bytes(layer) for layer in model._flatten_layers() if not isinstance(layer, keras.Model))
    return PROCESS_BYTES + weights + batch_size * outputs + cached_bytes


def estimate_inference_memory(model: keras.Model, batch_size: int) -> float:
    """Returns the likely memory of predicting with a model inside a training process, in bytes.

    Weights count once, in float32. No outputs are kept, so only the largest one and the one made from it count.

    Args:
      model: built model.
      batch_size: images per step.
    """
    outputs = [_output_bytes(layer) for layer in model._flatten_layers() if not isinstance(layer, keras.Model)]
    return 4 * model.count_params() + 2 * batch_size * max(outputs)


def _output_bytes(layer) -> int:
    """Returns the size of a layer's output for one image, in bytes; 0 for a layer that is not part of a graph."""
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError):
        return 0
    size = 2 if "16" in str(layer.compute_dtype) else 4
    return math.prod(dimension or 1 for dimension in shape[1:]) * size
