"""Kills kmed's commands at every write and runs them again: each must end well and leave no temporary file.

    python scripts/kill_at_each_write.py                      # all commands, every distinct write: an hour on 2 cores
    python scripts/kill_at_each_write.py train report --every 5
    python scripts/kill_at_each_write.py sweep --every 2 --first 1  # the other half of `sweep --every 2`

A write is what Python reports to an audit hook when a file below the command's folder is opened for writing, renamed,
linked or removed, and when a folder is made or removed. An undisturbed command shows its writes. Then it is started
again and again, and killed with SIGKILL just before each of them; the same command is run once more, and must leave
the files of the undisturbed one. Libraries that write past Python (TensorFlow's logs) are not seen.

Each command is a process forked from this one, which has imported TensorFlow but never used it.
"""

import argparse
import collections
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.mkdir": 0, "os.symlink": 1, "os.link": 1}
TEMPORARY = re.compile(r"\.kmed-\w+-[0-9a-f]{8}\.tmp|.*\.kmed-lock|.*\.tmp(\..*)?|.*\.old|tmp\w{8}")
END = "the end"
TINY = ["--model", "vit", "--image-size", "32x40", "--epochs", "1", "--batch-size", "16"]
TINY += ["--set", "model.options={patch_size: 8, width: 8, depth: 1, num_heads: 2}", "--set", "train.dtype=float32"]
TINY += ["--set", "train.tensorboard=false", "--set", "evaluate.num_resamples=20", "--set", "data.cache=disk"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A command that is killed.

    Attributes:
      arguments: of `kmed`, in a folder that holds `given`.
      given: names of what `make_material` made, which the command reads.
      again: the arguments of the second run; None: the same.
      same: files that must have the bytes that the undisturbed command gave them.
      rows: {table: number of rows} after the second run.
      refusals: the second run may also end with one line that holds one of these texts.
    """

    arguments: tuple[str, ...]
    given: tuple[str, ...] = ()
    again: tuple[str, ...] | None = None
    same: tuple[str, ...] = ()
    rows: tuple[tuple[str, int], ...] = ()
    refusals: tuple[str, ...] = ()


APPEND = ("--append", "rows.csv")
TRAINED = ("run/predictions.csv", "run/splits.csv", "run/calibration.json", "run/metrics.json", "run/summary.txt")
CASES = {
    "train": Case(
        ("train", *TINY, "--data", "data.npz", "--out", "run", *APPEND), ("data.npz",), same=TRAINED,
        rows=(("rows.csv", 1),),
    ),
    "resume": Case(
        ("train", *TINY, "--data", "data.npz", "--out", "run", *APPEND), ("data.npz",), same=TRAINED,
        again=("train", "--resume", "run", *APPEND), rows=(("rows.csv", 1),),
        refusals=("no training has begun", "run does not exist", "has already ended"),
    ),
    "sweep": Case(
        ("sweep", "--models", "vit,resnet18", *TINY[2:8], *TINY[10:], "--data", "data.npz", "--out", "sweep", *APPEND),
        ("data.npz",), same=("sweep/vit/predictions.csv", "sweep/resnet18/predictions.csv"),
        rows=(("rows.csv", 2), ("sweep/comparison/comparison.csv", 4)),
    ),
    "crossval": Case(
        ("crossval", *TINY, "--data", "data.npz", "--folds", "2", "--out", "folds", *APPEND), ("data.npz",),
        same=("folds/predictions.csv", "folds/metrics.json", "folds/folds.csv"), rows=(("rows.csv", 2),),
    ),
    "tune": Case(
        ("tune", "--space", "space.yaml", *TINY, "--data", "data.npz", "--trials", "2", "--out", "study"),
        ("data.npz", "space.yaml"),
        same=("study/splits.csv", *(f"study/trial{number}/predictions.csv" for number in range(2))),
        rows=(("study/trials.csv", 2),),
    ),
    "export": Case(("export", "run", "--format", "tflite"), ("data.npz", "run")),
    "export savedmodel": Case(("export", "run", "--format", "savedmodel", *APPEND), ("data.npz", "run")),
    "rescore": Case(
        ("evaluate", "run", "--rescore", "--set", "evaluate.thresholds=youden", *APPEND), ("data.npz", "run"),
        same=(*TRAINED, "run/result.csv", "run/config.yaml"), rows=(("rows.csv", 1),),
    ),
    "report": Case(("report", "run"), ("data.npz", "run"), same=("run/report.html",)),
    "compare": Case(
        ("compare", "run", "other", "--out", "comparison", *APPEND), ("data.npz", "run", "other"),
        same=("comparison/comparison.csv", "comparison/pairs.csv"), rows=(("rows.csv", 2),),
    ),
    "ensemble": Case(
        ("ensemble", "run", "other", "--out", "both", *APPEND), ("data.npz", "run", "other"),
        same=("both/predictions.csv", "both/metrics.json", "both/calibration.json", "both/ensemble.json"),
        rows=(("rows.csv", 1),),
    ),
    "explain": Case(("explain", "run", "--out", "maps"), ("data.npz", "run")),
    "predict": Case(
        ("predict", "run", "picture.png", "--csv", "--out", "found.csv", "--explain", "maps"),
        ("run", "picture.png"), same=("found.csv",),
    ),
    "demo page": Case(("demo", "run", "--out", "page"), ("data.npz", "run")),
    "demo page again": Case(("demo", "run", "--out", "page"), ("data.npz", "run", "page")),
    "benchmark": Case(
        ("benchmark", "run", "--format", "tflite", "--batch", "1", "--seconds", "0.01"), ("data.npz", "run")
    ),
    "show": Case(("data", "show", "data.npz", "--out", "shown"), ("data.npz",), same=("shown/counts.txt",)),
    "audit": Case(("data", "audit", "pictures", "--out", "audit"), ("pictures",), same=("audit/groups.csv",)),
    "pack": Case(
        ("data", "pack", "pictures", "packed.npz", "--image-size", "16x16"), ("pictures",), same=("packed.npz",)
    ),
    "demo": Case(("data", "demo", "drawn"), same=("drawn/groups.csv", "drawn/demo.json")),
}  # fmt: skip


def watch(folder: pathlib.Path, log: int | None = None, kill_at: str | None = None) -> Callable[[str], None]:
    """Reports every write below `folder` to the file descriptor `log`, and kills the process group before `kill_at`.

    Returns: the function that is called with the name of each write.
    """
    top, killed = str(folder.resolve()), kill_at

    def note(name: str) -> None:
        if log is not None:
            os.write(log, f"{name}\n".encode())
        if name == killed:
            os.killpg(0, signal.SIGKILL)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            path = arguments[0] if isinstance(arguments[2], int) and arguments[2] & WRITING else None
        else:
            path = arguments[CHANGES[event]] if event in CHANGES else None
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        where = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - it must not follow links
        if where.startswith(top + os.sep):
            plain = re.sub(r"\.kmed-\w+-[0-9a-f]{8}\.tmp", ".kmed.tmp", where[len(top) + 1 :])
            note(f"{event.removeprefix('os.')} {re.sub('[0-9]+', '#', plain)}")  # the hundredth picture is as the first

    sys.addaudithook(hook)
    return note


def fork(arguments, folder: pathlib.Path, *, log: pathlib.Path | None = None, kill_at: str | None = None):
    """Runs kmed in a forked process in `folder`; returns its exit code (-9 if it was killed) and its output."""
    said = folder.parent / f"{folder.name}.out"
    process = os.fork()
    if process == 0:
        code = 70
        try:
            os.setsid()
            output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            os.chdir(folder)
            tempfile.tempdir = str(folder.resolve() / "tmp")
            logged = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            note = watch(folder, logged, kill_at)
            code = run_kmed(arguments)
            note(END)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), said.read_text(errors="replace")


def run_kmed(arguments) -> int:
    """Runs a command in this process, and returns its exit code; the processes of a sweep are forked."""
    import atexit

    from kmed.cli.main import main
    from kmed.training import sweep

    def start_process(command, log, cores):
        process = os.fork()
        if process == 0:
            os._exit(run_kmed(command[3:]))
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        return types.SimpleNamespace(poll=lambda: code)

    sweep.start_process = start_process  # type: ignore[assignment]
    sys.argv = ["kmed", *arguments]
    try:
        main(list(arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    else:
        code = 0
    atexit._run_exitfuncs()
    sys.stdout.flush()
    return code


def make_material(folder: pathlib.Path) -> None:
    """Makes what the commands read: data.npz, pictures, two runs, a demo page, one picture, a search space."""
    import numpy as np
    from PIL import Image

    (folder / "tmp").mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(24) % 2, 3)
    images = rng.integers(0, 150, (len(labels), 32, 40, 3)).astype(np.uint8)
    images[np.arange(len(labels)), :, :, labels] += 80
    for row, (label, pixels) in enumerate(zip(labels, images, strict=True)):
        path = folder / "pictures" / ("red", "green")[label] / f"patient{row // 3:02d}_{row % 3}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    Image.fromarray(images[0]).save(folder / "picture.png")
    (folder / "space.yaml").write_text("train.learning_rate: {log: [0.0001, 0.01]}\n")
    group = ["--set", r"data.group=regex:(patient\d+)"]
    for arguments in (
        ["data", "pack", "pictures", "data.npz", "--image-size", "32x40", *group],
        ["train", *TINY, "--data", "data.npz", "--out", "run"],
        ["train", *TINY, "--data", "data.npz", "--seed", "1", "--set", "data.splits=run/splits.csv", "--out", "other"],
        ["export", "run"],
        ["demo", "run", "--out", "page"],
    ):
        code, output = fork(arguments, folder)
        if code:
            sys.exit(f"kmed {' '.join(arguments)} ended with {code}:\n{output}")
    (folder / "latest").unlink()
    shutil.rmtree(folder / "run" / "export")


def copy_material(case: Case, material: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Returns a new folder with what the command reads."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tmp").mkdir(parents=True)
    for name in case.given:
        (shutil.copytree if (material / name).is_dir() else shutil.copy2)(material / name, folder / name)
    return folder


def files_of(folder: pathlib.Path) -> set[str]:
    """Returns the paths of all files, links and folders below a folder, but for TensorFlow's generated Python files."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {name for name in names if not name.startswith(("tmp/__autograph", "tmp/__pycache__"))}


def faults(case: Case, whole: pathlib.Path, folder: pathlib.Path, code: int, output: str) -> list[str]:
    """Returns what is wrong after the second run; `whole` is the folder of the undisturbed command."""
    left = sorted(path for path in files_of(folder) if TEMPORARY.fullmatch(pathlib.PurePosixPath(path).name))
    found = [f"temporary files are left: {', '.join(left[:3])}"] if left else []
    if "Traceback" in output:
        return [*found, "a traceback"]
    if code and any(text in output for text in case.refusals):
        return found
    if code:
        return [*found, f"exit code {code}: {output.strip().splitlines()[-1]}"]
    missing, more = files_of(whole) - files_of(folder), files_of(folder) - files_of(whole)
    found += [
        f"{word}: {', '.join(sorted(names)[:3])}" for word, names in (("missing", missing), ("more", more)) if names
    ]
    found += [
        f"{name} has other bytes" for name in case.same
        if not missing and (whole / name).read_bytes() != (folder / name).read_bytes()
    ]  # fmt: skip
    for name, number in case.rows:
        rows = len((folder / name).read_text().splitlines()) - 1 if (folder / name).exists() else 0
        found += [f"{name} has {rows} rows, not {number}"] if rows != number else []
    return found


def try_case(name: str, material: pathlib.Path, work: pathlib.Path, every=1, first=0) -> collections.Counter:
    """Kills one command at each of its writes; prints what goes wrong, and returns the counts."""
    case, log, counts = CASES[name], work / "writes.txt", collections.Counter()
    whole = copy_material(case, material, work / "whole")
    log.unlink(missing_ok=True)
    code, output = fork(case.arguments, whole, log=log)
    assert code == 0, f"{name} ended with {code} although nobody killed it:\n{output}"
    writes = list(dict.fromkeys(log.read_text().splitlines()))
    for kill_at in [*writes[first:-1:every], END]:
        folder = copy_material(case, material, work / "killed")
        code, output = fork(case.arguments, folder, kill_at=kill_at)
        if code != -signal.SIGKILL:
            counts["not reached"] += 1
            continue
        counts["kills"] += 1
        code, output = fork(case.again or case.arguments, folder)
        found = faults(case, whole, folder, code, output)
        counts["good"] += not found
        counts["refused in one line"] += bool(code) and not found
        counts["with temporary files"] += any(fault.startswith("temporary") for fault in found)
        for fault in found:
            print(f"  {name}, killed before {kill_at!r}: {fault}", flush=True)
    counts["writes"] = len(writes)
    return counts


def main() -> None:
    """Tries the cases named on the command line, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"[all]: {', '.join(CASES)}")
    parser.add_argument("--every", type=int, default=1, help="only each N-th write")
    parser.add_argument("--first", type=int, default=0, help="the write to begin at, counted from 0")
    arguments = parser.parse_args()
    from kmed.runtime import load_backend

    load_backend()
    # Not a TemporaryDirectory, which a forked process would remove at its end.
    work, total = pathlib.Path(tempfile.mkdtemp()), collections.Counter()
    try:
        make_material(work / "material")
        for name in arguments.cases or CASES:
            start = time.monotonic()
            counts = try_case(name, work / "material", work, arguments.every, arguments.first)
            total += counts
            print(f"{name}: {dict(counts)} in {time.monotonic() - start:.0f} s", flush=True)
    finally:
        shutil.rmtree(work)
    print(f"All: {dict(total)}")
    sys.exit(total["good"] < total["kills"])


if __name__ == "__main__":
    main()
