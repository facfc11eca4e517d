"""SavedModel, TFLite and ONNX: how a Keras model is written together with its calibration."""

import pathlib
import re
import tempfile

import keras
import numpy as np
from keras import ops

from kmed.calibration import Calibration
from kmed.errors import ConfigError, KmedError, RunError
from kmed.runtime import captured_stderr
from kmed.tflite_metadata import append_files, with_metadata

ONNX_OPSET = 18

_POOL = re.compile(r"^[^/]+/pool(_\d+)?/")  # the model's own layer of that name, not one of its backbone's

# kmed's interpolation -> that of tf.image.resize, which averages when it shrinks, as Pillow does.
TF_METHODS = {"nearest": "nearest", "box": "area", "bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "lanczos3"}


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


# ----- SavedModel -----


def write_savedmodel(model: keras.Model, calibration: Calibration, path: pathlib.Path, description: dict) -> None:
    """Writes a SavedModel with two signatures, both giving {"probs": float32 (B, K)}.

    "serving_default": images, float32 (B, H, W, 3) in [0, 255]. "serve_bytes": encoded, strings (B,), the bytes
    of JPEG, PNG, GIF or BMP files, which are decoded and resized by TensorFlow's kernels: nearly, not exactly, the
    pixels that Pillow gives, and the EXIF orientation is not applied.

    Args:
      model: takes raw pictures.
      calibration: of its probabilities.
      path: the folder to make.
      description: of `kmed.serving.describe`.
    """
    import tensorflow as tf

    height, width = description["image_size"]
    serve = calibrated(model, calibration)

    @tf.function(input_signature=[tf.TensorSpec((None, height, width, 3), tf.float32, name="images")])
    def serve_images(images):
        return {"probs": serve(images)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="encoded")])
    def serve_bytes(encoded):
        shape = tf.TensorSpec((height, width, 3), tf.float32)
        images = tf.map_fn(lambda each: _decode(each, description), encoded, fn_output_signature=shape)
        return {"probs": serve(images)}

    # Not keras.export.ExportArchive, which stores every weight twice.
    module = tf.Module()
    module.held = [weight.value for weight in model.weights]
    with captured_stderr():
        signatures = {"serving_default": serve_images, "serve_bytes": serve_bytes}
        tf.saved_model.save(module, str(path), signatures=signatures)


def _decode(encoded, description: dict):
    """Returns float32 (H, W, 3) in [0, 255], whole numbers, from the bytes of a picture file."""
    import tensorflow as tf

    height, width = description["image_size"]
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image = tf.cast(tf.ensure_shape(image, (None, None, 3)), tf.float32)  # (h, w, 3)
    size, wanted = tf.cast(tf.shape(image)[:2], tf.float32), tf.constant([height, width], tf.float32)
    method, scale = TF_METHODS[description["interpolation"]], wanted / size
    if description["fit"] == "stretch":
        image = tf.image.resize(image, (height, width), method=method, antialias=True)
    elif description["fit"] == "pad":
        inner = tf.minimum(tf.maximum(tf.round(size * tf.reduce_min(scale)), 1.0), wanted)
        image = tf.image.resize(image, tf.cast(inner, tf.int32), method=method, antialias=True)
        before = tf.cast(wanted - inner, tf.int32) // 2
        image = tf.image.pad_to_bounding_box(image, before[0], before[1], height, width)
    else:
        # Cut first, to whole pixels: the part of the picture that is seen.
        seen = tf.minimum(tf.cast(tf.round(wanted / tf.reduce_max(scale)), tf.int32), tf.shape(image)[:2])
        start = (tf.shape(image)[:2] - seen) // 2
        image = tf.image.crop_to_bounding_box(image, start[0], start[1], seen[0], seen[1])
        image = tf.image.resize(image, (height, width), method=method, antialias=True)
    return tf.clip_by_value(tf.round(image), 0.0, 255.0)


# ----- TFLite -----


def write_tflite(
    model: keras.Model,
    calibration: Calibration,
    path: pathlib.Path,
    description: dict,
    *,
    quantize: str = "none",
    pictures: np.ndarray | None = None,
) -> None:
    """Writes a TFLite file with a batch of 1, float32 input and output, and metadata.

    float16: weights in half precision. dynamic: weights in int8, activations quantized as they come. int8:
    weights and activations, whose ranges are taken from `pictures`; what follows the pooling (head, calibration)
    stays in float32, since 256 steps would blur the small probabilities of rare findings.

    Args:
      model: takes raw pictures.
      calibration: of its probabilities.
      path: the file to make.
      description: of `kmed.serving.describe`.
      quantize: "none", "float16", "dynamic" or "int8".
      pictures: uint8 (N, H, W, 3), of the training split; needed by int8.
    Raises: ConfigError: int8 without pictures.
    """
    import tensorflow as tf

    if quantize == "int8" and (pictures is None or not len(pictures)):
        raise ConfigError(
            "int8 needs pictures of the training split to learn the ranges of activations. Received: none."
        )
    height, width = description["image_size"]
    serve = calibrated(model, calibration)
    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [tf.TensorSpec((1, height, width, 3), tf.float32, name="images")]
    archive.add_endpoint("serving_default", lambda images: {"probs": serve(images)}, input_signature=signature)
    with tempfile.TemporaryDirectory() as folder, captured_stderr():
        archive.write_out(folder, verbose=False)
        converted = _convert(folder, quantize, pictures)
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
    """Returns the names of what is computed from the layer "pool" on, in the order of computation."""
    from tensorflow.lite.tools import flatbuffer_utils

    graph = flatbuffer_utils.convert_bytearray_to_object(bytearray(model)).subgraphs[0]
    names = [graph.tensors[place].name.decode() for operator in graph.operators for place in operator.outputs]
    first = next((row for row, name in enumerate(names) if _POOL.search(name)), None)
    if first is None:
        raise RunError("The converted model has no layer called pool, so its head cannot be kept in float32.")
    return names[first:]


# ----- ONNX -----


def write_onnx(model: keras.Model, calibration: Calibration, path: pathlib.Path, description: dict) -> None:
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
