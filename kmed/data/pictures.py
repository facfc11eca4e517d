"""All pictures of a table, decoded once or on demand, and gathered by row."""

import concurrent.futures
import contextlib
import functools
import hashlib
import os
import pathlib
import shutil
import tempfile
import weakref

import numpy as np
import PIL
import psutil

from kmed.data.decoding import missing
from kmed.data.images import Resizing, check_word, read_image, resize_array
from kmed.data.shared_cache import SharedCache
from kmed.data.table import Table
from kmed.files import replacing, temporary_folder
from kmed.progress import say, track

CACHES = ("auto", "memory", "disk", "shared", "none")
# Share of the free memory that decoded pictures may take before "auto" turns to the disk. The model, its optimizer
# and the batches in flight need the rest.
MEMORY_SHARE = 0.4
# Part of the name of a cache on the disk. Raise it whenever the same file would be decoded to other pixels.
DECODER_VERSION = 1


class Pictures:
    """The pictures of a table, all of one size, gathered by row; decoded once or on demand.

    Attributes:
      place: where the decoded pixels are stored: "table", "memory", "disk", "shared" or "none" (decoded on demand).
    """

    def __init__(
        self,
        table: Table,
        resizing: Resizing,
        cache: str = "auto",
        cache_dir: str | os.PathLike | None = None,
        *,
        as_needed: bool = False,
    ):
        """Decodes all pictures right away, unless `cache` is "none" or there is no room for them.

        Args:
          table: the table whose pictures are read; its `images` are used if it has them.
          resizing: the size of all pictures, and how they are resized.
          cache: "memory", "disk", "shared", "none", or "auto": memory if the pictures take at most 40 % of
            what is free, else the disk if there is room, else none. "shared" is a folder of the user's, where other
            runs find them: see `kmed.data.shared_cache`.
          cache_dir: the folder of the disk cache, kept for the next run; None uses a temporary
            folder that is removed with this object.
          as_needed: decodes each picture when it is first asked for, and keeps it in memory if `cache` is not "none"
            and there is room for all of them. So a process that trains on a part of them reads no others.
        Raises: DataError: an unreadable picture, or an argument that is not legal.
        """
        check_word("cache", cache, CACHES)
        self.shape = (len(table), *resizing.common_size, 3)
        self._pool = concurrent.futures.ThreadPoolExecutor(max(os.cpu_count() or 1, 2), "kmed-pictures")
        weakref.finalize(self, self._pool.shutdown, wait=False)
        if table.images is not None:
            self._sources = list(table.images)
            self._read = functools.partial(resize_array, resizing=resizing)
        else:
            self._sources = table.files
            self._read = functools.partial(read_image, resizing=resizing)
        self._pixels: np.ndarray | None = None
        self._shared: SharedCache | None = None
        self._held: np.ndarray | None = None  # bool (N,): which of the pictures have been read, if not all
        if table.images is not None and table.images.shape == self.shape and table.images.dtype == np.uint8:
            self.place, self._pixels = "table", table.images
            return
        folder = pathlib.Path(cache_dir) if cache_dir is not None else None
        if as_needed:
            fits = int(np.prod(self.shape)) <= MEMORY_SHARE * free_memory()
            self.place = "memory" if cache != "none" and fits else "none"
            if self.place == "memory":  # pages that nobody writes to take no memory
                self._pixels, self._held = np.empty(self.shape, np.uint8), np.zeros(len(table), bool)
            return
        self.place = _choose_place(int(np.prod(self.shape)), folder) if cache == "auto" else cache
        if self.place == "memory":
            self._pixels = self._fill(np.empty(self.shape, np.uint8))
        elif self.place == "disk":
            settings = f"{resizing.fit} {resizing.interpolation} {resizing.range} {resizing.decode}"
            self._pixels = self._on_disk(folder, settings)
        elif self.place == "shared":
            self._shared = SharedCache(_store_name(resizing), self.shape[1:], self._sources, self._read, self._pool.map)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Returns uint8 (B, H, W, 3), the pictures of these rows of the table."""
        if self._shared is not None:
            return self._shared.gather(rows)
        if self._pixels is not None:
            if self._held is not None:
                for _ in self._read_into(self._pixels, rows[~self._held[rows]]):
                    pass  # which raises the error of an unreadable picture
                self._held[rows] = True
            return np.asarray(self._pixels[rows])
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for _ in self._read_into(images, range(len(rows)), rows):
            pass
        return images

    def in_threads(self, function, items):
        """Returns the results of a function for each of the items, computed in the threads that decode pictures."""
        return self._pool.map(function, items)

    def _fill(self, pixels: np.ndarray) -> np.ndarray:
        for _ in track(self._read_into(pixels, range(len(pixels))), "Reading pictures", len(pixels)):
            pass
        return pixels

    def _read_into(self, pixels: np.ndarray, places, rows=None):
        """Yields once for each of the table's rows that has been read into its place, by default that of its number."""

        def place(index, row):
            pixels[index] = self._read(self._sources[row])

        return self._pool.map(place, places, places if rows is None else rows)

    def _on_disk(self, folder: pathlib.Path | None, settings: str) -> np.ndarray:
        if folder is None:
            held = contextlib.ExitStack()
            folder = held.enter_context(temporary_folder())
            weakref.finalize(self, held.close)
        path = folder / f"pictures-{self._fingerprint(settings)}.npy"
        if not path.exists():
            with replacing(path) as temporary:
                pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, self.shape)
                _reserve(temporary)
                self._fill(pixels)
                pixels.flush()
        return np.load(path, mmap_mode="r")

    def _fingerprint(self, settings: str) -> str:
        """Returns a name that changes with the files (path, size, modification time) and the settings."""
        digest = hashlib.sha256(f"{DECODER_VERSION} {self.shape} {settings}".encode())
        for source in self._sources:
            if isinstance(source, np.ndarray):
                digest.update(f"{source.dtype} {source.shape}".encode() + source.tobytes())
                continue
            try:
                status = source.stat()
            except OSError as error:
                raise missing(source) from error
            digest.update(os.fsencode(source.absolute()) + f" {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:20]


def _store_name(resizing: Resizing) -> str:
    """Returns the name of the shared store of pictures that are resized so."""
    size, limits = "x".join(map(str, resizing.common_size)), "_".join(map(str, resizing.range))
    words = (size, resizing.fit, resizing.interpolation, limits, resizing.decode, f"pillow_{PIL.__version__}")
    return "-".join([*words, str(DECODER_VERSION)])


def decode_table(table: Table, resizing: Resizing, cache: str = "auto") -> Table:
    """Returns the table with its decoded pictures in memory, for several runs in one process.

    The table stays as it is if its pictures are in memory already, if `cache` is neither "auto" nor "memory", or if
    they and a copy for each run, split into training and validation, would take too much memory; the last is said.

    Args:
      table: pictures, with their range.
      resizing: the size of all pictures, and how they are resized.
      cache: as for `Pictures`.
    Raises: DataError: an unreadable picture.
    """
    if table.images is not None or cache not in ("auto", "memory"):
        return table
    size, free = len(table) * int(np.prod((*resizing.common_size, 3))), free_memory()
    if cache == "auto" and 2 * size > MEMORY_SHARE * free:
        say(
            f"Each run decodes its own pictures: twice {size / 2**30:.2f} GB would take more than {MEMORY_SHARE:.0%} "
            f"of {free / 2**30:.1f} GB free memory."
        )
        return table
    say("The pictures are decoded once, for all runs.")
    pixels = Pictures(table, resizing, "memory").gather(np.arange(len(table)))
    return table.replace(images=pixels)


def _reserve(path: pathlib.Path) -> None:
    """Reserves the disk space of the file, because a memory map that runs out of space later kills the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _choose_place(num_bytes: int, folder: pathlib.Path | None) -> str:
    """Returns "memory" or "disk", the first that has room for `num_bytes`, else "none", and says which."""
    size, free = num_bytes / 2**30, free_memory()
    if num_bytes <= MEMORY_SHARE * free:
        say(f"Decoded pictures stay in memory: they take {size:.2f} GB of {free / 2**30:.1f} GB free.")
        return "memory"
    existing = folder if folder is not None else pathlib.Path(tempfile.gettempdir())
    while not existing.exists():
        existing = existing.parent
    room = shutil.disk_usage(existing).free
    if 2 * num_bytes <= room:
        memory = f"{free / 2**30:.1f} GB of memory are free"
        say(f"Decoded pictures go to the disk ({existing}): they take {size:.2f} GB, and only {memory}.")
        return "disk"
    say(f"Pictures are decoded again in each epoch: {size:.2f} GB fit neither in memory nor on the disk.")
    return "none"


def free_memory() -> int:
    """Returns the bytes of memory that are free, on the machine and within the limit of the container, if any."""
    free = psutil.virtual_memory().available
    group = pathlib.Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and used.is_file() and (maximum := limit.read_text().strip()) != "max":
        free = min(free, max(int(maximum) - int(used.read_text()), 0))
    return free
