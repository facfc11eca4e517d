"""How large a picture may be, and how many large ones are held at a time: what a file claims is checked first."""

import contextlib
import threading
from collections.abc import Iterator

from PIL import Image

from kmed.errors import DataError

LARGE = 2**24  # pixels; of larger pictures only one is decoded at a time, since it takes a good part of the memory
MAX_BYTES_PER_PIXEL = 3  # on average, of a picture with the largest number of pixels
_ALONE = threading.RLock()


def max_pixels() -> int | None:
    """Returns how many pixels a picture may have, twice Pillow's limit as in Pillow itself; None if that is off."""
    return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


@contextlib.contextmanager
def pixels_limited(million: int) -> Iterator[None]:
    """Lowers the limit to this many million pixels for the duration of a block; it is that of the whole process.

    A limit that is lower already stays.
    """
    before = Image.MAX_IMAGE_PIXELS
    wanted = million * 10**6 // 2
    Image.MAX_IMAGE_PIXELS = wanted if before is None else min(before, wanted)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def max_bytes() -> int | None:
    """Returns how many bytes the pixels of one picture may take; None if there is no limit."""
    limit = max_pixels()
    return None if limit is None else MAX_BYTES_PER_PIXEL * limit


def admit(name: str, height: int, width: int, held: contextlib.ExitStack, bytes_per_pixel: int = 1) -> None:
    """Lets a picture pass that is small enough to be decoded; a large one waits until no other is being decoded.

    Args:
      name: how errors refer to the picture.
      height, width: what the file claims, in pixels.
      held: closed as soon as the picture is no longer needed.
      bytes_per_pixel: of the stored values.
    Raises: DataError: the picture is too large.
    """
    limit, most = max_pixels(), max_bytes()
    if limit is not None and (height * width > limit or height * width * bytes_per_pixel > (most or 0)):
        raise too_large(name)
    if height * width > LARGE:
        held.enter_context(_ALONE)


def too_large(name: str) -> DataError:
    """Returns the error for a picture above the limit."""
    million = (max_pixels() or 0) // 10**6
    return DataError(
        f"{name} has more than {million} million pixels, or as many bytes. Such a file may be an attack that fills the "
        "memory. Shrink it first."
    )
