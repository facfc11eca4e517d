"""TFLite files return the Keras model's calibrated probabilities, quantized ones nearly so."""

import numpy as np
import pytest
from untrained_models import check_same, pictures

from kmed.errors import ConfigError
from kmed.evaluation.predictor import open_exported
from kmed.models.build import list_models

SMALLEST = ("resnet18", "densenet121", "efficientnetb0", "efficientnetlite0", "vit")


@pytest.mark.parametrize("name", SMALLEST)
def test_tflite_returns_the_same(name, tmp_path):
    check_same(name, "multiclass", "tflite", tmp_path / "model.tflite")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_models() if name not in SMALLEST])
def test_tflite_of_larger_models_returns_the_same(name, tmp_path):
    check_same(name, "multiclass", "tflite", tmp_path / "model.tflite")


@pytest.mark.parametrize(("quantize", "atol"), [("float16", 0.01), ("dynamic", 0.1)])
def test_light_quantizations_stay_close(quantize, atol, tmp_path):
    check_same("resnet18", "multilabel", "tflite", tmp_path / "model", quantize=quantize, atol=atol)


def test_int8_is_small_and_keeps_the_head_in_float32(tmp_path):
    path = tmp_path / "model.tflite"
    check_same("resnet18", "multilabel", "tflite", path, quantize="int8", pictures=pictures(16), atol=0.15)
    assert path.stat().st_size < 12e6  # of 44.7 MB
    rng = np.random.default_rng(5)
    probs = open_exported(path, "tflite").predict(rng.integers(0, 256, (300, 32, 40, 3)))
    assert len(np.unique(probs[:, 0])) > 257  # an int8 output would have 256 steps


def test_int8_of_the_family_for_phones_is_small_and_close(tmp_path):
    path = tmp_path / "model.tflite"
    check_same("efficientnetlite0", "multiclass", "tflite", path, quantize="int8", pictures=pictures(16), atol=0.1)
    assert path.stat().st_size < 4.5e6  # of 13.5 MB


def test_int8_without_pictures_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="int8 needs pictures of the training split"):
        check_same("small vit", "multiclass", "tflite", tmp_path / "m", quantize="int8")
