"""Decoded pictures on the disk that all runs share: one per content and size, whatever table or folder it came from.

A store is a folder of files that are written once, each whole or not at all: N digests of 32 bytes, then the pixels of
N pictures. So readers need no lock, and a process that dies leaves no half file. One process adds to a store at a time,
since others may want the same pictures.
"""

import hashlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from kmed.data.decoding import missing
from kmed.errors import DataError
from kmed.files import digest_of, exclusive, replacing
from kmed.progress import say, track

FOLDER = "KMED_CACHE"  # the environment variable that names another folder
_SUFFIX = ".pictures"
_DIGEST = 32  # bytes of a SHA-256
_BYTES_PER_FILE = 2**28  # which are lost if the process dies


class SharedCache:
    """A store of decoded pictures of one size, with those of a table in it.

    Attributes:
      folder: the folder of the store.
    """

    def __init__(self, name: str, shape: tuple[int, ...], sources: Sequence, read: Callable, run: Callable):
        """Decodes the pictures that are not in the store yet, adds them, and says where they are.

        Args:
          name: of the store; it must change with whatever pixels depend on, except for the file.
          shape: (H, W, 3).
          sources: the table's pictures: paths of files, or arrays.
          read: function source -> uint8 (H, W, 3).
          run: calls a function for each of some items in threads, as `map` does.
        Raises: DataError: an unreadable picture, or too little room on the disk. RunError: the folder is not writable.
        """
        self.folder, self._shape = shared_folder() / name, shape
        self._files: list[np.ndarray] = []  # of each file uint8 (N, H, W, 3), read from the disk as needed
        self._seen: set[pathlib.Path] = set()
        known: dict[bytes, tuple[int, int]] = {}  # {digest: (file, place in it)}
        digests = list(track(run(_digest, sources), "Looking for decoded pictures", len(sources)))
        self._look(known)
        new: dict[bytes, object] = {}
        if not known.keys() >= set(digests):
            # Makes the folder, and waits for another process, which may be decoding the same pictures.
            with exclusive(self.folder / "store"):
                self._look(known)
                new = {digest: source for digest, source in zip(digests, sources) if digest not in known}
                self._add(new, read, run)
                self._look(known)
        self._places = np.array([known[digest] for digest in digests], np.int64).reshape(-1, 2)
        size = sum(pixels.nbytes for pixels in self._files) / 2**30
        say(
            f"Decoded pictures, shared by all runs: {len(known):,} ({size:.2f} GB) in {self.folder}, {len(new):,} of "
            "them new. You may delete the folder while no run uses it."
        )

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Returns uint8 (B, H, W, 3), the pictures of these rows of the table."""
        images = np.empty((len(rows), *self._shape), np.uint8)
        for image, (file, place) in zip(images, self._places[rows]):
            image[:] = self._files[file][place]
        return images

    def _look(self, known: dict[bytes, tuple[int, int]]) -> None:
        """Opens the files that this object has not seen yet, and adds their pictures to `known`."""
        each = int(np.prod(self._shape))
        for path in sorted(set(self.folder.glob(f"*{_SUFFIX}")) - self._seen):
            self._seen.add(path)
            count, rest = divmod(path.stat().st_size, _DIGEST + each)
            if rest or not count:
                continue  # not a file of this store
            with path.open("rb") as file:
                digests = file.read(count * _DIGEST)
            for place in range(count):
                known.setdefault(digests[place * _DIGEST : (place + 1) * _DIGEST], (len(self._files), place))
            shape = (count, *self._shape)
            self._files.append(np.memmap(path, np.uint8, "r", offset=count * _DIGEST, shape=shape))

    def _add(self, new: dict[bytes, object], read: Callable, run: Callable) -> None:
        """Decodes pictures, given as {digest: source}, and writes them in files of a limited size."""
        each = int(np.prod(self._shape))
        self._check_room(len(new) * each)
        pixels = track(run(read, new.values()), "Decoding pictures", len(new))
        for digests in _parts(list(new), max(_BYTES_PER_FILE // each, 1)):
            path = self.folder / f"{secrets.token_hex(8)}{_SUFFIX}"
            with replacing(path) as temporary, temporary.open("wb") as file:
                file.write(b"".join(digests))
                for _, image in zip(digests, pixels):
                    file.write(image.tobytes())
                file.flush()
                os.fsync(file.fileno())  # the name must not reach the disk before the pixels

    def _check_room(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free:
            raise DataError(
                f"{num_bytes / 2**30:.2f} GB of decoded pictures do not fit into {self.folder.parent}, where "
                f"{free / 2**30:.2f} GB are free. Delete folders of it, set {FOLDER} to another folder, or set "
                "data.cache=auto."
            )


def shared_folder() -> pathlib.Path:
    """Returns the folder of all stores, which need not exist: $KMED_CACHE, else .cache/kmed/pictures of the user."""
    named = os.environ.get(FOLDER)
    return pathlib.Path(named).expanduser() if named else pathlib.Path.home() / ".cache" / "kmed" / "pictures"


def _digest(source) -> bytes:
    """Returns the SHA-256 of a file's bytes, or of an array."""
    if isinstance(source, np.ndarray):
        return hashlib.sha256(f"{source.dtype} {source.shape}".encode() + source.tobytes()).digest()
    try:
        return bytes.fromhex(digest_of(source))
    except FileNotFoundError as error:
        raise missing(source) from error


def _parts(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
