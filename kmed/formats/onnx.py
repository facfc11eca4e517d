"""Writing and opening ONNX files."""

import pathlib

import keras

from kmed.errors import ConfigError, RunError
from kmed.formats.graph import calibrated
from kmed.metrics.calibration import Calibration
from kmed.runtime import captured_stderr, num_cores

ONNX_OPSET = 18


def write(model: keras.Model, calibration: Calibration, path: pathlib.Path, description: dict) -> None:
    """Writes an ONNX file with any batch size, input "images" and output "probs".

    Raises: ConfigError: tf2onnx is not installed.
    """
    import tensorflow as tf

    try:
        import tf2onnx
    except ModuleNotFoundError:
        raise ConfigError("ONNX files are written by tf2onnx: pip install kmed[onnx]") from None
    height, width = description["image_size"]
    signature = (tf.TensorSpec((None, height, width, 3), tf.float32, name="images"),)
    serve = calibrated(model, calibration)

    @tf.function(input_signature=signature)
    def function(images):
        return {"probs": serve(images)}

    with captured_stderr():
        tf2onnx.convert.from_function(function, signature, opset=ONNX_OPSET, output_path=str(path))


def open(path: pathlib.Path, threads: int | None):
    """Returns a function images -> probs that runs an ONNX file with ONNX Runtime on the CPU."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ConfigError("ONNX files are run by ONNX Runtime: pip install kmed[onnx]") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or num_cores()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise RunError(f"{path} cannot be run as ONNX: {str(error).splitlines()[0]}") from None
    return lambda images: session.run(["probs"], {"images": images})[0]
