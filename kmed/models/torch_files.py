"""Reads the state dicts that torch.save writes (.pth, .pt, .bin), old and zip format, without PyTorch.

Such a file is a pickle, a small program that can call anything when pickle runs it. Here nothing is called: the
opcodes that a dictionary of tensors needs are interpreted, and any other opcode or name is refused.
"""

import dataclasses
import functools
import io
import math
import pathlib
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from kmed.errors import WeightsError, shorten

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the format before the zip one
# The largest pickle that is interpreted. Weights are stored beside it, so names and shapes are all it holds.
MAX_PICKLE_BYTES = 16 * 2**20
# How many times larger than the file its tensors may be together: weights that are tied share their values.
MAX_SHARING = 4

# {storage class in torch: (dtype of the stored values, bytes per value)}
STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype("<u2"),  # the upper half of a float32
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _Refused(Exception):
    """What is wrong with the file, as the end of a sentence."""


@dataclasses.dataclass(frozen=True)
class _Name:
    """A class or function that the pickle names; it is never loaded."""

    text: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A block of values, named by its key in the file."""

    key: str
    kind: str
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns {name: array} of a state dict, contiguous arrays of the stored dtype; bfloat16 becomes float32.

    A checkpoint of Lightning and others, with the state dict under "state_dict", "model_state_dict" or "model", is
    understood.

    Args:
      path: a file that `torch.save(model.state_dict(), path)` wrote.
    Raises: WeightsError: a file that is damaged, that holds something other than tensors, or whose tensors reach
      beyond the stored values; nothing in it is executed.
    Example:
      >>> read_torch_file(pathlib.Path("resnet18-f37072fd.pth"))["fc.weight"].shape
      (1000, 512)
    """
    try:
        with path.open("rb") as file:
            read = _read_zip if zipfile.is_zipfile(file) else _read_legacy
            file.seek(0)
            value, load = read(file)
            tensors = _find_state_dict(value)
            _check_total(tensors, path.stat().st_size)
            load = functools.cache(load)  # tensors that share a storage share its memory
            return {name: _to_array(tensor, load) for name, tensor in tensors.items()}
    except _Refused as error:
        raise WeightsError(f"{path} is not read as PyTorch weights: {error}") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise WeightsError(f"{path} is not a readable file of PyTorch weights ({type(error).__name__}).") from error


# ----- the two formats -----


def _read_zip(file: BinaryIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """Returns (the pickled value, a function that returns the values of a storage)."""
    archive = zipfile.ZipFile(file)
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickles) != 1:
        raise _Refused("it is a zip file without a data.pkl. Give a file that torch.save wrote.")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise _Refused("it is compressed, which torch.save never does. Give the file that torch.save wrote.")
    folder = pickles[0].removesuffix("data.pkl")
    if folder + "byteorder" in archive.namelist() and archive.open(folder + "byteorder").read(10).strip() != b"little":
        raise _Refused("its values are stored big-endian, which is not supported. Save it again on another machine.")
    if archive.getinfo(pickles[0]).file_size > MAX_PICKLE_BYTES:
        raise _Refused(f"its data.pkl is larger than {MAX_PICKLE_BYTES // 2**20} MB, so it holds more than tensors.")

    def load(storage: _Storage) -> np.ndarray:
        name = f"{folder}data/{storage.key}"
        if name not in archive.namelist():
            raise _Refused(f"the storage {shorten(storage.key)} is missing.")
        size, dtype = archive.getinfo(name).file_size, STORAGES[storage.kind]
        if size != storage.count * dtype.itemsize:
            raise _Refused(
                f"the storage {shorten(storage.key)} should hold {storage.count} values, but has {size} bytes."
            )
        return np.frombuffer(archive.read(name), dtype)

    return _interpret(io.BytesIO(archive.read(pickles[0])), _zip_storage), load


def _read_legacy(file: BinaryIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    """Returns (the pickled value, a function that returns the values of a storage).

    The file holds a magic number, a protocol version, facts of the system, the value, the keys of the storages, each
    a pickle of its own, and then each storage: the number of values as int64, and the values.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        magic = _interpret(file, _legacy_storage)
    except _Refused:
        magic = None
    if magic != MAGIC:
        raise _Refused(
            "it has neither of the formats of torch.save. Save it again with torch.save(model.state_dict())."
        )
    _interpret(file, _legacy_storage)
    _interpret(file, _legacy_storage)
    kinds: dict[str, str] = {}

    def note(pid) -> _Storage:
        storage = _legacy_storage(pid)
        kinds[storage.key] = storage.kind
        return storage

    value = _interpret(file, note)
    keys = _interpret(file, _legacy_storage)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _Refused("its list of storages is damaged.")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little", signed=True)
        start = file.tell()
        if key not in kinds:
            raise _Refused(f"the storage {shorten(key)} belongs to no tensor.")
        num_bytes = count * STORAGES[kinds[key]].itemsize
        if count < 0 or num_bytes > size - start:
            raise _Refused(f"the storage {shorten(key)} should hold {count} values, which is more than the file has.")
        places[key] = (start, count)
        file.seek(start + num_bytes)

    def load(storage: _Storage) -> np.ndarray:
        if storage.key not in places:
            raise _Refused(f"the storage {shorten(storage.key)} is missing.")
        start, count = places[storage.key]
        if count != storage.count:
            raise _Refused(f"the storage {shorten(storage.key)} should hold {storage.count} values, but holds {count}.")
        file.seek(start)
        dtype = STORAGES[storage.kind]
        return np.frombuffer(file.read(count * dtype.itemsize), dtype)

    return value, load


def _zip_storage(pid) -> _Storage:
    return _checked_storage(pid, 5)


def _legacy_storage(pid) -> _Storage:
    if isinstance(pid, tuple) and len(pid) == 6 and pid[5] is not None:
        raise _Refused("a storage is a view of another, as only very old files have it. Save it again.")
    return _checked_storage(pid, 6)


def _checked_storage(pid, length: int) -> _Storage:
    if not (isinstance(pid, tuple) and len(pid) == length and pid[0] == "storage" and isinstance(pid[1], _Name)):
        raise _Refused("a reference to stored values is damaged.")
    kind = pid[1].text.removeprefix("torch.")
    if kind not in STORAGES:
        raise _Refused(f"it holds values of an unsupported kind, {pid[1].text}.")
    if not isinstance(pid[2], str) or not _is_count(pid[4]):
        raise _Refused("a reference to stored values is damaged.")
    return _Storage(pid[2], kind, pid[4])


# ----- the pickle -----

_MARK = object()
_SIMPLE = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_CONSTANTS = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "SHORT_BINBYTES", "BINBYTES",
)  # fmt: skip
_NEW: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_ORDERED_DICT, _TENSOR = "collections.OrderedDict", "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_KNOWN = {_ORDERED_DICT, _TENSOR, _PARAMETER, *(f"torch.{name}" for name in STORAGES)}


def _interpret(file: BinaryIO, storage_of: Callable[[Any], _Storage]):
    """Returns the value of the pickle that starts at the file's position, and leaves the position behind it."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    end = file.tell() + MAX_PICKLE_BYTES
    try:
        for opcode, argument, position in pickletools.genops(file):
            if position is not None and position > end:
                raise _Refused(f"its description is longer than {MAX_PICKLE_BYTES // 2**20} MB.")
            if opcode.name == "STOP":
                return _take(stack)
            _apply(opcode.name, argument, stack, memo, storage_of)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError) as error:
        raise _Refused("its pickle is damaged.") from error  # MemoryError: a text of 2**62 letters is announced
    raise _Refused("its pickle has no end.")


def _apply(name: str, argument, stack: list, memo: dict, storage_of) -> None:
    """Applies one opcode of the pickle's language to the stack."""
    if name in ("PROTO", "FRAME"):
        return
    if name in _SIMPLE:
        stack.append(_SIMPLE[name])
    elif name in _CONSTANTS:
        stack.append(argument)
    elif name in _NEW:
        stack.append(_NEW[name]())
    elif name == "MARK":
        stack.append(_MARK)
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        stack.append(tuple(reversed([_take(stack) for _ in range(int(name[-1]))])))
    elif name == "TUPLE":
        stack.append(tuple(_take_to_mark(stack)))
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name in ("GLOBAL", "STACK_GLOBAL"):
        stack.append(_name(argument, stack))
    elif name == "BINPERSID":
        stack.append(storage_of(_take(stack)))
    elif name == "REDUCE":
        arguments, function = _take(stack), _take(stack)
        stack.append(_call(function, arguments))
    elif name in ("SETITEM", "SETITEMS", "APPEND", "APPENDS"):
        _add(name, stack)
    elif name == "BUILD":
        _build(stack)
    else:
        raise _Refused(f"its pickle has the instruction {name}, which a dictionary of tensors does not need.")


def _take(stack: list):
    value = stack.pop()
    if value is _MARK:
        raise _Refused("its pickle is damaged.")
    return value


def _take_to_mark(stack: list) -> list:
    values = []
    while (value := stack.pop()) is not _MARK:
        values.append(value)
    return values[::-1]


def _name(argument, stack: list) -> _Name:
    if argument is None:  # STACK_GLOBAL takes its two parts from the stack
        name, module = _take(stack), _take(stack)
        if not isinstance(name, str) or not isinstance(module, str):
            raise _Refused("its pickle is damaged.")
        text = f"{module}.{name}"
    else:
        text = argument.replace(" ", ".", 1)
    if text not in _KNOWN:
        raise _Refused(
            f"it refers to {shorten(text)}, so it holds more than tensors, and kmed executes nothing. "
            "Save the weights alone: torch.save(model.state_dict(), PATH)."
        )
    return _Name(text)


def _call(function, arguments):
    """Returns what one of the known functions makes of its arguments."""
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise _Refused("its pickle is damaged.")
    if function.text == _ORDERED_DICT and arguments == ():
        return {}
    if function.text == _PARAMETER and arguments and isinstance(arguments[0], _Tensor):
        return arguments[0]
    if function.text == _TENSOR and len(arguments) >= 4:
        storage, offset, shape, strides = arguments[:4]
        if isinstance(storage, _Storage):
            return _checked_tensor(storage, offset, shape, strides)
    raise _Refused(f"its pickle calls {function.text} with arguments that do not fit.")


def _checked_tensor(storage: _Storage, offset, shape, strides) -> _Tensor:
    """Returns the tensor. Raises _Refused if it would reach beyond its storage, or be larger than it."""
    counts = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 32
    if not counts or not all(map(_is_count, (offset, *shape, *strides))):
        raise _Refused(f"a tensor has an impossible shape or strides: {shorten(shape)}, {shorten(strides)}.")
    size = math.prod(shape)
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides))
    if size and (last >= storage.count or size > storage.count):
        raise _Refused(
            f"a tensor of shape {shorten(shape)} and strides {shorten(strides)} reaches beyond the {storage.count} "
            "values of its storage."
        )
    return _Tensor(storage, offset, shape, strides)


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _add(name: str, stack: list) -> None:
    """Adds one or more items to the dictionary or list below them."""
    items = _take_to_mark(stack) if name.endswith("S") else [_take(stack) for _ in range(1 + (name == "SETITEM"))][::-1]
    target = stack[-1]
    if name.startswith("APPEND") and isinstance(target, list):
        target += items
    elif name.startswith("SETITEM") and isinstance(target, dict) and len(items) % 2 == 0:
        for key, value in zip(items[::2], items[1::2]):
            if not isinstance(key, (str, int)):
                raise _Refused("a dictionary in it has keys that are neither words nor numbers.")
            target[key] = value
    else:
        raise _Refused("its pickle is damaged.")


def _build(stack: list) -> None:
    """Drops the attributes of an OrderedDict: torch stores the versions of its modules there."""
    _take(stack)
    if not isinstance(stack[-1], dict):
        raise _Refused("its pickle sets attributes of an object that is not a dictionary.")


# ----- tensors -----


def _find_state_dict(value) -> dict[str, _Tensor]:
    """Returns the dictionary of tensors, which may lie one level deeper. Raises _Refused if there is none."""
    inner = [value.get(key) for key in ("state_dict", "model_state_dict", "model")] if isinstance(value, dict) else []
    for candidate in (value, *inner):
        if not isinstance(candidate, dict):
            continue
        tensors = {key: tensor for key, tensor in candidate.items() if isinstance(tensor, _Tensor)}
        if tensors and len(tensors) == len(candidate) and all(isinstance(key, str) for key in tensors):
            return tensors
    raise _Refused("it holds no dictionary of tensors. Save the weights with torch.save(model.state_dict(), PATH).")


def _check_total(tensors: dict[str, _Tensor], size: int) -> None:
    """Raises _Refused if the tensors are views that together are far larger than the file of `size` bytes."""
    total = sum(math.prod(each.shape) * STORAGES[each.storage.kind].itemsize for each in tensors.values())
    if total > MAX_SHARING * size:
        raise _Refused(f"its tensors take {total} bytes, but the file has {size}: they are views of the same values.")


def _to_array(tensor: _Tensor, load: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    values = load(tensor.storage)
    if math.prod(tensor.shape) == 0:
        return np.empty(tensor.shape, values.dtype)
    steps = [stride * values.itemsize for stride in tensor.strides]
    # The strides matter: convolution kernels are often stored transposed.
    array = np.ascontiguousarray(np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, steps))
    if tensor.storage.kind == "BFloat16Storage":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array
