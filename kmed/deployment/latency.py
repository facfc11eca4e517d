"""How long a prediction takes: the median of many, after a few that are not counted.

`python -m kmed.deployment.latency` measures one file in a process of its own, for `kmed.benchmark`.
"""

import dataclasses
import json
import pathlib
import sys
import time

import numpy as np

from kmed.evaluation.predictor import Predictor, open_exported, open_model
from kmed.formats.registry import FORMATS
from kmed.runs import open_run

WARM_UP = 5


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long predictions of one batch size take.

    Attributes:
      batch: pictures per call.
      median_ms: milliseconds per call; half of the calls were faster.
      low_ms, high_ms: the 10th and 90th percentile.
      images_per_s: batch / median.
      num_calls: how many calls were measured.
    """

    batch: int
    median_ms: float
    low_ms: float
    high_ms: float
    images_per_s: float
    num_calls: int

    def to_dict(self) -> dict:
        """Returns the fields."""
        return dataclasses.asdict(self)


def measure_latency(
    predictor: Predictor, image_size, *, batch: int = 1, seconds: float = 2.0, least: int = 20
) -> Latency:
    """Returns the Latency of predicting a batch of noise; it does not depend on what the pixels show.

    Args:
      predictor: the model.
      image_size: (height, width) of its input.
      batch: pictures per call.
      seconds: how long to measure in total.
      least: how many calls to measure at least, even if that takes longer.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *image_size, 3)).astype(np.float32)
    for _ in range(WARM_UP):
        predictor.predict(pixels)
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < least or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        predictor.predict(pixels)
        times.append(time.perf_counter() - before)
    low, median, high = np.quantile(times, [0.1, 0.5, 0.9]) * 1000
    return Latency(batch, float(median), float(low), float(high), float(batch / median * 1000), len(times))


def peak_memory() -> int:
    """Returns the peak memory of this process so far, in bytes."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # getrusage would include the memory that the parent held when it started this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main(run: str, format: str, path: str, threads: str, batches: str, seconds: str) -> None:
    """Prints one line of JSON: the latencies of one file at several batch sizes, and the peak memory."""
    folder = open_run(run)
    if not FORMATS[format].exported:
        from kmed.runtime import load_backend

        load_backend()
        predictor = open_model(folder)
    else:
        predictor = open_exported(pathlib.Path(path), format, threads=int(threads))
    size, found = folder.read_config().data.image_size, []
    for batch in map(int, batches.split(",")):
        if predictor.max_batch is None or batch <= predictor.max_batch:
            latency = measure_latency(predictor, size, batch=batch, seconds=float(seconds))
            found.append({**latency.to_dict(), "peak_memory": peak_memory()})
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
