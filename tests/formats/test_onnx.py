"""ONNX files return the Keras model's calibrated probabilities."""

import numpy as np
import pytest
from untrained_models import check_same


@pytest.mark.parametrize("name", ["resnet18", "vit", pytest.param("densenet121", marks=pytest.mark.slow),
                                  pytest.param("efficientnetb0", marks=pytest.mark.slow)])  # fmt: skip
def test_onnx_returns_the_same(name, tmp_path):
    pytest.importorskip("tf2onnx", reason="pip install kmed[onnx]")
    check_same(name, "multiclass", "onnx", tmp_path / "model.onnx")


def test_relu6_survives(tmp_path):
    """A ReLU without its upper bound would be right on pictures that leave every value below 6."""
    onnx = pytest.importorskip("onnx", reason="pip install kmed[onnx]")
    check_same("efficientnetlite0", "multiclass", "onnx", tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    bounds = [values[node.input[2]] for node in graph.node if node.op_type == "Clip"]
    assert len(bounds) == 33 and all(  # 16 blocks, of which 15 expand, the stem and the last convolution
        np.array_equal(bound, np.float32(6)) for bound in bounds
    )
    assert not [node for node in graph.node if node.op_type == "Relu"]
