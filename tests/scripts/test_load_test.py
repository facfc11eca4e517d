"""The figures of the load test, on records that are written here; the test itself needs a quiet machine."""

import pytest


@pytest.fixture
def load_test(script):
    return script("load_test")


def answer(prob=0.75, distance=1.0, **fields):
    known = {"found": ["a"], "prediction_set": ["a"], "unlike_training": False, "error": ""}
    return known | {"probs": {"a": prob, "b": 1 - prob}, "distance": distance} | fields


@pytest.mark.parametrize(
    ("other", "is_same"),
    [(answer(), True), (answer(0.75 + 1e-7), True), (answer(0.751), False), (answer(found=["b"]), False),
     (answer(unlike_training=True), False), (answer(distance=1.1), False), (answer(distance=1.00001), True)],
)  # fmt: skip
def test_an_answer_is_right_if_nothing_but_the_last_digits_differ(load_test, other, is_same):
    assert load_test.same(other, answer()) == is_same


def test_errors_and_wrong_answers_are_counted(load_test):
    def record(row=0, status=200, reply=None, memory=2**20):
        return {"row": row, "status": status, "answer": reply or answer(), "seconds": 0.01, "memory": memory}

    sent = [record(), record(1, reply=answer(0.9)), record(status=429, reply={"error": "busy"}), record(memory=None)]
    row = load_test.summarize(sent, [answer(), answer()])
    assert (row["requests"], row["errors"], row["wrong"], row["median_ms"]) == (4, 1, 1, 10.0)
    assert row["largest_difference"] == pytest.approx(0.15, rel=0.4) and row["memory_first_mb"] == 1.0


def test_a_block_is_compared_with_the_bare_model_before_and_after_it(load_test):
    speed = load_test.Speed
    alone = [speed(100, 1.0, 1.0), speed(50, 1.0, 1.0), speed(50, 1.0, 1.0)]
    row = load_test.compare([speed(60, 1.0, 1.5), speed(40, 1.0, 1.0)], alone)
    assert (row["ratio_low"], row["ratio_high"], row["ratio"]) == (0.8, 0.8, 0.8)
    assert (row["cpu_ms"], row["bare_cpu_ms"], row["cpu_ratio"]) == (25.0, 15.0, 0.6)
