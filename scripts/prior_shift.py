"""How well the correction for other label shares does on a run's own test pictures, with their shares changed.

For each finding, pictures of the test split are left out at random until its share is doubled or halved. The patients
are then split into two halves. On the first, the new share is found without labels, and a calibration is refitted with
labels; on the second, the expected calibration error is measured: of the run's calibration, the corrected one and the
refitted one. Findings with too few pictures for a fit are left out.

    python scripts/prior_shift.py results/nih_cxr_lite/lite0_seed0 --draws 20 --out results/prior_shift_nih.csv
"""

import pathlib

import click
import numpy as np
import pandas as pd

from kmed.evaluation.decisions import read_fitted
from kmed.evaluation.predictions import Predictions, stored_predictions
from kmed.evaluation.recalibration import home_shares
from kmed.files import write_frame
from kmed.metrics.calibration import MIN_POSITIVES, Calibration, fit_platt
from kmed.metrics.intervals import Bootstrap, draw_resamples
from kmed.metrics.prior_shift import are_shifted, shift_calibration, shifted_shares
from kmed.metrics.reliability import NUM_BINS
from kmed.runs import judged_run

FACTORS = (2.0, 1.0, 0.5)


@click.command()
@click.argument("run_folder", type=click.Path(path_type=pathlib.Path))
@click.option("--draws", default=50, show_default=True, help="Random resamplings and halves per finding.")
@click.option("--out", type=click.Path(path_type=pathlib.Path), help="The CSV to write.")
def main(run_folder, draws, out):
    """Measure the correction on the stored predictions of a run of findings; no pictures are read."""
    run = judged_run(run_folder)
    stored = stored_predictions(run)
    frame = measure(stored.split("test"), read_fitted(run).calibration, home_shares(run, stored), draws)
    print(frame.to_string(index=False))
    means = frame.groupby("factor")[["ece_home", "ece_corrected", "ece_refitted"]].mean()
    print(means.to_string())
    if out is not None:
        write_frame(out, frame)


def measure(test: Predictions, calibration: Calibration, shares: np.ndarray, draws: int) -> pd.DataFrame:
    """Returns one row per factor and finding: the mean shares and calibration errors over the draws."""
    rows = []
    for factor in FACTORS:
        for k, name in enumerate(test.class_names):
            known = test.take(~np.isnan(test.labels[:, k]))
            not_fitted = {name: calibration.not_fitted[name]} if name in calibration.not_fitted else {}
            fitted = {"slopes": (calibration.slopes[k],), "intercepts": (calibration.intercepts[k],)}
            one = Calibration("platt", (name,), not_fitted=not_fitted, **fitted)
            drawn = [compare(known, k, factor, one, shares[k], np.random.default_rng(seed)) for seed in range(draws)]
            if kept := [each for each in drawn if each is not None]:
                rows.append(
                    {"factor": factor, "finding": name, "draws": len(kept), **pd.DataFrame(kept).astype(float).mean()}
                )
    return pd.DataFrame(rows)


def compare(test: Predictions, k: int, factor: float, calibration: Calibration, share: float, rng) -> dict | None:
    """Returns the shares and calibration errors of one draw; None if there are too few pictures to refit."""
    rows = resample(test.labels[:, k], factor, rng)
    labels, probs, groups = test.labels[rows, k], test.probs[rows, k], test.rows["group"].to_numpy()[rows]
    names = rng.permutation(np.unique(groups))
    half = np.isin(groups, names[: len(names) // 2])
    fewest = min(labels[half].sum(), (1 - labels[half]).sum(), labels[~half].sum())
    if fewest < MIN_POSITIVES:
        return None
    before = calibration.apply(probs[half, None])
    found = shifted_shares(before, np.array([share]), exclusive=False)
    draws = draw_resamples(groups[half], Bootstrap(200))
    used = are_shifted(before, np.array([share]), draws, exclusive=False) & (not calibration.not_fitted)
    corrected = shift_calibration(calibration, np.array([share]), np.where(used, found, share))
    refitted = fit_platt(labels[half, None], probs[half, None], calibration.class_names)
    errors = {
        f"ece_{name}": ece(labels[~half], each.apply(probs[~half, None])[:, 0])
        for name, each in (("home", calibration), ("corrected", corrected), ("refitted", refitted))
    }
    return {"share_home": share, "share_true": labels[half].mean(), "share_found": found[0], "used": used[0], **errors}


def resample(labels: np.ndarray, factor: float, rng) -> np.ndarray:
    """Returns the rows that are left when positives or negatives are left out until the share is `factor` times it."""
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    share = min(factor * len(positives) / max(len(labels), 1), 0.9)
    if factor > 1:
        negatives = rng.choice(negatives, min(len(negatives), round(len(positives) * (1 - share) / share)), False)
    elif factor < 1:
        positives = rng.choice(positives, round(len(negatives) * share / (1 - share)), False)
    return np.sort(np.concatenate([positives, negatives]))


def ece(labels: np.ndarray, probs: np.ndarray) -> float:
    """Returns the expected calibration error over bins of equal width, as `kmed.metrics.reliability` has it."""
    bins = np.clip((probs * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    return float(np.abs(np.bincount(bins, weights=probs - labels, minlength=NUM_BINS)).sum() / len(labels))


if __name__ == "__main__":
    main()
