"""`kmed.benchmark`: one table of latency, throughput, memory and size of a run's model in every format."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pandas as pd

from kmed import runtime, tables
from kmed.deployment.exporting import NUM_PICTURES, export_words
from kmed.errors import ConfigError, KmedError, RunError
from kmed.evaluation.decisions import read_fitted
from kmed.evaluation.inference import draw_training_pictures, open_run_table
from kmed.evaluation.predictor import describe_run, export_path
from kmed.files import size_of, write_frame
from kmed.formats import graph, registry
from kmed.formats.registry import FORMATS, benchmarked_choices, check_format, either
from kmed.models.keras_file import load_model
from kmed.progress import say, track
from kmed.runs import Run, finished_run
from kmed.runtime import command_line

BATCHES = (1, 32)


def benchmark(
    run_folder,
    candidates=None,
    *,
    batches=BATCHES,
    threads: int | None = None,
    seconds: float = 2.0,
    data=None,
    append=None,
) -> pd.DataFrame:
    """Returns one row a format and batch size, and writes them as benchmark.csv into the run folder.

    Each format is measured in a process of its own, one after another, so that none shares memory or threads
    with another. A format that the run has not exported is made for it and removed. A format is measured at the
    batch sizes that it takes: TFLite files take one picture at a time.

    Columns: format, quantize, batch, median_ms, low_ms, high_ms (10th and 90th percentile), images_per_s,
    peak_memory_mb (of the process, Python included), size_mb, exported, threads, num_calls, device, versions, command.

    Args:
      run_folder: what `kmed train` made.
      candidates: pairs of format and quantization; None: all that `kmed.formats.registry.FORMATS` marks for it.
      batches: pictures a call.
      threads: processor cores; None: all.
      seconds: how long each is measured.
      data: where the run's pictures are now; int8 is calibrated on them where it is made anew.
      append: a CSV table of benchmarks that the rows are added to.
    Raises: ConfigError: an unknown format, or numbers below 1. RunError: no such run, or nothing could be measured.
    """
    run = finished_run(run_folder)
    candidates = benchmarked_choices() if candidates is None else candidates
    for format, quantize in candidates:
        check_format(format, quantize)
    threads = runtime.num_cores() if threads is None else threads
    if threads < 1 or not batches or min(batches) < 1 or not seconds > 0:
        raise ConfigError(
            f"threads and batches are 1 or more, seconds above 0. Received: {threads}, {list(batches)}, {seconds}."
        )
    batches, rows = sorted(set(batches)), []  # the peak of memory only grows: the smallest comes first
    _check_batches(candidates, batches)
    if append is not None:
        tables.read_table(append, ("format", "batch"))  # before minutes of work
    with tempfile.TemporaryDirectory() as folder:
        files = _files(run, candidates, pathlib.Path(folder), data)
        for (format, quantize), path in track(files.items(), "Measuring", len(files)):
            shared = {"size_mb": size_of(path) / 1e6, "exported": pathlib.Path(folder) not in path.parents}
            for found in _measure(run, format, path, threads, batches, seconds):
                memory = {"peak_memory_mb": found.pop("peak_memory") / 1e6}
                rows.append({"format": format, "quantize": quantize, **found, **memory, **shared, "threads": threads})
    if not rows:
        raise RunError("Nothing could be measured; the lines above say why.")
    told = runtime.environment()
    table = pd.DataFrame(rows).assign(
        device=told["device"], versions=runtime.join_versions(told["versions"]), command=command_line()
    )
    write_frame(run.folder / "benchmark.csv", table)
    if append is not None:
        tables.append_rows(append, [table.iloc[[row]].astype(str) for row in range(len(table))])
    return table


def describe_table(table: pd.DataFrame) -> str:
    """Returns the table as `kmed benchmark` prints it."""
    shown = pd.DataFrame(
        {
            "format": [export_words(row) for _, row in table.iterrows()],
            "batch": table["batch"],
            "median ms": table["median_ms"].map("{:.1f}".format),
            "10-90 %": [f"{row['low_ms']:.1f}-{row['high_ms']:.1f}" for _, row in table.iterrows()],
            "images/s": table["images_per_s"].map("{:.0f}".format),
            "peak memory": table["peak_memory_mb"].map("{:.0f} MB".format),
            "size": table["size_mb"].map("{:.1f} MB".format),
        }
    )
    first = table.iloc[0]
    return f"{shown.to_string(index=False)}\n{first['threads']} threads, {first['device']}"


def _check_batches(candidates, batches: list[int]) -> None:
    """Raises ConfigError where none of the formats takes even the smallest batch."""
    most = [FORMATS[format].max_batch for format, _ in candidates]
    if not most or None in most or min(batches) <= max(most):
        return
    names, most = either(dict.fromkeys(format for format, _ in candidates)), max(most)
    count = "one picture" if most == 1 else f"{most} pictures"
    raise ConfigError(f"Files of {names} take {count} at a time: measure batch {most} too. Received: {batches}.")


def _files(run: Run, candidates, folder: pathlib.Path, data) -> dict[tuple[str, str], pathlib.Path]:
    """Returns the file of each candidate, those that are missing made in `folder`; what cannot be made is told."""
    files, model = {}, None
    for format, quantize in candidates:
        path = export_path(run, format, quantize)
        if not path.exists():
            path = folder / path.name
            say(f"Making {path.name} to be measured ...")
            try:
                graph.check_backend()
                model = load_model(run.model) if model is None else model
                pictures = None
                if quantize in FORMATS[format].needs_pictures:
                    config, table = open_run_table(run, data)
                    pictures = draw_training_pictures(table, config, NUM_PICTURES)
                calibration, description = read_fitted(run).calibration, describe_run(run)
                registry.write(format, model, calibration, path, description, quantize=quantize, pictures=pictures)
            except KmedError as error:
                say(f"Left out: {path.name}. {error}")
                continue
        files[format, quantize] = path
    return files


def _measure(run: Run, format: str, path: pathlib.Path, threads: int, batches, seconds: float) -> list[dict]:
    """Returns what `python -m kmed.deployment.latency` finds, or nothing where it fails, which is told."""
    arguments = [str(run.folder), format, str(path), str(threads), ",".join(map(str, batches)), str(seconds)]
    limits = {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": "1"}
    command = [sys.executable, "-m", "kmed.deployment.latency", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **limits}, check=False)
    if done.returncode:
        say(f"Left out: {path.name}. {(done.stderr.strip().splitlines() or ['it ended without a word'])[-1]}")
        return []
    return json.loads(done.stdout.strip().splitlines()[-1])
