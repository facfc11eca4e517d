"""Pictures: any file or array -> uint8 (H, W, 3), by the same decoder in training, packing and prediction."""

import concurrent.futures
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
from kmed.files import replacing
from kmed.progress import say, track

# What Pillow raises for a damaged file, whichever decoder met it.
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
# Share of the free memory that decoded pictures may take before "auto" turns to the disk: the
# model, its optimizer and the batches under way need the rest.
MEMORY_SHARE = 0.4
# Part of a disk cache's name: raise it whenever the same file would give other pixels.
DECODER_VERSION = 1

# Scans and slides of half that size are usual; Pillow's warning on them would stand between the answers.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa")


@dataclasses.dataclass(frozen=True)
class Resizing:
    """The size that images are brought to, and how.

    Attributes:
      image_size: (height, width) in pixels, both >= 1; None keeps each image's own.
      fit: "pad" keeps the aspect ratio and adds black in equal parts on both sides; "crop" keeps
        it and cuts equal parts off both sides; "stretch" gives it up.
      interpolation: "nearest", "box", "bilinear", "bicubic" or "lanczos"; all but the first average
        over the pixels they shrink.
    Raises: DataError: a value that is not legal.
    """

    image_size: tuple[int, int] | None = None
    fit: str = "pad"
    interpolation: str = "bilinear"

    def __post_init__(self):
        _check_word("fit", self.fit, FITS)
        _check_word("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        if self.image_size is not None:
            self._check_size()

    @classmethod
    def from_settings(cls, data_config: DataConfig) -> "Resizing":
        """Returns the resizing that the data section of the settings describes."""
        return cls(data_config.image_size, data_config.fit, data_config.interpolation)

    @property
    def common_size(self) -> tuple[int, int]:
        """(height, width) of all images alike. Raises DataError where each image keeps its own size."""
        self._check_size()
        return int(self.image_size[0]), int(self.image_size[1])

    def _check_size(self) -> None:
        sizes = tuple(self.image_size) if isinstance(self.image_size, (tuple, list)) else ()
        if len(sizes) != 2 or not all(isinstance(size, (int, np.integer)) and size >= 1 for size in sizes):
            raise DataError(
                f"image_size must be (height, width) in pixels >= 1. Received: image_size={self.image_size!r}."
            )


def read_image(source: str | os.PathLike | bytes, resizing: Resizing | None = None) -> np.ndarray:
    """Returns uint8 (H, W, 3), the pixels of a picture, upright and resized.

    Every format is read by Pillow, with or without TensorFlow, so a model sees in prediction the
    pixels it was trained on. The EXIF orientation is applied; grey is repeated over three channels;
    transparency is laid on black, as is padding; CMYK and palettes become RGB; of several frames
    the first is read. Depths of 16 bits are scaled linearly, 0..65535 -> 0..255, whatever the
    picture holds: a 12-bit picture stored unscaled in 16 bits stays dark, and wants a window
    chosen before it is stored. DICOM files bring their window: see `kmed.data.dicom.read_dicom`.

    Args:
      source: a file's path, or its bytes.
      resizing: the size wanted; None keeps the picture's own.
    Raises: DataError: the file is missing, damaged, or holds floating-point pixels.
    Example:
      >>> read_image("smear.jpeg", Resizing((120, 160))).shape
      (120, 160, 3)
    """
    is_bytes = isinstance(source, (bytes, bytearray))
    name = f"a picture of {len(source)} bytes" if is_bytes else str(source)
    try:
        if is_dicom(source):
            plain = Image.fromarray(read_dicom(source, name))
        else:
            with Image.open(io.BytesIO(source) if is_bytes else source) as image:
                image.load()
                plain = _to_plain(ImageOps.exif_transpose(image), name)
    except KmedError:
        raise
    except FileNotFoundError as error:
        raise _missing(name) from error
    except UNREADABLE as error:
        if isinstance(error, Image.DecompressionBombError):
            raise DataError(
                f"{name} has more than {2 * Image.MAX_IMAGE_PIXELS // 10**6} million pixels, which may be an attack on "
                "the memory. Shrink it first."
            ) from error
        if channels := _tiff_channels(source):
            raise DataError(
                f"{name} has {channels} channels; read are grey, RGB and CMYK, with or without transparency. "
                "Store the channels that matter as RGB."
            ) from error
        reason = str(error).replace(name, "it").replace("cannot identify image file 'it'", "its format is not known")
        raise DataError(f"{name} cannot be read as a picture: {reason}. Repair or remove the file.") from error
    return _resize(plain, resizing)


def _tiff_channels(source) -> int:
    """Returns the channels of a TIFF file that Pillow does not read for having so many; 0 where that is not why."""
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
    # Four are RGB with transparency, or CMYK, but bands of a sensor where they are called grey.
    return channels if channels == 2 or channels > 4 or (channels == 4 and is_grey) else 0


def resize_array(array: np.ndarray, resizing: Resizing | None = None) -> np.ndarray:
    """Returns uint8 (H, W, 3), an array's pixels resized as `read_image` resizes a file's.

    Args:
      array: uint8, or uint16 (scaled 0..65535 -> 0..255), of (H, W), (H, W, 1) or (H, W, 3).
      resizing: as for `read_image`.
    Raises: DataError: another shape or dtype.
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
    return read_image(table.root / table.rows["path"].iat[row], resizing)  # table.files would make every path each time


def _check_word(name: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        hint = suggest(value, legal)
        raise DataError(f"{name} must be one of {', '.join(legal)}. Received: {name}={value!r}.{hint}")


def _to_plain(image: Image.Image, name: str) -> Image.Image:
    """Returns the picture in mode "L" or "RGB", whichever holds all its colours."""
    if image.mode in _DEEP:
        return Image.fromarray(_to_eight_bits(np.asarray(image), name))
    if image.mode == "F":
        raise DataError(f"{name} holds floating-point pixels of unknown range. Scale and store it as 8 or 16 bits.")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    # Grey stays one channel until it is small: resizing it costs a third.
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _to_eight_bits(pixels: np.ndarray, name: str = "The picture") -> np.ndarray:
    """Returns uint8, rounded from 0..65535: 65535 / 255 = 257."""
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        found = f"{pixels.min()} to {pixels.max()}"
        raise DataError(f"{name} holds pixels from {found}; legal are 0 to 65535. Scale and store it anew.")
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
        # The part of the picture that is seen, in its own pixels, perhaps between two of them.
        seen_width, seen_height = width / max(across, down), height / max(across, down)
        left, top = max((image.width - seen_width) / 2, 0), max((image.height - seen_height) / 2, 0)
        box = (left, top, min(left + seen_width, image.width), min(top + seen_height, image.height))
        return np.array(image.resize((width, height), method, box=box).convert("RGB"))
    inner_width = min(max(round(image.width * min(across, down)), 1), width)
    inner_height = min(max(round(image.height * min(across, down)), 1), height)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    inner = image.resize((inner_width, inner_height), method).convert("RGB")
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + inner_height, left : left + inner_width] = inner
    return canvas


def _missing(name) -> DataError:
    return DataError(f"There is no picture {name}. Check the table's paths and its root folder.")


# ----- all pictures of a table, by their row -----


class Pictures:
    """A table's pictures in one size, gathered by row; decoded once, or anew each time.

    Attributes:
      place: where the decoded pixels are: "table", "memory", "disk" or "none" (decoded on demand).
    """

    def __init__(
        self,
        table: Table,
        resizing: Resizing,
        cache: str = "auto",
        cache_dir: str | os.PathLike | None = None,
    ):
        """Decodes all pictures at once, unless `cache` says, or lack of room demands, otherwise.

        Args:
          table: whose pictures, in row order; its `images` are used where it has them.
          resizing: the size of all of them, and how they are brought to it.
          cache: "memory", "disk", "none", or "auto": memory where the pictures take at most 40 % of
            what is free, else the disk where there is room, else none.
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
        if table.images is not None and table.images.shape == self.shape and table.images.dtype == np.uint8:
            self.place, self._pixels = "table", table.images
            return
        folder = pathlib.Path(cache_dir) if cache_dir is not None else None
        self.place = _choose_place(int(np.prod(self.shape)), folder) if cache == "auto" else cache
        self._pixels = None
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
            folder = pathlib.Path(tempfile.mkdtemp(prefix="kmed-pictures-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path = folder / f"pictures-{self._fingerprint(settings)}.npy"
        if not path.exists():
            with replacing(path) as temporary:
                pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, self.shape)
                _reserve(temporary)
                self._fill(pixels).flush()
        return np.load(path, mmap_mode="r")

    def _fingerprint(self, settings: str) -> str:
        """Returns a name that changes with the files (path, size, time of change) and the settings."""
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
    """Takes the file's room on the disk; a memory map that met a full disk later would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _choose_place(num_bytes: int, folder: pathlib.Path | None) -> str:
    """Returns "memory", "disk" or "none", whichever holds `num_bytes`, and tells the user."""
    size, free = num_bytes / 2**30, _free_memory()
    if num_bytes <= MEMORY_SHARE * free:
        say(f"Decoded pictures stay in memory: {size:.2f} GB of {free / 2**30:.1f} GB free.")
        return "memory"
    existing = folder if folder is not None else pathlib.Path(tempfile.gettempdir())
    while not existing.exists():
        existing = existing.parent
    room = shutil.disk_usage(existing).free
    if 2 * num_bytes <= room:
        say(f"Decoded pictures go to the disk ({existing}): {size:.2f} GB; {free / 2**30:.1f} GB of memory are free.")
        return "disk"
    say(f"Pictures are decoded anew each epoch: {size:.2f} GB fit neither in memory nor on the disk.")
    return "none"


def _free_memory() -> int:
    """Returns the bytes that may still be taken: the machine's, or the container's where it has a limit."""
    free = psutil.virtual_memory().available
    group = pathlib.Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, max(int(most) - int(used.read_text()), 0))
    return free
