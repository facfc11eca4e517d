"""Writing and opening SavedModels."""

import pathlib

import keras

from kmed.errors import RunError
from kmed.formats.graph import calibrated
from kmed.metrics.calibration import Calibration
from kmed.runtime import captured_stderr

# {kmed's interpolation: that of tf.image.resize}; with antialias=True it averages when it shrinks, as Pillow does.
TF_METHODS = {"nearest": "nearest", "box": "area", "bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "lanczos3"}


def write(model: keras.Model, calibration: Calibration, path: pathlib.Path, description: dict) -> None:
    """Writes a SavedModel with two signatures, which both return {"probs": float32 (B, K)}.

    "serving_default" takes `images`, float32 (B, H, W, 3) in [0, 255]. "serve_bytes" takes `encoded`, strings (B,),
    the bytes of JPEG, PNG, GIF or BMP files. TensorFlow's kernels decode and resize them: the pixels are close to
    Pillow's, but not equal, JPEG files are decoded at their full size, and the EXIF orientation is not applied. The
    range of the description applies to PNG files of 16 bits.

    Args:
      model: a model that takes raw pictures.
      calibration: that of its probabilities.
      path: the folder to write.
      description: what `kmed.evaluation.predictor.describe_run` returns.
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
    image = tf.ensure_shape(_decode_values(encoded, description.get("range")), (None, None, 3))  # (h, w, 3)
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
        # The picture is cropped first, to whole pixels.
        seen = tf.minimum(tf.cast(tf.round(wanted / tf.reduce_max(scale)), tf.int32), tf.shape(image)[:2])
        start = (tf.shape(image)[:2] - seen) // 2
        image = tf.image.crop_to_bounding_box(image, start[0], start[1], seen[0], seen[1])
        image = tf.image.resize(image, (height, width), method=method, antialias=True)
    return tf.clip_by_value(tf.round(image), 0.0, 255.0)


def _decode_values(encoded, limits):
    """Returns float32 (h, w, 3) in [0, 255] of a picture file; `limits` become 0 and 255 in a PNG file of 16 bits."""
    import tensorflow as tf

    def decode():
        return tf.cast(tf.io.decode_image(encoded, channels=3, expand_animations=False), tf.float32)

    def scale():
        low, high = limits
        values = tf.cast(tf.io.decode_png(encoded, channels=3, dtype=tf.uint16), tf.float32)
        return tf.round((tf.clip_by_value(values, low, high) - low) * (255.0 / (high - low)))

    if limits is None:
        return decode()
    header = tf.io.decode_raw(tf.strings.substr(encoded, 0, 25), tf.uint8)
    is_deep = tf.reduce_all(tf.equal(tf.gather(header, [0, 1, 24]), tf.constant([0x89, 0x50, 16], tf.uint8)))
    return tf.cond(is_deep, scale, decode)


def open(path: pathlib.Path, threads: int | None):
    """Returns a function images -> probs that runs a SavedModel on TensorFlow's threads; `threads` has no effect."""
    import tensorflow as tf

    try:
        with captured_stderr():
            loaded = tf.saved_model.load(str(path))
        serve = loaded.signatures["serving_default"]
    except Exception as error:  # TensorFlow raises many kinds of errors for damaged files
        raise RunError(f"{path} cannot be run as a SavedModel: {str(error).splitlines()[0]}") from None

    def run(images, keeps=loaded):  # the signature holds no reference to the variables that it reads
        return serve(images=tf.constant(images))["probs"].numpy()

    return run
