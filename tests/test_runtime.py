"""Signals: SIGTERM interrupts a command as Ctrl-C does."""

import os
import signal
import threading

import pytest
from click.testing import CliRunner

from kmed.cli.main import main
from kmed.runtime import Terminated, interrupted_by_sigterm


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_interrupts_once_and_leaves_the_clean_up_alone():
    cleaned = []
    with pytest.raises(Terminated), interrupted_by_sigterm():
        try:
            terminate()
        finally:
            terminate()  # a scheduler may repeat it
            cleaned.append(True)
    assert cleaned and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_program_that_handles_sigterm_itself_goes_on_doing_so():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with interrupted_by_sigterm():
            terminate()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_other_threads_have_no_handlers():
    def work():
        with interrupted_by_sigterm():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_command_is_one_line_and_has_the_exit_code_of_its_signal(monkeypatch, number, code):
    def train(**arguments):
        signal.raise_signal(number)

    monkeypatch.setattr("kmed.training.recipe.train", train)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = CliRunner().invoke(main, ["train"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == code
    assert result.output == "Interrupted. To continue a run that has finished an epoch: kmed train --resume RUN\n"
