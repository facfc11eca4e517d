"""Facts about each file: whether it can be read, its size and mode, and the digest of its content."""

import concurrent.futures
import hashlib
import io
import os

import pandas as pd
from PIL import Image

from kmed.data.dicom import is_dicom
from kmed.data.images import UNREADABLE, read_image
from kmed.data.table import Table
from kmed.errors import DataError
from kmed.progress import track


def find_unreadable(table: Table) -> pd.DataFrame:
    """Returns a DataFrame (path, reason), one row per picture that cannot be decoded to its end.

    Each file is decoded as a whole, since its header does not show that its end is missing. JPEG files
    are decoded at an eighth of their size, which reads every byte but takes a fifth of the time.
    """
    if table.images is not None:
        return pd.DataFrame({"path": [], "reason": []}, dtype=object)
    reasons = _in_threads(_reason, table.files, "Checking pictures")
    found = [(path, reason) for path, reason in zip(table.rows["path"], reasons) if reason]
    return pd.DataFrame(found, columns=["path", "reason"], dtype=object)


def inspect_files(table: Table) -> pd.DataFrame:
    """Returns one row per picture: path, reason (why it cannot be read, or ""), height, width, mode, bytes, digest.

    height and width (pixels, as stored) are 0 and mode (Pillow's: "RGB", "L", "I;16", ...) is "" if the
    file is not a picture; digest is the SHA-256 of its bytes, "" if there is no file.
    """
    facts = _in_threads(_inspect, table.files if table.images is None else table.images, "Reading files")
    columns = ["reason", "height", "width", "mode", "bytes", "digest"]
    frame = pd.DataFrame(facts, columns=columns)
    frame.insert(0, "path", table.rows["path"].to_numpy())
    return frame


def check_readable(table: Table, skip_unreadable: bool = False) -> tuple[Table, pd.DataFrame]:
    """Returns the table without unreadable pictures, and a DataFrame (path, reason) of the unreadable ones.

    Args:
      table: any table.
      skip_unreadable: whether to leave unreadable pictures out, with a note, instead of raising.
    Raises: DataError: pictures that are unreadable and may not be skipped, or no others are left.
    """
    bad = find_unreadable(table)
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


def _inspect(source):
    """Returns (reason, height, width, mode, bytes, digest) of a file or of pixels in memory."""
    if not isinstance(source, os.PathLike):
        content = source.tobytes()
        return "", *source.shape[:2], "RGB", len(content), hashlib.sha256(content).hexdigest()
    try:
        content = source.read_bytes()
    except OSError:
        return _reason(source), 0, 0, "", 0, ""
    reason, height, width, mode = _decode(source)
    if not is_dicom(source):
        try:
            with Image.open(io.BytesIO(content)) as image:  # the header alone
                (width, height), mode = image.size, image.mode
        except UNREADABLE:
            reason = reason or "it is no picture"
    return reason, height, width, mode, len(content), hashlib.sha256(content).hexdigest()


def _reason(path):
    """Returns why the picture cannot be used, or ""."""
    return _decode(path)[0]


def _decode(path):
    """Returns (why the picture cannot be used or "", height, width, mode); the last three only for a DICOM file.

    The header of any other file holds them, even if the file is damaged.
    """
    try:
        if path.stat().st_size == 0:
            return "the file is empty", 0, 0, ""
        if is_dicom(path):
            return "", *read_image(path).shape[:2], "DICOM"
        with Image.open(path) as image:
            image.draft(None, (1, 1))
            image.load()
            return "its pixels are floating-point" if image.mode == "F" else "", 0, 0, ""
    except FileNotFoundError:
        reason = "the file is missing"
    except Image.UnidentifiedImageError:
        reason = "it is no picture"
    except DataError as error:  # of a DICOM file
        reason = str(error).removeprefix(f"{path} ")
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return reason, 0, 0, ""
