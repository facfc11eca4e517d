"""SavedModel, TFLite and ONNX files return the Keras model's calibrated probabilities, and describe themselves."""

import functools
import io
import sys
import zipfile

import flatbuffers
import keras
import numpy as np
import pytest
from PIL import Image

from kmed.data.images import Resizing, read_image
from kmed.errors import ConfigError, RunError
from kmed.evaluation.predictor import open_exported
from kmed.formats import onnx, savedmodel, tflite
from kmed.formats.graph import check_backend
from kmed.formats.tflite_metadata import read_description, with_metadata
from kmed.metrics.calibration import Calibration
from kmed.models.build import build_model, list_models

NAMES = ("one", "two", "three", "four")
CALIBRATIONS = {
    "multiclass": Calibration("temperature", NAMES, temperature=1.7),
    "multilabel": Calibration("platt", NAMES, slopes=(1.2, 0.5, 0.0, 1.0), intercepts=(0.1, -1.0, 0.3, 0.0)),
}
WRITERS = {"savedmodel": savedmodel.write, "onnx": onnx.write, "tflite": tflite.write}
SMALLEST = ("resnet18", "densenet121", "efficientnetb0", "vit")


def description(name, task, size=(32, 40)) -> dict:
    return {
        "model": name, "task": task, "class_names": list(NAMES), "image_size": list(size), "fit": "pad",
        "interpolation": "bilinear",
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


@pytest.mark.parametrize("name", SMALLEST)
def test_tflite_returns_the_same(name, tmp_path):
    check_same(name, "multiclass", "tflite", tmp_path / "model.tflite")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_models() if name not in SMALLEST])
def test_tflite_of_larger_models_returns_the_same(name, tmp_path):
    check_same(name, "multiclass", "tflite", tmp_path / "model.tflite")


@pytest.mark.parametrize("name", ["resnet18", "vit", pytest.param("densenet121", marks=pytest.mark.slow),
                                  pytest.param("efficientnetb0", marks=pytest.mark.slow)])  # fmt: skip
def test_onnx_returns_the_same(name, tmp_path):
    pytest.importorskip("tf2onnx", reason="pip install kmed[onnx]")
    check_same(name, "multiclass", "onnx", tmp_path / "model.onnx")


@pytest.mark.parametrize("format", list(WRITERS))
def test_many_labels_are_calibrated_one_by_one(format, tmp_path):
    check_same("small vit", "multilabel", format, tmp_path / "model")


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


def test_shared_zero_points_change_nothing_but_the_size():
    """Every tensor's quantization is read back as it was written."""
    from tensorflow.lite.tools import flatbuffer_utils

    schema = flatbuffer_utils.schema_fb
    model = schema.ModelT()
    model.version, model.operatorCodes, model.buffers = 3, [], [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.inputs, graph.outputs, graph.operators, graph.tensors = [0], [2], [], []
    given = [([0.5, 0.25], [0, 0], 0), ([0.1, 0.2], [0, 0], 3), ([0.3], [-7], 0), ([0.4], [-7], 0)]
    for number, (scale, zero_point, dimension) in enumerate(given):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = f"t{number}", [1, 2], 0
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale, tensor.quantization.zeroPoint = scale, zero_point
        tensor.quantization.quantizedDimension = dimension
        graph.tensors.append(tensor)
    model.subgraphs = [graph]
    written = with_metadata(flatbuffer_utils.convert_object_to_bytearray(model), description("vit", "multiclass"))
    read = flatbuffer_utils.convert_bytearray_to_object(bytearray(written)).subgraphs[0].tensors
    for tensor, (scale, zero_point, dimension) in zip(read, given, strict=True):
        found = tensor.quantization
        np.testing.assert_allclose(found.scale, scale, rtol=1e-6)
        assert list(found.zeroPoint) == zero_point and found.quantizedDimension == dimension
        assert found.min is None and found.max is None


def test_int8_without_pictures_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="int8 needs pictures of the training split"):
        check_same("small vit", "multiclass", "tflite", tmp_path / "m", quantize="int8")


def test_exports_need_tensorflow(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ConfigError, match="Exports are written by TensorFlow. Received: KERAS_BACKEND=jax"):
        check_backend()


@pytest.mark.parametrize(
    ("module", "format", "message"),
    [
        ("tf2onnx", "onnx", r"pip install kmed\[onnx\]"),
        ("onnxruntime", "onnx", r"pip install kmed\[onnx\]"),
        ("ai_edge_litert.interpreter", "tflite", "pip install ai-edge-litert"),
    ],
)
def test_a_missing_package_is_named(module, format, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=message):
        if module == "tf2onnx":
            onnx.write(build("small vit"), CALIBRATIONS["multiclass"], tmp_path / "m", description("vit", "multiclass"))
        else:
            open_exported(tmp_path / "m", format)


# ----- how a file describes itself -----


@pytest.fixture(scope="module")
def tflite_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tflite") / "model.tflite"
    tflite.write(build("small vit"), CALIBRATIONS["multiclass"], path, description("vit", "multiclass"))
    return path


def test_labels_and_settings_follow_the_model(tflite_file):
    assert read_description(tflite_file) == description("vit", "multiclass")
    with zipfile.ZipFile(tflite_file) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(NAMES)


def test_a_foreign_tflite_file_has_no_description(tmp_path):
    path = tmp_path / "other.tflite"
    path.write_bytes(b"TFL3" * 100)
    with pytest.raises(RunError, match="kmed did not export it"):
        read_description(path)


def test_the_metadata_buffer_follows_the_published_schema(tflite_file):
    """Field numbers of metadata_schema.fbs, read by flatbuffers itself."""
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(tflite_file))
    entry = next(entry for entry in model.metadata if entry.name == b"TFLITE_METADATA")
    content = bytes(model.buffers[entry.buffer].data)
    assert flatbuffers.util.BufferHasIdentifier(content, 0, b"M001")
    root = flatbuffers.table.Table(content, flatbuffers.encode.Get(flatbuffers.number_types.UOffsetTFlags.packer_type,
                                                                   content, 0))  # fmt: skip

    def field(table, number):
        return table.Offset(4 + 2 * number) + table.Pos

    def child(table, number, index=None):
        place = (
            table.Vector(field(table, number) - table.Pos) + 4 * index if index is not None else field(table, number)
        )
        return flatbuffers.table.Table(table.Bytes, table.Indirect(place))

    assert root.String(field(root, 0)) == b"vit"
    graph = child(root, 3, 0)
    images, probs = child(graph, 2, 0), child(graph, 3, 0)
    assert images.String(field(images, 0)) == b"images" and probs.String(field(probs, 0)) == b"probs"
    properties = child(child(images, 3), 1)
    size = child(properties, 1)
    number = flatbuffers.number_types.Uint32Flags
    assert [size.Get(number, field(size, column)) for column in (0, 1)] == [40, 32]  # width, height
    labels = child(probs, 6, 0)
    assert labels.String(field(labels, 0)) == b"labels.txt"
    assert labels.Get(flatbuffers.number_types.Uint8Flags, field(labels, 2)) == 2  # TENSOR_AXIS_LABELS


# ----- SavedModel: encoded pictures -----


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_encoded_pictures_are_decoded_and_resized(fit, tmp_path):
    import tensorflow as tf

    settings = {**description("vit", "multiclass"), "fit": fit}
    model = build("small vit")
    savedmodel.write(model, CALIBRATIONS["multiclass"], tmp_path / "saved", settings)
    signature = tf.saved_model.load(str(tmp_path / "saved")).signatures["serve_bytes"]
    rng = np.random.default_rng(0)
    encoded = []
    for size, mode in (((90, 61), "RGB"), ((50, 140), "RGB"), ((32, 40), "RGB"), ((77, 80), "L")):
        smooth = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        smooth.convert(mode).save(file, "PNG")
        encoded.append(file.getvalue())
    found = signature(encoded=tf.constant(encoded))["probs"].numpy()
    images = np.stack([read_image(content, Resizing((32, 40), fit)) for content in encoded])
    expected = CALIBRATIONS["multiclass"].apply(model.predict(images, verbose=0))
    assert np.ptp(expected, axis=0).max() > 0.2
    # TensorFlow rounds once while Pillow rounds twice, and it crops at whole pixels.
    np.testing.assert_allclose(found, expected, atol=0.05 if fit == "crop" else 0.02)
