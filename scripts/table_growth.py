"""Measures how the time and the memory before the first training step grow with the number of images in a CSV.

    python scripts/table_growth.py 10000 100000 1000000 --out results/table_growth.csv

The images are hard links to 200 drawn ones of 64x64, four per patient, with labels of two classes. Each size is
measured in a process of its own: reading the CSV, checking every file, splitting, and the first batch of 32 at 32x32.
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import click
import numpy as np
import pandas as pd
from PIL import Image

from kmed import runtime

NUM_FILES, PER_PATIENT = 200, 4


def make_archive(folder: pathlib.Path, num_images: int) -> pathlib.Path:
    """Writes num_images links to a few drawn images, in folders of 1,000, and returns the CSV of them."""
    rng = np.random.default_rng(0)
    sources = []
    for number in range(NUM_FILES):
        sources.append(folder / f"source{number}.png")
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(sources[-1])
    paths = [f"{number // 1000:05d}/{number:08d}.png" for number in range(num_images)]
    for number, path in enumerate(paths):
        link = folder / path
        if number % 1000 == 0:
            link.parent.mkdir()
        link.hardlink_to(sources[number % NUM_FILES])
    patients = np.arange(num_images) // PER_PATIENT
    frame = pd.DataFrame({"path": paths, "label": np.where(patients % 2, "yes", "no"), "patient": patients})
    frame.to_csv(folder / "images.csv", index=False)
    return folder / "images.csv"


def measure(file: str) -> dict:
    """Returns the seconds of each step and the peak memory of this process, in MB."""
    runtime.load_backend()
    from kmed.config import load_config
    from kmed.data.images import Resizing
    from kmed.data.pipeline import Pipeline
    from kmed.data.prepare import open_table
    from kmed.data.readable import check_readable
    from kmed.data.splits import assign_splits, check_no_leak, write_splits

    row, start = {}, time.perf_counter()

    def lap(name):
        nonlocal start
        row[name], start = round(time.perf_counter() - start, 2), time.perf_counter()

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    config = load_config(overrides=[("data.path", file), "data.group=patient", "data.image_size=32x32"])
    table = open_table(config)
    lap("read_s")
    table, _ = check_readable(table)
    lap("check_s")
    table = assign_splits(table, val_fraction=0.2, test_fraction=0.2, seed=0)
    check_no_leak(table)
    lap("split_s")
    write_splits(table, pathlib.Path(file).with_name("splits.csv"), labels=True)
    lap("write_s")
    training = table.split("train")
    next(iter(Pipeline(training, Resizing.from_settings(config.data), batch_size=32, cache="none").epoch(0)))
    lap("batch_s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return row | {"start_mb": round(memory), "peak_mb": round(peak)}


@click.command(help=__doc__.split("\n")[0])
@click.argument("sizes", nargs=-1, required=True, type=int)
@click.option("--out", type=click.Path(path_type=pathlib.Path), help="A CSV for the rows.")
def main(sizes, out):
    """Measures each size, and prints and writes the table."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            file = make_archive(pathlib.Path(folder), size)
            code = (
                f"import json, sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r}); import table_growth; "
            )
            code += "print(json.dumps(table_growth.measure(sys.argv[1])))"
            result = subprocess.run([sys.executable, "-c", code, file], check=True, capture_output=True, text=True)
            rows.append({"images": size} | json.loads(result.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    runtime.load_backend()
    environment = runtime.environment()
    table = pd.DataFrame(rows).assign(
        device=environment["device"],
        versions=runtime.join_versions(environment["versions"]),
        command=environment["command"],
    )
    print(table.drop(columns=["device", "versions", "command"]).to_markdown(index=False))
    if out is not None:
        table.to_csv(out, index=False)


if __name__ == "__main__":
    main()
