"""The run folder: its row of results as text, and the split that speaks for it."""

import pandas as pd
import pytest

from kmed.errors import RunError
from kmed.runs import Run, judged_split


def test_the_row_of_results_is_read_as_text(tmp_path):
    row = {"model": "vit", "accuracy": 0.1 + 0.2, "note": 'a "b", c\nd', "empty": "", "known": "nan", "learnt": True}
    pd.DataFrame([row]).to_csv(tmp_path / "result.csv", index=False)
    read = Run(tmp_path).read_result()
    assert list(read) == list(row)
    assert read == {key: str(value) for key, value in row.items()}
    assert pd.read_csv(tmp_path / "result.csv", dtype=str, keep_default_na=False).iloc[0].to_dict() == read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: .*No such file"),
        (b"", "is not one row of results"),
        (b"model,task\n", "is not one row of results"),
        (b"model,task\nvit\n", "is not one row of results"),
        (b"model,task\nvit,multiclass,more\n", "is not one row of results"),
        (b"model,task\n\xff\xfe,x\n", "cannot be read"),
        (b'model,task\n"vit,x\n', "cannot be read"),
    ],
)
def test_a_damaged_row_of_results_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "result.csv").write_bytes(content)
    with pytest.raises(RunError, match=f"{message}.*The run folder is damaged") as caught:
        Run(tmp_path).read_result()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("splits", "expected"), [({"train", "val", "test"}, "test"), (["val"], "val"), ({}, "val")])
def test_the_test_split_speaks_for_a_run(splits, expected):
    assert judged_split(splits) == expected
