"""The processes of `kmed.sweep`: several models, trained one after another with one recipe on the same split."""

import dataclasses
import functools
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from kmed.errors import ConfigError, RunError, shorten
from kmed.files import clear_leftovers, write_json
from kmed.models.build import model_facts
from kmed.models.registry import resolve_name
from kmed.progress import format_time, say
from kmed.reading import read_json
from kmed.runs import Run, check_vacant, has_ended, hint_at_page
from kmed.schemas.records import SweepFile, check, stamped

PLAN = "sweep.json"


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """What a sweep trains.

    Attributes:
      folder: the sweep's folder, in which each model has a run folder.
      models: names, in the order of training.
      options: the options of `kmed train` for each of them, besides the model and its folder.
    """

    folder: pathlib.Path
    models: tuple[str, ...]
    options: tuple[str, ...]

    def run(self, model: str) -> Run:
        """Returns the run of a model, which may not have started yet."""
        return Run(self.folder / model)

    def command(self, model: str) -> list[str]:
        """Returns the arguments of `kmed` that start or resume a model's run."""
        run = self.run(model)
        if run.config.exists():
            return ["train", "--resume", str(run.folder)]
        return ["train", *self.options, "--model", model, "--out", str(run.folder)]


def make_plan(models: Sequence[str], options: Sequence[str], folder) -> SweepPlan:
    """Returns the SweepPlan of a new sweep, or of the same sweep if it has already started in `folder`.

    Args:
      models: names that `kmed models` lists.
      options: of `kmed train`, such as ["--config=configs/blood_cells.yaml", "--epochs=3"].
      folder: the sweep's folder.
    Raises: ModelError: an unknown model. ConfigError: a model is named twice, or none is named. RunError: the folder
      holds something else, or a sweep of other models or with other options.
    """
    folder = pathlib.Path(folder)
    names = tuple(resolve_name(name) for name in models)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"A sweep takes one or more models, each once. Received: {', '.join(models) or 'none'}.")
    plan = SweepPlan(folder, names, tuple(options))
    if (folder / PLAN).exists():
        stored = read_plan(folder)
        if _essence(stored) != _essence(plan):
            recipe = f"{', '.join(stored.models)}; {' '.join(stored.options) or 'no options'}"
            raise RunError(
                f"{folder} holds another sweep ({recipe}). Resume that one with --resume {folder}, or choose another "
                "--out."
            )
        return stored
    check_vacant(folder, "a sweep")
    write_json(folder / PLAN, stamped({"models": list(names), "options": list(options)}))
    return plan


def _essence(plan: SweepPlan) -> tuple:
    """Returns what two plans of one sweep have in common; only for --set, the order of the options matters."""
    flags = sorted(option for option in plan.options if not option.startswith("--set="))
    return plan.models, flags, [option for option in plan.options if option.startswith("--set=")]


def read_plan(folder) -> SweepPlan:
    """Returns the SweepPlan of a sweep that has started. Raises RunError if there is none in `folder`."""
    folder = pathlib.Path(folder)
    clear_leftovers(folder)
    path, error = folder / PLAN, functools.partial(_not_a_sweep, folder)
    stored = check(SweepFile, read_json(path, error), path, error)
    if wrong := [option for option in stored.options if not option.startswith("--")]:
        raise error(f"{path}: options must be those of kmed train, such as --epochs=3. Received: {shorten(wrong[0])}.")
    for name in stored.models:
        if name != resolve_name(name) or stored.models.count(name) > 1:
            raise error(f"{path}: models must be names of kmed's models, each once. Received: {shorten(name)}.")
    return SweepPlan(folder, tuple(stored.models), tuple(stored.options))


def _not_a_sweep(folder: pathlib.Path, message: str) -> RunError:
    return RunError(f"{folder} is not the folder of a sweep: {message}")


def train_all(plan: SweepPlan, *, quiet: bool = False, finished: Callable[[Run], None] = lambda run: None) -> list[str]:
    """Trains the models that are not trained yet, and returns those whose run failed.

    A finished run is skipped; an interrupted one continues after its last finished epoch. Each run has a process of
    its own, started by the `kmed train` command that its row of results names: the process frees its memory at its
    end, and if it fails, the others are not affected. A run is finished as soon as it has a result.csv, even if its
    process then ends with an error, for example while it draws the page; `resume` treats such a run in the same way.

    Args:
      plan: from `make_plan` or `read_plan`.
      quiet: whether the runs print only results and errors.
      finished: called with the Run of each model as soon as it is trained, or found to be trained already.
    Raises: KeyboardInterrupt: Ctrl-C, after the current run has stopped too.
    """
    failed = []
    for number, model in enumerate(plan.models, 1):
        run, place = plan.run(model), f"[{number}/{len(plan.models)}] {model}"
        if has_ended(run):
            say(f"{place}: already finished.")
            finished(run)
            continue
        _remove_earlier_start(run)
        say(f"{place}: {'resumes' if run.config.exists() else 'starts'}. {describe_time_left(plan)}".rstrip())
        start = time.monotonic()
        command = [sys.executable, "-m", "kmed", *(["--quiet"] if quiet else []), *plan.command(model)]
        code = subprocess.run(command, check=False).returncode
        if code in (130, 143, -2, -15):  # Ctrl-C or SIGTERM
            raise KeyboardInterrupt
        ended = f"after {format_time(time.monotonic() - start)}"
        if not run.result.exists():
            failed.append(model)
            say(f"{place}: failed {ended}.")
            continue
        but = f", but its process ended with an error (exit code {code}).{hint_at_page(run)}" if code else "."
        say(f"{place}: finished {ended}{but}")
        finished(run)
    return failed


def _remove_earlier_start(run: Run) -> None:
    """Removes what a killed run of kmed 0.1 left, which wrote its config.yaml last; a folder with other files stays."""
    written = {path.name for path in (run.splits, run.classes, run.environment, run.unreadable)}
    if run.folder.is_dir() and {path.name for path in run.folder.iterdir()} <= written:
        shutil.rmtree(run.folder)


def describe_time_left(plan: SweepPlan) -> str:
    """Returns how long the remaining runs will take, from the minutes of the finished ones and all multiply-adds.

    "" before the first run has finished. The finished part of an interrupted run is not taken into account.
    """
    work = model_facts().set_index("name")["multiply_adds"]
    done = {model: _minutes(plan.run(model)) for model in plan.models if plan.run(model).result.exists()}
    left = [model for model in plan.models if model not in done]
    if not done or not left:
        return ""
    pace = sum(done.values()) / sum(work[model] for model in done)
    return f"About {format_time(60 * pace * sum(work[model] for model in left))} left, by multiply-adds."


def _minutes(run: Run) -> float:
    return float(run.read_result(["minutes"])["minutes"])
