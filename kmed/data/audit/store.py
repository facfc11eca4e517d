"""What an audit has computed, on disk: its processes read it there, and an interrupted audit goes on from it.

A folder holds two files that only grow. `done.jsonl` has one line for each piece of work that is done, and
`arrays.bin` the arrays that the lines refer to. A process may be killed at any moment: an array without its line is
never looked at, and a line that was cut short is removed.
"""

import contextlib
import dataclasses
import json
import pathlib
import threading
import typing
import zlib

import numpy as np

from kmed.errors import RunError
from kmed.files import one_line
from kmed.progress import warn

LINES, ARRAYS = "done.jsonl", "arrays.bin"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where some bytes of `arrays.bin` are.

    Attributes:
      start, size: the first byte, and how many there are.
      check: their CRC-32.
    """

    start: int
    size: int
    check: int


class Store:
    """The store in a folder.

    Args:
      folder: the folder, which is created; what is in it is kept if it is of the same plan, and else removed.
      plan: text that says what is computed and from which pictures.
    Raises: RunError: the folder cannot be written.
    """

    def __init__(self, folder, plan: str):
        self.folder = pathlib.Path(folder)
        self._lock = threading.Lock()
        with one_line(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.records = self._read(plan)
            if not self.records:
                for name in (LINES, ARRAYS):
                    (self.folder / name).unlink(missing_ok=True)
            self._lines = (self.folder / LINES).open("ab")
            self._arrays = (self.folder / ARRAYS).open("ab")
            if not self.records:
                self.add({"plan": plan})

    @property
    def arrays(self) -> str:
        """The path of the file that the Places are in."""
        return str(self.folder / ARRAYS)

    def add(self, record: dict, content: bytes | None = None) -> Place | None:
        """Adds the record of a piece of work that is done, and the bytes that belong to it; returns their Place."""
        with self._lock, one_line(self.folder):
            place = None
            if content is not None:
                place = Place(self._arrays.tell(), len(content), zlib.crc32(content))
                self._arrays.write(content)
                self._arrays.flush()
                record = {**record, "place": dataclasses.astuple(place)}
            self._lines.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            self._lines.flush()
            return place

    def close(self) -> None:
        """Closes the files, which stay."""
        self._lines.close()
        self._arrays.close()

    def _read(self, plan: str) -> list[dict]:
        """Returns the records of the plan that are whole, and cuts off what follows them; [] if there are none."""
        path = self.folder / LINES
        if not path.exists():
            return []
        records: list[dict] = []
        size = 0
        present = (self.folder / ARRAYS).stat().st_size if (self.folder / ARRAYS).exists() else 0
        with path.open("rb") as file, contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            for line in file:
                record = json.loads(line)
                start, length, _ = record.get("place", (0, 0, 0))
                whole = line.endswith(b"\n") and start + length <= present
                if not whole or (not records and record["plan"] != plan):
                    break
                records.append(record)
                size += len(line)
        if not records:
            warn(f"{self.folder} is of an audit of other pictures or another version: this one starts anew.")
        else:
            with path.open("r+b") as file:
                file.truncate(size)
        return records


def read_bytes(arrays: str, place: Place) -> bytes:
    """Returns what is at a Place of a store's arrays. Raises RunError if it is damaged."""
    with pathlib.Path(arrays).open("rb") as file:
        file.seek(place.start)
        content = file.read(place.size)
    if zlib.crc32(content) != place.check:
        raise RunError(f"{arrays} is damaged. Remove its folder and start again.")
    return content


def pack_arrays(*arrays: np.ndarray) -> bytes:
    """Returns the bytes of arrays, one after the other; `unpack_arrays` needs to be given their types and shapes."""
    return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


def unpack_arrays(content: bytes, *kinds: tuple[typing.Any, tuple[int, ...]]) -> list[np.ndarray]:
    """Returns the arrays that `pack_arrays` packed, each of (dtype, shape)."""
    found, start = [], 0
    for dtype, shape in kinds:
        count = int(np.prod(shape))
        found.append(np.frombuffer(content, dtype, count, start).reshape(shape))
        start += count * np.dtype(dtype).itemsize
    return found
