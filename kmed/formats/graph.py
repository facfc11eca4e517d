"""The function that all exports contain: a Keras model together with its calibration."""

import keras
import numpy as np
from keras import ops

from kmed.errors import ConfigError
from kmed.metrics.calibration import Calibration


def calibrated(model: keras.Model, calibration: Calibration):
    """Returns a function from raw pictures (B, H, W, 3) to calibrated probabilities (B, K), in backend operations.

    It calibrates logits, so that softmax or sigmoid is the last step. If calibration followed it, an int8 converter
    would round the probabilities between the two steps to 1/256.
    """
    logits_of = keras.Model(model.inputs, model.get_layer("head").output)

    def serve(images):
        logits = logits_of(images, training=False)
        if calibration.method == "temperature":
            shifts = calibration.weights.astype(np.float32)
            return ops.softmax(logits / calibration.temperature + shifts, axis=-1)
        slopes, intercepts = (np.array(values, np.float32) for values in (calibration.slopes, calibration.intercepts))
        return ops.sigmoid(logits * slopes + intercepts)

    return serve


def check_backend() -> None:
    """Raises ConfigError unless Keras runs on TensorFlow, which writes all formats."""
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            f"Exports are written by TensorFlow. Received: KERAS_BACKEND={keras.backend.backend()}. "
            "Install tensorflow and set KERAS_BACKEND=tensorflow; the same run folder can be used."
        )
