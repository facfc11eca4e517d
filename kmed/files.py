"""Files that are written whole or not at all: in a temporary folder, from which they are then renamed."""

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import pathlib
import platform
import re
import secrets
import shutil
import tempfile
import time

import pandas as pd

from kmed.errors import RunError
from kmed.locks import Lock, locked, try_lock

_TEMPORARY = re.compile(r"\.kmed-(?P<host>\w+)-[0-9a-f]{8}\.tmp")
_EARLIER = re.compile(r"\..+\.\d+\.tmp(\..*)?|\.latest\.\d+|\.(?P<aside>.+)\.\d+\.old")  # names of kmed 0.1
_LOCK, _ASIDE = "lock", "old"  # inside a temporary folder
_LOCK_FILE = ".kmed-lock"
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED = re.compile("(?:\ufffd[0-9a-f]{2})+")
_DAY = 24 * 60 * 60  # seconds
_ATTEMPTS = 10


@contextlib.contextmanager
def replacing(path, *, follow: bool = True):
    """Yields a temporary path; on success renames it to `path`, on failure removes it.

    The temporary file has the name of `path`, since many writers choose their format by it, in a temporary folder
    beside it. Both files and folders can be written; an existing folder at `path` is replaced.

    Args:
      path: the final file or folder; its parent folders are created.
      follow: whether the file that a link points to is replaced, not the link itself.
    Raises: RunError: the disk is full or the folder is not writable; nothing is left behind.
    Example:
      >>> with replacing("table.csv") as temporary:
      ...     frame.to_csv(temporary)
    """
    path = pathlib.Path(path)
    path = path.resolve() if follow else path.absolute()
    with one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path.parent) as folder:
            temporary = folder / "new" / path.name
            temporary.parent.mkdir()
            yield temporary
            _rename(temporary, path, folder / _ASIDE)


@contextlib.contextmanager
def one_line(path: pathlib.Path):
    """Turns a full disk and a missing permission into a RunError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"The disk is full: {path} was not written. Free some space, or write elsewhere."
            raise RunError(message) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise RunError(f"{path} cannot be written ({error.strerror}). Choose another folder.") from error
        raise


@contextlib.contextmanager
def made(folder: pathlib.Path):
    """Makes a folder and its parents; those that are new and empty are removed again if the block raises an error.

    Raises: RunError: the folder cannot be created.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    try:
        yield
    except BaseException:
        for path in new:  # innermost first; what was there before stays
            with contextlib.suppress(OSError):  # not empty: somebody else uses it
                path.rmdir()
        raise


def make_folder(folder: pathlib.Path) -> None:
    """Makes a folder and its parents. Raises RunError if they cannot be created."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"The folder {folder} cannot be created: {error.strerror}. Choose another --out.") from None


@contextlib.contextmanager
def exclusive(path, *, taken: str = ""):
    """Keeps other processes out of a file or folder for the duration of a block, by a lock file that is then removed.

    Args:
      path: a file, whose lock file is beside it, or an existing folder, whose lock file is inside.
      taken: the message of the error if another process is in there; "": wait for it.
    Raises: RunError: another process is in there, or the folder is not writable.
    """
    path = pathlib.Path(path).resolve()
    folder, name = (path, _LOCK_FILE) if path.is_dir() else (path.parent, f".{path.name}{_LOCK_FILE}")
    with contextlib.ExitStack() as held:
        with one_line(path):
            folder.mkdir(parents=True, exist_ok=True)
            _clear_once(folder)
            held.enter_context(locked(folder / name, taken=taken))
        yield


def _rename(new: pathlib.Path, path: pathlib.Path, aside: pathlib.Path) -> None:
    """Renames `new` to `path`. A folder cannot be renamed onto one that is not empty, which is moved aside first."""
    for attempt in itertools.count():
        if path.is_dir() and new.is_dir() and not new.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)  # what another process had put there, at the last attempt
            aside.mkdir()
            with contextlib.suppress(FileNotFoundError):
                path.replace(aside / path.name)
        try:
            new.replace(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == _ATTEMPTS:
                _restore(aside, path.parent)
                raise
        else:
            return


def _restore(aside: pathlib.Path, folder: pathlib.Path) -> None:
    """Moves back what was moved aside, unless its place is taken."""
    for old in aside.glob("*"):
        if not os.path.lexists(folder / old.name):
            old.replace(folder / old.name)


@contextlib.contextmanager
def temporary_folder(parent=None):
    """Yields a new folder for this process alone, and removes it at the end.

    The process holds a lock in the folder, which it loses however it dies. The next process that makes a temporary
    folder in the same `parent` removes those whose lock nobody holds.

    Args:
      parent: an existing folder; None: the system's folder for temporary files.
    """
    mode = 0o700 if parent is None else 0o777  # where everybody writes, only its owner looks into it
    parent = pathlib.Path(tempfile.gettempdir() if parent is None else parent)
    _clear_once(parent)
    folder, lock = _make_locked(parent, mode)
    try:
        yield folder
    finally:
        lock.release()  # first, since some file systems keep a file that is open
        shutil.rmtree(folder, ignore_errors=True)


def _make_locked(parent: pathlib.Path, mode: int) -> tuple[pathlib.Path, Lock]:
    while True:
        folder = parent / f".kmed-{_host()}-{secrets.token_hex(4)}.tmp"
        folder.mkdir(mode)
        with contextlib.suppress(FileNotFoundError):  # another process may clear it before it is locked
            if lock := try_lock(folder / _LOCK):
                return folder, lock


def _host() -> str:
    return re.sub(r"\W", "_", platform.node())[:60] or "unknown"


def clear_leftovers(folder) -> None:
    """Removes the temporary files in a folder whose processes have died, and restores what they had moved aside.

    A process is dead if nobody holds its lock. Not every file system shares locks between machines, so what another
    machine made, or an earlier version of kmed, which had no locks, must also be unchanged for a day.
    """
    folder = pathlib.Path(folder)
    with contextlib.suppress(OSError):  # no folder, or not ours to read
        for entry in list(os.scandir(folder)):
            match = _TEMPORARY.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                _clear(pathlib.Path(entry.path), ours=match["host"] == _host())
            elif entry.name.endswith(_LOCK_FILE) and (lock := try_lock(pathlib.Path(entry.path))):
                pathlib.Path(entry.path).unlink()
                lock.release()
            elif (match := _EARLIER.fullmatch(entry.name)) and _is_old(pathlib.Path(entry.path)):
                if match["aside"] and not os.path.lexists(folder / match["aside"]):
                    pathlib.Path(entry.path).replace(folder / match["aside"])
                _remove(pathlib.Path(entry.path))


# Once in each process: a folder may hold many files, and most dead processes died before this one began.
_clear_once = functools.lru_cache(maxsize=1024)(clear_leftovers)


def _clear(temporary: pathlib.Path, *, ours: bool) -> None:
    with contextlib.suppress(OSError):  # not ours to remove, or another process is doing it
        lock = try_lock(temporary / _LOCK)
        if lock is None:
            return
        try:
            if (ours and lock.sure) or _is_old(temporary):
                _restore(temporary / _ASIDE, temporary.parent)
                lock.release()
                shutil.rmtree(temporary, ignore_errors=True)
        finally:
            lock.release()


def _is_old(path: pathlib.Path) -> bool:
    """Returns whether nothing in a file or folder has changed for a day; its lock does not count."""
    inside = [each for each in path.rglob("*") if each.name != _LOCK] if path.is_dir() else []
    return time.time() - max(each.lstat().st_mtime for each in [path, *inside]) > _DAY


def is_vacant(folder) -> bool:
    """Returns whether a folder is empty or does not exist yet, once the temporary files of dead processes are gone."""
    clear_leftovers(folder)
    folder = pathlib.Path(folder)
    return not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))


def unlink_latest(folder: pathlib.Path) -> None:
    """Removes the link `latest` if it leads to the folder."""
    link = folder.parent / "latest"
    if link.is_symlink() and str(link.readlink()) == folder.name:
        link.unlink()


def point_latest(folder: pathlib.Path) -> None:
    """Makes `latest`, beside the folder, a link to it."""
    link = folder.parent / "latest"
    if folder == link or (link.exists() and not link.is_symlink()):
        return  # it leads there already; and a user's own folder of that name is left alone
    # On file systems without links (Windows shares) this convenience is missing.
    with contextlib.suppress(OSError, RunError), replacing(link, follow=False) as temporary:
        temporary.symlink_to(folder.name)


def size_of(path: pathlib.Path) -> int:
    """Returns the size in bytes of a file, or of all files in a folder and its subfolders."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def digest_of(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file's bytes as 64 hexadecimal digits. Raises OSError if the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def name_as_text(name: str) -> str:
    """Returns a file's name as text that every file and page can hold.

    A byte that is not UTF-8, which Python keeps as a surrogate, becomes the replacement character and the byte's two
    hexadecimal digits. `text_as_name` finds the file again.

    Example:
      >>> name_as_text("gr\\udcf6sse.png")
      'gr\ufffdf6sse.png'
    """
    return _SURROGATE.sub(lambda found: f"\ufffd{ord(found[0]) & 0xFF:02x}", name)


def text_as_name(text: str) -> str:
    """Returns the file's name for which `name_as_text` returned `text`."""
    return _ESCAPED.sub(lambda found: os.fsdecode(bytes.fromhex(found[0].replace("\ufffd", ""))), text)


def write_text(path, text: str) -> None:
    """Writes `text` (UTF-8) to `path`, whole or not at all; a name that is not UTF-8 is written by `name_as_text`."""
    with replacing(path) as temporary:
        temporary.write_text(name_as_text(text), encoding="utf-8")


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
    # Python quotes a cell with a carriage return only where lines end in one.
    texts = [frame.columns, *(frame[name] for name in frame.columns if frame[name].dtype.kind not in "biuf")]
    returns = any("\r" in value for column in texts for value in column if isinstance(value, str))
    with replacing(path) as temporary:
        # A message may hold a name that is not UTF-8.
        frame.to_csv(temporary, index=False, lineterminator="\r\n" if returns else "\n", errors="backslashreplace")
