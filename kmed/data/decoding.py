"""The one way from a picture file to pixels: what it refuses can be used nowhere in kmed."""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin

from kmed.config import FULL
from kmed.data.dicom import is_dicom, read_dicom
from kmed.data.limits import admit, too_large
from kmed.data.pixel_range import to_eight_bits
from kmed.errors import DataError, KmedError

# Pillow's formats that hold pixels and need no other program; EPS, for one, would start Ghostscript.
_FORMATS = (
    "JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF",
    "DIB", "ICO", "PCX", "PSD", "QOI", "SGI", "SUN", "TGA", "XBM",
)  # fmt: skip
UNREADABLE, UNKNOWN_FORMAT = "cannot be read as a picture: ", "its format is not known"
REMEDY = "Repair or remove the file."
_PIXELS_AT_ONCE = 2**22  # in which large pictures are converted, to save memory
_DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_ORIENTATION = 0x0112
# {orientation: (what makes the picture upright, the sides on which its right and its bottom edge then lie)}
_TURNED = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, "left", "bottom"),
    3: (Image.Transpose.ROTATE_180, "left", "top"),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, "right", "top"),
    5: (Image.Transpose.TRANSPOSE, "bottom", "right"),
    6: (Image.Transpose.ROTATE_270, "bottom", "left"),
    7: (Image.Transpose.TRANSVERSE, "top", "left"),
    8: (Image.Transpose.ROTATE_90, "top", "right"),
}
_UNTURNED = (None, "right", "bottom")
REDUCTIONS = (8, 4, 2)  # how many times smaller than it is a JPEG file can be decoded
_JPEG = b"\xff\xd8\xff"
_READ_ONCE, _SMALL = (_JPEG, b"\x89PNG"), 2**24  # files of these kinds and up to this many bytes are read at once
# Segments of a JPEG file that are left out if they are damaged: all metadata but EXIF, then EXIF too.
_METADATA = (frozenset({*range(0xE2, 0xEE), 0xEF}), frozenset({*range(0xE1, 0xEE), 0xEF}))

# Both warn of damaged metadata, which kmed does not use; pydicom quotes them, and they may be a patient's name. Pillow
# also warns of pictures over half of its limit, but scans and slides are often that large.
warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
    """The pixels of a picture file.

    Attributes:
      image: upright, in mode "L" or "RGB", whichever can hold all its colours.
      mode: Pillow's name for the pixels as stored ("RGB", "L", "I;16", ...), or "DICOM".
      size: (height, width) as stored.
      peak: the highest value of a picture with more than 8 bits per value that is not DICOM; None for others.
      reduction: how many times smaller than it is the picture was decoded.
      margins: {side: the part of a pixel by which the image extends beyond the picture there}, as a reduced one does
        whose sides are no multiples of the reduction.
    """

    image: Image.Image
    mode: str
    size: tuple[int, int]
    peak: int | None = None
    reduction: int = 1
    margins: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom): the part of the image that the picture fills, in pixels of the image."""
        left, top, right, bottom = (self.margins.get(side, 0.0) for side in ("left", "top", "right", "bottom"))
        return left, top, self.image.width - right, self.image.height - bottom


@contextlib.contextmanager
def decoded(
    source, limits: tuple[int, int] = FULL, *, reduction: Callable[[int, int], int] | None = None
) -> Iterator[Decoded]:
    """Yields the picture in a file; while it is held, no other thread decodes a large one.

    Args:
      source: the path of the file, or its bytes.
      limits: (low, high), the values that become black and white if there are more than 8 bits per value.
      reduction: function (height, width) of an upright picture -> 1, 2, 4 or 8, how many times smaller than it is it
        may be decoded if the file is a JPEG; every byte is read, at an eighth in a fifth of the time. None: 1.
    Raises: DataError: the file is missing, damaged or too large, or its pixels cannot be used.
    """
    is_bytes = isinstance(source, (bytes, bytearray))
    name = f"a picture of {len(source)} bytes" if is_bytes else str(source)
    with contextlib.ExitStack() as held:
        try:
            source = _in_memory(source)
            if is_dicom(source):
                plain = Image.fromarray(read_dicom(source, name, held))
                picture = Decoded(plain, "DICOM", (plain.height, plain.width))
            else:
                picture = _decode(source, name, limits, reduction, held)
        except KmedError:
            raise
        except FileNotFoundError as error:
            raise missing(name) from error
        except Image.DecompressionBombError as error:
            raise too_large(name) from error
        except Exception as error:  # decoders raise whatever error the damage leads to
            raise DataError(_describe(error, source, name)) from error
        yield picture


def read_header(source) -> tuple[tuple[int, int], str]:
    """Returns (height, width) and mode as stored, of a file whose pixels may be damaged; (0, 0) and "" if it has none.

    No header of a DICOM file is read.
    """
    with contextlib.suppress(Exception):
        if not is_dicom(source):
            with _open(source) as image:
                return (image.height, image.width), image.mode
    return (0, 0), ""


def missing(name) -> DataError:
    """Returns the error for a file that does not exist."""
    return DataError(f"There is no picture {name}. Check the table's paths and its root folder.")


def _describe(error: Exception, source, name: str) -> str:
    """Returns why a file cannot be decoded, in one line."""
    if channels := _tiff_channels(source):
        return (
            f"{name} has {channels} channels. Only grey, RGB and CMYK can be read, with or without transparency. "
            "Store the channels that matter as RGB."
        )
    if isinstance(error, Image.UnidentifiedImageError):
        reason = UNKNOWN_FORMAT
    else:
        lines = str(error).replace(name, "it").splitlines() or [type(error).__name__]
        reason = lines[0]
    return f"{name} {UNREADABLE}{reason}. {REMEDY}"


def _tiff_channels(source) -> int:
    """Returns the number of channels of a TIFF file if Pillow rejects it because it has too many, else 0."""
    try:
        with _opened(source) as file:
            directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(directory.next)
            directory.load(file)
            channels = int(directory.get(TiffImagePlugin.SAMPLESPERPIXEL, 0))
            is_grey = directory.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) in (0, 1)
    except Exception:  # it is no TIFF file, or a damaged one
        return 0
    # Four channels are RGB with transparency or CMYK. If the file calls them grey, they are the bands of a sensor.
    return channels if channels == 2 or channels > 4 or (channels == 4 and is_grey) else 0


def _in_memory(source):
    """Returns the bytes of a small JPEG or PNG file, which then is opened only once; other sources as they are."""
    if isinstance(source, (bytes, bytearray)) or not pathlib.Path(source).is_file():
        return source
    with _opened(source) as file:
        start = file.read(len(_JPEG) + 1)
        if start.startswith(_READ_ONCE) and os.fstat(file.fileno()).st_size <= _SMALL:
            return start + file.read()
    return source


def _opened(source):
    """Returns an open binary file."""
    return io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else pathlib.Path(source).open("rb")


# ----- decoding with Pillow -----


def _decode(source, name: str, limits: tuple[int, int], reduction, held: contextlib.ExitStack) -> Decoded:
    with _open(source) as image:
        admit(name, image.height, image.width, held)
        mode, size = image.mode, (image.height, image.width)
        deep_colour = ";16" in _raw_mode(image) and mode not in _DEEP
        factor = 1 if reduction is None else _reduce(image, reduction)
        _load(image)
        turn, right, bottom = _TURNED.get(_orientation(image), _UNTURNED)
        plain, peak = _to_plain(image, limits, name)
    if deep_colour:
        plain, peak = _read_deep_colour(source, limits) or (plain, peak)
    over = {right: plain.width - size[1] / factor, bottom: plain.height - size[0] / factor} if factor > 1 else {}
    return Decoded(plain if turn is None else plain.transpose(turn), mode, size, peak, factor, over)


def _reduce(image: Image.Image, reduction: Callable[[int, int], int]) -> int:
    """Returns how many times smaller than it is a picture will be decoded, as its file format allows."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 1
    width, height = image.size
    factor = reduction(width, height) if _orientation(image) >= 5 else reduction(height, width)
    drafted = image.draft(None, (max(width // factor, 1), max(height // factor, 1))) if factor > 1 else None
    return 1 if drafted is None else round(width / drafted[1][2])


@functools.cache
def _formats() -> tuple[str, ...]:
    """Returns those of `_FORMATS` that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(source) -> Image.Image:
    """Returns a picture whose header has been read.

    Of a JPEG file only the first picture is wanted, so a list of others is not read, and damaged metadata are left out.
    """
    file = io.BytesIO(source) if isinstance(source, (bytes, bytearray)) else source
    with _opened(source) as opened:
        is_jpeg = opened.read(len(_JPEG)) == _JPEG
    if not is_jpeg:
        return Image.open(file, formats=_formats())
    try:
        return JpegImagePlugin.JpegImageFile(file)
    except Exception:
        with _opened(source) as opened:
            content = opened.read()
        for segments in _METADATA:
            with contextlib.suppress(Exception):
                return JpegImagePlugin.JpegImageFile(io.BytesIO(_without(content, segments)))
        raise


def _without(content: bytes, segments: frozenset[int]) -> bytes:
    """Returns a JPEG file without the segments before its first scan that have these marker bytes."""
    kept, place = [content[:2]], 2
    while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] not in (b"\xda", b""):
        length = 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if content[place + 1] not in segments:
            kept.append(content[place : place + length])
        place += length
    return b"".join([*kept, content[place:]])


def _raw_mode(image: Image.Image) -> str:
    """Returns how the file stores its values, such as "RGB;16B"; "" if Pillow does not say."""
    arguments = getattr(image, "tile", None) and image.tile[0][3]  # type: ignore[attr-defined]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _load(image: Image.Image) -> None:
    """Decodes the pixels. Metadata that stand behind them, or that TIFF files are asked for then, may be damaged."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        finish = image.load_end

        def forgiving():
            with contextlib.suppress(Exception):
                finish()

        image.load_end = forgiving  # type: ignore[method-assign]
    image.load()


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 if there is none or the metadata are damaged: the pixels are whole."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        return int(value) if isinstance(value, (int, float)) else 1
    except Exception:
        return 1


def _to_plain(image: Image.Image, limits: tuple[int, int], name: str) -> tuple[Image.Image, int | None]:
    """Returns the picture in mode "L" or "RGB", whichever can hold all its colours, and its peak."""
    if image.mode in _DEEP:
        return _scaled(image, limits, name)
    if image.mode == "F":
        raise DataError(f"{name} holds floating-point pixels of unknown range. Scale it and store it as 8 or 16 bits.")
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        return _on_black(image), None
    # Grey keeps a single channel until it has been resized, which then costs a third.
    mode = "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == mode else image.convert(mode), None


def _scaled(image: Image.Image, limits: tuple[int, int], name: str) -> tuple[Image.Image, int]:
    pixels, peak = np.empty((image.height, image.width), np.uint8), 0
    for top, bottom in strips(image):
        values = np.asarray(image.crop((0, top, image.width, bottom)))
        pixels[top:bottom] = to_eight_bits(values, limits, name)
        peak = max(peak, int(values.max()))
    return Image.fromarray(pixels), peak


def _on_black(image: Image.Image) -> Image.Image:
    """Returns the picture blended with black, the colour of padding."""
    plain = Image.new("RGB", image.size)
    for top, bottom in strips(image):
        part = image.crop((0, top, image.width, bottom)).convert("RGBA")
        black = Image.new("RGBA", part.size, (0, 0, 0, 255))
        plain.paste(Image.alpha_composite(black, part).convert("RGB"), (0, top))
    return plain


def strips(image: Image.Image) -> Iterator[tuple[int, int]]:
    """Yields (top, bottom) of strips of whole rows that are small enough to be converted at once."""
    rows = max(_PIXELS_AT_ONCE // image.width, 1)
    for top in range(0, image.height, rows):
        yield top, min(top + rows, image.height)


def _read_deep_colour(source, limits: tuple[int, int]) -> tuple[Image.Image, int] | None:
    """Returns colours of 16 bits per channel as `_to_plain` does, None if OpenCV cannot read them: Pillow has 8 bits.

    With the full range the upper byte of each value is taken, as Pillow does.
    """
    import cv2

    with _opened(source) as file:
        content = np.frombuffer(file.read(), np.uint8)
    values = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3:
        return None
    peak = int(values[..., :3].max())
    pixels = (values // 256).astype(np.uint8) if limits == FULL else to_eight_bits(values[..., :3], limits)
    plain = Image.fromarray(np.ascontiguousarray(pixels[..., 2::-1]))  # blue, green, red
    if values.shape[2] == 4:
        plain.putalpha(Image.fromarray((values[..., 3] // 256).astype(np.uint8)))
        plain = _on_black(plain)
    return plain, peak
