"""Lists of pictures, one path per line, as `kmed predict --manifest` and data without labels are given."""

import os
import pathlib
from collections.abc import Sequence

from kmed.data.readers.walk import few
from kmed.errors import DataError

_EXAMPLE = "Give one path per line, or a CSV with a column path."


def read_list(file: pathlib.Path) -> list[str]:
    """Returns the paths in a text file as they are written, without empty lines.

    Raises: DataError: the file cannot be read, is not text, or lists nothing.
    """
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    if "\0" in text:
        raise DataError(f"{file} is not a list of pictures: it is not text. {_EXAMPLE}")
    return named_paths(file, text.removeprefix("\ufeff").splitlines())


def named_paths(file: pathlib.Path, cells: Sequence[str]) -> list[str]:
    """Returns the cells or lines of a list that are not empty. Raises DataError if there are none."""
    if found := [cell.strip() for cell in cells if cell.strip()]:
        return found
    raise DataError(f"{file} lists no pictures. {_EXAMPLE}")


def place_paths(values: Sequence[str], root: pathlib.Path) -> tuple[list[str], list[str]]:
    """Returns (places, missing): where listed files are, and those of `values` that do not exist.

    Args:
      values: (N,) paths, absolute or relative to `root`.
      root: the folder of the list. Places inside it are relative to it, with slashes, and others are absolute.
    """
    start = pathlib.Path(os.path.normpath(root.absolute()))
    files = [pathlib.Path(os.path.normpath(start / value)) for value in values]
    places = [(file.relative_to(start) if file.is_relative_to(start) else file).as_posix() for file in files]
    return places, [value for value, file in zip(values, files, strict=True) if not file.is_file()]


def describe_missing(missing: Sequence[str], file: pathlib.Path, total: int) -> str:
    """Returns the message about listed pictures that do not exist."""
    return (
        f"{len(missing)} of {total} pictures that {file.name} lists do not exist: {few(missing)}. Write their paths "
        f"relative to {file.parent}, or from the root of the file system on."
    )
