"""Facts about each file: whether it can be read, its size, mode and highest value, and the digest of its content."""

import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from kmed.config import FULL
from kmed.data.decoding import REDUCTIONS, REMEDY, UNKNOWN_FORMAT, UNREADABLE, Decoded, decoded, read_header
from kmed.data.pixel_range import to_eight_bits
from kmed.data.table import Table
from kmed.errors import DataError
from kmed.files import digest_of
from kmed.progress import track

FACTS = ("reason", "peak", "height", "width", "mode", "bytes", "digest")


def find_unreadable(table: Table) -> pd.DataFrame:
    """Returns a DataFrame (path, reason), one row per picture that cannot be decoded to its end."""
    return _unreadable(look_at(table))


def look_at(table: Table) -> pd.DataFrame:
    """Returns one row per picture: path, reason (why it cannot be used, or ""), peak (see `Decoded`, or NaN).

    Each file is decoded as a whole by the function that training and prediction use, since its header does not show
    that its end is missing or that its values cannot be used. JPEG files are decoded at an eighth of their size, which
    reads every byte but takes a fifth of the time.
    """
    facts = _in_threads(_reason_and_peak, table.files if table.images is None else table.images, "Checking pictures")
    frame = pd.DataFrame(facts, columns=["reason", "peak"])
    frame.insert(0, "path", table.rows["path"].to_numpy())
    return frame


def peaks(facts: pd.DataFrame) -> dict[str, int]:
    """Returns {path: highest value} of the pictures with more than 8 bits per value, of what `look_at` returned."""
    deep = facts[facts["peak"].notna()]
    return dict(zip(deep["path"], deep["peak"].astype(int)))


def inspect(
    source: pathlib.Path | np.ndarray, limits: tuple[int, int] = FULL, use: Callable = lambda picture: None
) -> tuple[tuple, Any]:
    """Returns (the FACTS of a picture, what `use` makes of its `Decoded`, or None if it cannot be used).

    height and width (pixels, as stored) are 0 and mode (Pillow's: "RGB", "L", "I;16", ...) is "" if the file is not a
    picture; digest is the SHA-256 of its bytes, "" if there is no file.

    Args:
      source: a file, or pixels in memory.
      limits: (low, high), the values that become black and white if there are more than 8 bits per value.
      use: what is called with the picture while it is decoded as a whole.
    """
    if isinstance(source, np.ndarray):
        pixels = source if source.dtype == np.uint8 else to_eight_bits(source, limits)
        height, width = source.shape[:2]
        picture = Decoded(Image.fromarray(pixels), "RGB", (height, width), _reason_and_peak(source)[1])
        return ("", picture.peak, *picture.size, "RGB", source.nbytes, digest(source)), use(picture)
    reason, peak, (height, width), mode, used = _decode(source, limits, use)
    try:
        size, found = source.stat().st_size, digest(source)
    except OSError:
        size, found = 0, ""
    return (reason, peak, height, width, mode, size, found), used


def digest(source: pathlib.Path | np.ndarray) -> str:
    """Returns the SHA-256 of a file's bytes or of pixels in memory. Raises OSError if the file cannot be read."""
    if isinstance(source, np.ndarray):
        return hashlib.sha256(source.tobytes()).hexdigest()
    return digest_of(source)


def facts_table(table: Table, facts: list[tuple]) -> pd.DataFrame:
    """Returns a DataFrame with path and the FACTS, of which `facts` has one tuple per picture."""
    frame = pd.DataFrame(facts, columns=list(FACTS))
    frame.insert(0, "path", table.rows["path"].to_numpy())
    return frame


def check_readable(
    table: Table, skip_unreadable: bool = False, facts: pd.DataFrame | None = None
) -> tuple[Table, pd.DataFrame]:
    """Returns the table without unreadable pictures, and a DataFrame (path, reason) of the unreadable ones.

    Args:
      table: any table.
      skip_unreadable: whether to leave unreadable pictures out, with a note, instead of raising.
      facts: what `look_at` says of this table; None: the pictures are looked at.
    Raises: DataError: pictures that are unreadable and may not be skipped, or no others are left.
    """
    bad = _unreadable(look_at(table) if facts is None else facts)
    if bad.empty:
        return table, bad
    listed = "; ".join(f"{path} ({reason})" for path, reason in bad.head(3).itertuples(index=False))
    count = f"{len(bad)} of {len(table)} pictures cannot be read: {listed}{'; ...' if len(bad) > 3 else ''}"
    if not skip_unreadable:
        raise DataError(f"{count}. Repair or remove them, or leave them out with data.skip_unreadable=true.")
    if len(bad) == len(table):
        raise DataError(f"{count}. Nothing is left.")
    kept = table.take(~table.rows["path"].isin(bad["path"]).to_numpy())
    return kept.with_notes(f"Left out: {count}."), bad


def _in_threads(function, sources, text):
    """Returns the list of function(source) for all sources, computed in threads; `text` names the progress bar."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1))) as pool:
        return list(track(pool.map(function, sources), text, len(sources)))


def _unreadable(facts):
    return facts.loc[facts["reason"] != "", ["path", "reason"]].reset_index(drop=True).astype(object)


def _reason_and_peak(source):
    """Returns (why the picture cannot be used or "", its peak or None) of a file or of pixels in memory."""
    if not isinstance(source, os.PathLike):
        return "", int(source.max()) if source.dtype == np.uint16 else None
    return _decode(source)[:2]


def _decode(path, limits=FULL, use=None):
    """Returns (why the picture cannot be used or "", its peak or None, (height, width), mode, used) of a file.

    `used` is what `use` makes of the picture; without a `use` a JPEG file is decoded at an eighth of its size.
    """
    try:
        if path.stat().st_size == 0:
            return "the file is empty", None, (0, 0), "", None
        reduction = None if use else lambda height, width: REDUCTIONS[0]
        with decoded(path, limits, reduction=reduction) as picture:
            return "", picture.peak, picture.size, picture.mode, use and use(picture)
    except FileNotFoundError:
        return "the file is missing", None, (0, 0), "", None
    except OSError as error:  # of stat: a folder that may not be entered, a name that is too long
        return error.strerror or type(error).__name__, None, (0, 0), "", None
    except DataError as error:
        return _short(str(error).removeprefix(f"{path} ")), None, *read_header(path), None


def _short(message: str) -> str:
    """Returns the reason that `kmed.data.decoding.decoded` gives, without what is said of all files at once."""
    if not message.startswith(UNREADABLE):
        return message
    reason = message.removeprefix(UNREADABLE).removesuffix(f" {REMEDY}").removesuffix(".")
    return "it is no picture" if reason == UNKNOWN_FORMAT else reason
