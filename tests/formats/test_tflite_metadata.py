"""What a TFLite file says about itself: labels, settings and the published metadata, all behind the model."""

import json
import zipfile

import flatbuffers
import numpy as np
import pytest
from untrained_models import CALIBRATIONS, NAMES, build, description

from kmed.errors import RunError
from kmed.formats import tflite
from kmed.formats.tflite_metadata import append_files, read_description, with_metadata


@pytest.fixture(scope="module")
def tflite_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tflite") / "model.tflite"
    tflite.write(build("small vit"), CALIBRATIONS["multiclass"], path, description("vit", "multiclass"))
    return path


def test_labels_and_settings_follow_the_model(tflite_file):
    assert read_description(tflite_file) == description("vit", "multiclass")
    with zipfile.ZipFile(tflite_file) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(NAMES)


def test_a_class_name_with_a_line_break_is_one_line_of_the_labels(tmp_path):
    names = ["two\nlines", "carriage\r\nreturn", "one\u2028more", "plain"]
    append_files(tmp_path / "model.tflite", {"class_names": names})
    with zipfile.ZipFile(tmp_path / "model.tflite") as archive:
        labels = archive.read("labels.txt").decode().splitlines()
        assert labels == ["two lines", "carriage return", "one more", "plain"]
        assert json.loads(archive.read("kmed.json"))["class_names"] == names


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
