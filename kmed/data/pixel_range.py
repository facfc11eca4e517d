"""The range of stored values that becomes black to white in pictures with more than 8 bits per value."""

import functools

import numpy as np

from kmed.config import FULL, parse_range
from kmed.data.table import Table
from kmed.errors import DataError

# What devices and programs write into 16 bits. Steps of one bit would cut off more of pictures not yet seen.
DEPTHS = (8, 10, 12, 14)
_ROWS_AT_ONCE = 256  # in which 32-bit values are scaled, to save memory


def find_range(peak: int) -> tuple[int, int]:
    """Returns the range of the smallest usual depth that holds all values up to `peak`; FULL if it has over 14 bits."""
    return next(((0, 2**depth - 1) for depth in DEPTHS if peak < 2**depth), FULL)


def with_range(table: Table, peaks: dict[str, int], setting: str = "auto") -> Table:
    """Returns the table with its `range`, and a note on it if it has pictures with more than 8 bits per value.

    With "auto" the highest value of all training pictures decides, of all pictures if there is no training split.

    Args:
      table: pictures, with their splits.
      peaks: {path: highest stored value} of the pictures with more than 8 bits per value.
      setting: "auto", "full" or "LOW-HIGH".
    """
    limits = parse_range(setting)
    if limits is None and table.range is not None:
        return table  # a pack stores the range that it was made with
    paths, training = table.rows["path"], (table.rows["split"] == "train").to_numpy()
    deep = paths.isin(peaks).to_numpy()
    if not deep.any():
        return table.replace(range=limits or FULL)
    looked_at = deep & training if (deep & training).any() else deep
    highest = max(peaks[path] for path in paths[looked_at])
    limits = limits or find_range(highest)
    clipped = sum(peaks[path] > limits[1] for path in paths[deep])
    whose = "training" if looked_at is not deep else "all"
    note = (
        f"{deep.sum():,} pictures have more than 8 bits per value; the highest value of {whose} pictures is "
        f"{highest:,}. {limits[0]} becomes black and {limits[1]} white (data.range={setting})."
    )
    note += f" Values above that become white, in {clipped:,} of them." if clipped else ""
    return table.replace(range=limits).with_notes(note)


def to_eight_bits(values: np.ndarray, limits: tuple[int, int] = FULL, name: str = "The picture") -> np.ndarray:
    """Returns uint8: low -> 0, high -> 255, linear and rounded; values outside become black or white.

    Args:
      values: whole numbers of any shape.
      limits: (low, high).
      name: how errors refer to the picture.
    Raises: DataError: values that 16 bits without sign cannot hold, unless the range itself holds such values.
    """
    low, high = limits
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return _table(low, high)[values]
    least, most = int(values.min()), int(values.max())
    if least < 0 <= low or most > 65535 >= high:
        raise DataError(
            f"{name} holds pixels from {least} to {most}, but only 0 to 65535 is legal. Scale it and store it again, "
            "or give the range that is to become black to white, such as data.range=-1024-3071."
        )
    scaled = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _ROWS_AT_ONCE):
        scaled[top : top + _ROWS_AT_ONCE] = _scale(values[top : top + _ROWS_AT_ONCE], low, high)
    return scaled


@functools.lru_cache(maxsize=8)
def _table(low: int, high: int) -> np.ndarray:
    """Returns uint8 (65536,), what each 16-bit value becomes."""
    return _scale(np.arange(65536), low, high)


def _scale(values: np.ndarray, low: int, high: int) -> np.ndarray:
    span = high - low
    clipped = np.clip(values.astype(np.int64), low, high) - low
    return ((510 * clipped + span) // (2 * span)).astype(np.uint8)
