"""The pictures that show most about a run: which to choose, their pixels, and where the model looked."""

import dataclasses

import numpy as np

from kmed.data.images import Resizing
from kmed.data.pictures import Pictures
from kmed.data.prepare import open_table
from kmed.data.table import Table
from kmed.errors import DataError
from kmed.evaluation.inference import run_table
from kmed.evaluation.predictions import Predictions
from kmed.labels import join_names
from kmed.models.heatmaps import explain_and_overlay
from kmed.models.keras_file import load_run_model
from kmed.runs import Run

NUM_ERRORS = 12
NUM_EXPLAINED = 4  # correct answers, and as many errors
NUM_OF_KIND = 4  # pictures of each kind
KINDS = ("error", "hit", "random")


@dataclasses.dataclass(frozen=True)
class Example:
    """One image and what the model decided about one of its classes.

    Attributes:
      row: its row in the predictions that it was chosen from.
      path, cluster: those of the image.
      truth: the image's classes, joined by "|"; "" if it has none.
      class_index: the index of the class.
      class_name: the name of the class.
      found: whether the model found the class.
      right: whether the model was right.
      prob: the probability of the class.
    """

    row: int
    path: str
    cluster: str
    truth: str
    class_index: int
    class_name: str
    found: bool
    right: bool
    prob: float


def confident_errors(predictions: Predictions, number: int = NUM_ERRORS) -> list[Example]:
    """Returns the most confident errors of a model, the most confident first, one per cluster.

    Copies and neighbours of one picture share their errors, and a dozen of them would show only one. With exclusive
    classes, only a class that was wrongly found counts as an error; otherwise a missed label does too.

    Args:
      predictions: those of one split.
      number: the most errors to return.
    """
    found = predictions.decided() == 1
    wrong = ~np.isnan(predictions.labels) & (found != (predictions.labels == 1))
    if predictions.task.exclusive:
        wrong &= found
    sureness = np.where(found, predictions.probs, 1 - predictions.probs)
    return _surest(predictions, wrong, sureness, number, "cluster")


def confident_answers(predictions: Predictions, number: int = NUM_EXPLAINED) -> list[Example]:
    """Returns the most confident correct answers of a model, the most confident first, one per class."""
    right = (predictions.decided() == 1) & (predictions.labels == 1)
    return _surest(predictions, right, predictions.probs, number, "class_name")


def choose_pictures(predictions: Predictions, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Returns (kinds, rows): "error1", "error2", ..., "hit1", ..., "random1", ... and the row of each.

    These are the most confident errors, the most confident hits, and others drawn at random. A hit is a picture
    whose most probable class is among its labels.

    Args:
      predictions: those of one split.
      seed: of the random draw, which leaves out the errors and hits chosen.
    """
    labels, probs = predictions.labels, predictions.probs
    best = np.arange(probs.shape[1]) == probs.argmax(axis=1)[:, None]  # (N, K)
    # An unknown label (NaN) is neither a hit nor an error.
    found = {
        kind: _by_sureness(best & (labels == label), probs)[:NUM_OF_KIND, 0]
        for kind, label in (("error", 0), ("hit", 1))
    }
    others = np.setdiff1d(np.arange(len(predictions)), np.concatenate(list(found.values())))
    found["random"] = np.random.default_rng(seed).permutation(others)[:NUM_OF_KIND]
    kinds = [f"{kind}{number}" for kind in KINDS for number in range(1, len(found[kind]) + 1)]
    return kinds, np.concatenate([found[kind] for kind in KINDS])


def _by_sureness(chosen, sureness) -> np.ndarray:
    """Returns int (M, 2), row and class of each mark in `chosen` (N, K), the surest first; ties stay in order."""
    return np.argwhere(chosen)[np.argsort(-sureness[chosen], kind="stable")]


def _surest(predictions, chosen, sureness, number, once) -> list[Example]:
    """Returns the examples marked in `chosen` (N, K), the surest first, one per value of the attribute `once`."""
    truths = join_names(predictions.labels, predictions.class_names)
    found = predictions.decided()
    examples: dict[str, Example] = {}
    for row, k in _by_sureness(chosen, sureness):
        example = Example(
            row=int(row),
            path=predictions.rows["path"].iloc[row],
            cluster=predictions.rows["cluster"].iloc[row],
            truth=truths[row],
            class_index=int(k),
            class_name=predictions.class_names[k],
            found=bool(found[row, k]),
            right=bool(found[row, k]) == bool(predictions.labels[row, k] == 1),
            prob=float(predictions.probs[row, k]),
        )
        examples.setdefault(getattr(example, once), example)
        if len(examples) == number:
            break
    return list(examples.values())


def read_pictures(run: Run, predictions: Predictions, table: Table | None = None, data=None) -> np.ndarray:
    """Returns uint8 (N, H, W, 3), the pictures of N predictions as the model saw them.

    Args:
      run: the run whose data are read.
      predictions: those of the pictures wanted, in the order wanted.
      table: the run's data, if they are already open.
      data: the folder, CSV or npz to read instead of the one in the run's settings.
    Raises: DataError: the data or a picture are gone, or the data differ from the run's.
    """
    config = run.read_config(data)
    table = run_table(run, open_table(config) if table is None else table)
    row_of = {place: row for row, place in enumerate(zip(table.rows["split"], table.rows["path"]))}
    rows = []
    for split, path in zip(predictions.rows["split"], predictions.rows["path"]):
        if (split, path) not in row_of:
            raise DataError(f"{run.predictions} names {path}, which is not in split {split!r} of {table.name}.")
        rows.append(row_of[split, path])
    part = table.take(np.array(rows, np.int64))
    return Pictures(part, Resizing.from_settings(config.data), cache="none").gather(np.arange(len(part)))


def draw_attention(run: Run, examples: list[Example], pictures: np.ndarray, model=None) -> np.ndarray:
    """Returns uint8 (N, H, W, 3), the pictures overlaid with the evidence for each example's class.

    Args:
      run: the run whose model is explained.
      examples: N examples.
      pictures: uint8 (N, H, W, 3), the pictures of these examples.
      model: the run's keras.Model, if it is already loaded.
    Raises: ModelError: a network that cannot be explained. RunError: the model cannot be loaded.
    """
    model = load_run_model(run) if model is None else model
    return explain_and_overlay(model, pictures, np.array([example.class_index for example in examples]))[1]
