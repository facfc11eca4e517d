"""Table: what is known about the pictures, one row per picture, wherever they come from."""

import dataclasses
import pathlib

import numpy as np
import pandas as pd

from kmed.errors import DataError, suggest
from kmed.files import name_as_text, text_as_name
from kmed.tasks import get_task

COLUMNS = ("path", "group", "cluster", "split")
SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Table:
    """One row per image, and the names of the classes.

    Attributes:
      rows: DataFrame with a clean 0..N-1 index and the string columns `path` (relative to `root`,
        or the picture's number if `images` holds the pixels), `group` (what a split keeps together:
        a patient, a field of view), `cluster` (what intervals resample, inside a group), `split`
        ("train", "val", "test", another name, or "" if undecided); all other columns are metadata.
      labels: float32 (N, K) in {0, 1}, NaN where unknown; exactly one 1 per row if `task` is
        "multiclass", unless the pictures have no labels: then all are NaN.
      class_names: K names, in the order of the columns of `labels`.
      task: "multiclass" or "multilabel".
      name: the name of the data set in results, such as "blood_cells".
      root: the folder that each `path` is relative to; None if `images` holds the pixels.
      images: uint8 (N, H, W, 3), or None if the pictures are files.
      range: (low, high), the stored values that become black and white in pictures with more than
        8 bits per value; None until they have been looked at.
      grouped: whether the groups are known; False means that each file is treated as independent.
      notes: lines to show to the user (folders that were left out, the map that was used, ...).
    """

    rows: pd.DataFrame
    labels: np.ndarray
    class_names: tuple[str, ...]
    task: str
    name: str
    root: pathlib.Path | None = None
    images: np.ndarray | None = None
    range: tuple[int, int] | None = None
    grouped: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        self._name_in_text()
        missing = [column for column in COLUMNS if column not in self.rows.columns]
        if missing:
            raise DataError(f"A table needs the columns {COLUMNS}. Missing: {missing}.")
        if self.labels.shape != (len(self.rows), len(self.class_names)):
            raise DataError(
                f"labels must have one row per image and one column per class, that is, shape "
                f"{(len(self.rows), len(self.class_names))}. Received: labels.shape={self.labels.shape}."
            )

    def _name_in_text(self) -> None:
        """Replaces names that are not UTF-8, such as those in old zip files, as `kmed.files.name_as_text` does."""
        columns = [self.rows[name] for name in COLUMNS if name in self.rows.columns]
        if odd := [column for column in columns if not _is_text("".join(map(str, column)))]:
            named = {column.name: column.map(name_as_text).to_numpy(dtype=object) for column in odd}
            object.__setattr__(self, "rows", self.rows.assign(**named))
        for field in ("class_names", "notes"):
            object.__setattr__(self, field, tuple(name_as_text(str(text)) for text in getattr(self, field)))
        object.__setattr__(self, "name", name_as_text(self.name))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def exclusive(self) -> bool:
        """Whether each image has exactly one class."""
        return get_task(self.task).exclusive

    @property
    def class_indices(self) -> np.ndarray:
        """int64 (N,): the column of each row's single 1 (multiclass)."""
        return np.argmax(self.labels, axis=1)

    @property
    def files(self) -> list[pathlib.Path]:
        """The N absolute paths of the pictures; only if the pictures are files."""
        return [_find(self.root, path) for path in self.rows["path"]]

    def file(self, row: int) -> pathlib.Path:
        """Returns the absolute path of one picture; `files` would build all N."""
        return _find(self.root, self.rows["path"].iloc[row])

    def take(self, selection) -> "Table":
        """Returns the rows of `selection`: a boolean mask (N,) or an integer array."""
        selection = np.asarray(selection)
        if selection.dtype == bool:
            selection = np.flatnonzero(selection)
        selection = selection.astype(np.int64)
        images = None if self.images is None else self.images[selection]
        rows = self.rows.iloc[selection].reset_index(drop=True)
        return dataclasses.replace(self, rows=rows, labels=self.labels[selection], images=images)

    def split(self, name: str) -> "Table":
        """Returns the rows of one split. Raises DataError if there are none."""
        mask = (self.rows["split"] == name).to_numpy()
        if not mask.any():
            present = sorted(set(self.rows["split"]) - {""})
            raise DataError(
                f"The table has no pictures in split {name!r}. It has: {', '.join(present) or 'no splits'}."
                + suggest(name, present)
            )
        return self.take(mask)

    def replace(self, **changes) -> "Table":
        """Returns a copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def with_columns(self, **columns) -> "Table":
        """Returns a copy whose `rows` have these columns set, such as split=array."""
        return dataclasses.replace(self, rows=self.rows.assign(**columns))

    def with_notes(self, *lines: str) -> "Table":
        """Returns a copy with these lines added to its notes."""
        return dataclasses.replace(self, notes=(*self.notes, *lines))

    def counts(self) -> pd.DataFrame:
        """Returns the images per split (rows) and class (columns), with totals, groups and clusters per split."""
        frame = pd.DataFrame(np.nan_to_num(self.labels), columns=list(self.class_names)).astype(int)
        by_split = frame.groupby(self.rows["split"].to_numpy()).sum()
        grouped = self.rows.groupby("split")
        by_split["images"] = grouped.size()
        by_split["groups"] = grouped["group"].nunique()
        by_split["clusters"] = grouped["cluster"].nunique()
        order = [name for name in (*SPLITS, "") if name in by_split.index]
        return by_split.loc[order + sorted(set(by_split.index) - set(order))]


def _find(root, path: str) -> pathlib.Path:
    """Returns the file below `root` that `path`, the text of its name, stands for."""
    file = root / path
    return file if "\ufffd" not in path or file.exists() else root / text_as_name(path)


def _is_text(text: str) -> bool:
    """Returns whether `text` is UTF-8; a surrogate, as in the name of a file that is not, cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
