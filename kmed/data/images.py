"""Reads any picture, a file or an array, as uint8 (H, W, 3), in the same way for training, packing and prediction."""

import dataclasses
import os

import numpy as np
from PIL import Image

from kmed.config import FULL, DataConfig, parse_range
from kmed.data.decoding import REDUCTIONS, Decoded, decoded, strips
from kmed.data.pixel_range import to_eight_bits
from kmed.data.table import Table
from kmed.errors import DataError, suggest

FITS = ("pad", "crop", "stretch")
DECODINGS = ("full", "reduced")
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclasses.dataclass(frozen=True)
class Resizing:
    """How images are brought to the model's input: their size, and what becomes black and white.

    Attributes:
      image_size: (height, width) in pixels, both >= 1; None keeps the size of each image.
      fit: "pad" keeps the aspect ratio and adds equal black borders on both sides; "crop" keeps it
        and cuts off equal parts on both sides; "stretch" changes it.
      interpolation: "nearest", "box", "bilinear", "bicubic" or "lanczos"; all but the first average
        over pixels when they shrink an image.
      range: (low, high), the values that become black and white in images with more than 8 bits per value.
      decode: "full", or "reduced": a JPEG file is decoded at 1/8, 1/4 or 1/2 of its size, the smallest that is at least
        the resized one, and resized from there.
    Raises: DataError: a value that is not legal.
    """

    image_size: tuple[int, int] | None = None
    fit: str = "pad"
    interpolation: str = "bilinear"
    range: tuple[int, int] = FULL
    decode: str = "full"

    def __post_init__(self):
        check_word("decode", self.decode, DECODINGS)
        check_word("fit", self.fit, FITS)
        check_word("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        if self.image_size is not None:
            self._checked_size()
        low_and_high = tuple(self.range)
        if len(low_and_high) != 2 or not low_and_high[0] < low_and_high[1]:
            raise DataError(f"range must be (low, high), low < high. Received: range={self.range!r}.")

    @classmethod
    def from_settings(cls, data_config: DataConfig) -> "Resizing":
        """Returns the resizing that the data section of the settings describes.

        A range that is still "auto" is the full one: a run stores the range that was found in its training pictures,
        and one of kmed 0.1.0, which has none, was trained on the full range.
        """
        limits = parse_range(data_config.range) or FULL
        return cls(data_config.image_size, data_config.fit, data_config.interpolation, limits, data_config.decode)

    @property
    def common_size(self) -> tuple[int, int]:
        """The (height, width) that all images have. Raises DataError if each image keeps its own size."""
        return self._checked_size()

    def reduction(self, height: int, width: int) -> int:
        """Returns 1, 2, 4 or 8: how many times smaller than it is an upright JPEG picture of this size is decoded."""
        if self.decode == "full" or self.image_size is None:
            return 1
        down, across = self.scales(height, width)
        return next((factor for factor in REDUCTIONS if factor * max(down, across) <= 1), 1)

    def scales(self, height: float, width: float) -> tuple[float, float]:
        """Returns the scales (down, across) of a picture of this size."""
        wanted_height, wanted_width = self.common_size
        down, across = wanted_height / height, wanted_width / width
        if self.fit == "stretch":
            return down, across
        scale = min(down, across) if self.fit == "pad" else max(down, across)
        return scale, scale

    def _checked_size(self) -> tuple[int, int]:
        sizes = tuple(self.image_size) if isinstance(self.image_size, (tuple, list)) else ()
        if len(sizes) != 2 or not all(isinstance(size, (int, np.integer)) and size >= 1 for size in sizes):
            raise DataError(
                f"image_size must be (height, width) in pixels >= 1. Received: image_size={self.image_size!r}."
            )
        return int(sizes[0]), int(sizes[1])


def read_image(source: str | os.PathLike | bytes, resizing: Resizing | None = None) -> np.ndarray:
    """Returns uint8 (H, W, 3), the pixels of a picture, upright and resized.

    Pillow reads all formats but DICOM, with or without TensorFlow, so a model sees the same pixels in
    prediction as in training. The EXIF orientation is applied; damaged metadata are ignored. Grey is
    repeated over three channels; CMYK and palettes become RGB; transparent pixels are blended with
    black, the colour of padding. If a file has several frames, the first is read. Values of more than
    8 bits are scaled linearly, low..high -> 0..255, where (low, high) is `resizing.range`, 0..65535 by
    default; values outside become black or white. A 12-bit picture that is stored unscaled in 16 bits
    stays dark unless the range says so. DICOM files contain their window: see
    `kmed.data.dicom.read_dicom`.

    Args:
      source: the path of a file, or its bytes.
      resizing: the desired size and range; None keeps the size of the picture.
    Raises: DataError: the file is missing, damaged or too large, or holds floating-point pixels.
    Example:
      >>> read_image("smear.jpeg", Resizing((120, 160))).shape
      (120, 160, 3)
    """
    if resizing is None:
        resizing = Resizing()
    with decoded(source, resizing.range, reduction=resizing.reduction) as picture:
        return _resize(picture, resizing)


def resize_array(array: np.ndarray, resizing: Resizing | None = None) -> np.ndarray:
    """Returns uint8 (H, W, 3), the pixels of an array, resized as `read_image` resizes those of a file.

    Args:
      array: uint8, or uint16 (scaled as `read_image` scales files of 16 bits), of shape (H, W), (H, W, 1) or (H, W, 3).
      resizing: as for `read_image`.
    Raises: DataError: the array has another shape or dtype.
    """
    array = np.asarray(array)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)) or 0 in array.shape:
        raise DataError(f"A picture must be (H, W), (H, W, 1) or (H, W, 3). Received: array.shape={array.shape}.")
    if array.dtype not in (np.uint8, np.uint16):
        raise DataError(f"A picture's pixels must be uint8 or uint16. Received: array.dtype={array.dtype}.")
    if array.dtype == np.uint16:
        array = to_eight_bits(array, FULL if resizing is None else resizing.range)
    rgb = np.broadcast_to(array.reshape(*array.shape[:2], -1), (*array.shape[:2], 3))
    return _resize(Decoded(Image.fromarray(np.ascontiguousarray(rgb)), "RGB", array.shape[:2]), resizing)


def read_row(table: Table, row: int, resizing: Resizing | None = None) -> np.ndarray:
    """Returns uint8 (H, W, 3), the picture in one row of a table, whether the table holds pixels or names files.

    Without a resizing it keeps its size, and the table's range applies.
    """
    resizing = Resizing(range=table.range or FULL) if resizing is None else resizing
    if table.images is not None:
        return resize_array(table.images[row], resizing)
    return read_image(table.file(row), resizing)


def check_word(name: str, value: str, legal: tuple[str, ...]) -> None:
    """Raises DataError unless the value of an argument is legal."""
    if value not in legal:
        hint = suggest(value, legal)
        raise DataError(f"{name} must be one of {', '.join(legal)}. Received: {name}={value!r}.{hint}")


def _resize(picture: Decoded, resizing: Resizing | None) -> np.ndarray:
    image, factor = picture.image, picture.reduction
    if resizing is None or resizing.image_size is None:
        return as_array(image)
    height, width = resizing.common_size
    left, top, right, bottom = picture.box
    own_height, own_width = (bottom - top) * factor, (right - left) * factor  # before it was reduced
    if (own_height, own_width) == (height, width):
        return _as_rgb(image)
    method = INTERPOLATIONS[resizing.interpolation]
    down, across = resizing.scales(own_height, own_width)
    if resizing.fit == "crop":
        # The visible part of the picture in the image's pixel coordinates, which may be fractions.
        seen_width, seen_height = width / across, height / down
        start, above = max((own_width - seen_width) / 2, 0), max((own_height - seen_height) / 2, 0)
        right, bottom = min(start + seen_width, own_width), min(above + seen_height, own_height)
        box = (left + start / factor, top + above / factor, left + right / factor, top + bottom / factor)
        return _as_rgb(image.resize((width, height), method, box=box))
    if resizing.fit == "stretch":
        return _as_rgb(image.resize((width, height), method, box=picture.box))
    inner_width = min(max(round(own_width * across), 1), width)
    inner_height = min(max(round(own_height * down), 1), height)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    inner = _as_rgb(image.resize((inner_width, inner_height), method, box=picture.box))
    if (inner_height, inner_width) == (height, width):
        return inner
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + inner_height, left : left + inner_width] = inner
    return canvas


def _as_rgb(image: Image.Image) -> np.ndarray:
    """Returns uint8 (H, W, 3), an array of its own, of an image in mode "L" or "RGB"."""
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def as_array(image: Image.Image) -> np.ndarray:
    """Returns uint8 (H, W, 3), the pixels of an image.

    They are taken strip by strip, since a large picture would be copied several times otherwise.
    """
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, bottom in strips(image):
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)).convert("RGB"))
    return pixels
