"""Progress of long jobs: bars on a terminal, plain lines in a pipe, and nothing if messages are off."""

import io
import sys

import pytest

from kmed import progress


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
