"""Speed and memory of kmed on this machine; ratios are taken within one run, since machines differ and change.

Each command prints its figures; with --out it also adds them to a CSV as rows:

    python scripts/benchmark.py startup
    python scripts/benchmark.py train --torch-python ../torch/bin/python --out results/training_speed.csv
    python scripts/benchmark.py train --torch-python ../torch/bin/python --same-work --models resnet18
    python scripts/benchmark.py batchnorm --steps 40
    python scripts/benchmark.py pipeline --data data/blood_cells
    python scripts/benchmark.py dtype
    python scripts/benchmark.py memory --data data/blood_cells
    python scripts/benchmark.py scores
    python scripts/benchmark.py audit --data data/blood_cells
"""

import contextlib
import itertools
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import click
import numpy as np
import pandas as pd
from training_step import BATCH_SIZE, kmed_steps

from kmed import progress, runtime
from kmed.files import replacing

IMAGE_SIZE = (120, 160)
# {name of a mode: (framework, dtype)}, the ways to run a training step. The first is compared with the others.
MODES = {
    "kmed": ("kmed", "auto"),
    "keras float32": ("keras", "float32"),
    "keras bfloat16": ("keras", "mixed_bfloat16"),
    "pytorch float32": ("torch", "float32"),
    "pytorch bfloat16": ("torch", "mixed_bfloat16"),
    "pytorch float32, same work": ("torch, same work", "float32"),
    "pytorch bfloat16, same work": ("torch, same work", "mixed_bfloat16"),
}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}
ROUND = 5  # steps of one mode of `train` before the next one takes its turn
STEP_SCRIPT = str(pathlib.Path(__file__).with_name("training_step.py"))
BLOCK = 10  # steps of one candidate before the next one takes its turn
OUT = click.option("--out", type=click.Path(path_type=pathlib.Path), help="A CSV to which the rows are added.")
DATA = click.option("--data", required=True, help="The folder of the blood cells, such as data/blood_cells.")


@click.group(help=__doc__.split("\n")[0])
def main():
    """Groups the benchmarks."""
    progress.configure()


@main.command()
@click.option("--runs", default=9, show_default=True)
@OUT
def startup(runs, out):
    """Time `kmed --help` and `kmed models --help`, and check whether TensorFlow is imported."""
    rows = []
    for arguments in (["--help"], ["models", "--help"]):
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "kmed", *arguments], capture_output=True, check=True)
            seconds.append(time.perf_counter() - start)
        code = f"import sys; sys.argv = ['kmed', *{arguments}]\nfrom kmed.cli.main import main\n"
        code += "main(standalone_mode=False)\nprint('tensorflow' in sys.modules)"
        printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        subject = f"kmed {' '.join(arguments)}"
        rows.append(row("startup", subject, statistics.median(seconds), "s (median)", steps=runs))
        rows.append(row("startup", subject, float(printed.split()[-1] == "True"), "imports TensorFlow"))
    report(rows, out)


@main.command()
@click.option("--models", default="resnet18,resnet152,densenet121,densenet161,efficientnetb0,vit", show_default=True)
@click.option("--sizes", default="60x80,120x160", show_default=True, help="vit rounds up to whole patches.")
@click.option("--steps", default=30, show_default=True, help="Measured steps per mode, after the warm-up.")
@click.option("--torch-python", help="Python of an environment with torch, torchvision and timm; default: none.")
@click.option("--same-work", is_flag=True, help="Only against PyTorch, with the rest of kmed's step added to it.")
@OUT
def train(models, sizes, steps, torch_python, same_work, out):
    """Training steps of kmed, stock Keras and timm on PyTorch, in processes that take turns."""
    if same_work and not torch_python:
        raise click.UsageError("--same-work needs --torch-python.")
    others = ["torch, same work"] if same_work else ["keras", "torch"] if torch_python else ["keras"]
    modes = {mode: how for mode, how in MODES.items() if how[0] in ("kmed", *others)}
    for subject, wanted in progress.track(list(racers(models.split(","), sizes.split(","))), "Models and sizes"):
        about = {"model": subject, "image_size": "{}x{}".format(*wanted["size"])}
        report([about | row for row in race(wanted, modes, steps, torch_python)], out)


def racers(models: list[str], sizes: list[str]):
    """Yields (name in the table, settings for `training_step.py`) for each model at each size."""
    for name in models:
        subjects = {name: {}} | ({f"{name} without dropout": NO_DROPOUT} if name == "vit" else {})
        for (subject, options), size in itertools.product(subjects.items(), sizes):
            sides = [int(side) for side in size.split("x")]
            if name == "vit":
                sides = [-(-side // 8) * 8 for side in sides]
            yield subject, {"model": name, "size": sides, "options": options}


def race(wanted: dict, modes: dict, steps: int, torch_python: str | None) -> list[dict]:
    """Returns one row per mode: its images/s, and how many times as fast kmed is.

    The ratio is the median over rounds of two modes' times in the same round, since whatever slows the
    machine for a while slows both.
    """
    with contextlib.ExitStack() as stack:
        workers = {}
        for mode, (framework, dtype) in modes.items():
            python = torch_python if framework.startswith("torch") else sys.executable
            settings = wanted | {"framework": framework, "dtype": dtype}
            workers[mode] = stack.enter_context(started([python, STEP_SCRIPT, json.dumps(settings)]))
        seconds = take_turns({mode: worker.run for mode, worker in workers.items()}, steps, ROUND)
        facts = {mode: worker.facts for mode, worker in workers.items()}
    return [raced(mode, seconds, facts[mode], wanted.get("batch_size", BATCH_SIZE)) for mode in seconds]


def raced(mode: str, seconds: dict[str, list[float]], facts: dict, batch_size: int = BATCH_SIZE) -> dict:
    """Returns the row of one mode; `kmed_ratio` is kmed's speed divided by that of the mode."""
    ratios = np.array(seconds[mode]) / np.array(seconds["kmed"])
    return {
        "mode": mode,
        "dtype": facts["dtype"],
        "images_per_second": round(ROUND * batch_size / statistics.median(seconds[mode]), 1),
        "kmed_ratio": round(float(np.median(ratios)), 3),
        "ratio_low": round(float(ratios.min()), 3),
        "ratio_high": round(float(ratios.max()), 3),
        "steps": ROUND * len(ratios),
        "batch_size": batch_size,
        "versions": runtime.join_versions(facts["versions"]),
    }


class Worker:
    """A process of a script such as `training_step.py`; `facts` is its first answer, with its versions."""

    def __init__(self, process: subprocess.Popen):
        self._process = process
        self.facts = self._answer()

    def run(self, steps: int) -> float:
        """Returns the seconds that `steps` steps took."""
        return self.ask(str(steps))["seconds"]

    def ask(self, line: str) -> dict:
        """Returns the answer to a line."""
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException(f"{' '.join(self._process.args)} ended with code {self._process.wait()}.")
        return json.loads(line)


@contextlib.contextmanager
def started(command: list[str]):
    """Runs a command as a Worker for the duration of a block."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Worker(process)
        finally:
            process.kill()


@main.command()
@click.option("--steps", default=40, show_default=True, help="Measured steps per candidate, after the warm-up.")
@click.option("--dtype", default="mixed_bfloat16", show_default=True)
@OUT
def batchnorm(steps, dtype, out):
    """ResNet-18's training step with the fused batch normalisation, against Keras' own."""
    candidates = {
        kind: training_step("resnet18", dtype, model_options={"batch_norm": kind}) for kind in ("fused", "keras")
    }
    rates = in_turn(candidates, steps)
    report(compared("batchnorm", "resnet18 {} " + dtype, rates, steps, base="keras"), out)


@main.command()
@click.option("--models", default="resnet18,densenet121,efficientnetb0,efficientnetlite0,vit", show_default=True)
@click.option("--steps", default=20, show_default=True)
@OUT
def dtype(models, steps, out):
    """Each model's training step in float32 and in mixed_bfloat16: the basis of `dtype: auto`."""
    for name in models.split(","):
        candidates = {kind: training_step(name, kind) for kind in ("float32", "mixed_bfloat16")}
        rates = in_turn(candidates, steps)
        report(compared("dtype", name + " {}", rates, steps, base="float32"), out)


@main.command()
@click.option("--steps", default=30, show_default=True, help="Training steps for the comparison.")
@click.option("--images", default=3000, show_default=True, help="Number of pictures to read.")
@DATA
@OUT
def pipeline(data, steps, images, out):
    """Decode, resize and light augmentation from disk without a cache, against the rate of ResNet-18's step."""
    from kmed.data.augment import Augmentation
    from kmed.data.images import Resizing
    from kmed.data.pipeline import Pipeline
    from kmed.data.readers.load import load_table
    from kmed.models.registry import choose_dtype

    table = load_table(data)
    table = table.take(np.random.default_rng(0).permutation(len(table))[:images])
    augmentation = Augmentation("light", "free")
    reader = Pipeline(table, Resizing(IMAGE_SIZE), augmentation=augmentation, batch_size=BATCH_SIZE, cache="none")
    for _ in reader.epoch(0):  # warms up the threads, the graph and the file system's cache
        pass
    start = time.perf_counter()
    count = sum(len(batch[0]) for batch in reader.epoch(1))
    read = count / (time.perf_counter() - start)
    step = in_turn({"step": training_step("resnet18", choose_dtype("resnet18"))}, steps)["step"]
    rows = [
        row(
            "pipeline",
            "decode, resize, light augmentation from disk",
            read,
            "images/s",
            ratio_to="resnet18 step",
            ratio=read / step,
        ),
        row("pipeline", "resnet18 step", step, "images/s", steps=steps),
    ]
    report(rows, out)


@main.command()
@click.option("--config", default="configs/blood_cells.yaml", show_default=True)
@DATA
@OUT
def memory(data, config, out):
    """Peak memory of a whole resnet18 run of one epoch, including data preparation and evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "--config",
            config,
            "--data",
            data,
            "--model",
            "resnet18",
            "--weights",
            "none",
            "--epochs",
            "1",
            "--out",
            f"{folder}/run",
        ]
        subprocess.run([sys.executable, "-m", "kmed", "train", *arguments], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # Linux counts in KiB
    report([row("memory", "kmed train resnet18, 1 epoch", peak / 1e9, "GB (peak resident)")], out)


@main.command()
@click.option("--sizes", default="1121x15,25596x14", show_default=True, help="Numbers of pictures x labels.")
@OUT
def scores(sizes, out):
    """All scores of a multilabel split with intervals, constant predictors and subgroups: seconds and memory."""
    rows = []
    for size in sizes.split(","):
        num_images, num_labels = map(int, size.split("x"))
        code = SCORING.format(num_images=num_images, num_labels=num_labels)
        printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        seconds, peak = map(float, printed.split()[-2:])
        rows.append(row("scores", f"{size}, 1,000 resamples", seconds, "s"))
        rows.append(row("scores", f"{size}, 1,000 resamples", peak, "GB (peak resident)"))
    report(rows, out)


@main.command()
@click.option("--sizes", default="1000,4000,12444", show_default=True, help="Numbers of files from TRAIN and TEST.")
@click.option("--keep", type=click.Path(path_type=pathlib.Path), help="A folder for the findings of the last audit.")
@DATA
@OUT
def audit(data, sizes, keep, out):
    """The leak audit on growing numbers of files of the blood cells, compared with the map that kmed ships."""
    from sklearn.metrics import adjusted_rand_score

    from kmed.data.audit.leaks import audit as audit_table
    from kmed.data.audit.report import write_audit
    from kmed.data.readers.load import load_table

    table = load_table(data)
    table = table.take(table.rows["split"].isin(["train", "test"]).to_numpy())
    rows, last = [], None
    for size in map(int, sizes.split(",")):
        chosen = np.sort(np.random.default_rng(0).permutation(len(table))[:size])
        start = time.perf_counter()
        found = audit_table(table.take(chosen))
        seconds = time.perf_counter() - start
        truths = found.table.rows
        growth = {} if last is None else {"ratio_to": f"{last[0]} files", "ratio": seconds / last[1]}
        rows.append(row("audit", f"{len(chosen)} files", seconds, "s", **growth))
        for name, truth, ids in (
            ("photographs", truths["cluster"], found.photograph),
            ("groups", truths["group"], found.group),
        ):
            score = adjusted_rand_score(truth, ids)
            rows.append(row("audit", f"{len(chosen)} files, {name}", score, "adjusted Rand index"))
        last = (len(chosen), seconds)
    if keep is not None:
        write_audit(found, keep)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows.append(row("audit", f"{last[0]} files", peak / 1e9, "GB (peak resident)"))
    report(rows, out)


# It runs in a process of its own, so that the peak memory is that of the scoring.
SCORING = """
import resource, time
import numpy as np, pandas as pd
from kmed.config import EvaluateConfig
from kmed.evaluation.assessment import assess
from kmed.evaluation.decisions import fit_on_validation
from kmed.evaluation.predictions import Predictions
from kmed.metrics.baselines import count_prior
from kmed.metrics.intervals import Bootstrap
from kmed.tasks import get_task
rng = np.random.default_rng(0)
n, k = {num_images}, {num_labels}
labels = (rng.random((n, k)) < rng.uniform(0.01, 0.2, k)).astype(float)
probs = np.clip(0.1 + 0.2 * labels + rng.normal(0, 0.1, (n, k)), 0, 1)
patients = rng.integers(0, max(2, n // 4), n).astype(str)
rows = pd.DataFrame(dict(path=np.arange(n).astype(str), split="test", group=patients, cluster=patients))
for name, values in (("sex", ["F", "M"]), ("view", ["AP", "PA"])):
    rows["subgroup_" + name] = rng.choice(values, n)
names = tuple("label%02d" % index for index in range(k))
predictions = Predictions(rows, labels, probs, names, get_task("multilabel"))
settings = EvaluateConfig()
start = time.perf_counter()
assess(predictions, count_prior(labels, names), Bootstrap(), fit_on_validation(predictions, settings))
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)
"""


def training_step(name: str, dtype: str, model_options=None):
    """Returns a function that runs a number of training steps in this process and returns the seconds."""
    run_steps, _ = kmed_steps({"model": name, "size": IMAGE_SIZE, "dtype": dtype, "options": model_options or {}})

    def run(steps: int) -> float:
        start = time.perf_counter()
        run_steps(steps)
        return time.perf_counter() - start

    return run


def in_turn(candidates: dict, steps: int) -> dict[str, float]:
    """Returns images/s of each candidate, run in alternating blocks after a warm-up."""
    for run in candidates.values():
        run(3)
    seconds = take_turns(candidates, steps, BLOCK)
    return {name: len(spent) * BLOCK * BATCH_SIZE / sum(spent) for name, spent in seconds.items()}


def take_turns(candidates: dict, steps: int, block: int) -> dict[str, list[float]]:
    """Returns each candidate's seconds per round, a block of steps each; every other round is in reverse order.

    Args:
      candidates: {name: function of a number of steps that returns the seconds they took}.
    """
    seconds = {name: [] for name in candidates}
    for number in range(-(-steps // block)):
        for name in list(candidates)[:: -1 if number % 2 else 1]:
            seconds[name].append(candidates[name](block))
    return seconds


def compared(benchmark: str, subject: str, rates: dict[str, float], steps: int, *, base: str) -> list[dict]:
    """Returns one row per rate, with its ratio to that of `base`; {} in `subject` is the candidate's name."""
    return [
        row(benchmark, subject.format(kind), rate, "images/s", steps=steps, ratio_to=base, ratio=rate / rates[base])
        for kind, rate in rates.items()
    ]


def row(benchmark: str, subject: str, value: float, unit: str, *, steps="", ratio_to="", ratio="") -> dict:
    """Returns one row of the results table."""
    return {
        "benchmark": benchmark,
        "subject": subject,
        "value": float(f"{value:.4g}"),
        "unit": unit,
        "steps": steps,
        "ratio_to": ratio_to,
        "ratio": round(ratio, 3) if ratio != "" else "",
    }


def report(rows: list[dict], out: pathlib.Path | None) -> None:
    """Prints the rows, and adds them to a CSV with device and versions."""
    frame = pd.DataFrame(rows)
    print(frame.to_string(index=False))
    if out is None:
        return
    frame["device"] = runtime.describe_device()
    if "versions" not in frame:  # the rows of `train` have versions, since they come from other environments
        frame["versions"] = runtime.join_versions(runtime.versions())
    frame["command"] = " ".join(["python", *sys.argv])
    if out.exists():
        frame = pd.concat([pd.read_csv(out), frame], ignore_index=True)
    with replacing(out) as temporary:
        frame.to_csv(temporary, index=False)


if __name__ == "__main__":
    main()
