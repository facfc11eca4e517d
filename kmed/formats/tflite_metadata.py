"""Metadata of TFLite files: labels and settings, in the places that Google's TFLite metadata tools read.

TensorFlow's metadata format adds two things to a plain file: a buffer named "TFLITE_METADATA", itself a
flatbuffer (identifier "M001") that describes input and output, and, after the model, a zip archive with
the files that it names. Interpreters ignore both; `unzip -l` lists the files. The field numbers below are
those of TensorFlow's published metadata_schema.fbs.
"""

import json
import pathlib
import zipfile

import numpy as np

from kmed.errors import RunError
from kmed.reading import check_unpacked_size, parse_json
from kmed.schemas.records import Description, check

BUFFER_NAME = "TFLITE_METADATA"
LABELS_FILE, SETTINGS_FILE = "labels.txt", "kmed.json"
_IDENTIFIER = b"M001"
_PARSER_VERSION = "1.0.0"

# Values of the schema's enumerations.
_DESCRIPTIONS, _AXIS_LABELS = 1, 2  # AssociatedFileType
_FEATURE, _IMAGE = 1, 2  # ContentProperties
_NORMALIZATION = 1  # ProcessUnitOptions
_RGB = 1  # ColorSpaceType


def with_metadata(model: bytes, description: dict) -> bytes:
    """Returns the TFLite file with a buffer that describes its input and output.

    The zero points of int8 weights, one per channel and all 0, are stored once for all tensors with equal ones:
    otherwise they would take up a fifteenth of a small model.

    Args:
      model: a TFLite file with one input (1, H, W, 3) and one output (1, K).
      description: what `kmed.evaluation.predictor.describe_run` returns.
    """
    import flatbuffers
    from tensorflow.lite.tools import flatbuffer_utils

    parsed = flatbuffer_utils.convert_bytearray_to_object(bytearray(model))
    builder = flatbuffers.Builder(1024)
    builder.Finish(_model_metadata(builder, description), file_identifier=_IDENTIFIER)
    buffer, entry = flatbuffer_utils.schema_fb.BufferT(), flatbuffer_utils.schema_fb.MetadataT()
    buffer.data = np.frombuffer(bytes(builder.Output()), np.uint8)
    entry.name, entry.buffer = BUFFER_NAME, len(parsed.buffers)
    parsed.buffers.append(buffer)
    parsed.metadata = [*(parsed.metadata or []), entry]
    placed: dict[bytes, int] = {}
    for tensor in (tensor for graph in parsed.subgraphs for tensor in graph.tensors):
        if tensor.quantization is not None and tensor.quantization.details is None:
            tensor.quantization = _SharedQuantization(tensor.quantization, flatbuffer_utils.schema_fb, placed)
    return flatbuffer_utils.convert_object_to_bytearray(parsed)


class _SharedQuantization:
    """Replaces a tensor's QuantizationParameters while a file is written, so that equal zero points share a place."""

    def __init__(self, parameters, schema, placed: dict[bytes, int]):
        self.parameters, self.schema, self.placed = parameters, schema, placed

    def Pack(self, builder) -> int:  # noqa: N802 - the name that flatbuffers calls
        """Writes the table; returns its place."""
        zeros = None if self.parameters.zeroPoint is None else np.asarray(self.parameters.zeroPoint, np.int64)
        if zeros is not None and zeros.tobytes() not in self.placed:
            self.placed[zeros.tobytes()] = builder.CreateNumpyVector(zeros)
        floats = {}
        for name in ("Min", "Max", "Scale"):
            values = getattr(self.parameters, name.lower())
            if values is not None:
                floats[name] = builder.CreateNumpyVector(np.asarray(values, np.float32))
        self.schema.QuantizationParametersStart(builder)
        for name, place in floats.items():
            getattr(self.schema, f"QuantizationParametersAdd{name}")(builder, place)
        if zeros is not None:
            self.schema.QuantizationParametersAddZeroPoint(builder, self.placed[zeros.tobytes()])
        self.schema.QuantizationParametersAddQuantizedDimension(builder, self.parameters.quantizedDimension)
        return self.schema.QuantizationParametersEnd(builder)


def append_files(path: pathlib.Path, description: dict) -> None:
    """Appends to a TFLite file a zip archive of labels.txt, one class per line, and kmed.json, the description.

    A line break in a class name is a space in labels.txt; kmed.json has the name unchanged.
    """
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(
            LABELS_FILE, "".join(f"{' '.join(name.splitlines())}\n" for name in description["class_names"])
        )
        archive.writestr(SETTINGS_FILE, json.dumps(description, indent=2, ensure_ascii=False) + "\n")


def read_description(path) -> dict:
    """Returns the description inside a TFLite file that kmed exported.

    Raises: RunError: the file has none, or it is not what kmed writes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_unpacked_size(path, archive)
            content = parse_json(archive.read(SETTINGS_FILE).decode("utf-8"))
    except Exception as problem:  # zipfile raises many kinds of errors for damaged files
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise RunError(f"{path} holds no {SETTINGS_FILE}: kmed did not export it ({reason}).") from None
    check(Description, content, f"{SETTINGS_FILE} in {path}", RunError)
    return content


def _model_metadata(builder, description: dict) -> int:
    """Writes the table ModelMetadata; returns its place. A flatbuffer's parts are written before the whole."""
    height, width = description["image_size"]
    size = _table(builder, 2, ("uint", 0, width), ("uint", 1, height))
    properties = _table(builder, 2, ("byte", 0, _RGB), ("offset", 1, size))
    # The pixels need no further scaling: mean 0 and scale 1.
    options = _table(builder, 2, ("offset", 0, _floats(builder, 0.0)), ("offset", 1, _floats(builder, 1.0)))
    unit = _table(builder, 2, ("byte", 0, _NORMALIZATION), ("offset", 1, options))
    pixels = _tensor(
        builder,
        "images",
        f"RGB pictures of {height}x{width}, raw 0-255; {description['fit']}, {description['interpolation']}"
        + ("." if "decode" not in description else ", JPEG files decoded at the smallest size that is enough."),
        content=_content(builder, _IMAGE, properties),
        units=_tables(builder, [unit]),
        stats=_stats(builder, 0.0, 255.0),
    )
    labels = _file(builder, LABELS_FILE, "The classes, in the order of the output.", _AXIS_LABELS)
    probs = _tensor(
        builder,
        "probs",
        f"Calibrated probabilities, {description['task']}.",
        content=_content(builder, _FEATURE, _table(builder, 0)),
        stats=_stats(builder, 0.0, 1.0),
        files=_tables(builder, [labels]),
    )
    inputs, outputs = _tables(builder, [pixels]), _tables(builder, [probs])
    graph = _table(builder, 10, ("offset", 2, inputs), ("offset", 3, outputs))
    settings = _file(builder, SETTINGS_FILE, "Task, image size, thresholds, test score.", _DESCRIPTIONS)
    return _table(
        builder,
        8,
        ("offset", 0, builder.CreateString(description["model"])),
        ("offset", 1, builder.CreateString(f"{description['task']}, trained by kmed. Not for clinical use.")),
        ("offset", 3, _tables(builder, [graph])),
        ("offset", 6, _tables(builder, [settings])),
        ("offset", 7, builder.CreateString(_PARSER_VERSION)),
    )


def _tensor(builder, name: str, text: str, *, content: int, stats: int, units: int = 0, files: int = 0) -> int:
    """Writes a table TensorMetadata."""
    return _table(
        builder,
        7,
        ("offset", 0, builder.CreateString(name)),
        ("offset", 1, builder.CreateString(text)),
        ("offset", 3, content),
        ("offset", 4, units),
        ("offset", 5, stats),
        ("offset", 6, files),
    )


def _content(builder, kind: int, properties: int) -> int:
    return _table(builder, 3, ("byte", 0, kind), ("offset", 1, properties))


def _stats(builder, low: float, high: float) -> int:
    return _table(builder, 2, ("offset", 0, _floats(builder, high)), ("offset", 1, _floats(builder, low)))


def _file(builder, name: str, text: str, kind: int) -> int:
    """Writes a table AssociatedFile."""
    strings = builder.CreateString(name), builder.CreateString(text)
    return _table(builder, 5, ("offset", 0, strings[0]), ("offset", 1, strings[1]), ("byte", 2, kind))


def _table(builder, num_fields: int, *fields) -> int:
    """Writes a table of (kind, field number, value); a value of 0 is the default and takes no space."""
    prepend = {
        "offset": builder.PrependUOffsetTRelativeSlot,
        "byte": builder.PrependUint8Slot,
        "uint": builder.PrependUint32Slot,
    }
    builder.StartObject(num_fields)
    for kind, number, value in fields:
        prepend[kind](number, value, 0)
    return builder.EndObject()


def _tables(builder, places: list[int]) -> int:
    builder.StartVector(4, len(places), 4)
    for place in reversed(places):
        builder.PrependUOffsetTRelative(place)
    return builder.EndVector()


def _floats(builder, value: float) -> int:
    builder.StartVector(4, 1, 4)
    builder.PrependFloat32(value)
    return builder.EndVector()
