"""Writes files as torch.save does, old and zip format, byte by byte, so that tests can also damage each part."""

import io
import pickle
import struct
import zipfile

import numpy as np

KINDS = {"f4": "FloatStorage", "f8": "DoubleStorage", "f2": "HalfStorage", "i8": "LongStorage", "u1": "ByteStorage"}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def sequence(values) -> bytes:
    return b"(" + b"".join(values) + b"t"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def storage(key: str, count: int, kind: str = "FloatStorage", *, old: bool = False) -> bytes:
    """Returns the reference to a block of stored values."""
    parts = [text("storage"), name("torch", kind), text(key), text("cpu"), number(count)]
    return sequence(parts + ([b"N"] if old else [])) + b"Q"


def tensor(reference: bytes, shape, strides, offset: int = 0) -> bytes:
    """Returns a view of the storage that `reference` names."""
    arguments = [
        reference, number(offset), sequence(map(number, shape)), sequence(map(number, strides)), b"\x89",
        name("collections", "OrderedDict") + b")R",
    ]  # fmt: skip
    return name("torch._utils", "_rebuild_tensor_v2") + sequence(arguments) + b"R"


def dictionary(items: dict[str, bytes]) -> bytes:
    """Returns an OrderedDict of values that are already written, with the attribute that torch gives it."""
    pairs = b"".join(text(key) + value for key, value in items.items())
    return name("collections", "OrderedDict") + b")R(" + pairs + b"u}b"


def program(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def state_dict(arrays: dict[str, np.ndarray], *, old: bool, transposed: bool = False) -> bytes:
    """Returns the pickled state dict; with `transposed`, matrices and kernels are views with swapped strides."""
    items = {}
    for index, (key, array) in enumerate(arrays.items()):
        kind = KINDS[array.dtype.str[1:]]
        strides = [step // array.itemsize for step in (array.T.copy().T if transposed else array).strides]
        items[key] = tensor(storage(str(index), array.size, kind, old=old), array.shape, strides)
    return dictionary(items)


def blocks(arrays: dict[str, np.ndarray], *, transposed: bool = False) -> dict[str, bytes]:
    """Returns the stored values of each array."""
    return {
        str(index): (array.T.copy() if transposed else array).tobytes() for index, array in enumerate(arrays.values())
    }


def old_file(value: bytes, stored: dict[str, bytes], *, counts: dict[str, int] | None = None, magic=MAGIC) -> bytes:
    """Returns a file of the format before the zip one; `counts` are the numbers of float32 values, if not the true."""
    parts = [pickle.dumps(each, protocol=2) for each in (magic, PROTOCOL, {"little_endian": True})]
    parts += [program(value), pickle.dumps(list(stored), protocol=2)]
    for key, data in stored.items():
        parts.append(struct.pack("<q", (counts or {}).get(key, len(data) // 4)) + data)
    return b"".join(parts)


def zip_file(value: bytes, stored: dict[str, bytes], *, compression=zipfile.ZIP_STORED, byteorder=b"little") -> bytes:
    """Returns a file of the zip format."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("weights/data.pkl", program(value))
        archive.writestr("weights/byteorder", byteorder)
        for key, data in stored.items():
            archive.writestr(f"weights/data/{key}", data)
    return file.getvalue()
