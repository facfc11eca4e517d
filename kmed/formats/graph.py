"""SavedModel, TFLite and ONNX: how a Keras model is written together with its calibration."""

import keras
import numpy as np
from keras import ops

from kmed.errors import ConfigError
from kmed.metrics.calibration import Calibration


def calibrated(model: keras.Model, calibration: Calibration):
    """Returns a function from raw pictures (B, H, W, 3) to calibrated probabilities (B, K), in backend operations.

    It starts from the logits, of which softmax and sigmoid are then the last step: between two steps an int8
    converter would round probabilities to 1/256.
    """
    logits_of = keras.Model(model.inputs, model.get_layer("head").output)

    def serve(images):
        logits = logits_of(images, training=False)
        if calibration.method == "temperature":
            return ops.softmax(logits / calibration.temperature, axis=-1)
        slopes, intercepts = (np.array(values, np.float32) for values in (calibration.slopes, calibration.intercepts))
        return ops.sigmoid(logits * slopes + intercepts)

    return serve


def check_backend() -> None:
    """Raises ConfigError unless Keras runs on TensorFlow, which writes all these formats."""
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            f"Exports are written by TensorFlow. Received: KERAS_BACKEND={keras.backend.backend()}. "
            "Install tensorflow and set KERAS_BACKEND=tensorflow; the run folder is the same."
        )
