"""Columns that define subgroups: found by name, ages in bands, numbers in quarters."""

import numpy as np
import pandas as pd
import pytest

from kmed.errors import ConfigError
from kmed.evaluation.subgroups import age_in_years, choose_columns, subgroup_values

ROWS = pd.DataFrame(
    {
        "path": list("abcd"), "group": list("aabb"), "cluster": list("aabb"), "split": [""] * 4,
        "Patient Age": ["060Y", "018M", "", "41"], "Patient Gender": ["M", "F", "", "F"],
        "View Position": ["PA", "AP", "PA", "PA"], "site": list("wxyz"),
    }
)  # fmt: skip


def test_columns_are_found_by_their_names_or_asked_for():
    assert choose_columns(ROWS) == ["Patient Gender", "Patient Age", "View Position"]
    assert choose_columns(ROWS[["path", "site"]]) == []
    assert choose_columns(ROWS, ["site"]) == ["site"]
    assert choose_columns(ROWS, []) == []
    with pytest.raises(ConfigError, match="'Patient Sex', which the data lack.*Patient Gender.*Did you mean"):
        choose_columns(ROWS, ["Patient Sex"])


def test_values():
    values = subgroup_values(ROWS, ["Patient Age", "Patient Gender"])
    assert values["Patient Age"].tolist() == ["60 and over", "0 to 17", "unknown", "40 to 59"]
    assert values["Patient Gender"].tolist() == ["M", "F", "unknown", "F"]


@pytest.mark.parametrize(
    ("text", "years"),
    [("060Y", 60), ("018M", 1.5), ("014D", 14 / 365.25), ("52W", 52 * 7 / 365.25), ("7", 7), ("x", None)],
)
def test_ages(text, years):
    assert age_in_years(text) == pytest.approx(np.nan if years is None else years, nan_ok=True)


def test_many_numbers_become_quarters_and_many_words_are_refused():
    numbers = pd.DataFrame({"width": [str(value) for value in range(40)]})
    quarters = subgroup_values(numbers, ["width"])["width"]
    assert quarters.value_counts().tolist() == [10] * 4
    words = pd.DataFrame({"name": [f"n{value}" for value in range(40)]})
    with pytest.raises(ConfigError, match="40 different words; at most 12"):
        subgroup_values(words, ["name"])
