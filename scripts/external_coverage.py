"""How often the interval of a change between two hospitals contains the truth, in drawn data.

Every patient has some pictures and two findings. A patient's odds of a finding, and what the model makes of them, are
shared by the patient's pictures. In the second hospital the findings are rarer, and the model separates them less well
and is too sure of itself. The truth of each change comes from a sample of 200,000 patients; the intervals are those of
`kmed evaluate --on` (`kmed.evaluation.side_by_side`).

    python scripts/external_coverage.py --out results/external_coverage.csv
"""

import pathlib

import click
import numpy as np
import pandas as pd
import scipy.special

from kmed.evaluation.decisions import DecisionRule, Fitted
from kmed.evaluation.predictions import Predictions
from kmed.evaluation.side_by_side import SideBySide, set_side_by_side
from kmed.files import write_frame
from kmed.metrics.calibration import Calibration
from kmed.metrics.intervals import Bootstrap
from kmed.metrics.thresholds import Thresholds
from kmed.tasks import get_task

NAMES = ("one", "two")
PICTURES = 3  # per patient
HOSPITALS = {"home": (-0.5, 1.4, 1.0, 0.0), "other": (-1.2, 0.9, 1.6, 0.4)}  # see `draw`
TASK = get_task("multilabel")
CALIBRATION = Calibration("platt", NAMES, slopes=(1.0, 1.0), intercepts=(0.0, 0.0))
THRESHOLDS = Thresholds("f1", NAMES, (0.4, 0.4))
FITTED = Fitted(CALIBRATION, THRESHOLDS, np.array([0.1, 0.1]), 0.9)
RULE = DecisionRule(TASK, NAMES, np.array([0.4, 0.4]), THRESHOLDS, CALIBRATION, np.array([0.1, 0.1]))


@click.command()
@click.option("--patients", default="120,80", show_default=True, help="Patients of the two hospitals.")
@click.option("--data-sets", default=1000, show_default=True, help="Number drawn.")
@click.option("--resamples", default=400, show_default=True)
@click.option("--out", type=click.Path(path_type=pathlib.Path), help="The CSV to write.")
def main(patients, data_sets, resamples, out):
    """Measure the coverage of the intervals of changes."""
    sizes = [int(number) for number in patients.split(",")]
    frame = measure(sizes, data_sets, resamples)
    print(frame.to_string(index=False))
    if out is not None:
        write_frame(out, frame)


def measure(sizes, data_sets: int, resamples: int, truth_patients: int = 200_000) -> pd.DataFrame:
    """Returns one row per score: the true change, and the share of data sets whose interval contains it."""
    truth = changes(truth_patients, truth_patients, seed=10**6, resamples=1)
    inside = dict.fromkeys(truth, 0)
    for seed in range(data_sets):
        for name, change in changes(*sizes, seed=seed, resamples=resamples).items():
            inside[name] += bool(change.low <= truth[name].value <= change.high)
    return pd.DataFrame(
        {
            "score": name, "true_change": round(truth[name].value, 4), "nominal": 0.95, "coverage": count / data_sets,
            "patients_home": sizes[0], "patients_other": sizes[1], "data_sets": data_sets, "resamples": resamples,
        }
        for name, count in inside.items()
    )  # fmt: skip


def changes(num_home: int, num_other: int, *, seed: int, resamples: int) -> dict:
    """Returns {name: Score} of the changes between two drawn hospitals."""
    rng = np.random.default_rng(seed)
    home, other = draw("home", num_home, rng), draw("other", num_other, rng)
    bootstrap = Bootstrap(resamples, seed=seed + 10**7)  # not the numbers that the data were drawn from
    beside: SideBySide = set_side_by_side(home, other, FITTED, RULE, bootstrap)
    found = {name: beside.scores[name] for name in ("auroc_macro", "hamming_loss", "exact_match_ratio", "f1_macro")}
    found |= {name: beside.scores[name] for name in ("brier_calibrated", "ece_calibrated")}
    found |= {f"calibration_{kind}": lines["mean"] for kind, lines in beside.lines.items()}
    found |= {kind: values["one"] for kind, values in beside.points.items()}
    return {name: both.change for name, both in (found | {"share": beside.shares["one"]}).items()}


def draw(hospital: str, num_patients: int, rng) -> Predictions:
    """Returns the Predictions of a hospital's pictures.

    A picture's odds of a finding are `center` plus what its patient and it add; the model sees `skill` times the
    truth's distance from the center, stretches its log-odds by `sureness` and shifts them by `shift`.
    """
    center, skill, sureness, shift = HOSPITALS[hospital]
    patients = np.repeat(np.arange(num_patients), PICTURES)
    of_patient = rng.normal(0, 1, (num_patients, 2))[patients]
    signal = of_patient + rng.normal(0, 0.7, (len(patients), 2))
    labels = (rng.random(signal.shape) < scipy.special.expit(center + skill * signal)).astype(float)
    probs = scipy.special.expit(shift + sureness * (center + skill * signal))
    names = patients.astype(str)
    rows = pd.DataFrame({"path": np.arange(len(patients)).astype(str), "split": hospital, "group": names})
    return Predictions(rows.assign(cluster=names), labels, probs, NAMES, TASK)


if __name__ == "__main__":
    main()
