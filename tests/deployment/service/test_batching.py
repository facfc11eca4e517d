"""The batches of the model: in order, never empty, of few sizes, and answered to the last."""

import threading

import numpy as np
import pytest

from kmed.deployment.service.batching import Batcher, batch_sizes

PICTURE = np.zeros((2, 2, 3), np.uint8)


class Held:
    """Answers with the names; the first batch waits until it is released."""

    def __init__(self):
        self.begun, self.released, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, names, pictures):
        self.batches.append(names)
        self.begun.set()
        self.released.wait()
        return [f"answer to {name}" for name in names]


@pytest.fixture
def held():
    held = Held()
    yield held
    held.released.set()


def gathered(batcher, held, count):
    """Returns the futures of `count` pictures that came while the model was busy with another one."""
    first = batcher.submit("first", PICTURE)
    held.begun.wait()
    return [first, *(batcher.submit(str(number), PICTURE) for number in range(count))]


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, (1,)), (2, (1, 2)), (8, (1, 2, 4, 8)), (24, (1, 2, 4, 8, 16, 24)), (3, (1, 2, 3))]
)
def test_the_sizes_end_with_the_largest(largest, sizes):
    assert batch_sizes(largest) == sizes


def test_what_gathers_goes_through_the_model_together_in_order(held):
    counted = []
    batcher = Batcher(held, (1, 2, 4), lambda count, seconds: counted.append((count, seconds >= 0)))
    futures = gathered(batcher, held, 7)
    assert batcher.num_waiting == 7 and batcher.is_alive
    held.released.set()
    assert [future.result() for future in futures] == [f"answer to {name}" for name in ("first", *map(str, range(7)))]
    assert held.batches == [["first"], ["0", "1", "2", "3"], ["4", "5"], ["6"]]
    batcher.stop()
    assert counted == [(1, True), (4, True), (2, True), (1, True)]


def test_stopping_answers_what_waits_and_takes_no_more(held):
    batcher = Batcher(held, (1, 2))
    futures = gathered(batcher, held, 3)
    stopping = threading.Thread(target=batcher.stop)
    stopping.start()
    held.released.set()
    stopping.join()
    assert all(future.done() and future.result() for future in futures) and not batcher.is_alive
    with pytest.raises(RuntimeError, match="stopped"):
        batcher.submit("late", PICTURE)


def test_cancelled_pictures_are_not_predicted(held):
    batcher = Batcher(held, (1, 2))
    futures = gathered(batcher, held, 4)
    for future in futures[1:4]:
        assert future.cancel()
    held.released.set()
    assert futures[4].result() == "answer to 3"
    batcher.stop()
    assert held.batches == [["first"], ["3"]]


def test_an_error_reaches_every_picture_of_its_batch_and_no_other():
    broken = [ValueError("broken")]

    def answer(names, pictures):
        if broken:
            raise broken.pop()
        return names

    batcher = Batcher(answer, (1,))
    with pytest.raises(ValueError, match="broken"):
        batcher.submit("1", PICTURE).result()
    assert batcher.submit("2", PICTURE).result() == "2"
    batcher.stop()


def test_a_batch_waits_for_the_clients_that_have_just_been_answered(held):
    held.released.set()
    batcher = Batcher(held, (1, 2, 4), patience=1e6)  # it would wait for days
    futures = [batcher.submit("lone", PICTURE)]
    futures[0].result()
    futures.append(batcher.submit("lone again", PICTURE))  # one was answered, so one is expected
    futures[1].result()
    held.released.clear()
    held.begun.clear()
    futures.append(batcher.submit("busy", PICTURE))
    held.begun.wait()
    futures += [batcher.submit(name, PICTURE) for name in "abc"]
    held.released.set()
    futures[2].result()
    batcher.submit("d", PICTURE).result()  # three waited and one had been answered: four were expected
    futures.append(batcher.submit("e", PICTURE))  # again four are
    batcher.stop()  # which waits for nobody
    assert held.batches == [["lone"], ["lone again"], ["busy"], list("abcd"), ["e"]]
    assert all(future.done() for future in futures)


def test_the_wait_ends_when_its_time_is_over(held):
    batcher = Batcher(held, (1, 2, 4), patience=1e-3)
    futures = gathered(batcher, held, 4)
    held.released.set()
    assert futures[4].result() == "answer to 3"
    assert batcher.submit("alone", PICTURE).result() == "answer to alone"  # four were expected
    batcher.stop()
    assert held.batches == [["first"], ["0", "1", "2", "3"], ["alone"]]
