"""The CSV files of a run folder: the columns of each, and what is legal in their cells."""

import numpy as np
import pandas as pd

from kmed.errors import RunError, shorten
from kmed.labels import join_names
from kmed.reading import damaged, numbers, read_csv
from kmed.schemas.metrics import largest_value
from kmed.schemas.records import ROUNDING
from kmed.tasks import Task

LABEL, PROB, SUBGROUP, CASE = "label_", "prob_", "subgroup_", "case_"  # before the names of classes and of metadata
FIRST = ("path", "split", "group", "cluster")  # of predictions.csv
PART = ("repeat", "fold")  # of the predictions.csv of a cross-validation: which of its runs judged the picture
SPLIT_COLUMNS = ("path", "group", "cluster", "split")  # of splits.csv, which may also have a column fold
PREDICTED = ("val", "test")  # the splits that a run keeps predictions and scores for
_SUM_TOLERANCE = 1e-3  # of the probabilities of exclusive classes
_CLOSE = 1e-3  # a decision may differ from the stored one if the probability is as close as this to the limit

# Columns of result.csv that hold whole numbers.
_WHOLE = ("epochs", "best_epoch", "images_seen", "parameters", "seed", "num_labels", "num_clusters")


def read_predictions(path, class_names, task: Task) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Returns (rows, labels float64 (N, K), probs float64 (N, K)) of a predictions.csv.

    Its columns are path, split, group, cluster, label and predicted (names joined by "|"), then label_NAME (0, 1, or
    empty if unknown) and prob_NAME (0 to 1) for each class in the order of classes.json, any subgroup_NAME and
    case_NAME, and repeat and fold in a cross-validation.

    Args:
      path: the file.
      class_names: K names.
      task: what the labels must fit.
    Raises: RunError: the file is damaged, belongs to other classes, or holds a value that is not legal.
    """
    frame = read_csv(path)
    names = list(class_names)
    _check_columns(path, frame, names)
    _check_places(path, frame, PREDICTED)
    labels = np.stack([_column(path, frame, f"{LABEL}{name}", "0, 1 or empty", _is_label) for name in names], axis=1)
    probs = np.stack([_column(path, frame, f"{PROB}{name}", "from 0 to 1", _is_share) for name in names], axis=1)
    if task.exclusive:
        _check_exclusive(path, labels, probs)
    _check_words(path, frame, names, labels, probs, task)
    kept = [*FIRST, *(name for name in frame.columns if name in PART or name.startswith((SUBGROUP, CASE)))]
    return frame[kept].astype(str), labels, probs


def _check_columns(path, frame: pd.DataFrame, names: list[str]) -> None:
    """Raises RunError unless the columns are those of these classes, in their order."""
    needed = [*FIRST, "label", "predicted", *(f"{LABEL}{name}" for name in names), *(f"{PROB}{name}" for name in names)]
    found = [name for name in frame.columns if name not in PART and not name.startswith((SUBGROUP, CASE))]
    reason = ""
    if missing := [name for name in needed if name not in found]:
        reason = f"there is no column {shorten(missing[0])}"
    elif extra := [name for name in found if name not in needed]:
        reason = f"there is a column {shorten(extra[0])}"
    elif found != needed:
        wrong = next(name for name, other in zip(found, needed, strict=True) if name != other)
        reason = f"the column {shorten(wrong)} is not in its place: classes.json has the classes in another order"
    if reason:
        raise damaged(f"{path} cannot be read as predictions of {shorten_names(names)} ({reason}).")


def shorten_names(names) -> str:
    """Returns names with commas between them; of many, the first."""
    shown = ", ".join(shorten(name).strip("'") for name in names[:20])
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} others"


def _check_places(path, frame: pd.DataFrame, splits: tuple[str, ...] | None) -> None:
    """Raises RunError if a row has no path, group or cluster, is in no legal split, or is there twice."""
    for name in FIRST:
        empty = (frame[name].str.strip() == "").to_numpy()
        if empty.any():
            raise damaged(f"{path}: {name} is empty in row {empty.argmax() + 1}.")
    if splits is not None:
        other = ~frame["split"].isin(splits).to_numpy()
        if other.any():
            value = shorten(frame["split"].iloc[other.argmax()])
            raise damaged(
                f"{path}: split must be {' or '.join(splits)}. Received: {value} in row {other.argmax() + 1}."
            )
    twice = frame.duplicated(["split", "path", *({"repeat"} & set(frame.columns))]).to_numpy()
    if twice.any():
        raise damaged(f"{path} lists {shorten(frame['path'].iloc[twice.argmax()])} twice, in row {twice.argmax() + 1}.")


def _column(path, frame: pd.DataFrame, name: str, legal: str, is_legal) -> np.ndarray:
    """Returns the numbers of a column. Raises RunError, with the first value that is not legal, if there is one."""
    try:
        values = numbers(frame[name])
    except ValueError as problem:
        raise damaged(f"{path}: {name} must be {legal}. Received: {shorten(problem.args[0])}.") from None
    wrong = ~is_legal(values, (frame[name] == "").to_numpy())
    if wrong.any():
        row = wrong.argmax()
        raise damaged(f"{path}: {name} must be {legal}. Received: {shorten(frame[name].iloc[row])} in row {row + 1}.")
    return values


def _is_label(values, empty) -> np.ndarray:
    return empty | (values == 0) | (values == 1)


def _is_share(values, empty) -> np.ndarray:
    return (values >= 0) & (values <= 1 + ROUNDING)


def _check_exclusive(path, labels: np.ndarray, probs: np.ndarray) -> None:
    """Raises RunError unless each row has one class, or none has a label, and probabilities that sum to 1."""
    wrong = (labels == 1).sum(axis=1) != 1
    if wrong.any() and not np.isnan(labels).all():
        row = wrong.argmax()
        number = int((labels[row] == 1).sum())
        raise damaged(f"{path}: one label_ column must be 1 in each row. Received: {number} in row {row + 1}.")
    wrong = ~(np.abs(probs.sum(axis=1) - 1) <= _SUM_TOLERANCE)
    if wrong.any():
        row = wrong.argmax()
        raise damaged(f"{path}: the prob_ columns must sum to 1. Received: {probs[row].sum():.6g} in row {row + 1}.")


def _check_words(path, frame: pd.DataFrame, names, labels, probs, task: Task) -> None:
    """Raises RunError if the columns label and predicted contradict the others, as after two columns were swapped."""
    wrong = (frame["label"] != pd.Series(join_names(labels, names), dtype=object)).to_numpy()
    if wrong.any():
        row = wrong.argmax()
        raise damaged(
            f"{path}: label is {shorten(frame['label'].iloc[row])} in row {row + 1}, but the label_ columns say "
            f"{shorten(join_names(labels[row : row + 1], names)[0])}."
        )
    wrong = (frame["predicted"] != pd.Series(join_names(task.decode(probs), names), dtype=object)).to_numpy()
    highest = np.sort(probs, axis=1)
    if task.exclusive:
        close = (highest[:, -1] - highest[:, -2]) <= _CLOSE if len(names) > 1 else np.zeros(len(probs), bool)
    else:
        close = (np.abs(probs - 0.5) <= _CLOSE).any(axis=1)
    if (wrong & ~close).any():
        row = (wrong & ~close).argmax()
        raise damaged(
            f"{path}: predicted is {shorten(frame['predicted'].iloc[row])} in row {row + 1}, but the prob_ columns say "
            f"{shorten(join_names(task.decode(probs[row : row + 1]), names)[0])}."
        )


def read_splits(path) -> pd.DataFrame:
    """Returns the text columns path, group, cluster, split (and fold) of a splits.csv.

    Raises: RunError: the file is damaged, lacks a column, or has an empty cell or a picture twice.
    """
    frame = read_csv(path)
    if missing := [name for name in SPLIT_COLUMNS if name not in frame.columns]:
        raise damaged(f"{path} has no column {missing[0]!r}.")
    _check_places(path, frame, None)
    return frame


def read_history(path) -> pd.DataFrame:
    """Returns a history.csv: the numbers of each epoch, NaN where a score is undefined.

    Its columns are epoch (1, 2, ...), learning_rate, loss and the task's scores, the same with val_, and seconds.

    Raises: RunError: the file is damaged, lacks epoch, loss or val_loss, or holds something that is not a number.
    """
    frame = read_csv(path)
    if missing := [name for name in ("epoch", "loss", "val_loss") if name not in frame.columns]:
        raise damaged(f"{path} has no column {missing[0]!r}.")
    columns = {name: _column(path, frame, name, "a number", _is_any) for name in frame.columns}
    if not len(frame) or list(columns["epoch"]) != list(range(1, len(frame) + 1)):
        raise damaged(f"{path}: epoch must be 1, 2, 3 and so on. Received: {shorten(list(frame['epoch']))}.")
    return pd.DataFrame(columns).astype({"epoch": int})


def _is_any(values, empty) -> np.ndarray:
    return np.ones(len(values), bool)


def check_result(path, row: dict[str, str], needed=()) -> None:
    """Raises RunError unless the row of a result.csv has legal numbers, and the columns `needed`.

    Args:
      path: the file.
      row: column -> text.
      needed: names of columns.
    """
    if missing := [name for name in needed if name not in row]:
        raise RunError(f"{path} lacks {', '.join(missing)}: another version of kmed made it. Train the run again.")
    for name, text in row.items():
        whole, least, most = _range(name)
        if least is None or (text == "" and most <= 2):  # a score may be undefined
            continue
        try:
            value = numbers(pd.Series([text], dtype=object))[0]
        except ValueError:
            value = np.nan
        if not least <= value <= most + ROUNDING or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            legal = f"{kind} of at least {least}" if most > 2 else f"{kind} from {least} to {most}, or empty"
            raise damaged(f"{path}: {name} must be {legal}. Received: {shorten(text)}.")


def _range(name: str) -> tuple[bool, int | None, int]:
    """Returns (whether it is whole, least, most) of a column of result.csv; least is None for text."""
    if name in _WHOLE:
        return True, int(name == "epochs"), 2**53
    if name == "minutes":
        return False, 0, 2**53
    most = largest_value(name.removeprefix("best_constant_"))
    return False, None if most is None else 0, most or 0
