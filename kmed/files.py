"""Files that are written whole or not at all: under a temporary name, which is then renamed."""

import contextlib
import errno
import json
import os
import pathlib
import shutil

import pandas as pd

from kmed.errors import RunError


@contextlib.contextmanager
def replacing(path):
    """Yields a temporary path beside `path`; on success renames it to `path`, on failure removes it.

    The temporary name keeps the suffix, since many writers choose their format by it. Both files and
    folders can be written; an existing folder at `path` is replaced.

    Args:
      path: the final file or folder; its parent folders are created.
    Raises: RunError: the disk is full or the folder is not writable; nothing is left behind.
    Example:
      >>> with replacing("table.csv") as temporary:
      ...     frame.to_csv(temporary)
    """
    path = pathlib.Path(path).resolve()  # for a link, the file that it points to is replaced
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir() and temporary.is_dir():
            # A folder cannot be renamed onto one that is not empty, so the old one is moved aside first.
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            path.replace(old)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    except OSError as error:
        _remove(temporary)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"The disk is full: {path} was not written. Free some space, or write elsewhere."
            raise RunError(message) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise RunError(f"{path} cannot be written ({error.strerror}). Choose another folder.") from error
        raise
    except BaseException:
        _remove(temporary)
        raise


def size_of(path: pathlib.Path) -> int:
    """Returns the size in bytes of a file, or of all files in a folder and its subfolders."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def write_text(path, text: str) -> None:
    """Writes `text` (UTF-8) to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value) -> None:
    """Writes `value` as indented JSON to `path`, whole or not at all; NaN becomes null."""
    write_text(path, json.dumps(_without_nan(value), indent=2, ensure_ascii=False) + "\n")


def _without_nan(value):
    """Returns `value` with NaN replaced by None, since JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _without_nan(value.tolist())
    return None if isinstance(value, float) and value != value else value


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()


def write_frame(path: pathlib.Path, frame: pd.DataFrame) -> None:
    """Writes a CSV, whole or not at all; numbers keep all digits that are needed to read them back exactly."""
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False)
