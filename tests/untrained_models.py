"""Untrained models whose outputs differ between images, and what their exported files must return."""

import functools

import keras
import numpy as np

from kmed.evaluation.predictor import open_exported
from kmed.formats import onnx, savedmodel, tflite
from kmed.metrics.calibration import Calibration
from kmed.models.build import build_model

NAMES = ("one", "two", "three", "four")
CALIBRATIONS = {
    "multiclass": Calibration("temperature", NAMES, temperature=1.7),
    "multilabel": Calibration("platt", NAMES, slopes=(1.2, 0.5, 0.0, 1.0), intercepts=(0.1, -1.0, 0.3, 0.0)),
}
WRITERS = {"savedmodel": savedmodel.write, "onnx": onnx.write, "tflite": tflite.write}


def description(name, task, size=(32, 40)) -> dict:
    return {
        "model": name, "task": task, "class_names": list(NAMES), "image_size": list(size), "fit": "pad",
        "interpolation": "bilinear", "input": "raw", "output": "calibrated probabilities", "calibrated": True,
        "thresholds": None, "verdict": "It is untrained.",
        "test_score": {"name": "accuracy", "value": None, "low": None, "high": None, "num_images": 0,
                       "num_clusters": 0, "split": "test"},
    }  # fmt: skip


def pictures(count=8, size=(32, 40)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def spread_out(model: keras.Model) -> keras.Model:
    """Scales the head, so that outputs differ between pictures by about as much as in a trained model."""
    head = model.get_layer("head")
    features = keras.Model(model.inputs, head.input).predict(pictures(), verbose=0)  # (N, D)
    kernel = np.random.default_rng(1).normal(0, 1, head.kernel.shape)
    spread = (features @ kernel).std(axis=0)
    head.kernel.assign(kernel * 1.5 / spread)
    head.bias.assign(-(features @ (kernel * 1.5 / spread)).mean(axis=0))
    return model


@functools.cache
def build(name, task="multiclass", size=(32, 40)) -> keras.Model:
    """Returns a model that all tests share, so none may change it. "small vit" is quick to convert."""
    keras.utils.set_random_seed(0)
    options = {"width": 16, "depth": 1, "num_heads": 2} if name == "small vit" else {}
    return spread_out(build_model(name.removeprefix("small "), len(NAMES), image_size=size, task=task, **options))


@functools.cache
def outputs(name, task="multiclass") -> np.ndarray:
    """Returns the model's calibrated probabilities of `pictures()`."""
    return CALIBRATIONS[task].apply(build(name, task).predict(pictures(), verbose=0))


def check_same(name, task, format, path, *, atol=1e-4, **options):
    WRITERS[format](build(name, task), CALIBRATIONS[task], path, description(name, task), **options)
    expected, images = outputs(name, task), pictures()
    assert np.ptp(expected, axis=0).max() > 0.2  # outputs must differ, or equality would mean little
    found = open_exported(path, format, threads=1).predict(images)
    assert found.shape == (len(images), len(NAMES)) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=atol)
