"""Progress of long jobs: bars on a terminal, plain lines in a pipe, and nothing if messages are off."""

import io
import sys

import pytest

from kmed import progress
from kmed.errors import RunError


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def stderr(monkeypatch):
    """A function that replaces standard error; messages are off again afterwards."""

    def replace(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    yield replace
    progress.logger.handlers.clear()
    progress.configure(quiet=True)


def test_plain_lines_in_a_pipe(stderr):
    stream = stderr(io.StringIO())
    progress.configure()
    assert list(progress.track(range(3), "Reading", 3)) == [0, 1, 2]
    progress.say("done")
    assert stream.getvalue() == "Reading: 3 to do\ndone\n"


def test_a_long_job_in_a_pipe_says_how_much_is_left(stderr, monkeypatch):
    stream = stderr(io.StringIO())
    progress.configure()
    times = iter([0, 20, 40, 60, 80])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    list(progress.track(range(4), "Reading"))
    assert stream.getvalue().splitlines() == [
        "Reading: 4 to do",
        "Reading: 2 of 4 in 40 s, about 40 s left",
        "Reading: 4 of 4 in 80 s",
    ]


def test_a_bar_on_a_terminal_and_lines_above_it(stderr):
    stream = stderr(Terminal())
    progress.configure()
    with progress.bar("Epoch 1/2", 3) as advance:
        advance()
        progress.say("A line of its own")
        advance("loss 0.5")
    assert "Epoch 1/2" in stream.getvalue()
    assert "A line of its own\n" in stream.getvalue()
    line = next(line for line in stream.getvalue().splitlines() if "A line" in line)
    assert "Epoch" not in line


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_says_nothing(stderr, stream):
    stream = stderr(stream())
    progress.configure(quiet=True)
    list(progress.track(range(3), "Reading"))
    progress.say("unheard")
    assert stream.getvalue() == ""


def test_all_items_are_yielded_without_a_total(stderr):
    stderr(Terminal())
    progress.configure()
    assert list(progress.track(iter("ab"), "Reading")) == ["a", "b"]


TEXTS = (
    "plain",
    "\u2192 \u00b1",
    "gr\u00f6sse",
    "\u7ec6\u80de",
    "\U0001f600",
    "gr\udcf6sse",
    "\ud800",
    "\u0645",
    "a\u200fb",
    "x" * 9999,
)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252", "latin-1", "cp437"])
def test_a_console_takes_any_text(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding))
    progress.make_console_safe()
    for text in TEXTS:
        print(text)
        print(text, file=sys.stderr)
    sys.stdout.flush()
    shown = raw.getvalue().splitlines()
    assert len(shown) == len(TEXTS) and shown[0] == b"plain"
    assert shown[5] == (b"gr\xf6sse" if encoding == "utf-8" else b"gr\\udcf6sse")  # the name of a file, byte for byte
    assert shown[6] == b"\\ud800"
    if encoding == "ascii":
        assert shown[1] == rb"\u2192 \xb1"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no\nsuch parameter"), "ValueError: no"),
        (MemoryError(), "MemoryError"),
        (RunError("The disk is full."), "The disk is full"),
        (KeyError("name"), "KeyError: 'name'"),
    ],
)
def test_what_is_optional_fails_with_one_warning(stderr, error, reason):
    stream = stderr(io.StringIO())
    progress.configure(quiet=True)  # warnings are shown all the same
    with progress.optional("The figure a.png", "Draw it again with: kmed report RUN"):
        raise error
    line = f"Warning: The figure a.png was not made ({reason}). Draw it again with: kmed report RUN\n"
    assert stream.getvalue() == line
    with pytest.raises(KeyboardInterrupt), progress.optional("The figure a.png"):
        raise KeyboardInterrupt
