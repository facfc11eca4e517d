"""DataSource: where the data are and what the user says about them, as each reader receives it."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from kmed.errors import DataError

GROUPS_CSV = "groups.csv"
NOT_FINDINGS = ("Support Devices",)  # labels that may stand beside "No Finding"


@dataclasses.dataclass(frozen=True)
class DataSource:
    """The arguments of `kmed.data.readers.load.load_table`, which explains them; None means not given.

    Attributes:
      path: an existing file or folder.
      others: as for `load_table`.
    """

    path: pathlib.Path
    task: str | None = None
    class_names: Sequence[str] | None = None
    split_folders: Mapping[str, str] | None = None
    labels_csv: str | pathlib.Path | None = None
    path_column: str | None = None
    label_column: str | None = None
    label_columns: Sequence[str] | None = None
    split_column: str | None = None
    group: str | None = None
    cluster: str | None = None
    no_finding: str = "label"
    not_findings: Sequence[str] = NOT_FINDINGS
    mapped: bool = False
    unlabelled: bool = False

    @property
    def columns(self) -> dict:
        """The columns of a CSV that are given, as {name of the argument: its value}."""
        names = ("path_column", "label_column", "label_columns", "split_column")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def find_groups_csv(root: pathlib.Path) -> pathlib.Path | None:
    """Returns the file groups.csv beside the pictures, in their folder or the one above, or None."""
    return next((folder / GROUPS_CSV for folder in (root, root.parent) if (folder / GROUPS_CSV).is_file()), None)


def refuse(what: str, **settings) -> None:
    """Raises DataError if any of `settings` is given, since they do not apply to `what`.

    Example:
      >>> refuse("an .npz file", labels_csv=source.labels_csv)
    """
    given = [key for key, value in settings.items() if value]
    if given:
        raise DataError(f"{', '.join(given)} does not apply to {what}. Leave it out.")
