"""predictions.csv: one row per image with its labels and probabilities, from which all scores can be computed again."""

import dataclasses
import pathlib

import numpy as np
import pandas as pd

from kmed.data.table import Table
from kmed.evaluation.subgroups import case_values, choose_columns, subgroup_values
from kmed.labels import join_names
from kmed.runs import Run
from kmed.schemas import tables
from kmed.schemas.tables import FIRST, LABEL, PROB, SUBGROUP
from kmed.tasks import Task, get_task


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model predicts for the images of one or more splits.

    Attributes:
      rows: DataFrame (N, ...) with the text columns path, split, group and cluster, and subgroup_NAME for
        each column whose values define subgroups.
      labels: float64 (N, K) in {0, 1}, NaN where unknown.
      probs: float64 (N, K) in [0, 1].
      class_names: K names.
      task: kmed.tasks.Task.
    """

    rows: pd.DataFrame
    labels: np.ndarray
    probs: np.ndarray
    class_names: tuple[str, ...]
    task: Task

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, mask: np.ndarray) -> "Predictions":
        """Returns the rows that a boolean mask (N,) or an integer array selects."""
        rows = np.flatnonzero(mask) if np.asarray(mask).dtype == bool else mask
        return dataclasses.replace(
            self, rows=self.rows.iloc[rows].reset_index(drop=True), labels=self.labels[rows], probs=self.probs[rows]
        )

    def split(self, name: str) -> "Predictions":
        """Returns the rows of one split; there may be none."""
        return self.take((self.rows["split"] == name).to_numpy())

    @property
    def clusters(self) -> np.ndarray:
        """(N,), the cluster of each image; intervals resample clusters."""
        return self.rows["cluster"].to_numpy()

    @property
    def subgroups(self) -> dict[str, np.ndarray]:
        """Column -> (N,) values, which define subgroups."""
        named = {name: name.removeprefix(SUBGROUP) for name in self.rows.columns if name.startswith(SUBGROUP)}
        return {plain: self.rows[name].to_numpy() for name, plain in named.items()}

    def decided(self, thresholds=None) -> np.ndarray:
        """Returns uint8 (N, K), what the task decides from the probabilities."""
        return self.task.decode(self.probs, thresholds)

    def to_frame(self) -> pd.DataFrame:
        """Returns the columns of predictions.csv; several classes of an image are joined by "|"."""
        frame = self.rows[list(FIRST)].copy()
        frame["label"] = join_names(self.labels, self.class_names)
        frame["predicted"] = join_names(self.decided(), self.class_names)
        known = ~np.isnan(self.labels)
        columns = {f"{LABEL}{name}": pd.array(self.labels[:, k], "Int8") for k, name in enumerate(self.class_names)}
        for k, name in enumerate(self.class_names):
            columns[f"{LABEL}{name}"][~known[:, k]] = pd.NA
        columns |= {f"{PROB}{name}": self.probs[:, k] for k, name in enumerate(self.class_names)}
        others = self.rows.drop(columns=list(FIRST))
        return pd.concat([frame, pd.DataFrame(columns, index=frame.index), others], axis=1)


def make_predictions(table: Table, probs: np.ndarray, asked_subgroups=None, case: str | None = None) -> Predictions:
    """Returns the Predictions of a table's images.

    Args:
      table: the images.
      probs: (N, K).
      asked_subgroups: metadata columns whose values define subgroups; None takes sex, age and view, where present.
      case: the setting `evaluate.case`; a metadata column is kept as case_NAME.
    Raises: ConfigError: a column that the data lack.
    """
    columns = choose_columns(table.rows, asked_subgroups)
    values = subgroup_values(table.rows, columns).add_prefix(SUBGROUP)
    rows = pd.concat([table.rows[list(FIRST)], values, case_values(table.rows, case)], axis=1)
    labels = table.labels.astype(np.float64)
    return Predictions(rows, labels, np.asarray(probs, np.float64), tuple(table.class_names), get_task(table.task))


def stored_predictions(run: Run) -> Predictions:
    """Returns a run's Predictions for its validation and test splits. Raises RunError as `read_predictions` does."""
    classes = run.read_classes()
    return read_predictions(run.predictions, classes.class_names, get_task(classes.task))


def read_predictions(path: pathlib.Path, class_names, task: Task) -> Predictions:
    """Returns the Predictions in a predictions.csv. Raises RunError if it is missing, damaged or of other classes."""
    rows, labels, probs = tables.read_predictions(path, class_names, task)
    return Predictions(rows, labels, probs, tuple(class_names), task)
