"""Tables that several processes extend at the same time."""

import os

import pandas as pd

from kmed.tables import append_rows


def test_no_row_is_lost_when_processes_add_theirs_at_once(tmp_path):
    path, processes = tmp_path / "rows.csv", []
    for number in range(4):
        processes.append(os.fork())
        if processes[-1] == 0:
            code = 1
            try:
                for row in range(5):
                    append_rows(path, [pd.DataFrame([{"process": str(number), "row": str(row)}])])
                code = 0
            finally:
                os._exit(code)
    assert [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes] == [0] * 4
    rows = pd.read_csv(path)
    assert len(rows) == 20 and not rows.duplicated().any()
    assert list(tmp_path.iterdir()) == [path]


def test_columns_keep_their_order_and_new_ones_follow(tmp_path):
    path = tmp_path / "rows.csv"
    append_rows(path, [pd.DataFrame([{"a": "1", "b": "2"}])])
    append_rows(path, [pd.DataFrame([{"c": "5", "b": "4", "a": "3"}]), pd.DataFrame([{"b": "2", "a": "1"}])])
    assert path.read_text().splitlines() == ["a,b,c", "1,2,", "3,4,5"]
