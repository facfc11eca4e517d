"""What each file is: readable or not, its size and mode, its content's digest."""

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
    """Returns a DataFrame (path, reason), one row for each picture that Pillow cannot decode to its end.

    Each file is decoded whole, since a header says nothing of a truncated end. JPEG files are
    decoded at an eighth of their size: that reads every byte, and takes a fifth of the time.
    """
    if table.images is not None:
        return pd.DataFrame({"path": [], "reason": []}, dtype=object)
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1))) as pool:
        reasons = list(track(pool.map(_reason, table.files), "Checking pictures", len(table)))
    found = [(path, reason) for path, reason in zip(table.rows["path"], reasons) if reason]
    return pd.DataFrame(found, columns=["path", "reason"], dtype=object)


def inspect_files(table: Table) -> pd.DataFrame:
    """Returns one row a picture: path, reason (why it cannot be read, or ""), height, width, mode, bytes, digest.

    height and width (pixels, as stored) and mode (Pillow's: "RGB", "L", "I;16", ...) are 0 and "" where
    the file is no picture; digest is the SHA-256 of its bytes, "" where there is none.
    """
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1))) as pool:
        sources = table.files if table.images is None else table.images
        facts = list(track(pool.map(_inspect, sources), "Reading files", len(table)))
    columns = ["reason", "height", "width", "mode", "bytes", "digest"]
    frame = pd.DataFrame(facts, columns=columns)
    frame.insert(0, "path", table.rows["path"].to_numpy())
    return frame


def check_readable(table: Table, skip_unreadable: bool = False) -> tuple[Table, pd.DataFrame]:
    """Returns the table without unreadable pictures, and the DataFrame (path, reason) of those.

    Args:
      table: any table.
      skip_unreadable: leave unreadable pictures out, with a note, instead of raising.
    Raises: DataError: unreadable pictures, unless they may be skipped; or nothing else is left.
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
    """Returns (why the picture cannot be used or "", height, width, mode); the last three only of a DICOM file.

    Other files tell theirs without being decoded, and damaged ones too.
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
