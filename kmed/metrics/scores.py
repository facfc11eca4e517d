"""Final scores of joined labels and probabilities, each with an interval from resampled clusters.

Four rules hold throughout. A label that is NaN is unknown and takes no part. A class without an
image has no precision, recall, F1 or AUROC: they are NaN, never 0, and macro means leave it out. The
set of classes in a macro mean is that of the data: a resample that lacks one of them has no macro.
"No Finding" is modelled as any label, but is no finding: macro means leave it out too.
"""

import dataclasses
import math

import numpy as np
import sklearn.metrics

from kmed.errors import ScoreError
from kmed.labels import negative_label, one_hot_labels
from kmed.metrics.class_scores import (
    CLASS_SCORES,
    RATES,
    Confusion,
    confusion_matrix,
    ranking_scores,
    rate_scores,
    samples_scores,
)
from kmed.metrics.intervals import FEW_CLUSTERS, Resamples, Score, draw_resamples, macro_score, mean_score
from kmed.metrics.reliability import Reliability, brier_score, calibration_error, reliability

TUNED, CALIBRATED = "_tuned", "_calibrated"


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model is worth on one split.

    Attributes:
      scores: name -> Score, over all classes. Decisions at 0.5 (or by the most probable class) have
        the plain names, those by tuned thresholds end in "_tuned"; scores of calibrated probabilities
        end in "_calibrated".
      per_class: class name -> {"precision", "recall", "f1", "auroc", "average_precision", and the first
        three by tuned thresholds} -> Score.
      counts: class name -> {"positives", "known" (images), "clusters" (that hold a positive)}.
      confusion: multiclass only, else None.
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
        row = {}
        for name, score in self.scores.items():
            row |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
        return row


def score_multiclass(
    labels: np.ndarray,
    probs: np.ndarray,
    clusters,
    class_names,
    *,
    thresholds=None,
    calibrated: np.ndarray | None = None,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Scores:
    """Returns accuracy, precision, recall, F1, AUROC and average precision (one against the rest), Brier, ECE.

    The predicted class is the most probable one, the first of several. Precision and F1 of a class
    that is never predicted are 0. Macro recall is balanced accuracy.

    Args:
      labels: (N, K) with one 1 a row, or integers (N,) in 0..K-1.
      probs: (N, K) in [0, 1].
      clusters: (N,), what resampling keeps together: a patient, a slide, a photograph.
      class_names: K names.
      thresholds: (K,) above 0; a tuned decision is the class with the highest prob / threshold. None: no
        tuned scores.
      calibrated: (N, K), the probabilities after calibration; None: no scores of them.
      num_resamples, level, seed: of the intervals; see `kmed.metrics.intervals.draw_resamples`.
    Raises: ScoreError: shapes that do not agree, no images, labels or probs out of their range.
    """
    labels, probs = _checked(labels, probs, clusters, class_names)
    if not (labels.sum(axis=1) == 1).all():  # NaN fails too
        raise ScoreError("multiclass labels must have exactly one 1 a row. Received: rows with none, several or NaN.")
    thresholds = _checked_thresholds(thresholds, labels)
    resamples = draw_resamples(clusters, num_resamples, level, seed)
    one_hot = np.eye(len(class_names), dtype=bool)
    guesses = one_hot[probs.argmax(axis=1)]  # (N, K)
    tuned = None if thresholds is None else one_hot[(probs / np.maximum(thresholds, 1e-12)).argmax(axis=1)]
    confusion = confusion_matrix(labels, guesses, resamples)
    return _judge(_decide_one, labels, (probs, calibrated), (guesses, tuned), class_names, resamples, confusion)


def score_multilabel(
    labels: np.ndarray,
    probs: np.ndarray,
    clusters,
    class_names,
    *,
    thresholds=None,
    calibrated: np.ndarray | None = None,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Scores:
    """Returns exact match ratio, Hamming loss, precision, recall and F1 (macro, micro, samples), AUROC, AP, Brier, ECE.

    Samples averages are means over images, where an image with nothing to find or nothing found
    counts 0, as in scikit-learn. Images without a known label are left out. Exact match, Hamming, the
    micro and samples averages run over all labels, "No Finding" among them; macro means over the
    findings. `auroc_macro_common` is the mean over those of them that 20 clusters or more hold.

    Args:
      labels: (N, K) in {0, 1}, NaN where unknown.
      probs: (N, K) in [0, 1].
      clusters, class_names, calibrated, num_resamples, level, seed: as in `score_multiclass`.
      thresholds: (K,); a tuned decision finds a label where prob >= threshold. None: no tuned scores.
    Raises: ScoreError: shapes that do not agree, no known label, labels or probs out of their range.
    """
    labels, probs = _checked(labels, probs, clusters, class_names)
    thresholds = _checked_thresholds(thresholds, labels)
    kept = ~np.isnan(labels).all(axis=1)
    if not kept.any():
        raise ScoreError(f"There is nothing to score. Received: {labels.size} labels, all NaN.")
    labels, probs, clusters = labels[kept], probs[kept], np.asarray(clusters, dtype=object)[kept]
    calibrated = None if calibrated is None else np.asarray(calibrated)[kept]
    resamples = draw_resamples(clusters, num_resamples, level, seed)
    known = ~np.isnan(labels)
    tuned = None if thresholds is None else known & (probs >= thresholds)
    guesses = known & (probs >= 0.5)
    scores = _judge(_decide_many, labels, (probs, calibrated), (guesses, tuned), class_names, resamples, None)
    return _with_common(scores, [class_names[k] for k in _findings(class_names)])


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
            f"labels and probs must be (images, classes), here {expected}, with a cluster an image. Received: "
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
        raise ScoreError(f"thresholds must be one a class, {labels.shape[1:]}. Received: {np.shape(thresholds)}.")
    return None if thresholds is None else np.asarray(thresholds, dtype=np.float64)


def _findings(class_names) -> list[int]:
    negative = negative_label(class_names)
    return [index for index in range(len(class_names)) if index != negative]


def _decide_one(labels, guesses, resamples) -> dict[str, Score]:
    """Returns the scores of whole decisions where an image has one class."""
    right = (guesses & (labels == 1)).any(axis=1)  # (N,)
    accuracy = sklearn.metrics.accuracy_score(labels.argmax(axis=1), guesses.argmax(axis=1))
    return {"accuracy": mean_score(resamples, accuracy, right)}


def _decide_many(labels, guesses, resamples) -> dict[str, Score]:
    """Returns the scores of whole decisions where an image has any number of labels."""
    known = ~np.isnan(labels)
    wrong = known & (guesses != (labels == 1))
    right = ~wrong.any(axis=1)  # (N,)
    hamming = wrong.sum() / known.sum()
    return {
        "exact_match_ratio": mean_score(resamples, np.mean(right), right),
        "hamming_loss": mean_score(resamples, hamming, wrong.sum(axis=1), known.sum(axis=1)),
        **samples_scores(labels == 1, guesses, resamples),
    }


def _judge(decide, labels, probs_pair, guesses_pair, class_names, resamples, confusion) -> Scores:
    """Returns Scores: those of the decisions (plain, then tuned), of the ranking, of the probabilities."""
    findings = _findings(class_names) if decide is _decide_many else None
    holding = [resamples.clusters_with(column) for column in (labels == 1).T]  # K numbers
    scores, tuned_scores, per_class = {}, {}, {}
    for guesses, suffix, into in zip(guesses_pair, ("", TUNED), (scores, tuned_scores)):
        if guesses is not None:
            overall, by_class = rate_scores(labels == 1, guesses, resamples, holding, findings)
            whole = decide(labels, guesses, resamples) | overall
            into |= {f"{name}{suffix}": score for name, score in whole.items()}
            per_class |= {f"{name}{suffix}": by_class[name] for name in RATES}
    overall, by_class = ranking_scores(labels, probs_pair[0], resamples, holding, findings)
    scores |= overall
    per_class |= by_class
    bins = {}
    for probs, name, suffix in zip(probs_pair, ("raw", "calibrated"), ("", CALIBRATED)):
        if probs is not None:
            kind = {"exclusive": decide is _decide_one}
            scores[f"brier{suffix}"] = brier_score(labels, probs, resamples, **kind)
            scores[f"ece{suffix}"] = calibration_error(labels, probs, resamples, **kind)
            bins[name] = reliability(labels, probs, resamples, **kind)
    order = [key for key in (*CLASS_SCORES, *(f"{name}{TUNED}" for name in RATES)) if key in per_class]
    by_name = {name: {key: per_class[key][k] for key in order} for k, name in enumerate(class_names)}
    return Scores(
        scores=scores | tuned_scores,
        per_class=by_name,
        counts={
            name: {"positives": int((truth == 1).sum()), "known": int((~np.isnan(truth)).sum()), "clusters": held}
            for name, truth, held in zip(class_names, labels.T, holding)
        },
        confusion=confusion,
        reliability=bins,
        num_images=len(labels),
        num_clusters=resamples.num_clusters,
        num_labels=len(class_names),
        left_out=tuple(
            name
            for k, name in enumerate(class_names)
            if (findings is None or k in findings) and math.isnan(by_name[name]["auroc"].value)
        ),
        resamples=resamples,
    )


def _with_common(scores: Scores, findings) -> Scores:
    """Adds the mean AUROC over the findings that enough clusters hold for it to rank models by."""
    areas = [scores.per_class[name]["auroc"] for name in findings]
    common = [index for index, area in enumerate(areas) if area.num_clusters >= FEW_CLUSTERS]
    mean = macro_score(areas, np.stack([area.resampled for area in areas], axis=1), scores.resamples, common)
    ordered = {}
    for name, score in scores.scores.items():
        ordered[name] = score
        if name == "auroc_macro":
            ordered["auroc_macro_common"] = mean
    return dataclasses.replace(scores, scores=ordered)
