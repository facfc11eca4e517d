"""Processes that share the work of an audit; whichever is free takes the next piece.

The pools of Python's library start a process by running the caller's script once more, which a script without
`if __name__ == "__main__"` does not survive. These processes import kmed alone, and end when their pipe is closed,
however the process that started them ends.
"""

import concurrent.futures
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import typing
from collections.abc import Callable, Iterable, Iterator

from kmed.errors import ConfigError, RunError
from kmed.runtime import num_cores

PICTURES_EACH = 250  # fewer pictures do not repay the start of one more process
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
# glibc takes the pages of a large array back when it is freed, and to get them again takes a third of the time of a
# fingerprint. These processes keep up to so many bytes, in large pages; other C libraries ignore the names.
_MEMORY = {
    **dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**28)),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from kmed.data.audit.workers import serve; serve()"
)


def check_jobs(jobs: int | None) -> None:
    """Raises ConfigError unless `jobs` is None or a number of processes."""
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise ConfigError(f"jobs must be the number of processes, 1 or more. Received: {jobs!r}.")


class Workers:
    """As many processes as are wanted; one alone is the calling process.

    Args:
      jobs: the number of processes; None: one for each core, but no more than the pictures repay.
      num_pictures: how many pictures there are to work on.
    """

    def __init__(self, jobs: int | None, num_pictures: int):
        check_jobs(jobs)
        self.count = min(num_cores(), max(num_pictures // PICTURES_EACH, 1)) if jobs is None else jobs
        self._free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._processes: list[_Process] = []
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        import cv2

        self._threads_before = cv2.getNumThreads()
        cv2.setNumThreads(1)
        if self.count > 1:
            self._threads = concurrent.futures.ThreadPoolExecutor(self.count, "kmed-audit")
            self._processes = [_Process() for _ in range(self.count)]
            for process in self._processes:
                self._free.put(process)
        return self

    def __exit__(self, kind, error, trace) -> None:
        import cv2

        cv2.setNumThreads(self._threads_before)
        for process in self._processes:
            process.end(at_once=kind is not None)
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)  # on Ctrl-C, do not finish thousands of comparisons first

    def run(self, function: Callable, argument) -> typing.Any:
        """Returns function(argument), computed by the next process that is free.

        Args:
          function: a function of a module.
          argument: anything that can be pickled.
        Raises: whatever the function raises. RunError: the process has died.
        """
        if not self._processes:
            return function(argument)
        process = self._free.get()
        try:
            return process.call(function, argument)
        finally:
            self._free.put(process)

    def map(self, function: Callable, items: Iterable) -> Iterator:
        """Yields function(item) for each item, in their order; `function` runs in a thread here and may call `run`."""
        return map(function, items) if self._threads is None else self._threads.map(function, items)


class _Process:
    """A process that computes what it is sent."""

    def __init__(self):
        environment = {**_MEMORY, **os.environ, **dict.fromkeys(_THREADS, "1")}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._send(sys.path)

    def call(self, function, argument):
        try:
            self._send((function, argument))
            done, answer = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise RunError(
                f"A process that compares pictures has ended (exit code {self._process.wait()}); it may have run out "
                "of memory. Start again with fewer processes, such as --jobs 1."
            ) from None
        if not done:
            raise answer
        return answer

    def _send(self, value):
        pickle.dump(value, self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        self._process.stdin.flush()

    def end(self, at_once: bool) -> None:
        """Ends the process, either at once or when it has done what it is doing."""
        if at_once:
            self._process.kill()
        with contextlib.suppress(OSError):  # it has ended already
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve() -> None:
    """Answers what comes on standard input until it is closed: the whole life of a process of `Workers`."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    cv2.setNumThreads(1)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not get among the answers
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            function, argument = pickle.load(sys.stdin.buffer)
            answers.write(_answer(function, argument))
            answers.flush()


def _answer(function, argument) -> bytes:
    """Returns (True, function(argument)) or (False, the error), pickled."""
    try:
        answer = (True, function(argument))
    except Exception as error:
        answer = (False, error)
    try:
        return pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:  # errors of some libraries cannot be pickled
        return pickle.dumps((False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]}")))
