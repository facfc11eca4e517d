"""The networks against an independent implementation (timm, float64): same weights, same input, same logits."""

import json
import pathlib

import deterministic_weights
import numpy as np
import pytest
from safetensors.numpy import save_file

from kmed.models.build import build_model
from kmed.models.registry import resolve_name
from kmed.models.weights import load_weights

FOLDER = pathlib.Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def test_every_family_has_a_reference():
    assert {"resnet18", "resnet152", "densenet121", "densenet161", "efficientnetb0", "efficientnetlite0", "vit"} <= set(
        map(resolve_name, NAMES)
    )


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_parameters_equal_the_reference(name, tmp_path):
    fixture = json.loads((FOLDER / f"{name}.json").read_text())
    save_file(deterministic_weights.state(fixture["state"]), tmp_path / "model.safetensors")
    model = build_model(name, fixture["num_classes"], image_size=fixture["input_shape"][1:3], activation=None)
    assert load_weights(model, tmp_path / "model.safetensors") == []
    assert sum(np.prod(weight.shape) for weight in model.trainable_weights) == fixture["parameters"]

    images = deterministic_weights.images(*fixture["input_shape"])
    scaling = model.get_layer("normalize")
    pixels = (images * np.array(scaling.std) + np.array(scaling.mean)) * 255
    logits, expected = np.asarray(model(pixels.astype("float32"))), np.array(fixture["logits"])
    assert np.abs(logits - expected).max() / np.abs(expected).max() <= 1e-4


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "efficientnet_b0", "efficientnet_lite0"])
def test_features_equal_the_reference(name, tmp_path):
    fixture = json.loads((FOLDER / f"{name}.json").read_text())
    save_file(deterministic_weights.state(fixture["state"]), tmp_path / "model.safetensors")
    model = build_model(name, fixture["num_classes"], image_size=fixture["input_shape"][1:3])
    load_weights(model, tmp_path / "model.safetensors")
    features = np.asarray(model.get_layer("backbone")(deterministic_weights.images(*fixture["input_shape"])))
    batch, channels, height, width = fixture["features_shape_nchw"]
    assert features.shape == (batch, height, width, channels)
    assert features.mean() == pytest.approx(fixture["features_mean"], rel=1e-4)
    assert features.std() == pytest.approx(fixture["features_std"], rel=1e-4)
