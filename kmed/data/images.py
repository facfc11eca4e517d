"""Reads any picture, a file or an array, as uint8 (H, W, 3), in the same way for training, packing and prediction."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import shutil
import struct
import tempfile
import warnings
import weakref

import numpy as np
import psutil
from PIL import Image, ImageOps, TiffImagePlugin

from kmed.config import DataConfig
from kmed.data.dicom import is_dicom, read_dicom
from kmed.data.table import Table
from kmed.errors import DataError, KmedError, suggest
from kmed.files import replacing, temporary_folder
from kmed.progress import say, track

# What Pillow raises for a damaged file, depending on the decoder.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)

FITS = ("pad", "crop", "stretch")
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CACHES = ("auto", "memory", "disk", "none")
# Share of the free memory that decoded pictures may take before "auto" turns to the disk. The model, its optimizer
# and the batches in flight need the rest.
MEMORY_SHARE = 0.4
# Part of the name of a disk cache. Raise it whenever the same file would be decoded to other pixels.
DECODER_VERSION = 1

# Pillow warns from half of its limit on, but scans and slides are often that large: the warning would only distract.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa")


@dataclasses.dataclass(frozen=True)
class Resizing:
    """The size to which images are resized, and how.

    Attributes:
      image_size: (height, width) in pixels, both >= 1; None keeps the size of each image.
      fit: "pad" keeps the aspect ratio and adds equal black borders on both sides; "crop" keeps it
        and cuts off equal parts on both sides; "stretch" changes it.
      interpolation: "nearest", "box", "bilinear", "bicubic" or "lanczos"; all but the first average
        over pixels when they shrink an image.
    Raises: DataError: a value that is not legal.
    """

    image_size: tuple[int, int] | None = None
    fit: str = "pad"
    interpolation: str = "bilinear"

    def __post_init__(self):
        _check_word("fit", self.fit, FITS)
        _check_word("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        if self.image_size is not None:
            self._checked_size()

    @classmethod
    def from_settings(cls, data_config: DataConfig) -> "Resizing":
        """Returns the resizing that the data section of the settings describes."""
        return cls(data_config.image_size, data_config.fit, data_config.interpolation)

    @property
    def common_size(self) -> tuple[int, int]:
        """The (height, width) that all images have. Raises DataError if each image keeps its own size."""
        return self._checked_size()

    def _checked_size(self) -> tuple[int, int]:
        sizes = tuple(self.image_size) if isinstance(self.image_size, (tuple, list)) else ()
        if len(sizes) != 2 or not all(isinstance(size, (int, np.integer)) and size >= 1 for size in sizes):
            raise DataError(
                f"image_size must be (height, width) in pixels >= 1. Received: image_size={self.image_size!r}."
            )
        return int(sizes[0]), int(sizes[1])


def read_image(source: str | os.PathLike | bytes, resizing: Resizing | None = None) -> np.ndarray:
    """Returns uint8 (H, W, 3), the pixels of a picture, upright and resized.

    Pillow reads every format, with or without TensorFlow, so a model sees the same pixels in
    prediction as in training. The EXIF orientation is applied. Grey is repeated over three
    channels; CMYK and palettes become RGB; transparent pixels are blended with black, the colour
    of padding. If a file has several frames, the first is read. 16-bit values are scaled linearly,
    0..65535 -> 0..255, whatever range the picture uses. A 12-bit picture that is stored unscaled
    in 16 bits therefore stays dark: choose a window before you store it. DICOM files contain their
    window: see `kmed.data.dicom.read_dicom`.

    Args:
      source: the path of a file, or its bytes.
      resizing: the desired size; None keeps the size of the picture.
    Raises: DataError: the file is missing, damaged, or holds floating-point pixels.
    Example:
      >>> read_image("smear.jpeg", Resizing((120, 160))).shape
      (120, 160, 3)
    """
    file: str | os.PathLike | io.BytesIO
    if isinstance(source, (bytes, bytearray)):
        name, file = f"a picture of {len(source)} bytes", io.BytesIO(source)
    else:
        name, file = str(source), source
    try:
        if is_dicom(source):
            plain = Image.fromarray(read_dicom(source, name))
        else:
            with Image.open(file) as image:
                image.load()
                plain = _to_plain(ImageOps.exif_transpose(image), name)
    except KmedError:
        raise
    except FileNotFoundError as error:
        raise _missing(name) from error
    except UNREADABLE as error:
        if isinstance(error, Image.DecompressionBombError) and Image.MAX_IMAGE_PIXELS is not None:
            raise DataError(
                f"{name} has more than {2 * Image.MAX_IMAGE_PIXELS // 10**6} million pixels. Such a file may be an "
                "attack that fills the memory. Shrink it first."
            ) from error
        if channels := _tiff_channels(source):
            raise DataError(
                f"{name} has {channels} channels. Only grey, RGB and CMYK can be read, with or without transparency. "
                "Store the channels that matter as RGB."
            ) from error
        reason = str(error).replace(name, "it").replace("cannot identify image file 'it'", "its format is not known")
        raise DataError(f"{name} cannot be read as a picture: {reason}. Repair or remove the file.") from error
    return _resize(plain, resizing)


def _tiff_channels(source) -> int:
    """Returns the number of channels of a TIFF file if Pillow rejects it because it has too many, else 0."""
    is_bytes = isinstance(source, (bytes, bytearray))
    try:
        with io.BytesIO(source) if is_bytes else pathlib.Path(source).open("rb") as file:
            directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(directory.next)
            directory.load(file)
            channels = int(directory.get(TiffImagePlugin.SAMPLESPERPIXEL, 0))
            is_grey = directory.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) in (0, 1)
    except UNREADABLE:
        return 0
    # Four channels are RGB with transparency or CMYK. If the file calls them grey, they are the bands of a sensor.
    return channels if channels == 2 or channels > 4 or (channels == 4 and is_grey) else 0


def resize_array(array: np.ndarray, resizing: Resizing | None = None) -> np.ndarray:
    """Returns uint8 (H, W, 3), the pixels of an array, resized as `read_image` resizes those of a file.

    Args:
      array: uint8, or uint16 (scaled 0..65535 -> 0..255), of shape (H, W), (H, W, 1) or (H, W, 3).
      resizing: as for `read_image`.
    Raises: DataError: the array has another shape or dtype.
    """
    array = np.asarray(array)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)) or 0 in array.shape:
        raise DataError(f"A picture must be (H, W), (H, W, 1) or (H, W, 3). Received: array.shape={array.shape}.")
    if array.dtype not in (np.uint8, np.uint16):
        raise DataError(f"A picture's pixels must be uint8 or uint16. Received: array.dtype={array.dtype}.")
    if array.dtype == np.uint16:
        array = _to_eight_bits(array)
    rgb = np.broadcast_to(array.reshape(*array.shape[:2], -1), (*array.shape[:2], 3))
    return _resize(Image.fromarray(np.ascontiguousarray(rgb)), resizing)


def read_row(table: Table, row: int, resizing: Resizing | None = None) -> np.ndarray:
    """Returns uint8 (H, W, 3), the picture in one row of a table, whether the table holds pixels or names files."""
    if table.images is not None:
        return resize_array(table.images[row], resizing)
    return read_image(table.root / table.rows["path"].iat[row], resizing)  # table.files would build all N paths


def _check_word(name: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        hint = suggest(value, legal)
        raise DataError(f"{name} must be one of {', '.join(legal)}. Received: {name}={value!r}.{hint}")


def _to_plain(image: Image.Image, name: str) -> Image.Image:
    """Returns the picture in mode "L" or "RGB", whichever can hold all its colours."""
    if image.mode in _DEEP:
        return Image.fromarray(_to_eight_bits(np.asarray(image), name))
    if image.mode == "F":
        raise DataError(f"{name} holds floating-point pixels of unknown range. Scale it and store it as 8 or 16 bits.")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    # Grey keeps a single channel until it has been resized, which then costs a third.
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _to_eight_bits(pixels: np.ndarray, name: str = "The picture") -> np.ndarray:
    """Returns uint8, the values 0..65535 divided by 257 (65535 / 255) and rounded."""
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        found = f"{pixels.min()} to {pixels.max()}"
        raise DataError(f"{name} holds pixels from {found}, but only 0 to 65535 is legal. Scale it and store it again.")
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _resize(image: Image.Image, resizing: Resizing | None) -> np.ndarray:
    if resizing is None or resizing.image_size is None:
        return np.array(image.convert("RGB"))
    height, width = resizing.common_size
    if (image.height, image.width) == (height, width):
        return np.array(image.convert("RGB"))
    method = INTERPOLATIONS[resizing.interpolation]
    if resizing.fit == "stretch":
        return np.array(image.resize((width, height), method).convert("RGB"))
    across, down = width / image.width, height / image.height
    if resizing.fit == "crop":
        # The visible part of the picture in its own pixel coordinates, which may be fractions.
        seen_width, seen_height = width / max(across, down), height / max(across, down)
        left, top = max((image.width - seen_width) / 2, 0), max((image.height - seen_height) / 2, 0)
        box = (left, top, min(left + seen_width, image.width), min(top + seen_height, image.height))
        return np.array(image.resize((width, height), method, box=box).convert("RGB"))
    inner_width = min(max(round(image.width * min(across, down)), 1), width)
    inner_height = min(max(round(image.height * min(across, down)), 1), height)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    inner = image.resize((inner_width, inner_height), method).convert("RGB")
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + inner_height, left : left + inner_width] = np.asarray(inner)
    return canvas


def _missing(name) -> DataError:
    return DataError(f"There is no picture {name}. Check the table's paths and its root folder.")


# ----- all pictures of a table, by row -----


class Pictures:
    """The pictures of a table, all of one size, gathered by row; decoded once or on demand.

    Attributes:
      place: where the decoded pixels are stored: "table", "memory", "disk" or "none" (decoded on demand).
    """

    def __init__(
        self,
        table: Table,
        resizing: Resizing,
        cache: str = "auto",
        cache_dir: str | os.PathLike | None = None,
    ):
        """Decodes all pictures right away, unless `cache` is "none" or there is no room for them.

        Args:
          table: the table whose pictures are read; its `images` are used if it has them.
          resizing: the size of all pictures, and how they are resized.
          cache: "memory", "disk", "none", or "auto": memory if the pictures take at most 40 % of
            what is free, else the disk if there is room, else none.
          cache_dir: the folder of the disk cache, kept for the next run; None uses a temporary
            folder that is removed with this object.
        Raises: DataError: an unreadable picture, or an argument that is not legal.
        """
        _check_word("cache", cache, CACHES)
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
        if table.images is not None and table.images.shape == self.shape and table.images.dtype == np.uint8:
            self.place, self._pixels = "table", table.images
            return
        folder = pathlib.Path(cache_dir) if cache_dir is not None else None
        self.place = _choose_place(int(np.prod(self.shape)), folder) if cache == "auto" else cache
        if self.place == "memory":
            self._pixels = self._fill(np.empty(self.shape, np.uint8))
        elif self.place == "disk":
            self._pixels = self._on_disk(folder, f"{resizing.fit} {resizing.interpolation}")

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Returns uint8 (B, H, W, 3), the pictures of these rows of the table."""
        if self._pixels is not None:
            return np.asarray(self._pixels[rows])
        return np.stack(list(self._pool.map(self._read, [self._sources[row] for row in rows])))

    def _fill(self, pixels: np.ndarray) -> np.ndarray:
        def place(row):
            pixels[row] = self._read(self._sources[row])

        for _ in track(self._pool.map(place, range(len(pixels))), "Reading pictures", len(pixels)):
            pass
        return pixels

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
                raise _missing(source) from error
            digest.update(f"{source.absolute()} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:20]


def _reserve(path: pathlib.Path) -> None:
    """Reserves the disk space of the file, because a memory map that runs out of space later kills the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _choose_place(num_bytes: int, folder: pathlib.Path | None) -> str:
    """Returns "memory" or "disk", the first that has room for `num_bytes`, else "none", and says which."""
    size, free = num_bytes / 2**30, _free_memory()
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


def _free_memory() -> int:
    """Returns the bytes of memory that are free, on the machine and within the limit of the container, if any."""
    free = psutil.virtual_memory().available
    group = pathlib.Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and used.is_file() and (maximum := limit.read_text().strip()) != "max":
        free = min(free, max(int(maximum) - int(used.read_text()), 0))
    return free
