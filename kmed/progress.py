"""Progress of long jobs: rich bars on a terminal, plain lines in a pipe, or nothing."""

import codecs
import contextlib
import logging
import sys
import time

from kmed.errors import KmedError

logger = logging.getLogger("kmed")
_quiet = False


def _escape_unprintable(error):
    """A codec's error handler: bytes of a file's name as they were, other characters as Python's escapes."""
    letters = error.object[error.start : error.end]
    is_utf8 = error.encoding.lower().replace("_", "-") == "utf-8"
    if is_utf8 and all("\udc80" <= letter <= "\udcff" for letter in letters):
        return codecs.lookup_error("surrogateescape")(error)
    return codecs.lookup_error("backslashreplace")(error)


codecs.register_error("kmed.console", _escape_unprintable)


def make_console_safe() -> None:
    """Lets standard output take any text, whatever the console's encoding is. The command line calls this once.

    A console in ASCII or cp1252 shows other characters as escapes (\\u2192) instead of ending the command with an
    error. Names of files that are not UTF-8 are written byte for byte, as `ls` does.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="kmed.console")


def configure(quiet: bool = False) -> None:
    """Sends kmed's messages to standard error, unless `quiet`. The command line calls this once."""
    global _quiet
    _quiet = quiet
    logger.handlers.clear()
    handler = _CurrentStderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False


class _CurrentStderr(logging.StreamHandler):
    """Writes to the current sys.stderr, which rich replaces while it shows a bar to put lines above the bar."""

    def emit(self, record):
        self.stream = sys.stderr
        super().emit(record)


def say(line: str) -> None:
    """Logs one line about what is being done."""
    logger.info(line)


def warn(line: str) -> None:
    """Logs one line that is shown even if other messages are turned off."""
    logger.warning(line)


@contextlib.contextmanager
def optional(what: str, then: str = ""):
    """Turns an error inside the block into one warning, for what is drawn after the results are stored.

    Args:
      what: what the block makes, such as "The figure history.png".
      then: a sentence on what the user can do.
    """
    try:
        yield
    except Exception as error:  # of any library that draws: the results must not be lost with a picture of them
        reason = (str(error).strip().splitlines() or [""])[0]
        named = reason if isinstance(error, KmedError) else f"{type(error).__name__}: {reason}".rstrip(": ")
        warn(f"Warning: {what} was not made ({named.rstrip('.')}). {then}".rstrip())


def format_time(seconds: float) -> str:
    """Returns a duration in readable form: "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def track(items, label: str, total: int | None = None):
    """Yields `items` one by one and shows the progress.

    Args:
      items: any iterable.
      label: what is being done, such as "Reading pictures".
      total: the number of items, for iterables without a length.
    """
    total = len(items) if total is None and hasattr(items, "__len__") else total
    with bar(label, total) as advance:
        for item in items:
            yield item
            advance()


@contextlib.contextmanager
def bar(label: str, total: int | None, *, announce: bool = True):
    """Yields a function to call after each step; it takes a few words (or none) to show beside the label.

    A terminal shows a moving bar. A pipe gets one line at the start (unless `announce` is false) and
    one every 30 seconds, with the time left, so a log stays short. Nothing is shown if messages are turned off, as they
    are for a library user who has not configured logging.
    """
    if _quiet or not logger.handlers or not logger.isEnabledFor(logging.INFO):
        yield lambda words="": None
    elif sys.stderr is not None and sys.stderr.isatty():
        yield from _rich_bar(label, total)
    else:
        yield _lines(label, total, announce)


def _rich_bar(label, total):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda words="": progress.update(task, advance=1, description=f"{label} {words}".rstrip())


def _lines(label, total, announce):
    start = last = time.monotonic()
    count = 0
    if announce:
        say(f"{label}: {total} to do" if total is not None else f"{label} ...")

    def advance(words=""):
        nonlocal last, count
        count += 1
        now = time.monotonic()
        if now - last >= 30:
            last = now
            left = (
                f", about {format_time((now - start) * (total - count) / count)} left"
                if total and count < total
                else ""
            )
            say(f"{label}: {count} of {total} in {now - start:.0f} s{left} {words}".rstrip())

    return advance
