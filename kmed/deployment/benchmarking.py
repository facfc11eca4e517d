"""`kmed.benchmark`: a table of the latency, throughput, memory and size of a run's model in every format."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import pandas as pd

from kmed import runtime, tables
from kmed.deployment.export_record import export_words
from kmed.deployment.exporting import NUM_PICTURES
from kmed.errors import ConfigError, KmedError, RunError
from kmed.evaluation.decisions import read_fitted
from kmed.evaluation.inference import draw_training_pictures, open_run_table
from kmed.evaluation.predictor import describe_run, export_path
from kmed.files import size_of, temporary_folder, write_frame
from kmed.formats import graph, registry
from kmed.formats.registry import FORMATS, benchmarked_choices, check_format, either
from kmed.models.keras_file import load_run_model
from kmed.progress import say, track
from kmed.runs import Run, finished_run
from kmed.runtime import command_line

BATCHES = (1, 32)


def benchmark(
    run_folder,
    candidates=None,
    *,
    batches: Sequence[int] | None = None,
    threads: int | None = None,
    seconds: float = 2.0,
    data=None,
    append=None,
) -> pd.DataFrame:
    """Measures a run's model in several formats and returns one row per format and batch size.

    The table is also written into the run folder, as benchmark.csv. The formats are measured one after another, each
    in a process of its own, so that they share neither memory nor threads. A format that the run has not exported is
    exported for the measurement and removed again. A format is measured at the batch sizes that it takes: TFLite
    files take one picture at a time.

    Columns: format, quantize, batch, median_ms, low_ms, high_ms (10th and 90th percentile), images_per_s,
    peak_memory_mb (of the process, Python included), size_mb, exported, threads, num_calls, device, versions, command.

    Args:
      run_folder: what `kmed train` made.
      candidates: pairs of format and quantization; None: those that `kmed.formats.registry.FORMATS` marks for this.
      batches: pictures per call; None: 1 and 32.
      threads: processor cores; None: all.
      seconds: how long each format is measured at each batch size.
      data: where the run's pictures are now, if they have moved; only needed to calibrate int8 if it is not exported.
      append: a CSV table of benchmarks to which the rows are added.
    Raises: ConfigError: an unknown format, or a number that is too small. RunError: there is no such run, or nothing
      could be measured.
    """
    run = finished_run(run_folder)
    candidates = benchmarked_choices() if candidates is None else candidates
    batches = BATCHES if batches is None else batches
    for format, quantize in candidates:
        check_format(format, quantize)
    threads = runtime.num_cores() if threads is None else threads
    if threads < 1 or not batches or min(batches) < 1 or not seconds > 0:
        raise ConfigError(
            "threads and batches must be at least 1, seconds above 0. "
            f"Received: threads={threads}, batches={list(batches)}, seconds={seconds}."
        )
    batches, rows = sorted(set(batches)), []  # the smallest first, since the peak of memory can only grow
    _check_batches(candidates, batches)
    if append is not None:
        tables.read_table(append, ("format", "batch"))  # a mistake is found before minutes of work
    with temporary_folder() as folder:
        files = _files(run, candidates, folder, data)
        for (format, quantize), path in track(files.items(), "Measuring", len(files)):
            shared = {"size_mb": size_of(path) / 1e6, "exported": folder not in path.parents}
            for measured in _measure(run, format, path, threads, batches, seconds):
                memory = {"peak_memory_mb": measured.pop("peak_memory") / 1e6}
                own = {"format": format, "quantize": quantize, **measured, **memory}
                rows.append({**own, **shared, "threads": threads})
    if not rows:
        raise RunError("Nothing could be measured; the lines above say why.")
    environment = runtime.environment()
    versions = runtime.join_versions(environment["versions"])
    table = pd.DataFrame(rows).assign(device=environment["device"], versions=versions, command=command_line())
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
    """Raises ConfigError if none of the formats takes even the smallest batch."""
    limits = [FORMATS[format].max_batch for format, _ in candidates]
    most = max((limit for limit in limits if limit is not None), default=None)
    if most is None or None in limits or min(batches) <= most:
        return
    names = either(dict.fromkeys(format for format, _ in candidates))
    count = "one picture" if most == 1 else f"{most} pictures"
    raise ConfigError(f"Files of {names} take {count} at a time: measure batch {most} too. Received: {batches}.")


def _files(run: Run, candidates, folder: pathlib.Path, data) -> dict[tuple[str, str], pathlib.Path]:
    """Returns the file of each candidate; a missing one is made in `folder`, or left out with a message."""
    files, model = {}, None
    for format, quantize in candidates:
        path = export_path(run, format, quantize)
        if not path.exists():
            path = folder / path.name
            say(f"Making {path.name} for the measurement ...")
            try:
                graph.check_backend()
                model = load_run_model(run) if model is None else model
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
    """Returns what `python -m kmed.deployment.latency` measures; if it fails, nothing, with a message."""
    arguments = [str(run.folder), format, str(path), str(threads), ",".join(map(str, batches)), str(seconds)]
    limits = {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": "1"}
    command = [sys.executable, "-m", "kmed.deployment.latency", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **limits}, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["It ended without a message."])[-1]
        say(f"Left out: {path.name}. {reason}")
        return []
    return json.loads(done.stdout.strip().splitlines()[-1])
