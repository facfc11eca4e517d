"""Processes that share the work: answers in order, errors as they are, and one line if a process dies."""

import os
import pickle
import signal

import pytest

from kmed.data.audit.workers import Workers, _answer, check_jobs
from kmed.errors import ConfigError, DataError, RunError


@pytest.fixture(scope="module")
def two():
    with Workers(2, 0) as workers:
        yield workers


def test_answers_come_in_order_from_several_processes(two):
    assert list(two.map(lambda number: two.run(str, number), range(40))) == [str(number) for number in range(40)]
    assert list(two.map(str, [])) == []


def test_the_work_is_done_elsewhere(two):
    found = {two.run(eval, "__import__('os').getpid()") for _ in range(4)}
    assert os.getpid() not in found and 1 <= len(found) <= 2
    with Workers(1, 0) as alone:
        assert alone.run(eval, "__import__('os').getpid()") == os.getpid()


def test_a_process_keeps_its_memory_unless_the_caller_says_otherwise(two, monkeypatch):
    names = "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "OMP_NUM_THREADS"
    asked = f"[__import__('os').environ[name] for name in {names}]"
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    with Workers(2, 0) as others:
        assert others.run(eval, asked) == ["268435456", "glibc.malloc.hugetlb=0", "1"]
    assert two.run(eval, asked) == ["268435456", "glibc.malloc.hugetlb=1", "1"]


def test_what_a_library_prints_is_no_answer(two):
    assert two.run(print, "a line") is None


def test_an_error_comes_back_as_it_is(two):
    with pytest.raises(ZeroDivisionError):
        two.run(eval, "1 / 0")
    with pytest.raises(DataError, match="no picture"):
        two.run(eval, "(_ for _ in ()).throw(__import__('kmed.errors', fromlist=['x']).DataError('no picture'))")
    assert two.run(abs, -1) == 1


def test_an_answer_that_cannot_be_pickled_is_an_error():
    done, error = pickle.loads(_answer(eval, "(lambda: 1)"))
    assert not done and isinstance(error, RuntimeError)


def test_a_process_that_dies_is_one_line():
    with pytest.raises(RunError, match=r"has ended \(exit code -9\).*--jobs 1"), Workers(2, 0) as workers:
        workers.run(eval, f"__import__('os').kill(__import__('os').getpid(), {int(signal.SIGKILL)})")


def test_few_pictures_need_no_other_process():
    assert Workers(None, 100).count == 1
    assert Workers(7, 100).count == 7


@pytest.mark.parametrize("jobs", [0, -1, 1.5, "2", True])
def test_what_is_no_number_of_processes(jobs):
    with pytest.raises(ConfigError, match="jobs must be the number of processes, 1 or more"):
        check_jobs(jobs)
