"""FORMATS: what a trained model can be written as, one row per format."""

import pathlib

import keras
import numpy as np

from kmed.errors import ConfigError, KmedError, RunError, suggest
from kmed.formats.onnx import open_onnx, write_onnx
from kmed.formats.savedmodel import open_savedmodel, write_savedmodel
from kmed.formats.tflite import open_tflite, write_tflite
from kmed.metrics.calibration import Calibration

CANDIDATES = (
    ("keras", "none"),
    ("savedmodel", "none"),
    ("tflite", "none"),
    ("tflite", "float16"),
    ("tflite", "dynamic"),
    ("tflite", "int8"),
    ("onnx", "none"),
)

# What is tried, in this order, where an export is refused: the nearest first.
NEAREST = {
    ("tflite", "int8"): [("tflite", "dynamic"), ("tflite", "float16"), ("tflite", "none"), ("savedmodel", "none")],
    ("tflite", "dynamic"): [("tflite", "float16"), ("tflite", "none"), ("savedmodel", "none")],
    ("tflite", "float16"): [("tflite", "none"), ("savedmodel", "none")],
    ("tflite", "none"): [("savedmodel", "none")],
    ("onnx", "none"): [("savedmodel", "none"), ("tflite", "none")],
    ("savedmodel", "none"): [("onnx", "none"), ("tflite", "none")],
}


def write(
    format: str,
    model: keras.Model,
    calibration: Calibration,
    path: pathlib.Path,
    description: dict,
    *,
    quantize: str = "none",
    pictures: np.ndarray | None = None,
) -> None:
    """Writes "savedmodel", "tflite" or "onnx"; the arguments are those of the functions below.

    Raises: RunError: the converter failed. ConfigError: another format, or a package that is not installed.
    """
    try:
        if format == "savedmodel":
            write_savedmodel(model, calibration, path, description)
        elif format == "onnx":
            write_onnx(model, calibration, path, description)
        elif format == "tflite":
            write_tflite(model, calibration, path, description, quantize=quantize, pictures=pictures)
        else:
            raise ConfigError(f"What is written is savedmodel, tflite or onnx. Received: {format!r}.")
    except (KmedError, OSError):
        raise
    except Exception as error:  # a converter raises whatever its insides lead to
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"The converter to {format} failed: {words}. Another format may work; nothing was written."
        ) from error


OPENERS = {"savedmodel": open_savedmodel, "tflite": open_tflite, "onnx": open_onnx}

FORMATS = {"keras": ".keras", "savedmodel": ".savedmodel", "tflite": ".tflite", "onnx": ".onnx"}

QUANTIZATIONS = ("none", "float16", "dynamic", "int8")


def check_format(format: str, quantize: str = "none") -> None:
    """Raises ConfigError unless the format is known and has this quantization."""
    if format not in FORMATS:
        raise ConfigError(f"The format is {', '.join(FORMATS)}. Received: {format!r}.{suggest(format, FORMATS)}")
    if quantize not in QUANTIZATIONS:
        hint = suggest(quantize, QUANTIZATIONS)
        raise ConfigError(f"The quantization is {', '.join(QUANTIZATIONS)}. Received: {quantize!r}.{hint}")
    if quantize != "none" and format != "tflite":
        raise ConfigError(f"Only tflite is quantized. Received: format {format!r} with quantization {quantize!r}.")
