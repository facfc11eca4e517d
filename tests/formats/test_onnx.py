"""ONNX files return the Keras model's calibrated probabilities."""

import pytest
from untrained_models import check_same


@pytest.mark.parametrize("name", ["resnet18", "vit", pytest.param("densenet121", marks=pytest.mark.slow),
                                  pytest.param("efficientnetb0", marks=pytest.mark.slow)])  # fmt: skip
def test_onnx_returns_the_same(name, tmp_path):
    pytest.importorskip("tf2onnx", reason="pip install kmed[onnx]")
    check_same(name, "multiclass", "onnx", tmp_path / "model.onnx")
