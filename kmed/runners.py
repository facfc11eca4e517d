"""SavedModel, TFLite and ONNX files, opened to be run; without Keras, and without TensorFlow where it is not needed."""

import pathlib

from kmed.errors import ConfigError, RunError
from kmed.runtime import captured_stderr, num_cores


def open_savedmodel(path: pathlib.Path, threads: int | None):
    """Returns images -> probs of a SavedModel; its threads are TensorFlow's."""
    import tensorflow as tf

    try:
        with captured_stderr():
            loaded = tf.saved_model.load(str(path))
        serve = loaded.signatures["serving_default"]
    except Exception as error:  # of a damaged one TensorFlow raises whatever the damage leads to
        raise RunError(f"{path} cannot be run as a SavedModel: {str(error).splitlines()[0]}") from None

    def run(images):
        return serve(images=tf.constant(images))["probs"].numpy()

    run.keeps = loaded  # the signature holds no reference to the variables it reads
    return run


def open_tflite(path: pathlib.Path, threads: int | None):
    """Returns images (1, H, W, 3) -> probs (1, K) of a TFLite file, run by LiteRT."""
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
    given, made = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(images):
        interpreter.set_tensor(given, images)
        interpreter.invoke()
        return interpreter.get_tensor(made)

    return run


def open_onnx(path: pathlib.Path, threads: int | None):
    """Returns images -> probs of an ONNX file, run by ONNX Runtime on the processor."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ConfigError("ONNX files are run by ONNX Runtime: pip install kmed[onnx]") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or num_cores()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise RunError(f"{path} cannot be run as ONNX: {str(error).splitlines()[0]}") from None
    return lambda images: session.run(["probs"], {"images": images})[0]


OPENERS = {"savedmodel": open_savedmodel, "tflite": open_tflite, "onnx": open_onnx}
