"""TASKS: all that sets classifying into one class apart from finding any number of them.

Every other module asks the table and never the word. Keras and scikit-learn are imported when a
field is used, so that the command line may read the table and still start at once.
"""

import collections.abc
import dataclasses

import numpy as np

from kmed.errors import ConfigError, DataError, suggest
from kmed.labels import negative_label


@dataclasses.dataclass(frozen=True)
class Task:
    """One way of labelling images.

    Attributes:
      name: "multiclass" or "multilabel".
      exclusive: whether each image has exactly one class.
      activation: what turns logits into probabilities, "softmax" or "sigmoid".
      losses: the legal names of a loss, the default first.
      make_loss: (name="auto", *, label_smoothing=0.0, positive_weights=None) -> keras loss of (labels, probs);
        positive_weights (K,) are used by "weighted_bce".
      make_metrics: (class_names) -> new keras metrics for `fit`.
      decode: (probs (N, K), thresholds=None) -> uint8 (N, K) in {0, 1}, the predicted classes.
      score: (labels, probs, clusters, class_names, **settings) -> kmed.metrics.scores.Scores.
    """

    name: str
    exclusive: bool
    activation: str
    losses: tuple[str, ...]
    make_loss: collections.abc.Callable
    make_metrics: collections.abc.Callable
    decode: collections.abc.Callable
    score: collections.abc.Callable


def get_task(name: str) -> Task:
    """Returns the task called `name`. Raises ConfigError, naming the nearest, where there is none."""
    if name not in TASKS:
        raise ConfigError(f"task must be one of {', '.join(TASKS)}. Received: task={name!r}." + suggest(name, TASKS))
    return TASKS[name]


def check_labels(task: Task | str, labels: np.ndarray) -> None:
    """Raises DataError unless `labels` fit the task.

    Args:
      task: a task or its name.
      labels: float (N, K) in {0, 1}; multiclass needs K >= 2 and exactly one 1 a row,
        multilabel takes NaN for unknown and needs one known label at least.
    """
    task = get_task(task) if isinstance(task, str) else task
    labels = np.asarray(labels)
    if labels.ndim != 2 or 0 in labels.shape:
        raise DataError(f"labels must have one row an image and one column a class. Received: shape={labels.shape}.")
    strange = labels[~(np.isnan(labels) | (labels == 0) | (labels == 1))]
    if strange.size:
        raise DataError(f"labels must be 0, 1 or NaN (unknown). Received: {strange[0]!s} among {strange.size} others.")
    _LABEL_CHECKS[task.name](labels)


def _check_one_class_a_row(labels):
    if labels.shape[1] < 2:
        raise DataError(
            "multiclass needs two classes or more; one finding alone is task=multilabel. Received: 1 class."
        )
    bad = np.flatnonzero(~(np.nan_to_num(labels).sum(axis=1) == 1) | np.isnan(labels).any(axis=1))
    if bad.size:
        raise DataError(
            f"multiclass needs exactly one class an image; several, none or unknown ones are task=multilabel. "
            f"Received: {bad.size} other rows, the first is row {bad[0]} with {labels[bad[0]].tolist()}."
        )


def _check_some_known(labels):
    if np.isnan(labels).all():
        raise DataError(f"multilabel needs labels that are known. Received: {labels.size} labels, all NaN.")


_LABEL_CHECKS = {"multiclass": _check_one_class_a_row, "multilabel": _check_some_known}


def _multiclass_loss(name: str = "auto", *, label_smoothing: float = 0.0, positive_weights=None):
    import keras

    from kmed.losses import check_label_smoothing

    _check_loss(name, "multiclass")
    check_label_smoothing(label_smoothing)
    return keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing)


def _multilabel_loss(name: str = "auto", *, label_smoothing: float = 0.0, positive_weights=None):
    from kmed.losses import AsymmetricLoss, MaskedBinaryCrossentropy

    _check_loss(name, "multilabel")
    if name in ("auto", "bce"):
        return MaskedBinaryCrossentropy(label_smoothing=label_smoothing)
    if name == "weighted_bce":
        if positive_weights is None:
            raise ConfigError("loss='weighted_bce' needs positive_weights, one a label. Received: None.")
        return MaskedBinaryCrossentropy(label_smoothing=label_smoothing, positive_weights=positive_weights)
    if label_smoothing:
        raise ConfigError(f"loss={name!r} knows no label smoothing. Received: label_smoothing={label_smoothing}.")
    if name == "focal":
        return AsymmetricLoss(gamma_positive=2.0, gamma_negative=2.0, margin=0.0, name="focal_loss")
    return AsymmetricLoss()


def _check_loss(name, task):
    legal = TASKS[task].losses
    if name not in ("auto", *legal):
        raise ConfigError(
            f"The loss of {task} is {' or '.join(legal)}. Received: loss={name!r}." + suggest(name, legal)
        )


def _multiclass_metrics(class_names=()) -> list:
    import keras

    return [keras.metrics.CategoricalAccuracy(name="accuracy"), keras.metrics.F1Score(average="macro", name="f1_macro")]


def _multilabel_metrics(class_names) -> list:
    from kmed.metrics.streaming import ExactMatchRatio, HammingLoss, MacroAUROC

    negative = negative_label(class_names)
    return [
        ExactMatchRatio(),
        HammingLoss(),
        MacroAUROC(len(class_names), ignored=[] if negative is None else [negative]),
    ]


def _most_probable(probs, thresholds=None) -> np.ndarray:
    """The class whose probability is highest, or highest in units of its threshold (Breiman's forests: `cutoff`)."""
    probs = np.asarray(probs) if thresholds is None else np.asarray(probs) / np.asarray(thresholds)
    return np.eye(probs.shape[-1], dtype=np.uint8)[probs.argmax(axis=-1)]


def _at_least(probs, thresholds=None) -> np.ndarray:
    return (np.asarray(probs) >= (0.5 if thresholds is None else np.asarray(thresholds))).astype(np.uint8)


def _score_multiclass(*arguments, **settings):
    from kmed.metrics.scores import score_multiclass

    return score_multiclass(*arguments, **settings)


def _score_multilabel(*arguments, **settings):
    from kmed.metrics.scores import score_multilabel

    return score_multilabel(*arguments, **settings)


TASKS = {
    "multiclass": Task(
        name="multiclass",
        exclusive=True,
        activation="softmax",
        losses=("crossentropy",),
        make_loss=_multiclass_loss,
        make_metrics=_multiclass_metrics,
        decode=_most_probable,
        score=_score_multiclass,
    ),
    "multilabel": Task(
        name="multilabel",
        exclusive=False,
        activation="sigmoid",
        losses=("bce", "weighted_bce", "focal", "asymmetric"),
        make_loss=_multilabel_loss,
        make_metrics=_multilabel_metrics,
        decode=_at_least,
        score=_score_multilabel,
    ),
}

# By which scores pairs of runs are compared; the first that does not rest on few clusters ranks them.
PAIRED = {
    "multiclass": ("accuracy", "f1_macro", "auroc_macro"),
    "multilabel": ("auroc_macro", "auroc_macro_common", "exact_match_ratio", "hamming_loss"),
}

LOWER_IS_BETTER = frozenset({"hamming_loss", "brier", "ece"})

# Figures of a study that results stand beside, in its order; they are the first scores of a row.
STUDY_COLUMNS = {
    "multiclass": ("accuracy", "precision_macro", "recall_macro", "f1_macro"),
    "multilabel": ("exact_match_ratio", "hamming_loss", "recall_samples", "precision_samples", "f1_samples"),
}
