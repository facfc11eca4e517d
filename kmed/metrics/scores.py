"""Final scores of joined labels and probabilities, each with an interval from resampled clusters.

Four rules hold throughout. A label that is NaN is unknown and takes no part. A class without an
image has no precision, recall, F1 or AUROC: they are NaN, never 0, and macro means leave it out. The
set of classes in a macro mean is that of the data: a resample that lacks one of them has no macro.
"No Finding" is modelled as any label, but is not a finding: macro means leave it out too.
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
    """A score of a whole split: a row of a task's `make_scores`, which gives it its name.

    Attributes:
      kind: what it is made from. "decisions" (also those by tuned thresholds), "ranking", or "probabilities" (also
        the calibrated ones).
      compute: (kmed.metrics.class_scores.Decisions) -> Score for decisions, else (Probabilities) -> Score.
      meaning: a sentence for the report's glossary; "": the glossary's own words cover it.
    Raises: ScoreError: an unknown kind.
    """

    kind: str
    compute: collections.abc.Callable
    meaning: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ScoreError(f"The kind of a score is {', '.join(KINDS)}. Received: kind={self.kind!r}.")


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model is worth on one split.

    Attributes:
      scores: name -> Score, over all classes, in the order of the task's rows. Decisions at 0.5 (or by the most
        probable class) have the plain names, those by tuned thresholds end in "_tuned"; scores of calibrated
        probabilities end in "_calibrated".
      per_class: class name -> {"precision", "recall", "f1", "auroc", "average_precision", and the first
        three by tuned thresholds} -> Score.
      counts: class name -> {"positives", "known" (images), "clusters" (that hold a positive)}.
      confusion: of exclusive classes, else None.
      reliability: "raw", and "calibrated" where that is known -> Reliability.
      num_images, num_clusters, num_labels: size of what was scored.
      left_out: findings whose AUROC is undefined (all images hold them, or none), so not in its mean.
      resamples: the draws behind the intervals.
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
        """Returns all of it as dicts, lists and numbers, for `kmed.files.write_json`."""
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

    def flat(self) -> dict[str, float]:
        """Returns name, name_low, name_high of each overall score, for one row of a results table."""
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
    calibrated: np.ndarray | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> Scores:
    """Returns the Scores of a split: those that the task's rows name, and those of each class.

    Precision and F1 of a class that is never predicted are 0. Macro recall is balanced accuracy where classes
    exclude each other. Samples averages are means over images, where an image with nothing to find or nothing
    found counts 0, as in scikit-learn. Images without a known label are left out. Exact match, Hamming, the
    micro and samples averages run over all labels, "No Finding" among them; macro means over the findings.

    Args:
      task: kmed.tasks.Task; says what is decided and which scores are made.
      labels: (N, K) in {0, 1}, NaN where unknown; with exclusive classes one 1 per row, or integers (N,) in 0..K-1.
      probs: (N, K) in [0, 1].
      clusters: (N,), what resampling keeps together: a patient, a slide, a photograph.
      class_names: K names.
      thresholds: (K,), of tuned decisions, see the task's `decode`. None: no tuned scores.
      calibrated: (N, K), the probabilities after calibration; None: no scores of them.
      bootstrap: of the intervals.
    Raises: ScoreError: shapes that do not agree, no images or known labels, labels or probs out of their range.
    """
    labels, probs = _checked(labels, probs, clusters, class_names)
    kept = _scored_rows(task, labels)
    thresholds = _checked_thresholds(thresholds, labels)
    labels, probs, clusters = labels[kept], probs[kept], np.asarray(clusters, dtype=object)[kept]
    sample = Sample(labels, tuple(class_names), draw_resamples(clusters, bootstrap), task.exclusive)
    plain = Decisions(sample, sample.known & (task.decode(probs) == 1))
    tuned = None if thresholds is None else Decisions(sample, sample.known & (task.decode(probs, thresholds) == 1))
    raw = Probabilities(sample, probs)
    better = None if calibrated is None else Probabilities(sample, np.asarray(calibrated)[kept])
    return Scores(
        scores=_overall(task.make_scores(), plain, tuned, raw, better),
        per_class=_per_class(plain, tuned, raw),
        counts=_counts(sample),
        confusion=confusion_matrix(plain) if task.exclusive else None,
        reliability={
            name: reliability(made) for name, made in (("raw", raw), ("calibrated", better)) if made is not None
        },
        num_images=len(labels),
        num_clusters=sample.resamples.num_clusters,
        num_labels=len(class_names),
        left_out=tuple(class_names[k] for k in sample.averaged if math.isnan(raw.auroc[k].value)),
        resamples=sample.resamples,
    )


def _overall(rows: dict[str, FinalScore], plain, tuned, raw, calibrated) -> dict[str, Score]:
    """Returns name -> Score of each row: plain decisions, ranking and probabilities, then calibrated and tuned."""
    passes = (
        ("decisions", "", plain),
        ("ranking", "", raw),
        ("probabilities", "", raw),
        ("probabilities", CALIBRATED, calibrated),
        ("decisions", TUNED, tuned),
    )
    return {
        f"{name}{suffix}": row.compute(made)
        for kind, suffix, made in passes
        if made is not None
        for name, row in rows.items()
        if row.kind == kind
    }


def _per_class(plain: Decisions, tuned: Decisions | None, raw: Probabilities) -> dict[str, dict[str, Score]]:
    """Returns class name -> {name: Score}."""
    scores = {**plain.rates, "auroc": raw.auroc, "average_precision": raw.average_precision}
    scores = {name: scores[name] for name in CLASS_SCORES}
    if tuned is not None:
        scores |= {f"{name}{TUNED}": tuned.rates[name] for name in RATES}
    names = plain.sample.class_names
    return {name: {key: of_class[k] for key, of_class in scores.items()} for k, name in enumerate(names)}


def _counts(sample: Sample) -> dict[str, dict[str, int]]:
    """Returns class name -> how many images are positive and known, and how many clusters hold a positive."""
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
        raise ScoreError(f"Class names must differ from each other. Received: class_names={list(class_names)}.")
    if 0 in expected:
        raise ScoreError(f"There is nothing to score. Received: {expected[0]} images and {expected[1]} classes.")
    if labels.shape != expected or probs.shape != expected or len(clusters) != len(labels):
        raise ScoreError(
            f"labels and probs must be (images, classes), here {expected}, with a cluster per image. Received: "
            f"labels.shape={labels.shape}, probs.shape={probs.shape}, {len(clusters)} clusters."
        )
    if not np.isfinite(probs).all():
        raise ScoreError(f"probs must be numbers. Received: {np.sum(~np.isfinite(probs))} NaN or infinite ones.")
    if probs.min() < 0 or probs.max() > 1 + 1e-6:  # float32 sums of averaged probabilities may pass 1 by a hair
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
    """Returns bool (N,), the images that can be scored, or raises ScoreError where the labels do not fit the task."""
    if task.exclusive and not (labels.sum(axis=1) == 1).all():  # NaN fails too
        raise ScoreError(f"{task.name} labels must have exactly one 1 a row. Received: rows with none, several or NaN.")
    kept = ~np.isnan(labels).all(axis=1)
    if not kept.any():
        raise ScoreError(f"There is nothing to score. Received: {labels.size} labels, all NaN.")
    return kept
