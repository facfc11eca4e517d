"""The arrays of an .npz file, each checked by its header before it is read: a small file may unfold to a lot."""

import contextlib
import math
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np

from kmed.data.pictures import free_memory
from kmed.errors import DataError

# Above this size, arrays that unfold to more than so many times the size of their file are taken for an attack.
LARGE, MAX_RATIO = 2**27, 100


class Arrays:
    """The arrays of an open .npz file.

    Attributes:
      keys: their names, in the order of the file.
    """

    def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile):
        self._path, self._archive = path, archive
        self.keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def read(self, key: str) -> np.ndarray:
        """Returns an array. Raises DataError if it is damaged or too large, or needs pickle, which could run code."""
        info = self._archive.getinfo(f"{key}.npy")
        with _one_line(self._path):
            with self._archive.open(info) as file:
                shape, dtype, start = _read_header(file)
            self._check(key, info, shape, dtype, start)
            with self._archive.open(info) as file:
                return np.lib.format.read_array(file, allow_pickle=False)

    def _check(self, key, info, shape, dtype, start):
        """Raises DataError if an array needs pickle, is of another size than it claims, or is too large."""
        if dtype.hasobject:
            raise DataError(
                f"{self._path}: {key} is an array of Python objects, perhaps pictures of several sizes. It would "
                "have to be unpickled, which can run any code. Store pictures of one size, or files in folders."
            )
        if start + math.prod(shape) * dtype.itemsize != info.file_size:
            raise DataError(f"{self._path}: {key} claims {dtype} {shape}, but holds {info.file_size - start:,} bytes.")
        if info.file_size > LARGE and info.file_size > MAX_RATIO * info.compress_size:
            raise DataError(
                f"{self._path}: {key} unfolds from {info.compress_size / 1e6:.1f} MB to {info.file_size / 1e9:.1f} GB. "
                "Such a file may be an attack that fills the memory. Store it uncompressed."
            )
        if info.file_size > (free := free_memory()):
            raise DataError(
                f"{self._path}: {key} takes {info.file_size / 1e9:.1f} GB, but {free / 1e9:.1f} GB of memory are free. "
                "Use a machine with more memory, or store the pictures as files in folders."
            )


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Arrays]:
    """Yields the Arrays of an .npz file. Raises DataError if it is none."""
    with _one_line(path):
        archive = zipfile.ZipFile(path)
    with archive:
        yield Arrays(path, archive)


@contextlib.contextmanager
def _one_line(path):
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise whatever error the damage leads to
        raise DataError(
            f"{path} cannot be read as .npz ({type(error).__name__}). Repair it or make it again."
        ) from error


def _read_header(file) -> tuple[tuple[int, ...], np.dtype, int]:
    """Returns (shape, dtype, length of the header) of an array."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"version {version} of the format")
    shape, _, dtype = read[version](file)
    return shape, dtype, file.tell()
