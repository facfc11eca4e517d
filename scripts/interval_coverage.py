"""How often a nominal 95 % interval contains the truth, if whole clusters or single images are resampled.

The data are drawn: every patient has its own share of right answers (Beta distributed), and ten pictures
that are right with that probability. The truth is the mean share. Both intervals are those of
`kmed.metrics.intervals`; they differ in what counts as a cluster.

    python scripts/interval_coverage.py --out results/interval_coverage.csv
"""

import pathlib

import click
import numpy as np
import pandas as pd

from kmed.files import replacing
from kmed.metrics.intervals import Bootstrap, draw_resamples, mean_score

TRUTH = 0.7
SPREAD = 1.0  # a + b of the Beta distribution; the smaller, the more patients differ
IMAGES = 10  # per patient


@click.command()
@click.option("--clusters", default="4,10,20,100", show_default=True, help="Numbers of patients.")
@click.option("--data-sets", default=1000, show_default=True, help="Number drawn for each.")
@click.option("--resamples", default=1000, show_default=True)
@click.option("--out", type=click.Path(path_type=pathlib.Path), help="The CSV to write.")
def main(clusters, data_sets, resamples, out):
    """Measure the coverage of cluster and image intervals."""
    rows = []
    for num_clusters in map(int, clusters.split(",")):
        patients = np.repeat(np.arange(num_clusters), IMAGES)
        for kind, units in (("patients", patients), ("images", np.arange(len(patients)))):
            coverage = np.mean([covers(patients, units, resamples, seed) for seed in range(data_sets)])
            error = np.sqrt(coverage * (1 - coverage) / data_sets)
            rows.append(
                {
                    "clusters": num_clusters, "images": len(patients), "resampled": kind, "nominal": 0.95,
                    "coverage": coverage, "standard_error": round(error, 4), "data_sets": data_sets,
                    "resamples": resamples,
                }
            )  # fmt: skip
            print(f"{num_clusters:4d} patients, resampling {kind:8s}: {coverage:.1%} (nominal 95 %)", flush=True)
    if out is not None:
        with replacing(out) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)


def covers(patients: np.ndarray, units: np.ndarray, num_resamples: int, seed: int) -> bool:
    """Draws a data set and returns whether the interval of its mean contains the truth."""
    rng = np.random.default_rng(seed)
    shares = rng.beta(TRUTH * SPREAD, (1 - TRUTH) * SPREAD, patients.max() + 1)
    right = rng.random(len(patients)) < shares[patients]
    score = mean_score(draw_resamples(units, Bootstrap(num_resamples, seed=seed)), right.mean(), right)
    return bool(score.low <= TRUTH <= score.high)


if __name__ == "__main__":
    main()
