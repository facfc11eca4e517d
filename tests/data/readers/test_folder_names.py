"""Names of folders say whether they are splits, patients or views."""

import pytest

from kmed.data.readers.folder_names import are_patients, is_number, split_of


@pytest.mark.parametrize(
    ("name", "split"),
    [("Train", "train"), (" test ", "test"), ("val_images", "val"), ("TestSet", "test"), ("test_simple", "test_simple")]
    + [(name, None) for name in ("trainer", "tests", "fold1", "", "latest", "dataset", "set", "evaluation")],
)
def test_splits(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize("name", ["17", "pat3", "A0SB-2", "2020-01-01"])
def test_numbers(name):
    assert is_number(name) and not is_number("grade 3") and not is_number("40X") and not is_number("naevus")


def test_patients():
    assert are_patients(["case1", "case2"]) and are_patients([str(1000 + i) for i in range(5)])
    assert not are_patients(["1", "2", "3"]) and not are_patients(["grade 1"] * 12)
