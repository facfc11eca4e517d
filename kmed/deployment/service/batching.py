"""Micro-batching: pictures of several requests go through the model together."""

import collections
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import numpy as np

from kmed.deployment.classify import Answer

PATIENCE = 0.25  # of the time of the last batch


class Batcher:
    """Answers pictures in the order in which they come, as many at a time as are waiting.

    While the model predicts one batch, the next one gathers. Clients that have just been answered often send their next
    picture at once, so the model waits for as many pictures as the last batch had besides those that wait already, for
    a quarter of that batch's time at most: or clients would fall into two groups that take turns, with batches of half
    the size, and the processor would decode pictures at the cost of the model's speed. A lone client never waits.

    A batch has the largest of a few sizes that is not above the number of waiting pictures, since a model is compiled
    for each size.
    """

    def __init__(
        self,
        answer: Callable[[list[str], list[np.ndarray]], Iterator[Answer]],
        sizes: Sequence[int],
        on_batch: Callable[[int, float], None] = lambda count, seconds: None,
        patience: float = PATIENCE,
    ):
        """Starts the thread that predicts.

        Args:
          answer: (names, pictures) -> Answers; only one thread calls it.
          sizes: of batches, ascending; the first is 1.
          on_batch: (pictures, seconds), called after each batch.
          patience: how long a batch waits for the pictures that are expected, at most, in times of the last batch.
        """
        self._answer, self._sizes, self._on_batch, self._patience = answer, tuple(sizes), on_batch, patience
        self._waiting: collections.deque = collections.deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._expected, self._deadline = 0, 0.0  # how many pictures are waited for, and until when
        self._thread = threading.Thread(target=self._run, name="kmed-model", daemon=True)
        self._thread.start()

    def submit(self, name: str, picture: np.ndarray, future: Future[Answer] | None = None) -> Future[Answer]:
        """Returns the future Answer to one picture.

        Args:
          name: what the answer calls it.
          picture: uint8 (H, W, 3) of the model's size.
          future: what gets the answer; None: a new one.
        """
        future = Future() if future is None else future
        with self._changed:
            if self._stopping:
                raise RuntimeError("The batcher has been stopped.")
            self._waiting.append((name, picture, future))
            if len(self._waiting) == 1 or len(self._waiting) >= self._expected:
                self._changed.notify()  # for any other picture, the thread would only wake to wait again
        return future

    @property
    def num_waiting(self) -> int:
        """How many pictures wait for the model."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether pictures are still predicted."""
        return self._thread.is_alive() and not self._stopping

    def stop(self) -> None:
        """Answers what is waiting, and ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            names, pictures, futures = zip(*batch)
            start = time.perf_counter()
            try:
                answers = list(self._answer(list(names), list(pictures)))
            except Exception as error:  # of any backend: the requests learn of it, and the next batch is tried
                for future in futures:
                    future.set_exception(error)
            else:
                end = time.perf_counter()
                self._on_batch(len(batch), end - start)
                self._expected = min(len(self._waiting) + len(batch), self._sizes[-1])
                self._deadline = end + self._patience * (end - start)
                for future, answer in zip(futures, answers, strict=True):
                    future.set_result(answer)

    def _next_batch(self) -> list[tuple]:
        """Returns pictures whose requests still wait for them; [] if there are none and there will be none."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return []
                self._gather()
                count = max(size for size in self._sizes if size <= len(self._waiting))
                taken = [self._waiting.popleft() for _ in range(count)]
                # A request that has run out of time has cancelled its pictures.
                if batch := [item for item in taken if item[2].set_running_or_notify_cancel()]:
                    return batch

    def _gather(self) -> None:
        """Waits for the pictures that are expected, or until their time is over."""
        while len(self._waiting) < self._expected and not self._stopping:
            seconds = self._deadline - time.perf_counter()
            if seconds <= 0:
                break
            self._changed.wait(seconds)


def batch_sizes(largest: int) -> tuple[int, ...]:
    """Returns the powers of two below the largest size, and that size.

    Example:
      >>> batch_sizes(24)
      (1, 2, 4, 8, 16, 24)
    """
    return (*(2**power for power in range(largest.bit_length()) if 2**power < largest), largest)
