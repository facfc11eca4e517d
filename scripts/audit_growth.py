"""Measures how the time and the memory of the leak audit grow with the number of different pictures.

    python scripts/audit_growth.py 2000 6000 17000 --out results/audit_growth.csv

The pictures are drawn: grey noise of 176x176, blurred, and no two alike but for one in a hundred, which is a turned
copy of another one. Each size is audited in a process of its own with --jobs processes. cpu_s is the processor time of
all of them, peak_mb the memory of the first and of the largest of the others.
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

SIDE, COPIES = 176, 100


def draw(number: int) -> np.ndarray:
    """Returns uint8 (SIDE, SIDE): a grey picture that depends on the number."""
    import cv2

    noise = np.random.default_rng(number).normal(0, 1, (SIDE, SIDE)).astype(np.float32)
    blobs = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.clip(128 + 45 * blobs / blobs.std(), 20, 240).astype(np.uint8)


def make_archive(folder: pathlib.Path, num_pictures: int) -> None:
    """Draws pictures into two class folders; the last ones are turned copies of others."""
    import cv2

    num_copies = num_pictures // COPIES
    for name in ("a", "b"):
        (folder / name).mkdir()
    for number in range(num_pictures):
        original = number - (num_pictures - num_copies)
        pixels = draw(number if original < 0 else original * 7)
        if original >= 0:
            turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), 5 + original % 40, 1.0)
            pixels = cv2.warpAffine(pixels, turn, (SIDE, SIDE))
        Image.fromarray(pixels).save(folder / "ab"[number % 2] / f"{number:06d}.png", compress_level=1)


def measure(folder: str, jobs: int) -> dict:
    """Returns what an audit of a folder takes and finds."""
    from kmed.data.audit.leaks import audit
    from kmed.data.readers.load import load_table

    table = load_table(folder)
    start = time.perf_counter()
    found = audit(table, jobs=jobs)
    seconds = time.perf_counter() - start
    usage = [resource.getrusage(each) for each in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    sizes = pd.Series(found.photograph).value_counts()
    return {
        "seconds": round(seconds, 1),
        "cpu_s": round(sum(each.ru_utime + each.ru_stime for each in usage), 1),
        "peak_mb": round(sum(each.ru_maxrss for each in usage) / 1e3),
        "pairs": found.num_compared,
        "copies": len(table) // COPIES,
        "copies_found": int((sizes == 2).sum()),
        "wrong_links": int((sizes > 2).sum() + len(sizes) - len(set(found.group))),
    }


@click.command(help=__doc__.split("\n")[0])
@click.argument("sizes", nargs=-1, required=True, type=int)
@click.option("--jobs", type=int, default=None, help="The number of processes.  [one per core]")
@click.option("--out", type=click.Path(path_type=pathlib.Path), help="A CSV for the rows.")
def main(sizes, jobs, out):
    """Measures each size, and prints and writes the table."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            make_archive(pathlib.Path(folder), size)
            code = (
                f"import json, sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r}); import audit_growth; "
                f"print(json.dumps(audit_growth.measure(sys.argv[1], {jobs or runtime.num_cores()})))"
            )
            result = subprocess.run([sys.executable, "-c", code, folder], check=True, stdout=subprocess.PIPE, text=True)
            rows.append({"pictures": size, "jobs": jobs or runtime.num_cores(), **json.loads(result.stdout)})
            print(rows[-1], flush=True)
        _write(rows, out)
    print(pd.DataFrame(rows).to_markdown(index=False))


def _write(rows: list[dict], out: pathlib.Path | None) -> None:
    """Writes the rows so far, with the device and the command."""
    if out is None:
        return
    runtime.load_backend()
    environment = runtime.environment()
    pd.DataFrame(rows).assign(
        device=environment["device"],
        versions=runtime.join_versions(environment["versions"]),
        command=environment["command"],
    ).to_csv(out, index=False)


if __name__ == "__main__":
    main()
