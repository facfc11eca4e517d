"""Try settings on validation data only: the pictures of the test split are left out before training.

Each call trains one model with one set of settings and adds a row to a CSV, on which a recipe's settings are based:

    python scripts/tune.py --config configs/blood_cells.yaml --data data/blood_cells --model resnet18 \\
        --set data.image_size=96x128 --set train.epochs=4 --out results/tuning.csv
"""

import pathlib
import tempfile

import click
import pandas as pd

import kmed
from kmed import runtime, tables
from kmed.tasks import LOWER_IS_BETTER


@click.command(help=__doc__.split("\n")[0])
@click.option("--config", required=True, help="The YAML file that the trial changes.")
@click.option("--data", required=True, help="Such as data/blood_cells.")
@click.option("--model", required=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting to try; may be repeated.")
@click.option("--out", required=True, type=click.Path(path_type=pathlib.Path), help="The CSV to add the row to.")
def main(config, data, model, settings, out):
    """Trains once, and records the validation scores of the best epoch."""
    runtime.load_backend()
    from kmed.data.prepare import open_table, prepare_table

    overrides = [("data.path", data), ("model.name", model), *settings]
    chosen = kmed.load_config(config, overrides)
    table, _ = prepare_table(open_table(chosen), chosen)
    table = table.take((table.rows["split"] != "test").to_numpy())
    # Only history.csv is read, so the final scoring can be brief; and no new test split is drawn.
    brief = ["data.test_fraction=0", "train.tensorboard=false", "evaluate.num_resamples=10"]
    chosen = kmed.load_config(config, [*overrides, *brief])
    with tempfile.TemporaryDirectory() as folder:
        history = pd.read_csv(kmed.fit(chosen, table=table, out=pathlib.Path(folder) / "run").history)
    row = best_epoch(history, chosen.train.monitor) | {
        "config": config,
        "model": chosen.model.name,
        "settings": " ".join(settings),
        "image_size": "x".join(map(str, chosen.data.image_size)),
        "epochs": chosen.train.epochs,
        "seconds": round(history["seconds"].sum()),
        "device": runtime.describe_device(),
    }
    tables.append_rows(out, [pd.DataFrame([row]).astype(str)])
    click.echo(pd.Series(row).to_string())


def best_epoch(history: pd.DataFrame, monitor: str) -> dict:
    """Returns the number, validation scores and training loss of the epoch that a run would keep."""
    values = history[monitor]
    best = history.loc[values.idxmin() if monitor.removeprefix("val_") in LOWER_IS_BETTER else values.idxmax()]
    scores = {name: round(float(best[name]), 4) for name in history.columns if name.startswith("val_")}
    return {"best_epoch": int(best["epoch"]), **scores, "loss": round(float(best["loss"]), 4)}


if __name__ == "__main__":
    main()
