"""Try settings on validation data only: the pictures of the test split are left out before training.

Each call trains with one set of settings and adds a row to a CSV, on which a recipe's settings are based:

    python scripts/tune.py --config configs/nih_cxr.yaml --data data/nih_cxr_sample --model efficientnetlite0 \\
        --set train.learning_rate=0.0005 --out results/tuning.csv

Where one validation split is too small to decide anything, --folds K trains K times, each time with another K-th of the
groups as validation. The row then holds the scores of all K parts together, and of accuracy its interval.
"""

import pathlib
import tempfile

import click
import numpy as np
import pandas as pd

import kmed
from kmed import runtime, tables
from kmed.metrics.intervals import draw_resamples, mean_score
from kmed.tasks import LOWER_IS_BETTER

# Only history.csv and predictions.csv are read, so the final scoring can be brief; and no new test split is drawn.
BRIEF = ("data.test_fraction=0", "train.tensorboard=false", "evaluate.num_resamples=10")


@click.command(help=__doc__.split("\n")[0])
@click.option("--config", required=True, help="The YAML file that the trial changes.")
@click.option("--data", required=True, help="Such as data/blood_cells.")
@click.option("--model", required=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting to try; may be repeated.")
@click.option("--folds", type=click.IntRange(min=2), help="How many parts take turns as validation.  [one split]")
@click.option("--note", default="", help="A remark for the row.")
@click.option("--out", required=True, type=click.Path(path_type=pathlib.Path), help="The CSV to add the row to.")
def main(config, data, model, settings, folds, note, out):
    """Trains once or `folds` times, and records the validation scores of the best epochs."""
    runtime.load_backend()
    from kmed.data.prepare import open_table, prepare_table

    overrides = [("data.path", data), ("model.name", model), *settings]
    chosen = kmed.load_config(config, overrides)
    table, _ = prepare_table(open_table(chosen), chosen)
    table = table.take((table.rows["split"] != "test").to_numpy())
    chosen = kmed.load_config(config, [*overrides, *BRIEF])
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            kmed.fit(chosen, table=part, out=pathlib.Path(folder) / f"run{number}")
            for number, part in enumerate(validation_splits(table, folds))
        ]
        histories = [pd.read_csv(run.history) for run in runs]
        best = [best_epoch(history, chosen.train.monitor) for history in histories]
        scores = best[0] if folds is None else pooled_scores(best, runs)
        resolved = runs[0].read_config()
    row = scores | {
        "config": config,
        "model": chosen.model.name,
        "settings": " ".join(settings),
        "image_size": "x".join(map(str, chosen.data.image_size)),
        "epochs": chosen.train.epochs,
        "weights": resolved.model.weights or "",
        "folds": folds or "",
        "seconds": round(sum(history["seconds"].sum() for history in histories)),
        "device": runtime.describe_device(),
        "note": note,
    }
    tables.append_rows(out, [pd.DataFrame([row]).astype(str)])
    click.echo(pd.Series(row).to_string())


def validation_splits(table, folds: int | None) -> list:
    """Returns the table with its own validation split, or with each fold in turn."""
    if folds is None:
        return [table]
    from kmed.data.splits import assign_folds

    table = assign_folds(table, folds)
    fold = table.rows["fold"].to_numpy()
    return [
        table.with_columns(split=np.where(fold == str(number), "val", "train").astype(object))
        for number in range(folds)
    ]


def best_epoch(history: pd.DataFrame, monitor: str) -> dict:
    """Returns the number, validation scores and training loss of the epoch that a run would keep."""
    values = history[monitor]
    best = history.loc[values.idxmin() if monitor.removeprefix("val_") in LOWER_IS_BETTER else values.idxmax()]
    scores = {name: round(float(best[name]), 4) for name in history.columns if name.startswith("val_")}
    return {"best_epoch": int(best["epoch"]), **scores, "loss": round(float(best["loss"]), 4)}


def pooled_scores(best: list[dict], runs: list) -> dict:
    """Returns the means over the folds, and for accuracy the score of all predictions together with its interval."""
    means = {name: round(float(np.mean([each[name] for each in best])), 4) for name in best[0]}
    if "val_accuracy" not in means:
        return means
    rows = pd.concat([pd.read_csv(run.predictions, dtype={"cluster": str}) for run in runs], ignore_index=True)
    right = (rows["label"] == rows["predicted"]).astype(float)
    accuracy = mean_score(draw_resamples(rows["cluster"]), right.mean(), right)
    return means | {
        "val_accuracy": round(accuracy.value, 4),
        "val_accuracy_interval": f"{accuracy.low:.3f} to {accuracy.high:.3f}",
        "val_accuracy_per_cluster": round(float(right.groupby(rows["cluster"]).mean().mean()), 4),
        "clusters": accuracy.num_clusters,
    }


if __name__ == "__main__":
    main()
