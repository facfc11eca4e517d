"""Writing, quantizing and opening TFLite files."""

import pathlib
import re

import keras
import numpy as np

from kmed.errors import ConfigError, RunError
from kmed.files import temporary_folder
from kmed.formats.graph import calibrated
from kmed.formats.tflite_metadata import append_files, with_metadata
from kmed.metrics.calibration import Calibration
from kmed.runtime import captured_stderr, num_cores

# The model's own layer of that name, or that of a member of an ensemble, but not one in a backbone.
_POOL = re.compile(r"^[^/]+/(member\d+_[^/]+/)?pool(_\d+)?/")


def write(
    model: keras.Model,
    calibration: Calibration,
    path: pathlib.Path,
    description: dict,
    *,
    quantize: str = "none",
    pictures: np.ndarray | None = None,
) -> None:
    """Writes a TFLite file with a batch of 1, float32 input and output, and metadata.

    float16: weights in half precision. dynamic: weights in int8, and activations quantized while the model runs.
    int8: weights and activations, with the ranges of activations measured on `pictures`; the layers after the
    pooling (head, calibration) stay in float32, since 256 steps are too coarse for the small probabilities of rare
    findings.

    Args:
      model: a model that takes raw pictures.
      calibration: that of its probabilities.
      path: the file to write.
      description: what `kmed.evaluation.predictor.describe_run` returns.
      quantize: "none", "float16", "dynamic" or "int8".
      pictures: uint8 (N, H, W, 3), from the training split; int8 needs them.
    Raises: ConfigError: int8 without pictures.
    """
    import tensorflow as tf

    if quantize == "int8" and (pictures is None or not len(pictures)):
        raise ConfigError(
            "int8 needs pictures of the training split to measure the ranges of activations. Received: none."
        )
    height, width = description["image_size"]
    serve = calibrated(model, calibration)
    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [tf.TensorSpec((1, height, width, 3), tf.float32, name="images")]
    archive.add_endpoint("serving_default", lambda images: {"probs": serve(images)}, input_signature=signature)
    with temporary_folder() as folder, captured_stderr():
        archive.write_out(str(folder), verbose=False)
        converted = _convert(str(folder), quantize, pictures)
    path.write_bytes(with_metadata(converted, description))
    append_files(path, description)


def _convert(folder: str, quantize: str, pictures) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
    if quantize == "none":
        return converter.convert()
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize != "int8":
        return converter.convert()
    plain = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"]).convert()
    converter.representative_dataset = lambda: ([picture[None].astype(np.float32)] for picture in pictures)
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=_head_tensors(plain))
    debugger = tf.lite.experimental.QuantizationDebugger(
        converter=converter, debug_dataset=converter.representative_dataset, debug_options=options
    )
    return debugger.get_nondebug_quantized_model()


def _head_tensors(model: bytes) -> list[str]:
    """Returns the names of the tensors that the layer "pool" gives and all that is computed from them."""
    from tensorflow.lite.tools import flatbuffer_utils

    graph = flatbuffer_utils.convert_bytearray_to_object(bytearray(model)).subgraphs[0]
    names: dict[int, str] = {}  # in order of computation
    for operator in graph.operators:
        for index in operator.outputs:
            name = graph.tensors[index].name.decode()
            if _POOL.search(name) or names.keys() & set(operator.inputs.tolist()):
                names[index] = name
    if not names:
        raise RunError("The converted model has no layer named pool, so its head cannot be kept in float32.")
    return list(names.values())


def open(path: pathlib.Path, threads: int | None):
    """Returns a function images (1, H, W, 3) -> probs (1, K) that runs a TFLite file with LiteRT."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError:
        raise ConfigError("TFLite files are run by LiteRT: pip install ai-edge-litert") from None
    try:
        with captured_stderr():
            interpreter = Interpreter(model_path=str(path), num_threads=threads or num_cores())
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise RunError(f"{path} cannot be run as TFLite: {str(error).splitlines()[0]}") from None
    input_index = interpreter.get_input_details()[0]["index"]
    output_index = interpreter.get_output_details()[0]["index"]

    def run(images):
        interpreter.set_tensor(input_index, images)
        interpreter.invoke()
        return interpreter.get_tensor(output_index)

    return run
