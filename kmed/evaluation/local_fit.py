"""What is fitted to a local sample: calibration and thresholds with labels, or the shares of the classes without."""

import dataclasses
from collections.abc import Callable

import numpy as np

from kmed.errors import DataError
from kmed.evaluation.assessment import score_predictions
from kmed.evaluation.decisions import Fitted, fit_on_validation
from kmed.evaluation.predictions import Predictions
from kmed.metrics.calibration import MIN_POSITIVES, Calibration, mean_log_loss
from kmed.metrics.intervals import Bootstrap, Score, check_clusters, draw_resamples
from kmed.metrics.prior_shift import are_shifted, shift_calibration, shifted_shares
from kmed.metrics.scores import CALIBRATED, TUNED

TRIES = 200  # random halves, of which the one whose label shares differ least is taken
SIZES = (10, 20, 40, 80, 160, 320, 640, 1280)  # labelled groups of the learning curve
REPEATS = 20
ENOUGH = 0.1  # of what all labels gain may be missing where labels are called enough


def split_groups(predictions: Predictions, fraction: float, seed: int) -> np.ndarray:
    """Returns bool (N,), the pictures to fit to: whole groups, so that none is on both sides, with like label shares.

    Args:
      predictions: those of the local sample.
      fraction: the share of the groups, in (0, 1).
      seed: random seed.
    Raises: DataError: fewer than four groups.
    """
    names, index = np.unique(predictions.rows["group"].to_numpy(str), return_inverse=True)
    if len(names) < 4:
        raise DataError(
            f"A sample is split by group into a part to fit to and a part to check on, which needs at least 4 groups, "
            f"better 100. Received: {len(names)}. Add pictures of others, or tell groups apart with data.group."
        )
    rng, best, chosen = np.random.default_rng(seed), np.inf, np.zeros(len(predictions), bool)
    count = min(max(round(fraction * len(names)), 2), len(names) - 2)
    for _ in range(TRIES):
        inside = np.isin(index, rng.permutation(len(names))[:count])
        shares = [np.nan_to_num(known_shares(predictions.labels[part])) for part in (inside, ~inside)]
        if (distance := float(((shares[0] - shares[1]) ** 2).sum())) < best:
            best, chosen = distance, inside
    for part in (chosen, ~chosen):
        check_clusters(predictions.clusters[part])
    return chosen


def known_shares(labels: np.ndarray) -> np.ndarray:
    """Returns (K,), the share of the known labels that are 1; NaN where none is known."""
    known = (~np.isnan(labels)).sum(axis=0)
    return np.where(known > 0, np.nansum(labels, axis=0) / np.maximum(known, 1), np.nan)


# ---- The two ways ----------------------------------------------------------------------------------


def fit_labels(sample: Predictions, home: Fitted, settings, not_findings) -> Fitted:
    """Returns what is fitted to labelled pictures; a label with too few positives or negatives keeps that of home.

    Args:
      sample: the pictures to fit to.
      home: the run's calibration and thresholds.
      settings: kmed.config.EvaluateConfig.
      not_findings: the setting of that name in `data`.
    """
    fitted = fit_on_validation(sample, settings, not_findings)
    few = few_labels(sample)
    if sample.task.exclusive or not few.any():
        return fitted
    calibration = fit_calibration(sample, home.calibration)
    thresholds = fitted.thresholds
    if thresholds.choice is None:
        kept = np.where(few, home.thresholds.values, thresholds.values)
        thresholds = dataclasses.replace(thresholds, values=tuple(kept.tolist()))
    sets = np.where(few, home.set_thresholds, fitted.set_thresholds)
    return dataclasses.replace(fitted, calibration=calibration, thresholds=thresholds, set_thresholds=sets)


def fit_calibration(sample: Predictions, home: Calibration) -> Calibration:
    """Returns the calibration of labelled pictures; a label with too few positives or negatives keeps that of home."""
    fitted = sample.task.fit_calibration(sample.labels, sample.probs, sample.class_names)
    if sample.task.exclusive:
        return fitted
    few = few_labels(sample)
    slopes = tuple(np.where(few, home.slopes, fitted.slopes).tolist())
    return dataclasses.replace(
        fitted, slopes=slopes, intercepts=tuple(np.where(few, home.intercepts, fitted.intercepts).tolist())
    )


def few_labels(sample: Predictions) -> np.ndarray:
    """Returns bool (K,), the labels with too few positives or negatives to fit anything to."""
    positives, negatives = ((sample.labels == kind).sum(axis=0) for kind in (1, 0))
    return np.minimum(positives, negatives) < MIN_POSITIVES


def fit_shares(
    sample: Predictions, home: Fitted, shares: np.ndarray, bootstrap: Bootstrap
) -> tuple[Fitted, np.ndarray, np.ndarray]:
    """Returns (what is fitted without labels, the new shares (K,), which are used), by `kmed.metrics.prior_shift`.

    A share is used where the pictures tell it from that at home; the others stay, and so do those of findings that had
    too few positives at home to be calibrated, which the correction needs. A finding is reported from the same
    calibrated probability on as at home; exclusive classes move with their probabilities. Prediction sets stay as they
    are.

    Args:
      sample: the pictures to fit to; their labels are not used.
      home: the run's calibration and thresholds.
      shares: (K,), the shares of the classes that `home` was calibrated for.
      bootstrap: the settings of the intervals of the new shares, of which 200 draws are enough.
    """
    task, before = sample.task, home.calibration
    probs = before.apply(sample.probs)
    likeliest = shifted_shares(probs, shares, exclusive=task.exclusive)
    draws = dataclasses.replace(bootstrap, num_resamples=min(bootstrap.num_resamples, 200))
    used = are_shifted(probs, shares, draw_resamples(sample.clusters, draws), exclusive=task.exclusive)
    if not task.exclusive:
        used &= ~np.isin(sample.class_names, list(before.not_fitted))
    found = np.where(used, likeliest, shares)
    calibration = shift_calibration(before, shares, found)
    values = np.array(home.thresholds.values)
    if task.exclusive:
        moved = values * np.exp(-before.temperature * (np.log(found) - np.log(shares)))
        values = moved / max(moved.max(), 1.0)
    else:
        fixed = before.constant | (values <= 0) | (values >= 1)
        moved = calibration.invert(before.apply(values[None]))[0]
        values = np.where(fixed, values, np.clip(moved, 0, 1))
    thresholds = dataclasses.replace(home.thresholds, values=tuple(values.tolist()))
    return dataclasses.replace(home, calibration=calibration, thresholds=thresholds), likeliest, used


# ---- What it is worth ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Gain:
    """A score on pictures that nothing was fitted to, with what was fitted at home and with what was fitted here."""

    home: Score
    local: Score
    gain: Score  # local - home, paired

    def to_dict(self) -> dict:
        """Returns the scores, for `kmed.files.write_json`."""
        return {field.name: getattr(self, field.name).to_dict() for field in dataclasses.fields(self)}


def measure_gains(check: Predictions, home: Fitted, local: Fitted, bootstrap: Bootstrap) -> dict[str, Gain]:
    """Returns name -> Gain of each score that calibration or thresholds change."""
    before, after = (score_predictions(check, fitted, bootstrap) for fitted in (home, local))
    names = [name for name in after.scores if name.endswith((CALIBRATED, TUNED))]
    return {
        name: Gain(
            before.scores[name],
            after.scores[name],
            after.resamples.difference(after.scores[name], before.scores[name]),
        )
        for name in names
    }


def log_loss(predictions: Predictions, calibration: Calibration) -> float:
    """Returns the log loss of calibrated probabilities: per picture of exclusive classes, else per known label."""
    probs = calibration.apply(predictions.probs)
    return mean_log_loss(predictions.labels, probs, exclusive=predictions.task.exclusive)


def learning_curve(
    fit: Predictions, check: Predictions, home: Calibration, fit_to: Callable[[Predictions], Calibration], seed: int
) -> dict:
    """Returns how the log loss on `check` falls with the number of labelled groups, and how many are enough.

    Args:
      fit: the labelled pictures.
      check: pictures that nothing is fitted to.
      home: the run's own calibration.
      fit_to: function that fits to some of the pictures.
      seed: random seed of the draws.
    Returns: {"home": its log loss, "points": [{"groups", "mean", "low", "high"}] with the range of nine tenths of 20
      draws, "enough": the fewest groups whose mean keeps nine tenths of the gain of all; 0 if all gain nothing; None if
      only all of them do}.
    """
    groups = fit.rows["group"].to_numpy(str)
    names, rng = np.unique(groups), np.random.default_rng(seed)
    loss = log_loss(check, home)
    points = []
    for size in [*(size for size in SIZES if size < len(names)), len(names)]:
        drawn = [
            log_loss(check, fit_to(fit.take(np.isin(groups, rng.choice(names, size, replace=False)))))
            for _ in range(REPEATS if size < len(names) else 1)
        ]
        low, high = np.quantile(drawn, [0.05, 0.95])
        points.append({"groups": size, "mean": float(np.mean(drawn)), "low": float(low), "high": float(high)})
    best = points[-1]["mean"]
    enough: int | None = 0
    if best < loss:
        good = [point["groups"] for point in points[:-1] if point["mean"] <= best + ENOUGH * (loss - best)]
        enough = int(good[0]) if good else None
    return {"home": loss, "points": points, "enough": enough}
