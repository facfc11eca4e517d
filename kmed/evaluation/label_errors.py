"""Labels that look wrong: those that models which have not seen the picture contradict.

A model that was trained on a wrong label may repeat it, so out-of-fold predictions are needed. Confident learning
(Northcutt et al., "Confident learning: estimating uncertainty in dataset labels", 2021) estimates from them how often
each class is labelled as another one, and names so many pictures, those whose given label is least probable.
"""

import dataclasses

import numpy as np
import pandas as pd

from kmed.errors import ConfigError, DataError
from kmed.evaluation.predictions import Predictions
from kmed.labels import finding_indices, join_names, negative_label

AUTO = "auto"
INSTALL = "Finding wrong labels needs cleanlab, which is not installed: pip install 'kmed[labels]'"


@dataclasses.dataclass(frozen=True)
class Units:
    """What has one label: all pictures of a cluster that share it, or a picture of a cluster that has several labels.

    Attributes:
      rows: DataFrame (U, ...) with path (of the first picture), cluster and pictures (how many).
      labels: float64 (U, K) in {0, 1}, NaN where unknown.
      probs: float64 (U, K), the mean over the unit's pictures.
    """

    rows: pd.DataFrame
    labels: np.ndarray
    probs: np.ndarray


def make_units(predictions: Predictions) -> Units:
    """Returns the Units of predictions; repeated predictions of a picture are averaged too."""
    rows, names = predictions.rows, predictions.class_names
    shown = pd.Series(
        ["|".join("" if value != value else str(int(value)) for value in row) for row in predictions.labels]
    )
    alike = shown.groupby(rows["cluster"]).transform("nunique") == 1
    keys = np.where(alike, "cluster\0" + rows["cluster"], "path\0" + rows["path"])
    codes, first = pd.factorize(keys)[0], ~pd.Series(keys).duplicated().to_numpy()
    sums = np.zeros((first.sum(), len(names)))
    np.add.at(sums, codes, predictions.probs)
    pictures = rows["path"].groupby(codes).nunique().to_numpy()
    chosen = rows.loc[first, ["path", "cluster"]].reset_index(drop=True).assign(pictures=pictures)
    return Units(chosen, predictions.labels[first], sums / np.bincount(codes)[:, None])


def suspect_labels(units: Units, class_names, *, exclusive: bool, cut: float | str = AUTO) -> pd.DataFrame:
    """Returns the units whose label looks wrong, least probable first, as the columns of labels.csv.

    Its columns are label (to be edited; at first what was given), given, suggested, quality (the probability of the
    given label; of several labels, that of the least probable one), cluster, pictures and path.

    Args:
      units: from `make_units`.
      class_names: K names.
      exclusive: whether each picture has exactly one class.
      cut: "auto": as many as confident learning expects; a number in (0, 1): those of a lower quality.
    Raises: ConfigError: the cut is neither, or cleanlab is not installed. DataError: too few pictures or classes.
    """
    cut = check_cut(cut)
    if exclusive:
        wrong, quality = _judge(units.labels.argmax(axis=1), units.probs, cut)
        suggested = np.eye(len(class_names))[units.probs.argmax(axis=1)]
        wrong &= (suggested != units.labels).any(axis=1)
    else:
        wrong, quality, suggested = _judge_findings(units, class_names, cut)
    frame = units.rows.assign(
        given=join_names(units.labels, class_names), suggested=join_names(suggested, class_names), quality=quality
    )
    frame.insert(0, "label", frame["given"])
    order = ["label", "given", "suggested", "quality", "cluster", "pictures", "path"]
    return frame.loc[wrong, order].sort_values(["quality", "path"]).reset_index(drop=True)


def check_cut(cut) -> float | str:
    """Returns "auto", or a number in (0, 1). Raises ConfigError if the cut is neither."""
    if cut == AUTO:
        return AUTO
    try:
        number = float(cut)
    except (TypeError, ValueError):
        number = np.nan
    if not 0 < number < 1:
        raise ConfigError(f"cut must be auto, or a number between 0 and 1. Received: {cut!r}.")
    return number


def _judge_findings(units: Units, class_names, cut):
    """Returns (wrong (U,), quality (U,), suggested (U, K)); each label is judged by itself, where it is known."""
    wrong, suggested = np.zeros(len(units.labels), bool), units.labels.copy()
    quality = np.ones(len(units.labels))
    for k in range(len(class_names)):
        known = np.flatnonzero(~np.isnan(units.labels[:, k]))
        labels, probs = units.labels[known, k].astype(int), units.probs[known, k]
        if len(set(labels)) < 2:  # nothing to compare with
            continue
        found, own = _judge(labels, np.column_stack([1 - probs, probs]), cut)
        quality[known] = np.minimum(quality[known], own)
        found &= (probs >= 0.5) != labels
        suggested[known[found], k] = 1 - labels[found]
        wrong[known[found]] = True
    _settle(suggested, wrong, class_names)
    return wrong, quality, suggested


def _settle(suggested: np.ndarray, wrong: np.ndarray, class_names) -> None:
    """Makes "No Finding" fit the other suggested labels, where there is such a label."""
    negative = negative_label(class_names)
    if negative is not None and len(class_names) > 1:
        findings = (suggested[:, finding_indices(class_names)] == 1).any(axis=1)
        suggested[wrong & findings, negative] = 0


def _judge(labels: np.ndarray, probs: np.ndarray, cut) -> tuple[np.ndarray, np.ndarray]:
    """Returns (wrong (U,), quality (U,)) of integer labels (U,) and probabilities (U, K)."""
    probs = probs / probs.sum(axis=1, keepdims=True)
    quality = probs[np.arange(len(labels)), labels]
    if cut != AUTO:
        return quality < cut, quality
    try:
        from cleanlab.filter import find_label_issues
    except ModuleNotFoundError:
        raise ConfigError(INSTALL) from None
    if len(set(labels)) < 2:
        raise DataError("Wrong labels are found by comparing classes. Received: pictures of one class.")
    return find_label_issues(labels, probs, filter_by="prune_by_noise_rate", n_jobs=1), quality
