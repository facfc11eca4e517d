"""Damages files of finished runs in every way that comes to mind, and counts what kmed's commands make of them.

    python scripts/fuzz_runs.py 1500 --seed 0

Each mutant is a copy of a run folder in which one field or one cell is removed, retyped or made extreme, or one file
is replaced by rubbish. All readers of the run's files see it, and of a share of the mutants one command, chosen at
random, since a command that runs to its end takes seconds. A mutant is "refused" if a reader or the command ends with
one line and exit code 1 or 2, and "fine" if all end well, as for a note or a path that may be anything.

"Foreign" is an exception of another library, "lines" an error that is not one line, and "silent" a value that is never
legal but was taken. These three should be 0.
"""

import collections
import copy
import csv
import io
import json
import math
import pathlib
import random
import resource
import shutil
import tempfile
import traceback

import click
import click.testing
import numpy as np
import yaml

from kmed.cli import main as kmed
from kmed.errors import KmedError
from kmed.runs import Run

RUNS = pathlib.Path(__file__).parent.parent / "tests" / "fixtures" / "runs_0_1_0"
HUGE = 10**400
# Replacements of a value in JSON or YAML; the first four are never legal for a number or a text in a run's files.
NEVER = ([], {}, [[1]], True)
VALUES = (
    *NEVER,
    None,
    "",
    "x",
    -1,
    0,
    2,
    0.5,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    HUGE,
    [None],
    {"a": {"b": []}},
    "y" * 5000,
)
CELLS = ("", "x", "-1", "0", "2", "0.5", "nan", "inf", "1e999", "9" * 5000, "1_0", '"', "\n", "a,b", "test", "é|ü")
RUBBISH = (
    b"", b"\xff\xfe\x00rubbish", b"PK\x03\x04", b"null", b"[]", b"{}", b"\xef\xbb\xbf", b"[" * 100_000, b"{" * 5000,
    b"a: 1\n",
    b'{"a": 1, "a": 2}', b"x,x\n1,2\n", b"\r\n\r\n", "é".encode("latin-1") * 50, b"\0" * 100, b"seed: 2024-13-40\n",
    b'{"version": 99, "kmed_version": "9.9"}',
)  # fmt: skip
LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)

# Commands that read run folders.
COMMANDS = (
    "evaluate {run} --rescore", "report {run}", "compare {run} {other} --out {out}",
    "evaluate {run} --rescore --append {out}.csv", "evaluate {run}", "predict {run} {picture}",
    "explain {run} {picture} --out {out}", "train --resume {run}", "predict {run} {picture} --format tflite",
    "demo {run} --out {out}", "export {run} --threads 1",
)  # fmt: skip


def places(value, place=()):
    """Yields the place of every value inside a JSON or YAML object, as a tuple of keys."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*place, key)
        if isinstance(item, (dict, list)):
            yield from places(item, (*place, key))


def damage_object(content: dict, rng: random.Random) -> tuple[dict, str, bool]:
    """Returns (the object with one field changed, what was done, whether it can never be legal)."""
    content = copy.deepcopy(content)
    place = rng.choice(list(places(content)))
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    old, way = holder[place[-1]], rng.choice(["remove", "replace", "replace", "replace", "add", "swap"])
    where = "/".join(map(str, place))
    if way == "remove":
        del holder[place[-1]]
        return content, f"{where} removed", False
    if way == "add" and isinstance(holder, dict):
        holder["kmed never wrote this"] = rng.choice(VALUES)
        return content, f"a field added beside {where}", len(place) == 1
    if way == "swap" and isinstance(old, list) and len(old) > 1 and old != old[::-1]:
        old.reverse()
        return content, f"{where} reversed", place[-1] == "class_names"
    number = rng.randrange(len(VALUES))
    holder[place[-1]] = VALUES[number]
    same_kind = type(VALUES[number]) is type(old)  # an empty list for a list, True for a bool
    never = number < len(NEVER) and not same_kind and isinstance(old, (str, int, float)) and "options" not in place
    bad_share = place[-1] in ("temperature", "coverage", "wanted") and VALUES[number] in (-1, 1e308, -1e308, math.inf)
    return content, f"{where} = {str(VALUES[number])[:30]}", never or bad_share


def damage_table(rows: list[list[str]], rng: random.Random) -> tuple[list[list[str]], str, bool]:
    """Returns (the rows of a CSV with one cell, row or column changed, what was done, whether it is never legal)."""
    rows = [list(row) for row in rows]
    row, column = rng.randrange(1, len(rows)), rng.randrange(len(rows[0]))
    way, name = (
        rng.choice(["cell", "cell", "cell", "name", "column", "double", "short", "long", "swap"]),
        rows[0][column],
    )
    if way == "cell":
        rows[row][column] = rng.choice(CELLS)
        wrong = name.startswith("prob_") and rows[row][column] in ("x", "-1", "2", "nan", "inf", "1e999", "")
        return rows, f"{name}[{row}] = {rows[row][column][:20]!r}", wrong
    if way == "name":
        rows[0][column] = rng.choice(["", "x", rows[0][0]])
        return rows, f"column {name} renamed", False
    if way == "column":
        return [row[:column] + row[column + 1 :] for row in rows], f"column {name} removed", False
    if way == "double":
        return [*rows, rows[row]], f"row {row} twice", name.startswith("prob_")
    if way == "swap":
        other = rng.randrange(len(rows[0]))
        rows[0][column], rows[0][other] = rows[0][other], rows[0][column]
        return (
            rows,
            f"{name} and {rows[0][column]} swapped",
            {name[:5], rows[0][column][:5]} == {"prob_"} and other != column,
        )
    rows[row] = rows[row][:-1] if way == "short" else [*rows[row], "1"]
    return rows, f"row {row} too {way}", True


def damage_arrays(path: pathlib.Path, rng: random.Random) -> tuple[str, bool]:
    """Changes one array of an npz file."""
    with np.load(path) as stored:
        arrays = dict(stored)
    name = rng.choice(sorted(arrays))
    way = rng.choice(["remove", "nan", "zero", "negative", "shape", "text", "object", "huge"])
    array = arrays.pop(name)
    changed = {
        "nan": array * np.nan, "zero": array * 0, "negative": -1 - np.abs(array), "shape": array[..., None],
        "text": np.array("text"), "object": np.array([None]), "huge": np.full(array.shape, 1e30),
    }  # fmt: skip
    if way != "remove":
        arrays[name] = changed[way]
    np.savez(path, **arrays)
    return f"{name} {way}", way in ("remove", "nan", "shape", "text", "object")


def damage(folder: pathlib.Path, rng: random.Random) -> tuple[str, str, bool]:
    """Damages one file of a run; returns (its name, what was done, whether the result can never be legal)."""
    files = sorted(
        path for path in folder.rglob("*") if path.suffix in (".json", ".csv", ".yaml", ".npz", ".keras", ".tflite")
    )
    path = rng.choice([*files, *(file for file in files if file.suffix in (".json", ".csv"))])
    name, way = path.relative_to(folder).as_posix(), rng.random()
    if way < 0.08:
        path.unlink()
        kind = rng.choice(["missing", "folder", "dangling link"])
        path.mkdir() if kind == "folder" else path.symlink_to("nowhere") if kind == "dangling link" else None
        return name, kind, False
    if way < 0.18 or path.suffix in (".keras", ".tflite"):
        content = bytearray(path.read_bytes())
        if way < 0.14 or path.suffix == ".tflite":  # LiteRT itself may crash on flipped bytes
            content = rng.choice([*RUBBISH, LAUGHS.encode(), bytes(content[: len(content) // 2])])
        else:
            for _ in range(3):
                content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(bytes(content))
        return name, f"rubbish {bytes(content[:12])!r}", False
    if path.suffix == ".npz":
        return (name, *damage_arrays(path, rng))
    if path.suffix == ".csv":
        rows, done, never = damage_table(list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")))), rng)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        return name, done, never
    read, write = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    content, done, never = damage_object(read(path.read_text(encoding="utf-8")), rng)
    path.write_text(write(content), encoding="utf-8")
    return name, done, never


def readers(folder: pathlib.Path) -> dict:
    """Returns {file: the function that reads it} of a run folder."""
    from kmed.evaluation.decisions import read_fitted
    from kmed.evaluation.novelty import load_novelty
    from kmed.evaluation.predictions import stored_predictions
    from kmed.evaluation.predictor import describe_run
    from kmed.training import checkpoint

    run = Run(folder)
    found = {
        "config.yaml": run.read_config, "classes.json": run.read_classes, "splits.csv": run.read_splits,
        "environment.json": lambda: run.read_json(run.environment), "history.csv": run.read_history,
        "calibration.json": lambda: read_fitted(run), "metrics.json": lambda: run.read_json(run.metrics),
        "predictions.csv": lambda: stored_predictions(run), "result.csv": lambda: run.read_result(["minutes"]),
        "novelty.npz": lambda: load_novelty(run.novelty), "description": lambda: describe_run(run),
    }  # fmt: skip
    if (state := checkpoint.newest(run.checkpoints)) is not None:
        found = {name: found[name] for name in ("config.yaml", "classes.json", "splits.csv", "environment.json")}
        found[f"checkpoints/{state.name}/state.json"] = lambda: checkpoint.read_state(state)
    return found


def judge(error: BaseException | None, name: str) -> str:
    """Returns the outcome of a reader or a command that ended with `error`, or without one."""
    if error is None:
        return "fine"
    if not isinstance(error, (KmedError, click.ClickException)):
        return "foreign"
    text = str(error)
    return "refused" if "\n" not in text and len(text) < 2000 else "lines"


def run_command(arguments: list[str]) -> tuple[str, int, str]:
    """Returns (outcome, exit code, output) of a command that runs in this process."""
    result = click.testing.CliRunner().invoke(kmed, ["--quiet", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        text = "".join(traceback.format_exception(result.exception)[-3:])
        return "foreign", result.exit_code, text
    errors = [line for line in result.output.splitlines() if line.startswith(("Error:", "Usage:"))]
    if result.exit_code == 0:
        return "fine", 0, result.output
    return ("refused" if result.exit_code in (1, 2) and len(errors) == 1 else "lines"), result.exit_code, result.output


class Fuzzer:
    """Makes mutants of stored runs in a folder, and tries them."""

    def __init__(self, folder: pathlib.Path, seed: int, share: float):
        from kmed.data.demo.smears import draw_demo_smears
        from kmed.data.demo.xrays import draw_demo_xrays

        self.rng, self.share, self.folder = random.Random(seed), share, folder
        self.outcomes, self.codes = collections.Counter(), collections.Counter()
        self.faults: set[str] = set()
        draw_demo_smears(folder / "smears", num_train=28, num_test=12)
        draw_demo_xrays(folder / "xrays", num_patients=15)
        self.picture = next((folder / "smears").rglob("*.jp*g"), None) or next((folder / "smears").rglob("*.png"))
        for name in ("multiclass", "multilabel", "interrupted"):
            shutil.copytree(RUNS / name, folder / name)
            config = yaml.safe_load((folder / name / "config.yaml").read_text())
            config["data"]["path"] = str(folder / config["data"]["path"])
            (folder / name / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def try_one(self) -> None:
        """Makes one mutant, and records what its readers and one command make of it."""
        kind = self.rng.choice(["multiclass", "multilabel", "multiclass", "multilabel", "interrupted"])
        mutant = self.folder / "mutant"
        shutil.rmtree(mutant, ignore_errors=True)
        shutil.copytree(self.folder / kind, mutant)
        name, done, never = damage(mutant, self.rng)
        found = [self.read(name, done, *each) for each in readers(mutant).items()]
        command = self.choose(kind)
        if self.rng.random() < self.share:
            outcome, code, output = run_command([part.format(**self.paths(kind)) for part in command.split()])
            self.codes[code] += 1
            found.append(outcome)
            if outcome in ("foreign", "lines"):
                self.report(f"{kind} {name}: {done} -> {command}: {outcome}: {output[-600:]}")
        worst = next(word for word in ("foreign", "lines", "refused", "fine") if word in found)
        unread = ("export", "history.csv") if kind == "interrupted" else ("export",)
        if worst == "fine" and never and not name.startswith(unread) and not name.endswith(".npz"):
            worst = "silent"
            self.report(f"{kind} {name}: {done}: taken in silence by all readers")
        self.outcomes[worst] += 1

    def report(self, fault: str) -> None:
        """Prints a fault, once."""
        if fault not in self.faults:
            click.echo(fault)
            self.faults.add(fault)

    def read(self, name: str, done: str, file: str, read) -> str:
        """Returns the outcome of one reader."""
        try:
            read()
            error = None
        except BaseException as problem:  # noqa: BLE001 - to find which ones there are
            error = problem
        outcome = judge(error, name)
        if outcome in ("foreign", "lines"):
            self.report(f"{name}: {done} -> reading {file}: {type(error).__name__}: {str(error)[:300]}")
        return outcome

    def choose(self, kind: str) -> str:
        """Returns a command for a mutant of this kind."""
        if kind == "interrupted":
            return "train --resume {run}"
        return self.rng.choice(COMMANDS)

    def paths(self, kind: str) -> dict:
        """Returns what the placeholders of the commands stand for."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.with_suffix(".csv").unlink(missing_ok=True)
        return {"run": self.folder / "mutant", "other": self.folder / kind, "out": out, "picture": self.picture}


@click.command(help=__doc__.split("\n")[0])
@click.argument("number", type=int, default=1500)
@click.option("--seed", default=0, show_default=True)
@click.option("--share", default=0.1, show_default=True, help="Of the mutants that a command is tried on.")
def main(number, seed, share):
    """Prints the counts of outcomes and exit codes, each fault, and the peak memory."""
    from kmed.runtime import load_backend

    load_backend()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(pathlib.Path(folder), seed, share)
        for _ in range(number):
            fuzzer.try_one()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    click.echo(f"{number} mutants: {dict(fuzzer.outcomes)}; exit codes of commands {dict(fuzzer.codes)}; {peak:.2f} GB")


if __name__ == "__main__":
    main()
