"""Images/s of kmed's pipeline alone, without a model, against PyTorch's DataLoader with torchvision.

Both decode the same files without a cache, resize them and augment them alike ("light"), on the same cores, in
processes that take turns of one epoch. It prints a table; with --out it also adds the rows to a CSV:

    python scripts/input_speed.py --torch-python ../torch/bin/python --cells data/blood_cells --xrays data/nih_cxr \\
        --out results/input_speed.csv
"""

import contextlib
import json
import pathlib
import statistics
import sys
import tempfile

import click
import numpy as np
from benchmark import OUT, report, started

from kmed import progress, runtime

EPOCH_SCRIPT = str(pathlib.Path(__file__).with_name("input_epoch.py"))
# {name of a mode: (framework of input_epoch.py, data.decode)}. The others are compared with the faster of PyTorch's.
MODES = {
    "kmed": ("kmed", "full"),
    "kmed, data.decode=reduced": ("kmed", "reduced"),
    "pytorch, decoded by Pillow": ("torchvision, Pillow", ""),
    "pytorch, decoded to tensors": ("torchvision, tensors", ""),
}
# (name, kind of file, (height, width), whether any rotation is drawn)
TASKS = (
    ("blood cells, JPEG 240x320", "cells", (120, 160), True),
    ("blood cells, JPEG 240x320", "cells", (60, 80), True),
    ("X-rays, PNG 128x128", "xrays", (128, 128), False),
)


@click.command(help=__doc__.split("\n")[0])
@click.option("--cells", type=click.Path(exists=True, path_type=pathlib.Path), help="Folder of the blood cells.")
@click.option("--xrays", type=click.Path(exists=True, path_type=pathlib.Path), help="Folder of the X-rays.")
@click.option("--torch-python", help="Python of an environment with torch and torchvision; default: kmed alone.")
@click.option("--images", default=1600, show_default=True, help="Files of each kind, drawn with seed 0.")
@click.option("--rounds", default=3, show_default=True, help="Measured epochs per mode, after one to warm up.")
@click.option("--workers", default=2, show_default=True, help="Processes of PyTorch's DataLoader.")
@OUT
def main(cells, xrays, torch_python, images, rounds, workers, out):
    """Measures each task whose folder is given."""
    progress.configure()
    folders = {"cells": cells, "xrays": xrays}
    modes = {name: how for name, how in MODES.items() if torch_python or how[0] == "kmed"}
    for name, kind, size, free in TASKS:
        if folders[kind] is None:
            continue
        files = draw_files(folders[kind], images)
        wanted = {"size": size, "free": free, "workers": workers}
        about = {"files": name, "image_size": "x".join(map(str, size)), "augment": "light, free" if free else "light"}
        report([about | row for row in race(files, wanted, modes, rounds, torch_python)], out)


def draw_files(folder: pathlib.Path, count: int) -> list[str]:
    """Returns the paths of `count` pictures in a folder, or of all if there are fewer."""
    found = sorted(str(path.resolve()) for path in folder.rglob("*") if path.suffix in (".jpeg", ".jpg", ".png"))
    chosen = np.random.default_rng(0).permutation(len(found))[:count]
    return [found[index] for index in chosen]


def race(files: list[str], wanted: dict, modes: dict, rounds: int, torch_python: str | None) -> list[dict]:
    """Returns one row per mode."""
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "files.txt").write_text("\n".join(files), encoding="utf-8")
        workers = {}
        for mode, (framework, decode) in modes.items():
            python = sys.executable if framework == "kmed" else torch_python
            settings = wanted | {"framework": framework, "decode": decode, "list": str(folder / "files.txt")}
            workers[mode] = stack.enter_context(started([python, EPOCH_SCRIPT, json.dumps(settings)]))
        turns = [{mode: worker.ask("") for mode, worker in workers.items()} for _ in range(rounds + 1)][1:]
        facts = {mode: worker.facts for mode, worker in workers.items()}
    return [raced(mode, turns, facts[mode]) for mode in modes]


def raced(mode: str, turns: list[dict[str, dict]], facts: dict) -> dict:
    """Returns the row of one mode. Ratios are to the faster of PyTorch's modes, in processor's time and in seconds.

    They are medians over the rounds, since whatever slows the machine for a while slows all. Where other programs run
    beside, the ratio of the processor's time says more than that of the seconds.
    """

    def per_image(name, key):
        return [turn[name][key] / turn[name]["images"] for turn in turns]

    def ratio(key):
        others = [other for other in turns[0] if other.startswith("pytorch")]
        if not others:
            return ""
        fastest = min(others, key=lambda other: statistics.median(per_image(other, key)))
        pairs = zip(per_image(fastest, key), per_image(mode, key))
        return round(statistics.median(theirs / own for theirs, own in pairs), 2)

    return {
        "mode": mode,
        "images_per_second": round(1 / statistics.median(per_image(mode, "seconds"))),
        "processor_ms_per_image": round(1000 * statistics.median(per_image(mode, "processor_seconds")), 3),
        "ratio_of_seconds": ratio("seconds"),
        "ratio_of_processor_time": ratio("processor_seconds"),
        "epochs": len(turns),
        "images": turns[0][mode]["images"],
        "versions": runtime.join_versions(facts["versions"]),
    }


if __name__ == "__main__":
    main()
