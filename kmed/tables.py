"""CSV tables of results: read as text, and extended without changing the rows that are there."""

import pathlib
from collections.abc import Callable

import pandas as pd

from kmed.errors import RunError
from kmed.files import exclusive, write_frame
from kmed.reading import read_csv


def read_table(path, needed: tuple[str, ...] = ()) -> pd.DataFrame:
    """Returns a CSV table as text, without rows or columns if the file does not exist yet.

    Raises: RunError: the file is not a CSV, or it is another table, since it lacks one of the columns `needed`.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return pd.DataFrame()
    table = read_csv(path, _other_file)
    if missing := [name for name in needed if name not in table.columns]:
        raise RunError(f"{path} is another table: it has no column {missing[0]!r}. Give another file.")
    return table


def _other_file(message: str) -> RunError:
    return RunError(f"{message.replace('cannot be read:', 'cannot be read as a table of results:')} Give another file.")


def append_rows(path, rows: list[pd.DataFrame], read: Callable[..., pd.DataFrame] = read_table) -> int:
    """Adds rows to a CSV table, which is created if it does not exist, and returns how many of them were new.

    A row is not added again if the table has one with the same values in all columns of the row. Further columns of
    the table, such as notes added by hand, are ignored in this comparison. Other processes that add rows to the table
    at the same time wait for each other. The table's columns keep their order; new ones follow them.

    Args:
      path: the table.
      rows: frames of one row each, of text.
      read: function that returns the content of `path`, or an empty frame.
    """
    with exclusive(path):
        table, added = read(path), 0
        for row in rows:
            own = list(row.columns)
            columns = [*table.columns, *(name for name in own if name not in table.columns)]
            row, table = (frame.reindex(columns=columns, fill_value="") for frame in (row, table))
            if not (table[own] == row[own].iloc[0]).all(axis=1).any():
                table = pd.concat([table, row], ignore_index=True)
                added += 1
        if added:
            write_frame(pathlib.Path(path), table)
        return added
