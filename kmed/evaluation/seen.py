"""Pictures of somebody else's data that a run already knows: those that it has learnt from must not judge it."""

import collections
import dataclasses
import pathlib

import numpy as np
import pandas as pd

from kmed.data.audit.copies import Shared, find_alike, find_identical
from kmed.data.table import Table
from kmed.errors import ConfigError, DataError, suggest
from kmed.evaluation.inference import open_run_table
from kmed.evaluation.lineage import family
from kmed.files import write_frame
from kmed.labels import join_names
from kmed.progress import say, warn
from kmed.runs import Run

COPIES = ("pixels", "bytes", "none")  # how known pictures are looked for
LEARNT = ("train", "val")  # training learns from the first, and the epoch and the thresholds from the second
SAME_GROUP = "same group"


@dataclasses.dataclass(frozen=True)
class Seen:
    """Which pictures of other data a run knows.

    Attributes:
      rows: DataFrame, one row per known picture: path, label, found (how: "identical files", "one photograph",
        "one spot" or "same group"), known (the path of the run's picture) and split (that of the run's picture).
      left_out: bool (N,), the pictures that must not judge the run: those that show what a training or validation
        picture shows, and the others of their groups.
      copies: "pixels", "bytes" or "none": how they were looked for.
      reason: why they were not looked for; "" if they were.
      num_known: how many pictures of the run they were compared with.
      num_featureless: how many pictures have too little detail to compare, so that only their bytes were.
    """

    rows: pd.DataFrame
    left_out: np.ndarray
    copies: str
    reason: str
    num_known: int
    num_featureless: int = 0

    def to_dict(self) -> dict:
        """Returns the counts, for `kmed.files.write_json`."""
        learnt = self.rows["split"].isin(LEARNT)
        return {
            "copies": self.copies,
            "reason": self.reason,
            "num_known": self.num_known,
            "num_featureless": self.num_featureless,
            "left_out": int(self.left_out.sum()),
            "found": self.rows[learnt]["found"].value_counts().to_dict(),
            "in_internal_split": int((~learnt).sum()),
        }

    def write(self, folder: pathlib.Path) -> None:
        """Writes seen.csv, which `sentences` names, into a folder if any picture is known."""
        if len(self.rows):
            write_frame(folder / "seen.csv", self.rows)

    def sentences(self) -> list[str]:
        """Returns what was looked for, what was found, and what was left out."""
        if self.reason:
            return [f"Not checked for pictures that the run was trained on: {self.reason}"]
        how = {"pixels": "by their bytes and by what they show", "bytes": "by their bytes alone"}[self.copies]
        lines = [f"Compared with {self.num_known:,} pictures of the run, {how}."]
        if self.num_featureless:
            lines.append(
                f"{self.num_featureless} of them have too little detail for that: only their bytes were compared."
            )
        counts, learnt = self.to_dict(), self.rows["split"].isin(LEARNT)
        if counts["left_out"]:
            kinds = ", ".join(f"{count} {kind}" for kind, count in counts["found"].items())
            example = self.rows[learnt].iloc[0]
            lines.append(
                f"Left out of all scores, since they show what the run has learnt from: {counts['left_out']} pictures "
                f"({kinds}), such as {example['path']}, which shows what {example['known']} shows. seen.csv names them."
            )
        else:
            lines.append("None of them shows what the run has learnt from.")
        if counts["in_internal_split"]:
            lines.append(
                f"Shown by the run's own {self.rows['split'][~learnt].iloc[0]} pictures too: "
                f"{counts['in_internal_split']} pictures. The two sides are then not independent, and the intervals of "
                "the changes do not hold. seen.csv names them."
            )
        return lines


def check_copies(copies: str) -> None:
    """Raises ConfigError unless `copies` is legal."""
    if copies not in COPIES:
        raise ConfigError(f"copies must be {', '.join(COPIES)}. Received: {copies!r}." + suggest(copies, COPIES))


def find_seen(run: Run, table: Table, internal: str, *, copies: str = "pixels", data=None, seed: int = 0) -> Seen:
    """Returns which pictures of `table` a run has learnt from, or has been judged on.

    Training pictures of the members of an ensemble, of a teacher and of the run whose weights were taken count too. If
    the run's pictures are gone, a warning says that nothing was compared.

    Args:
      run: a finished run.
      table: somebody else's pictures, all of them readable.
      internal: the split by which the run is judged; its other splits play no part.
      copies: "pixels", "bytes" or "none".
      data: where the run's own pictures are now, if they have moved.
      seed: random seed for the visual words.
    """
    empty = pd.DataFrame(columns=["path", "label", "found", "known", "split"])
    nothing = np.zeros(len(table), bool)
    if copies == "none":
        return Seen(empty, nothing, copies, "it was switched off (copies=none).", 0)
    try:
        known = _known_tables(run, data)
    except DataError as error:
        reason = f"the run's own pictures cannot be read ({error} Say with data where they are now.)"
        warn(f"Warning: not checked for pictures that the run was trained on: {reason}")
        return Seen(empty, nothing, "none", reason, 0)
    found: dict[int, dict] = {}
    featureless: set[int] = set()
    known = [one.take(one.rows["split"].isin((*LEARNT, internal)).to_numpy()) for one in known]
    total = sum(map(len, known))
    say(f"Looking for {len(table):,} pictures among the {total:,} that the run knows ...")
    for one in known:
        learnt = one.rows["split"].isin(LEARNT).to_numpy()
        for part in (one.take(learnt), one.take(~learnt)):
            shown, blank = _search(table, part, copies, seed)
            featureless.update(blank)
            for shared in shown:
                row = {"found": shared.kind, "known": part.rows["path"].iloc[shared.known]}
                found.setdefault(shared.row, row | {"split": part.rows["split"].iloc[shared.known]})
    rows, left_out = _collect(table, found)
    return Seen(rows, left_out, copies, "", total, len(featureless - set(found)))


def _search(table: Table, part: Table, copies: str, seed: int) -> tuple[list[Shared], list[int]]:
    """Returns (the pictures of `table` that a part of the run's holds, the rows that cannot be compared by pixels)."""
    if not len(part):
        return [], []
    identical = find_identical(table, part)
    certain = {shared.row for shared in identical}
    rest = np.array([row for row in range(len(table)) if row not in certain], int)
    if copies == "bytes" or not len(rest):
        return identical, []
    alike, featureless = find_alike(table.take(rest), part, seed)
    moved = [Shared(int(rest[each.row]), each.known, each.kind) for each in alike]
    return [*identical, *moved], rest[featureless].tolist()


def _known_tables(run: Run, data) -> list[Table]:
    """Returns the pictures of a run and of those that it learnt from, one table per data set, with their splits.

    A picture that any of them was trained on is in split "train".
    """
    own = run.read_config().data.path
    tables: dict[str | None, Table] = {}
    trained: dict[str | None, set[str]] = collections.defaultdict(set)
    for each in [run, *family(run, set())]:
        path, splits = each.read_config().data.path, each.read_splits()
        trained[path].update(splits["path"][splits["split"] == "train"])
        if path not in tables:
            tables[path] = open_run_table(each, data if path == own else None)[1]
    marked = [
        table.rows["split"].mask(table.rows["path"].isin(trained[path]), "train") for path, table in tables.items()
    ]
    return [table.with_columns(split=split.to_numpy()) for table, split in zip(tables.values(), marked, strict=True)]


def _collect(table: Table, found: dict[int, dict]) -> tuple[pd.DataFrame, np.ndarray]:
    """Returns (rows of Seen, left_out (N,)) from {row of the table: what was found}."""
    groups, labels = table.rows["group"].to_numpy(), join_names(table.labels, table.class_names)
    paths = table.rows["path"].to_numpy()
    learnt = {groups[row]: fields for row, fields in reversed(found.items()) if fields["split"] in LEARNT}
    left_out = np.isin(groups, list(learnt)) if learnt else np.zeros(len(table), bool)
    rows = []
    for row in sorted({*np.flatnonzero(left_out).tolist(), *found}):
        fields = found.get(row)
        if fields is None or (left_out[row] and fields["split"] not in LEARNT):
            fields = learnt[groups[row]] | {"found": SAME_GROUP}
        rows.append({"path": paths[row], "label": labels[row], **fields})
    return pd.DataFrame(rows, columns=["path", "label", "found", "known", "split"]), left_out
