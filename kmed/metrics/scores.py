"""Final scores of labels and probabilities, each with an interval from resampled clusters.

Four rules hold throughout. A label that is NaN is unknown and ignored. A class without images has no precision, recall,
F1 or AUROC: they are NaN, never 0, and macro means leave them out. Macro means always run over the classes that the
whole data set defines: in a resample without one of them, the macro mean is undefined. "No Finding" is predicted like
any other label but is not a finding, so macro means leave it out too.
"""

import collections.abc
import dataclasses
import math

import numpy as np

from kmed.errors import ScoreError
from kmed.labels import one_hot_labels
from kmed.metrics.class_scores import (
    CLASS_SCORES,
    RATES,
    Confusion,
    Decisions,
    Probabilities,
    Sample,
    confusion_matrix,
)
from kmed.metrics.intervals import DEFAULT_BOOTSTRAP, Bootstrap, Resamples, Score, draw_resamples
from kmed.metrics.reliability import Reliability, reliability

TUNED, CALIBRATED = "_tuned", "_calibrated"
KINDS = ("decisions", "ranking", "probabilities")


@dataclasses.dataclass(frozen=True)
class FinalScore:
    """A score of a whole split: a value in a task's `make_scores`, under the name of the score.

    Attributes:
      kind: what the score is computed from: "decisions" (also those at tuned thresholds), "ranking", or
        "probabilities" (also calibrated ones).
      compute: (kmed.metrics.class_scores.Decisions) -> Score for decisions, else (Probabilities) -> Score.
      meaning: explanation for the report's glossary; "": the glossary already explains it.
    Raises: ScoreError: the kind is unknown.
    """

    kind: str
    compute: collections.abc.Callable
    meaning: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ScoreError(f"The kind of a score must be one of {', '.join(KINDS)}. Received: kind={self.kind!r}.")


@dataclasses.dataclass(frozen=True)
class Scores:
    """All scores of a model on one split.

    Attributes:
      scores: name -> Score over all classes, in the order of the task's `make_scores`. Scores of decisions at 0.5 (or
        for the most probable class) have the plain names. Names of scores at tuned thresholds end in "_tuned",
        those of calibrated probabilities in "_calibrated".
      per_class: class name -> {"precision", "recall", "f1", "auroc", "average_precision", and the first
        three at tuned thresholds} -> Score.
      counts: class name -> {"positives", "known" (numbers of images), "clusters" (with a positive)} -> int.
      confusion: the confusion matrix of exclusive classes, else None.
      reliability: "raw", and "calibrated" if calibrated probabilities were given -> Reliability.
      num_images, num_clusters, num_labels: size of the data that were scored.
      left_out: findings that are not in the mean AUROC, because all images have them or none does.
      resamples: the draws that the intervals come from.
    """

    scores: dict[str, Score]
    per_class: dict[str, dict[str, Score]]
    counts: dict[str, dict[str, int]]
    confusion: Confusion | None
    reliability: dict[str, Reliability]
    num_images: int
    num_clusters: int
    num_labels: int
    left_out: tuple[str, ...]
    resamples: Resamples = dataclasses.field(repr=False)

    @property
    def level(self) -> float:
        """Nominal coverage of the intervals."""
        return self.resamples.level

    def to_dict(self) -> dict:
        """Returns the fields as dicts, lists and numbers, for `kmed.files.write_json`."""
        confusion = self.confusion and {
            name: getattr(self.confusion, name).tolist() for name in ("counts", "rates", "low", "high")
        }
        return {
            "num_images": self.num_images,
            "num_clusters": self.num_clusters,
            "num_labels": self.num_labels,
            "level": self.level,
            "num_resamples": len(self.resamples.counts),
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "per_class": {
                name: {key: score.to_dict() for key, score in scores.items()} for name, scores in self.per_class.items()
            },
            "counts": self.counts,
            "left_out": list(self.left_out),
            "confusion": confusion,
            "reliability": {name: bins.to_dict() for name, bins in self.reliability.items()},
        }

    def overall(self) -> dict:
        """Returns the scores over all classes and what they rest on, as `to_dict` does."""
        whole = self.to_dict()
        return {key: whole[key] for key in ("num_images", "num_clusters", "scores", "counts", "left_out")}

    def flat(self) -> dict[str, float]:
        """Returns `name`, `name_low` and `name_high` of each overall score, for one row of a results table."""
        row: dict[str, float] = {}
        for name, score in self.scores.items():
            row |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
        return row


def compute_scores(
    task,
    labels: np.ndarray,
    probs: np.ndarray,
    clusters,
    class_names,
    *,
    thresholds=None,
    decided: np.ndarray | None = None,
    calibrated: np.ndarray | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> Scores:
    """Returns the Scores of a split: the overall scores of the task, and those of each class.

    Precision and F1 of a class that is never predicted are 0. For exclusive classes, macro recall is balanced accuracy.
    Samples averages are means over images; an image without positive or without predicted labels counts 0, as in
    scikit-learn. Images without a known label are left out. Exact match ratio, Hamming loss, and micro and samples
    averages include all labels, also "No Finding"; macro means include only the findings.

    Args:
      task: kmed.tasks.Task, which defines the decisions and the scores.
      labels: (N, K) in {0, 1}, NaN where unknown; for exclusive classes one 1 per row, or integers (N,) in 0..K-1.
      probs: (N, K) in [0, 1].
      clusters: (N,), the patient, slide or photograph of each image, which resampling keeps together.
      class_names: K names.
      thresholds: (K,), tuned thresholds for the task's `decode`; None: no tuned scores.
      decided: (N, K) in {0, 1}, tuned decisions by another rule, in the place of `thresholds`.
      calibrated: (N, K), the calibrated probabilities; None: no scores of them.
      bootstrap: settings of the intervals.
    Raises: ScoreError: shapes do not match, there are no images or known labels, or labels or probs are out of range.
    """
    labels, probs = _checked(labels, probs, clusters, class_names)
    kept = _scored_rows(task, labels)
    thresholds = _checked_thresholds(thresholds, labels)
    labels, probs, clusters = labels[kept], probs[kept], np.asarray(clusters, dtype=object)[kept]
    sample = Sample(labels, tuple(class_names), draw_resamples(clusters, bootstrap), task.exclusive)
    plain = Decisions(sample, sample.known & (task.decode(probs) == 1))
    found = decided[kept] if decided is not None else None if thresholds is None else task.decode(probs, thresholds)
    tuned = None if found is None else Decisions(sample, sample.known & (found == 1))
    raw = Probabilities(sample, probs)
    corrected = None if calibrated is None else Probabilities(sample, np.asarray(calibrated)[kept])
    return Scores(
        scores=_overall(task.make_scores(), plain, tuned, raw, corrected),
        per_class=_per_class(plain, tuned, raw),
        counts=_counts(sample),
        confusion=confusion_matrix(plain) if task.exclusive else None,
        reliability={
            name: reliability(given) for name, given in (("raw", raw), ("calibrated", corrected)) if given is not None
        },
        num_images=len(labels),
        num_clusters=sample.resamples.num_clusters,
        num_labels=len(class_names),
        left_out=tuple(class_names[k] for k in sample.averaged if math.isnan(raw.auroc[k].value)),
        resamples=sample.resamples,
    )


def _overall(rows: dict[str, FinalScore], plain, tuned, raw, calibrated) -> dict[str, Score]:
    """Returns {name: Score}: of plain decisions, ranking and probabilities, then of calibrated and tuned ones."""
    passes = (
        ("decisions", "", plain),
        ("ranking", "", raw),
        ("probabilities", "", raw),
        ("probabilities", CALIBRATED, calibrated),
        ("decisions", TUNED, tuned),
    )
    return {
        f"{name}{suffix}": row.compute(given)
        for kind, suffix, given in passes
        if given is not None
        for name, row in rows.items()
        if row.kind == kind
    }


def _per_class(plain: Decisions, tuned: Decisions | None, raw: Probabilities) -> dict[str, dict[str, Score]]:
    """Returns {class name: {name: Score}}."""
    scores = {**plain.rates, "auroc": raw.auroc, "average_precision": raw.average_precision}
    scores = {name: scores[name] for name in CLASS_SCORES}
    if tuned is not None:
        scores |= {f"{name}{TUNED}": tuned.rates[name] for name in RATES}
    names = plain.sample.class_names
    return {name: {key: class_scores[k] for key, class_scores in scores.items()} for k, name in enumerate(names)}


def _counts(sample: Sample) -> dict[str, dict[str, int]]:
    """Returns {class name: {"positives", "known", "clusters"}}: numbers of images, and of clusters with a positive."""
    columns = zip(sample.class_names, sample.actual.T, sample.known.T, sample.holding, strict=True)
    return {
        name: {"positives": int(actual.sum()), "known": int(known.sum()), "clusters": held}
        for name, actual, known, held in columns
    }


def _checked(labels, probs, clusters, class_names) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels and probs as float64 (N, K), or raises ScoreError."""
    probs = np.asarray(probs, dtype=np.float64)
    labels = one_hot_labels(labels, len(class_names))
    expected = (len(labels), len(class_names))
    if len(set(class_names)) < len(class_names):
        raise ScoreError(f"Class names must be unique. Received: class_names={list(class_names)}.")
    if 0 in expected:
        raise ScoreError(f"There is nothing to score. Received: {expected[0]} images and {expected[1]} classes.")
    if labels.shape != expected or probs.shape != expected or len(clusters) != len(labels):
        raise ScoreError(
            f"labels and probs must have shape (images, classes), here {expected}, and each image a cluster. Received: "
            f"labels.shape={labels.shape}, probs.shape={probs.shape}, {len(clusters)} clusters."
        )
    if not np.isfinite(probs).all():
        raise ScoreError(f"probs must be finite. Received: {np.sum(~np.isfinite(probs))} NaN or infinite values.")
    if probs.min() < 0 or probs.max() > 1 + 1e-6:  # float32 sums of averaged probabilities may slightly exceed 1
        raise ScoreError(
            f"probs must lie in [0, 1]; are they logits? Received: {probs.min():.4g} to {probs.max():.4g}."
        )
    if not (np.isnan(labels) | (labels == 0) | (labels == 1)).all():
        raise ScoreError("labels must be 0, 1 or NaN (unknown). Received: other values.")
    return labels, np.minimum(probs, 1.0)


def _checked_thresholds(thresholds, labels):
    if thresholds is not None and np.shape(thresholds) != labels.shape[1:]:
        raise ScoreError(f"thresholds must be one per class, {labels.shape[1:]}. Received: {np.shape(thresholds)}.")
    return None if thresholds is None else np.asarray(thresholds, dtype=np.float64)


def _scored_rows(task, labels: np.ndarray) -> np.ndarray:
    """Returns bool (N,), the images that can be scored. Raises ScoreError if the labels do not fit the task."""
    if task.exclusive and not (labels.sum(axis=1) == 1).all():  # NaN fails too
        raise ScoreError(f"{task.name} labels need exactly one 1 per row. Received: rows with none, several or NaN.")
    kept = ~np.isnan(labels).all(axis=1)
    if not kept.any():
        raise ScoreError(f"There is nothing to score. Received: {labels.size} labels, all NaN.")
    return kept
