"""The folder of the demo data: marked as drawn by kmed, written whole or not at all, and never over other files."""

import contextlib
import json
import pathlib

from kmed.errors import DataError
from kmed.files import is_vacant, replacing, write_json

MARKER = "demo.json"


def is_drawn(folder, marker: dict) -> bool:
    """Returns whether the folder holds what `marker` describes: the same drawing with the same settings."""
    path = pathlib.Path(folder) / MARKER
    return path.is_file() and path.read_text(encoding="utf-8") == json.dumps(marker, indent=2) + "\n"


@contextlib.contextmanager
def drawing(folder, marker: dict):
    """Yields an empty folder to draw into; on success it is marked and replaces `folder`.

    Args:
      folder: the folder to write. Earlier demo data in it are replaced.
      marker: the settings that determine every file, stored as demo.json.
    Raises: DataError: the folder holds files that kmed did not draw.
    """
    folder = pathlib.Path(folder)
    if folder.is_dir() and not is_vacant(folder) and not (folder / MARKER).is_file():
        raise DataError(f"{folder} holds files that kmed did not draw, and was left unchanged. Choose another folder.")
    before = is_drawn(folder, marker)
    with contextlib.suppress(_DrawnMeanwhile), replacing(folder) as temporary:
        temporary.mkdir()
        yield temporary
        write_json(temporary / MARKER, marker)
        if not before and is_drawn(folder, marker):
            raise _DrawnMeanwhile


class _DrawnMeanwhile(Exception):
    """Another process has drawn the same data, and may be reading them: they stay."""
