"""Reads a CSV as text, whatever its encoding and its delimiter, and says what was found."""

import codecs
import csv
import gzip
import io
import pathlib
import zlib
from collections.abc import Sequence

import pandas as pd

from kmed.data.readers.text import plain
from kmed.errors import DataError

SUFFIXES = (".csv", ".csv.gz")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# (the file's first bytes, encoding); UTF-32 comes first, since its mark begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# (the file's first bytes, what it is), for files that are called .csv and are none.
OTHERS = ((b"PK\x03\x04", "an Excel workbook or another archive"), (b"\xd0\xcf\x11\xe0", "an old Excel workbook"))
LOOKED_AT = 200  # rows that the delimiter is found from
NUL_SHARE = 0.2  # a file with at least this share of zero bytes on one side of each pair is UTF-16 without a mark


def read_csv(path: pathlib.Path, notes: list[str] | None = None, max_rows: int | None = None) -> pd.DataFrame:
    """Returns the CSV with every cell as text, "" if empty; names of columns without blanks around them.

    Args:
      path: a file of comma-, semicolon-, tab- or bar-separated values, which may be packed with gzip. It is UTF-8,
        UTF-16 or UTF-32; anything else is read as Latin-1 (Windows-1252).
      notes: a list that lines about an unusual encoding or delimiter are added to.
      max_rows: how many rows are read; None: all.
    Raises: DataError: there is no such file, it is not a CSV, a row is longer than the header, or two columns have one
      name.
    """
    found: list[str] = []
    text = _decode(_read_bytes(path), path, found)
    delimiter, text = _find_delimiter(text)
    if delimiter != ",":
        found.append(f"{path.name} is separated by {DELIMITERS[delimiter]}.")
    frame = _frame(_rows(text, delimiter, path, max_rows), delimiter, path)
    if notes is not None:
        notes += found
    return frame


def _read_bytes(path):
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or str(error) or type(error).__name__) from error
    what = next((what for mark, what in OTHERS if content.startswith(mark)), None)
    if what is not None:
        raise _unreadable(path, f"it is {what}; save it as CSV")
    return content


def _unreadable(path, reason):
    return DataError(f"{path} cannot be read as a CSV ({reason}).")


def _decode(content, path, notes):
    """Returns the text of a file's bytes; adds a line to `notes` if they are not UTF-8."""
    encoding = next((encoding for mark, encoding in MARKS if content.startswith(mark)), None) or _utf16(content)
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise _unreadable(path, f"{error.reason} in {encoding.upper()}") from error
        encoding = "latin-1"
        text = content.decode("cp1252", errors="replace")
        text = content.decode(encoding) if "\ufffd" in text else text
    if encoding not in (None, "utf-8-sig", "latin-1") and not text.splitlines()[1:]:
        raise _unreadable(path, f"as {encoding[:6].upper()} it has no lines")
    if "\0" in text:
        raise _unreadable(path, "it holds zero bytes, so it is not text")
    if encoding not in (None, "utf-8-sig"):
        names = "Latin-1 (Windows-1252), since it is not UTF-8" if encoding == "latin-1" else encoding[:6].upper()
        notes.append(f"{path.name} is read as {names}.")
    return text.removeprefix("\ufeff")


def _utf16(content):
    """Returns the encoding of UTF-16 without a mark, which shows by the zero bytes of plain letters; else None."""
    head = content[:4000]
    odd, even = head[1::2].count(0), head[::2].count(0)
    enough = NUL_SHARE * len(head) / 2
    if max(odd, even) <= enough or min(odd, even) > enough:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _find_delimiter(text):
    """Returns (delimiter, text): the one that cuts header and rows into the same number of cells, at least two.

    Commas inside quotes and decimal commas do not mislead it, since they are not in the header. A first line
    "sep=;", as Excel writes it, is obeyed and removed.
    """
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep=") and len(first.strip("\r\n")) == 5 and first[4] in DELIMITERS:
        return first[4], rest
    sizes = {delimiter: _sizes(text, delimiter) for delimiter in DELIMITERS}
    several = [delimiter for delimiter in DELIMITERS if sizes[delimiter] and sizes[delimiter][0] > 1]
    even = [delimiter for delimiter in several if max(sizes[delimiter]) == min(sizes[delimiter])]
    best = max(even or several, key=lambda delimiter: sizes[delimiter][0], default=",")  # the first of equals
    return best, text


def _sizes(text, delimiter):
    """Returns the number of cells in the header and in each of the first rows."""
    sizes = []
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            if any(row):
                sizes.append(len(row))
            if len(sizes) > LOOKED_AT:
                break
    except csv.Error:
        return []
    return sizes


def _rows(text, delimiter, path, max_rows):
    """Returns the header and the rows that are not empty, with their line numbers, as [(line, cells)]."""
    rows, reader = [], csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((reader.line_num, row))
            if max_rows is not None and len(rows) > max_rows:
                break
    except csv.Error as error:
        raise _unreadable(path, f"line {reader.line_num}: {error} (is a quote not closed?)") from error
    if not rows:
        raise _unreadable(path, "it is empty")
    return rows


def _frame(rows: Sequence[tuple[int, list[str]]], delimiter, path) -> pd.DataFrame:
    """Returns the rows as a frame; cells that are missing at the end of a row are empty."""
    header = [plain(name) for name in rows[0][1]]
    width, last = len(header), max(len(row) for _, row in rows)
    for line, row in rows[1:]:
        if any(cell.strip() for cell in row[width:]):
            raise _unreadable(
                path,
                f"line {line} has {len(row)} cells, but the header has {width}; a cell that holds {delimiter!r} must "
                'be quoted, as in "a, b"',
            )
    named = [name for name in header if name]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has several columns named {twice!r}. Rename or remove all but one.")
    columns = [name or f"Unnamed: {index}" for index, name in enumerate(header)]
    cells = [(row + [""] * (last - len(row)))[:width] for _, row in rows[1:]]
    frame = pd.DataFrame(cells, columns=columns, dtype=str)
    empty = [f"Unnamed: {index}" for index, name in enumerate(header) if not name]
    return frame.drop(columns=[name for name in empty if (frame[name] == "").all()])
