"""TASKS: everything in which multiclass and multilabel classification differ.

What works on a task looks it up in this table and never compares its name; only what reads or draws data names one. To
add a metric of `fit`, add a line to `_multiclass_metrics` or `_multilabel_metrics`; to add a final score, add one to
`_multiclass_scores` or `_multilabel_scores`. Keras and scikit-learn are imported only when a field is used, so that the
command line can read the table and still start quickly.
"""

import collections.abc
import dataclasses
import functools

import numpy as np

from kmed.errors import ConfigError, DataError, suggest
from kmed.labels import finding_indices, negative_label

# Names of fit metrics and of final scores; all others are better when higher.
LOWER_IS_BETTER = frozenset({"loss", "hamming_loss", "brier", "ece"})


@dataclasses.dataclass(frozen=True)
class Task:
    """One way of labelling images.

    Attributes:
      name: "multiclass" or "multilabel".
      exclusive: whether each image has exactly one class.
      reason: why `task: auto` chooses this task for a data set.
      activation: what turns logits into probabilities, "softmax" or "sigmoid".
      losses: names of the legal losses, which are keys of kmed.losses.LOSSES; the first one is the default.
      check_labels: (labels float (N, K)) -> None; raises DataError if they do not fit the task.
      decode: (probs (N, K), thresholds=None) -> uint8 (N, K) in {0, 1}, the predicted classes.
      fit_calibration: (labels, probs, class_names) -> kmed.metrics.calibration.Calibration.
      constant_predictors: (kmed.metrics.baselines.Prior) -> {name: probabilities (K,), the same for every image}.
      make_metrics: (class_names) -> list of new Keras metrics for `fit`.
      make_scores: () -> {name: kmed.metrics.scores.FinalScore}, in the order of the reports.
      decision_score: the score of whole decisions; it compares a model with the constant predictors.
      exported_scores: scores that are computed for an exported model. The export is refused if the first one drops
        too far, and its value is stored with the export; the others are only reported.
      paired_scores: scores in which pairs of runs are compared. The runs are ranked by the first one that rests on
        enough clusters.
      study_scores: scores of the study that the results are compared with, in its order; they come first in a row of
        results.
      compared_scores: columns of the comparison page.
      headline_scores: scores at the top of a run's page, after the AUROC.
      subgroup_scores: scores shown for each subgroup.
    """

    name: str
    exclusive: bool
    reason: str
    activation: str
    losses: tuple[str, ...]
    check_labels: collections.abc.Callable
    decode: collections.abc.Callable
    fit_calibration: collections.abc.Callable
    constant_predictors: collections.abc.Callable
    make_metrics: collections.abc.Callable
    make_scores: collections.abc.Callable
    decision_score: str
    exported_scores: tuple[str, ...]
    paired_scores: tuple[str, ...]
    study_scores: tuple[str, ...]
    compared_scores: tuple[str, ...]
    headline_scores: tuple[str, ...]
    subgroup_scores: tuple[str, ...]

    def make_loss(self, name: str = "auto", *, label_smoothing: float = 0.0, positive_weights=None):
        """Returns a new Keras loss of (labels, probs).

        Args:
          name: one of the task's losses; "auto" is the default.
          label_smoothing: in [0, 1).
          positive_weights: (K,), used by "weighted_bce".
        Raises: ConfigError: the task has no loss of that name, or the loss does not support the other arguments.
        """
        from kmed.losses import LOSSES

        if name not in ("auto", *self.losses):
            legal, hint = " or ".join(self.losses), suggest(name, self.losses)
            raise ConfigError(f"The loss of {self.name} must be {legal}. Received: loss={name!r}.{hint}")
        return LOSSES[self.losses[0] if name == "auto" else name](label_smoothing, positive_weights)

    def make_distillation(self, loss, *, temperature: float, weight: float):
        """Returns `loss` mixed with the divergence from a teacher; see `kmed.losses.DistillationLoss`."""
        from kmed.losses import DistillationLoss

        return DistillationLoss(loss, self.activation, temperature, weight)

    def score(self, *arguments, **settings):
        """Returns the Scores of (labels, probs, clusters, class_names); see `kmed.metrics.scores.compute_scores`."""
        from kmed.metrics.scores import compute_scores

        return compute_scores(self, *arguments, **settings)


def get_task(name: str) -> Task:
    """Returns the task called `name`. Raises ConfigError, with the nearest name, if there is none."""
    if name not in TASKS:
        raise ConfigError(f"task must be one of {', '.join(TASKS)}. Received: task={name!r}." + suggest(name, TASKS))
    return TASKS[name]


def check_labels(task: Task | str, labels: np.ndarray) -> None:
    """Raises DataError unless `labels` fit the task.

    Args:
      task: a task or its name.
      labels: float (N, K) in {0, 1}; multiclass needs K >= 2 and exactly one 1 per row,
        multilabel accepts NaN (unknown) and needs at least one known label.
    """
    task = get_task(task) if isinstance(task, str) else task
    labels = np.asarray(labels)
    if labels.ndim != 2 or 0 in labels.shape:
        raise DataError(f"labels must have one row per image and one column per class. Received: shape={labels.shape}.")
    invalid = labels[~(np.isnan(labels) | (labels == 0) | (labels == 1))]
    if invalid.size:
        raise DataError(
            f"labels must be 0, 1 or NaN (unknown). Received: {invalid.size} other value(s), such as {invalid[0]!s}."
        )
    task.check_labels(labels)


# ---- Parts of the tasks: checks of labels, decisions, calibration, constant predictors -------------


def _check_one_class_per_row(labels):
    if labels.shape[1] < 2:
        raise DataError(
            "multiclass needs at least two classes; use task=multilabel for a single finding. Received: 1 class."
        )
    bad = np.flatnonzero(~(np.nan_to_num(labels).sum(axis=1) == 1) | np.isnan(labels).any(axis=1))
    if bad.size:
        raise DataError(
            f"multiclass needs exactly one known class per image; use task=multilabel if images have several, none or "
            f"unknown ones. Received: {bad.size} other rows, the first is row {bad[0]} with {labels[bad[0]].tolist()}."
        )


def _check_some_known(labels):
    if np.isnan(labels).all():
        raise DataError(f"multilabel needs at least one known label. Received: {labels.size} labels, all NaN.")


def _most_probable(probs, thresholds=None) -> np.ndarray:
    """Returns uint8 (N, K): 1 for the class with the highest probability.

    With thresholds, each probability is first divided by the threshold of its class, like `cutoff` in Breiman's random
    forests.
    """
    probs = np.asarray(probs) if thresholds is None else np.asarray(probs) / np.maximum(thresholds, 1e-12)
    return np.eye(probs.shape[-1], dtype=np.uint8)[probs.argmax(axis=-1)]


def _at_least(probs, thresholds=None) -> np.ndarray:
    return (np.asarray(probs) >= (0.5 if thresholds is None else np.asarray(thresholds))).astype(np.uint8)


def _fit_temperature(*arguments):
    from kmed.metrics.calibration import fit_temperature

    return fit_temperature(*arguments)


def _fit_platt(*arguments):
    from kmed.metrics.calibration import fit_platt

    return fit_platt(*arguments)


def _constant_classes(prior) -> dict[str, np.ndarray]:
    """Returns "majority class", which is sure of the most frequent class, and "label prevalence", the class shares."""
    shares = prior.shares
    return {"majority class": np.eye(len(shares))[shares.argmax()], "label prevalence": shares}


def _constant_findings(prior) -> dict[str, np.ndarray]:
    """Returns "empty set", "always 'No Finding'" where that is a label, and "label prevalence", the label shares.

    Label prevalence predicts the labels that at least half of the training images have.
    """
    shares = prior.shares
    predictors = {"empty set": np.zeros(len(shares))}
    negative = negative_label(prior.class_names)
    if negative is not None:
        predictors[f"always {prior.class_names[negative]!r}"] = np.eye(len(shares))[negative]
    return predictors | {"label prevalence": shares}


# ---- Metrics of `fit`: one line each ---------------------------------------------------------------


def _multiclass_metrics(class_names=()) -> list:
    import keras

    return [keras.metrics.CategoricalAccuracy(name="accuracy"), keras.metrics.F1Score(average="macro", name="f1_macro")]


def _multilabel_metrics(class_names) -> list:
    from kmed.metrics.streaming import ExactMatchRatio, HammingLoss, MacroAUROC

    ignored = set(range(len(class_names))) - set(finding_indices(class_names))
    return [ExactMatchRatio(), HammingLoss(), MacroAUROC(len(class_names), ignored=sorted(ignored))]


# ---- Final scores: one line each -------------------------------------------------------------------


def _multiclass_scores() -> dict:
    from kmed.metrics import overall_scores as overall
    from kmed.metrics.reliability import brier_score, calibration_error
    from kmed.metrics.scores import FinalScore

    return {
        "accuracy": FinalScore(
            "decisions", overall.accuracy, "Share of pictures whose most probable class is the true one."
        ),
        **_rates(macro=overall.macro_rate, micro=overall.micro_rate),
        "auroc_macro": FinalScore("ranking", overall.macro_auroc),
        "average_precision_macro": FinalScore("ranking", overall.macro_average_precision),
        "brier": FinalScore("probabilities", brier_score),
        "ece": FinalScore("probabilities", calibration_error),
    }


def _multilabel_scores() -> dict:
    from kmed.metrics import overall_scores as overall
    from kmed.metrics.reliability import brier_score, calibration_error
    from kmed.metrics.scores import FinalScore

    return {
        "exact_match_ratio": FinalScore(
            "decisions",
            overall.exact_match_ratio,
            "Share of pictures whose labels are all correct. A model that finds nothing reaches the share of pictures "
            "without a finding.",
        ),
        "hamming_loss": FinalScore(
            "decisions",
            overall.hamming_loss,
            "Share of labels that are wrong. Where findings are rare, it is small even for a model that finds nothing.",
        ),
        **_rates(samples=overall.samples_rate),
        **_rates(macro=overall.macro_rate, micro=overall.micro_rate),
        "auroc_macro": FinalScore("ranking", overall.macro_auroc),
        "auroc_macro_common": FinalScore("ranking", overall.macro_auroc_common),
        "average_precision_macro": FinalScore("ranking", overall.macro_average_precision),
        "brier": FinalScore("probabilities", brier_score),
        "ece": FinalScore("probabilities", calibration_error),
    }


def _rates(**averages) -> dict:
    """Returns one row for each of precision, recall and F1, and each of the `averages`, such as macro."""
    from kmed.metrics.class_scores import RATES
    from kmed.metrics.scores import FinalScore

    return {
        f"{name}_{average}": FinalScore("decisions", functools.partial(compute, name=name))
        for name in RATES
        for average, compute in averages.items()
    }


# ---- The table -------------------------------------------------------------------------------------

TASKS = {
    "multiclass": Task(
        name="multiclass",
        exclusive=True,
        reason="each image has one label",
        activation="softmax",
        losses=("crossentropy",),
        check_labels=_check_one_class_per_row,
        decode=_most_probable,
        fit_calibration=_fit_temperature,
        constant_predictors=_constant_classes,
        make_metrics=_multiclass_metrics,
        make_scores=_multiclass_scores,
        decision_score="accuracy",
        exported_scores=("accuracy", "f1_macro"),
        paired_scores=("accuracy", "f1_macro", "auroc_macro"),
        study_scores=("accuracy", "precision_macro", "recall_macro", "f1_macro"),
        compared_scores=("accuracy", "precision_macro", "recall_macro", "f1_macro", "auroc_macro"),
        headline_scores=("accuracy", "f1_macro"),
        subgroup_scores=("accuracy", "f1_macro", "auroc_macro"),
    ),
    "multilabel": Task(
        name="multilabel",
        exclusive=False,
        reason="an image may have several labels or none",
        activation="sigmoid",
        losses=("bce", "weighted_bce", "focal", "asymmetric"),
        check_labels=_check_some_known,
        decode=_at_least,
        fit_calibration=_fit_platt,
        constant_predictors=_constant_findings,
        make_metrics=_multilabel_metrics,
        make_scores=_multilabel_scores,
        decision_score="exact_match_ratio",
        exported_scores=("auroc_macro", "exact_match_ratio"),
        paired_scores=("auroc_macro", "auroc_macro_common", "exact_match_ratio", "hamming_loss"),
        study_scores=("exact_match_ratio", "hamming_loss", "recall_samples", "precision_samples", "f1_samples"),
        compared_scores=(
            "auroc_macro",
            "exact_match_ratio",
            "hamming_loss",
            "recall_samples",
            "precision_samples",
            "f1_samples",
            "auroc_macro_common",
        ),
        headline_scores=("exact_match_ratio", "f1_samples"),
        subgroup_scores=("exact_match_ratio", "f1_macro", "auroc_macro"),
    ),
}
