"""Final scores of joined labels and probabilities, each with an interval from resampled clusters.

Three rules hold throughout. A label that is NaN is unknown and takes no part. A class without an
image has no precision, recall, F1 or AUROC: they are NaN, never 0, and macro means leave it out. The
set of classes in a macro mean is that of the data: a resample that lacks one of them has no macro.
"""

import dataclasses
import math

import numpy as np
import sklearn.metrics

from kmed.class_scores import CLASS_SCORES, Confusion, auroc_scores, confusion_matrix, rate_scores, samples_scores
from kmed.errors import ScoreError
from kmed.intervals import Score, divide, draw_resamples, mean_score


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model is worth on one split.

    Attributes:
      scores: name -> Score, over all classes.
      per_class: class name -> {"precision", "recall", "f1", "auroc"} -> Score.
      confusion: multiclass only, else None.
      num_images, num_clusters: size of what was scored.
      left_out: classes whose AUROC is undefined (all images hold them, or none), so not in its mean.
      level: nominal coverage of the intervals.
    """

    scores: dict[str, Score]
    per_class: dict[str, dict[str, Score]]
    confusion: Confusion | None
    num_images: int
    num_clusters: int
    left_out: tuple[str, ...]
    level: float

    def to_dict(self) -> dict:
        """Returns all of it as dicts, lists and numbers, for `kmed.files.write_json`."""
        confusion = self.confusion and {
            name: getattr(self.confusion, name).tolist() for name in ("counts", "rates", "low", "high")
        }
        return {
            "num_images": self.num_images,
            "num_clusters": self.num_clusters,
            "level": self.level,
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "per_class": {
                name: {key: score.to_dict() for key, score in scores.items()} for name, scores in self.per_class.items()
            },
            "left_out": list(self.left_out),
            "confusion": confusion,
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
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Scores:
    """Returns accuracy, precision, recall, F1, AUROC (one against the rest) and the confusion matrix.

    The predicted class is the most probable one, the first of several. Precision and F1 of a class
    that is never predicted are 0. Macro recall is balanced accuracy.

    Args:
      labels: (N, K) with one 1 a row, or integers (N,) in 0..K-1.
      probs: (N, K) in [0, 1].
      clusters: (N,), what resampling keeps together: a patient, a slide, a photograph.
      class_names: K names.
      num_resamples, level, seed: of the intervals; see `kmed.intervals.draw_resamples`.
    Raises: ScoreError: shapes that do not agree, no images, labels or probs out of their range.
    """
    labels, probs = _checked(labels, probs, clusters, class_names)
    if not (labels.sum(axis=1) == 1).all():  # NaN fails too
        raise ScoreError("multiclass labels must have exactly one 1 a row. Received: rows with none, several or NaN.")
    resamples = draw_resamples(clusters, num_resamples, level, seed)
    guesses = np.eye(len(class_names), dtype=bool)[probs.argmax(axis=1)]  # (N, K)
    right = (guesses & (labels == 1)).any(axis=1)  # (N,)
    accuracy = sklearn.metrics.accuracy_score(labels.argmax(axis=1), probs.argmax(axis=1))
    scores = {"accuracy": mean_score(resamples, accuracy, right)}
    return _judge(labels, guesses, probs, class_names, resamples, scores, confusion_matrix(labels, guesses, resamples))


def score_multilabel(
    labels: np.ndarray,
    probs: np.ndarray,
    clusters,
    class_names,
    *,
    thresholds=0.5,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Scores:
    """Returns exact match ratio, Hamming loss, precision, recall and F1 (macro, micro, samples), AUROC.

    Samples averages are means over images, where an image with nothing to find or nothing found
    counts 0, as in scikit-learn. Images without a known label are left out.

    Args:
      labels: (N, K) in {0, 1}, NaN where unknown.
      probs: (N, K) in [0, 1].
      clusters, class_names, num_resamples, level, seed: as in `score_multiclass`.
      thresholds: a number or (K,); a label is predicted where prob >= threshold.
    Raises: ScoreError: shapes that do not agree, no known label, labels or probs out of their range.
    """
    labels, probs = _checked(labels, probs, clusters, class_names)
    if np.shape(thresholds) not in ((), labels.shape[1:]):
        raise ScoreError(f"thresholds must be a number or one a class. Received: shape={np.shape(thresholds)}.")
    kept = ~np.isnan(labels).all(axis=1)
    if not kept.any():
        raise ScoreError(f"There is nothing to score. Received: {labels.size} labels, all NaN.")
    labels, probs, clusters = labels[kept], probs[kept], np.asarray(clusters, dtype=object)[kept]
    resamples = draw_resamples(clusters, num_resamples, level, seed)
    known = ~np.isnan(labels)
    guesses = known & (probs >= np.asarray(thresholds))
    wrong = known & (guesses != (labels == 1))
    scores = {
        "exact_match_ratio": mean_score(resamples, np.mean(~wrong.any(axis=1)), ~wrong.any(axis=1)),
        "hamming_loss": mean_score(resamples, wrong.sum() / known.sum(), wrong.sum(axis=1), known.sum(axis=1)),
    }
    scores |= samples_scores(labels == 1, guesses, resamples)
    return _judge(labels, guesses, probs, class_names, resamples, scores, confusion=None)


def majority_scores(score, train_labels: np.ndarray, labels: np.ndarray, clusters, class_names, **settings) -> Scores:
    """Returns the scores of a predictor that gives every image the class shares of the training labels.

    It always says the class most frequent in training (multiclass), or each label that at least half
    of the training images have (multilabel). A model must beat it to have learnt anything.

    Args:
      score: `score_multiclass` or `score_multilabel`.
      train_labels: (N', K), or integers (N',), of the training split.
      labels, clusters, class_names, settings: what `score` takes for the split that is judged.
    Raises: ScoreError: no training labels, or what `score` raises.
    """
    train_labels = _one_hot(train_labels, len(class_names))
    if not len(train_labels):
        raise ScoreError("The majority is that of the training labels. Received: 0 training images.")
    known = ~np.isnan(train_labels)
    shares = divide(np.nansum(train_labels, axis=0), known.sum(axis=0))  # (K,)
    return score(labels, np.tile(shares, (len(labels), 1)), clusters, class_names, **settings)


def _checked(labels, probs, clusters, class_names) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels and probs as float64 (N, K), or raises ScoreError."""
    probs = np.asarray(probs, dtype=np.float64)
    labels = _one_hot(labels, len(class_names))
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
    return labels, probs


def _one_hot(labels, num_classes: int) -> np.ndarray:
    """Returns float64 (N, K) from one row an image, or from integer classes (N,)."""
    labels = np.asarray(labels, dtype=np.float64)
    if labels.ndim != 1:
        return labels
    if not np.isin(labels, np.arange(num_classes)).all():
        raise ScoreError(f"Integer labels must lie in 0..{num_classes - 1}. Received: {np.unique(labels)[:10]}.")
    return np.eye(num_classes)[labels.astype(int)]


def _judge(labels, guesses, probs, class_names, resamples, scores, confusion) -> Scores:
    """Returns Scores: `scores`, and what both tasks share: macro, micro and each class."""
    holding = [resamples.clusters_with(column) for column in (labels == 1).T]  # K numbers
    overall, per_class = rate_scores(labels == 1, guesses, resamples, holding)
    overall["auroc_macro"], per_class["auroc"] = auroc_scores(labels, probs, resamples, holding)
    by_class = {name: {key: per_class[key][k] for key in CLASS_SCORES} for k, name in enumerate(class_names)}
    return Scores(
        scores=scores | overall,
        per_class=by_class,
        confusion=confusion,
        num_images=len(labels),
        num_clusters=resamples.num_clusters,
        left_out=tuple(name for name, of_class in by_class.items() if math.isnan(of_class["auroc"].value)),
        level=resamples.level,
    )


def format_scores(scores: Scores, majority: Scores | None = None) -> str:
    """Returns two plain tables: the overall scores beside the majority's, then each class' scores.

    A score that rests on fewer than 20 clusters is marked, since its interval is too narrow.
    """
    interval = f"{100 * scores.level:g} % interval"
    rows = [("score", "value", interval, "clusters", *(["majority"] if majority else []), "")]
    for name, score in scores.scores.items():
        beside = [_number(majority.scores[name].value)] if majority else []
        rows.append((name, _number(score.value), _span(score), str(score.num_clusters), *beside, _mark(score)))
    by_class = [("class", *CLASS_SCORES, "clusters", "")]
    for name, of_class in scores.per_class.items():
        cells = [f"{_number(score.value)} ({_span(score)})" for score in of_class.values()]
        by_class.append((name, *cells, str(of_class["recall"].num_clusters), _mark(of_class["recall"])))
    lines = [*_aligned(rows), "", *_aligned(by_class)]
    if scores.left_out:
        lines += ["", f"No AUROC, and not in its mean: {', '.join(scores.left_out)}."]
    return "\n".join(lines)


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}"


def _span(score: Score) -> str:
    return "none" if math.isnan(score.low) else f"{score.low:.3f} to {score.high:.3f}"


def _mark(score: Score) -> str:
    return f"few clusters ({score.num_clusters})" if score.few_clusters else ""


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
