"""Locks between processes, which the operating system releases however a process ends.

A file system that shares locks (NFS does by default) holds them against other machines too.
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
import sys
import typing

from kmed.errors import RunError

_TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)


@dataclasses.dataclass(frozen=True)
class Lock:
    """A lock file that this process holds until `release`.

    Attributes:
      file: the open lock file.
      sure: whether the lock is held; False on a file system without locks, where nobody can tell.
    """

    file: typing.IO[str]
    sure: bool

    def release(self) -> None:
        """Lets the next process have the lock; the file stays."""
        self.file.close()


def try_lock(path: pathlib.Path, *, wait: bool = False) -> Lock | None:
    """Returns the Lock of the file `path`, which is created, or None if another process holds or has removed it.

    Args:
      path: the lock file, in an existing folder.
      wait: whether to wait for the process that holds it.
    """
    file = path.open("a")
    try:
        _lock(file, wait)
        lock = Lock(file, sure=True)
    except OSError as error:
        if error.errno in _TAKEN:
            file.close()
            return None
        lock = Lock(file, sure=False)
    # Whoever held it before may have removed the file, and others may have made a new one since.
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return lock
    lock.release()
    return None


@contextlib.contextmanager
def locked(path: pathlib.Path, *, taken: str = ""):
    """Holds the lock file `path` for the duration of a block, and then removes it.

    Args:
      path: the lock file, in an existing folder.
      taken: the message of the error if another process holds the lock; "": wait for it.
    Raises: RunError: another process holds the lock.
    """
    while (lock := try_lock(path, wait=not taken)) is None:
        if taken and path.exists():
            raise RunError(taken)
    try:
        yield
    finally:
        if sys.platform == "win32":
            lock.release()  # Windows removes no open file
        with contextlib.suppress(OSError):  # it may be gone, with its folder
            path.unlink()
        lock.release()


if sys.platform == "win32":
    import msvcrt

    def _lock(file: typing.IO[str], wait: bool) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: typing.IO[str], wait: bool) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
