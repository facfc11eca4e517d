"""`kmed sweep`: several models trained one after another with one recipe on the same split, each in its own process."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from kmed.errors import ConfigError, RunError
from kmed.files import write_json
from kmed.models.build import model_facts
from kmed.models.registry import resolve_name
from kmed.progress import format_time, say
from kmed.runs import Run, hint_at_page

PLAN = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a sweep trains.

    Attributes:
      folder: where it is stored; a run folder a model is made in it.
      models: names, in the order of training.
      options: what `kmed train` is given for each, besides the model and its folder.
    """

    folder: pathlib.Path
    models: tuple[str, ...]
    options: tuple[str, ...]

    def run(self, model: str) -> Run:
        """Returns the run of a model, which may not have begun."""
        return Run(self.folder / model)

    def command(self, model: str) -> list[str]:
        """Returns the `kmed` arguments that begin a model's run or go on with it."""
        run = self.run(model)
        if run.config.exists():
            return ["train", "--resume", str(run.folder)]
        return ["train", *self.options, "--model", model, "--out", str(run.folder)]


def make_plan(models: Sequence[str], options: Sequence[str], folder) -> Plan:
    """Returns the Plan of a new sweep, or of the same one that was begun in `folder`.

    Args:
      models: names; those that `kmed models` lists.
      options: of `kmed train`, such as ["--config", "configs/blood_cells.yaml", "--epochs", "3"].
      folder: where to.
    Raises: ModelError: an unknown model. ConfigError: a model is named twice, or none is. RunError: the folder
      holds something else, or a sweep of other models or options.
    """
    folder = pathlib.Path(folder)
    names = tuple(resolve_name(name) for name in models)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"A sweep takes one model or more, each once. Received: {', '.join(models) or 'none'}.")
    plan = Plan(folder, names, tuple(options))
    if (folder / PLAN).exists():
        begun = read_plan(folder)
        if begun != plan:
            raise RunError(
                f"{folder} holds another sweep ({', '.join(begun.models)}; {' '.join(begun.options) or 'no options'}). "
                f"Go on with that one by --resume {folder}, or choose another --out."
            )
        return plan
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is no sweep and not empty. Choose another --out.")
    write_json(folder / PLAN, {"models": list(names), "options": list(options)})
    return plan


def read_plan(folder) -> Plan:
    """Returns the Plan of a sweep that was begun. Raises RunError where there is none."""
    folder = pathlib.Path(folder)
    try:
        told = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return Plan(folder, tuple(told["models"]), tuple(told["options"]))
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{folder} is no sweep: its {PLAN} cannot be read ({error}).") from None


def train_all(plan: Plan, *, quiet: bool = False, finished: Callable[[Run], None] = lambda run: None) -> list[str]:
    """Trains what is not trained yet, and returns the models whose run failed.

    A finished run is skipped, an interrupted one goes on from its last finished epoch. Each runs in a process of
    its own, by the `kmed train` command that its row of results names: it gives its memory back, and a run that fails
    leaves the others alone. A run is finished once it has its result.csv, also where its process then ended with an
    error, such as one in drawing its page; `resume` takes it alike.

    Args:
      plan: of `make_plan`.
      quiet: whether the runs say nothing but results and errors.
      finished: called with the Run of each model as soon as it is trained, or found trained.
    Raises: KeyboardInterrupt: Ctrl-C, once the run under way has stopped too.
    """
    failed = []
    for number, model in enumerate(plan.models, 1):
        run, place = plan.run(model), f"[{number}/{len(plan.models)}] {model}"
        if run.result.exists():
            say(f"{place}: finished already.")
            finished(run)
            continue
        if run.folder.exists() and not run.config.exists():
            shutil.rmtree(run.folder)  # killed before it was a run that can be resumed
        say(f"{place}: {'goes on' if run.config.exists() else 'begins'}. {describe_time_left(plan)}".rstrip())
        start = time.monotonic()
        command = [sys.executable, "-m", "kmed", *(["--quiet"] if quiet else []), *plan.command(model)]
        code = subprocess.run(command, check=False).returncode
        if code in (130, -2):
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


def describe_time_left(plan: Plan) -> str:
    """Returns how long the rest is likely to take, from the finished runs' minutes and the models' multiply-adds.

    "" before the first run has finished. What part of an interrupted run is done already is not counted.
    """
    work = model_facts().set_index("name")["multiply_adds"]
    done = {model: _minutes(plan.run(model)) for model in plan.models if plan.run(model).result.exists()}
    left = [model for model in plan.models if model not in done]
    if not done or not left:
        return ""
    pace = sum(done.values()) / sum(work[model] for model in done)
    return f"About {format_time(60 * pace * sum(work[model] for model in left))} left, by multiply-adds."


def _minutes(run: Run) -> float:
    return float(run.read_result()["minutes"])
