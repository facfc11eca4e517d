"""Does kmed work on this accelerator, and how fast? One command trains, resumes, evaluates, predicts and exports.

    KERAS_BACKEND=jax python scripts/gpu_check.py --out results/gpu_check.csv
    KERAS_BACKEND=jax python scripts/gpu_check.py --data my.npz --torch-python ../torch/bin/python

Each model is trained from random weights, is interrupted after its first epoch and resumed. Its training steps then
take turns with those of timm, if there is an environment with torch and timm. Each row of the CSV is one step of this:
its outcome ("ok", or the last line of its error), its seconds and, where images were counted, images per second.
Without an accelerator the same is done on the processor, with small batches.
"""

import dataclasses
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time

import click
import pandas as pd
from benchmark import race, report

import kmed
from kmed import progress
from kmed.data.images import Resizing
from kmed.data.readers.load import load_table
from kmed.data.readers.npz import pack
from kmed.runs import Run

MODELS = "resnet18,efficientnetlite0"
FORMATS = ("tflite", "onnx", "savedmodel")
# {name of a mode: (framework, dtype)}, as in `benchmark.py train`
MODES = {
    "kmed": ("kmed", "mixed_bfloat16"),
    "timm bfloat16": ("torch", "mixed_bfloat16"),
    "timm bfloat16, compiled": ("torch, compiled", "mixed_bfloat16"),
}
PATIENCE = 900  # seconds for one command


@click.command(help=__doc__.split("\n")[0])
@click.option("--data", type=click.Path(exists=True, path_type=pathlib.Path), help="An npz.  [drawn demo data]")
@click.option("--models", default=MODELS, show_default=True)
@click.option("--image-size", default="128x128", show_default=True)
@click.option("--batch-size", default=256, show_default=True)
@click.option("--epochs", default=3, show_default=True, help="At least 2: the first one is interrupted.")
@click.option("--steps", default=30, show_default=True, help="Measured steps of each mode.")
@click.option("--torch-python", help="Python of an environment with torch and timm; default: none.")
@click.option("--out", type=click.Path(path_type=pathlib.Path), help="A CSV to which the rows are added.")
def main(data, models, image_size, batch_size, epochs, steps, torch_python, out):
    """Checks each model, prints the rows and exits with 1 if anything failed."""
    if epochs < 2:
        raise click.UsageError("--epochs must be at least 2: the run is interrupted after the first and resumed.")
    progress.configure()
    # This process, those it starts and PyTorch share the accelerator's memory.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    sides = tuple(map(int, image_size.split("x")))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = data or draw(pathlib.Path(folder), sides)
        for name in models.split(","):
            about = {"model": name, "image_size": image_size, "batch_size": batch_size}
            settings = [f"--set=train.batch_size={batch_size}", "--epochs", str(epochs), "--image-size", image_size]
            checks = check_model(name, data, pathlib.Path(folder) / name, settings)
            wanted = {"model": name, "size": sides, "batch_size": batch_size, "options": {}}
            rows += [about | row for row in [*checks, *check_speed(wanted, steps, torch_python)]]
    report(rows, out)
    sys.exit(any(row["outcome"] != "ok" for row in rows if row["required"]))


def draw(folder: pathlib.Path, sides: tuple[int, int]) -> pathlib.Path:
    """Returns an npz of drawn blood cells, so that no picture has to be decoded on the other machine."""
    table = load_table(kmed.draw_demo(folder / "demo", num_train=2048, num_test=256))
    return pack(kmed.assign_splits(table), folder / "demo.npz", Resizing(sides))


@dataclasses.dataclass
class Outcome:
    """What became of a command.

    Attributes:
      code: its exit code; negative: the signal that ended it.
      text: what it wrote.
      seconds: how long it took.
    """

    code: int
    text: str
    seconds: float


def check_model(name: str, data: pathlib.Path, out: pathlib.Path, settings: list[str]) -> list[dict]:
    """Returns the rows of one model's run: train, resume, evaluate, predict and export."""
    train = ["train", "--model", name, "--weights", "none", "--data", str(data), "--out", str(out), *settings]
    interrupted = kmed_command(*train, stop_when=lambda: num_epochs(out) >= 1)
    was_stopped = interrupted.code == 128 + signal.SIGTERM and not Run(out).model.exists()
    rows = [row("train, interrupted", interrupted, ok=was_stopped)]
    resumed = kmed_command("train", "--resume", str(out))
    rows.append(row("resume", resumed, images_per_second=training_speed(out)))
    if resumed.code:
        return rows
    rows.append(row("evaluate", kmed_command("evaluate", str(out))))
    for format in FORMATS:  # a machine without TensorFlow has no converters, which is no failure
        exported = kmed_command("export", str(out), "--format", format)
        rows.append(row(f"export {format}", exported, required=False))
    return rows


def check_speed(wanted: dict, steps: int, torch_python: str | None) -> list[dict]:
    """Returns one row per mode: images per second of the training step alone, and kmed's ratio to it."""
    modes = MODES if torch_python else {"kmed": MODES["kmed"]}
    kept = ("images_per_second", "kmed_ratio", "ratio_low", "ratio_high", "dtype", "steps", "versions")
    raced = race(wanted, modes, steps, torch_python)
    return [
        {"check": f"steps, {one['mode']}", "outcome": "ok", "required": True} | {name: one[name] for name in kept}
        for one in raced
    ]


def kmed_command(*arguments: str, stop_when=lambda: False) -> Outcome:
    """Runs `kmed` in a process of its own; SIGTERM ends it as soon as `stop_when` is true."""
    print(f"kmed {shlex.join(arguments)}", flush=True)
    start = time.monotonic()
    command = [sys.executable, "-m", "kmed", *arguments]
    with tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True) as process:
            stopped = False
            while process.poll() is None:
                if time.monotonic() - start > PATIENCE:
                    process.kill()
                elif not stopped and stop_when():
                    process.send_signal(signal.SIGTERM)
                    stopped = True
                time.sleep(0.05)
        log.seek(0)
        return Outcome(process.returncode, log.read(), time.monotonic() - start)


def row(check: str, outcome: Outcome, *, ok: bool | None = None, required: bool = True, **more) -> dict:
    """Returns the row of one command.

    Args:
      check: its name.
      outcome: what became of it.
      ok: whether that is right; None: if its exit code is 0.
      required: whether a failure fails the whole check.
      **more: other columns.
    """
    lines = [line for line in outcome.text.splitlines() if line.strip()]
    failure = f"exit code {outcome.code}: {lines[-1] if lines else ''}"
    right = outcome.code == 0 if ok is None else ok
    about = {"check": check, "outcome": "ok" if right else failure, "required": required}
    return about | {"seconds": round(outcome.seconds, 1)} | more


def num_epochs(out: pathlib.Path) -> int:
    """Returns how many epochs a run has finished."""
    history = Run(out).history
    return len(pd.read_csv(history)) if history.exists() else 0


def training_speed(out: pathlib.Path) -> float | None:
    """Returns the images per second of a run's last epoch, its validation included; None: it is not finished."""
    run = Run(out)
    if not run.metrics.exists():
        return None
    splits = pd.read_csv(run.splits)["split"].value_counts()
    seconds = pd.read_csv(run.history)["seconds"].iloc[-1]
    return round(float((splits["train"] + splits["val"]) / seconds), 1)


if __name__ == "__main__":
    main()
