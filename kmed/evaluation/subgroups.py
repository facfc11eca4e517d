"""Subgroups by sex, age band, view or any other column: does the model serve all of them equally well?"""

import re

import numpy as np
import pandas as pd

from kmed.data.table import COLUMNS
from kmed.errors import ConfigError, suggest
from kmed.schemas.tables import CASE

AGE_BANDS = ((18, "0 to 17"), (40, "18 to 39"), (60, "40 to 59"), (np.inf, "60 and over"))
UNKNOWN = "unknown"
MAX_VALUES = 12  # a column with more values is divided into bands if it holds numbers, else refused
# Names are compared in lower case, without spaces, underscores and hyphens.
USUAL = {
    "sex": ("sex", "gender", "patientsex", "patientgender"),
    "age": ("age", "patientage"),
    "view": ("view", "viewposition"),
}
CASE_ROWS = ("cluster", "group")  # what each image has, and can be pooled by
_UNITS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


def choose_columns(rows: pd.DataFrame, asked=None) -> list[str]:
    """Returns the columns to score by: those asked for, else those whose names mean sex, age or view.

    Raises: ConfigError: a column that is not there.
    """
    metadata = [str(name) for name in rows.columns if name not in COLUMNS]
    if asked is not None:
        for name in asked:
            if name not in metadata:
                raise ConfigError(
                    f"evaluate.subgroups names the column {name!r}, which the data lack. "
                    f"Columns: {', '.join(metadata) or 'none'}.{suggest(name, metadata)}"
                )
        return list(asked)
    plain = {re.sub(r"[\s_\-]", "", name).lower(): name for name in reversed(metadata)}
    found = [next((plain[word] for word in words if word in plain), None) for words in USUAL.values()]
    return [name for name in found if name is not None]


def case_values(rows: pd.DataFrame, case: str | None) -> pd.DataFrame:
    """Returns the column case_NAME of the setting `evaluate.case`; no column for None, "cluster" and "group".

    Raises: ConfigError: a column that is not there, or is empty for some images.
    """
    if case is None or case in CASE_ROWS:
        return rows[[]]
    metadata = [str(name) for name in rows.columns if name not in COLUMNS]
    if case not in metadata:
        raise ConfigError(
            f"evaluate.case must be {', '.join(CASE_ROWS)} or a column of the data. Received: {case!r}; the columns "
            f"are {', '.join(metadata) or 'none'}.{suggest(case, [*CASE_ROWS, *metadata])}"
        )
    values = rows[case].fillna("").astype(str).str.strip()
    if (values == "").any():
        raise ConfigError(f"evaluate.case: column {case!r} is empty for {(values == '').sum()} images.")
    return pd.DataFrame({f"{CASE}{case}": values})


def subgroup_values(rows: pd.DataFrame, columns) -> pd.DataFrame:
    """Returns one text column for each of `columns`: ages in bands, other numbers in quarters, words as they are.

    Args:
      rows: DataFrame (N, ...) that holds the columns.
      columns: names.
    Raises: ConfigError: a column with too many different words.
    """
    return pd.DataFrame({name: _values(rows[name].fillna("").astype(str).str.strip(), name) for name in columns})


def age_in_years(text: str) -> float:
    """Returns years from "060Y", "018M", "12" and the like (DICOM's age string), or NaN if the text is not an age.

    Example:
      >>> age_in_years("060Y")
      60.0
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([YMWD]?)", text.strip().upper())
    return float(match[1]) * _UNITS[match[2] or "Y"] if match else np.nan


def _values(column: pd.Series, name: str) -> np.ndarray:
    if re.sub(r"[\s_\-]", "", name).lower() in USUAL["age"]:
        ages = column.map(age_in_years)
        return np.array([next((band for end, band in AGE_BANDS if age < end), UNKNOWN) for age in ages], dtype=object)
    if column.nunique() > MAX_VALUES:
        numbers = pd.to_numeric(column, errors="coerce")
        if numbers.isna().sum() > (column == "").sum():
            raise ConfigError(
                f"evaluate.subgroups: column {name!r} has {column.nunique()} different words; at most {MAX_VALUES} "
                "can be told apart. Give a coarser column."
            )
        bands = pd.qcut(numbers, 4, duplicates="drop").astype(str)
        return bands.where(numbers.notna(), UNKNOWN).to_numpy(dtype=object)
    return column.replace("", UNKNOWN).to_numpy(dtype=object)
