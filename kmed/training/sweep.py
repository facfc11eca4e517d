"""The processes of `kmed.sweep`: several models, trained with one recipe on the same split."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from kmed.errors import ConfigError, shorten
from kmed.models.build import model_facts
from kmed.models.registry import resolve_name
from kmed.progress import format_time, say
from kmed.runs import SWEEP, Run, has_ended
from kmed.runtime import Terminated
from kmed.schemas.records import SweepFile
from kmed.training.plans import PlanFile, hint_at_page

PLAN = PlanFile(SWEEP, "sweep", SweepFile)


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
        return self.resume_command(model) if self.run(model).config.exists() else self.start_command(model)

    def start_command(self, model: str) -> list[str]:
        """Returns the arguments of `kmed` that start a model's run."""
        return ["train", *self.options, "--model", model, "--out", str(self.run(model).folder)]

    def resume_command(self, model: str) -> list[str]:
        """Returns the arguments of `kmed` that continue a model's run."""
        return ["train", "--resume", str(self.run(model).folder)]


def make_plan(models: Sequence[str], options: Sequence[str], folder) -> SweepPlan:
    """Returns what `find_plan` does, and stores it if the sweep is new; the arguments are the same."""
    plan = find_plan(models, options, folder)
    if not PLAN.is_in(plan.folder):
        PLAN.write(plan.folder, {"models": list(plan.models), "options": list(plan.options)})
    return plan


def find_plan(models: Sequence[str], options: Sequence[str], folder) -> SweepPlan:
    """Returns the SweepPlan of a new sweep, or of the same sweep if it has already started in `folder`.

    Args:
      models: names that `kmed models` lists.
      options: of `kmed train`, such as ["--config=configs/blood_cells.yaml", "--epochs=3"].
      folder: the sweep's folder.
    Raises: ModelError: an unknown model. ConfigError: a model is named twice, or none is named. RunError: the folder
      holds something else, or a sweep of other models or with other options.
    """
    names = tuple(resolve_name(name) for name in models)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"A sweep takes one or more models, each once. Received: {', '.join(models) or 'none'}.")
    return PLAN.find(SweepPlan(pathlib.Path(folder), names, tuple(options)), read_plan, _difference)


def _difference(stored: SweepPlan, plan: SweepPlan) -> str:
    """Returns the models and options of a stored sweep if it is another one; "" if it is the same."""
    if _essence(stored) == _essence(plan):
        return ""
    return f"{', '.join(stored.models)}; {' '.join(stored.options) or 'no options'}"


def _essence(plan: SweepPlan) -> tuple:
    """Returns what two plans of one sweep have in common; only for --set, the order of the options matters."""
    flags = sorted(option for option in plan.options if not option.startswith("--set="))
    return plan.models, flags, [option for option in plan.options if option.startswith("--set=")]


def read_plan(folder) -> SweepPlan:
    """Returns the SweepPlan of a sweep that has started. Raises RunError if there is none in `folder`."""
    folder = pathlib.Path(folder)
    stored, path = PLAN.read(folder), folder / PLAN.name
    if wrong := [option for option in stored.options if not option.startswith("--")]:
        legal = "options must be those of kmed train, such as --epochs=3"
        raise PLAN.not_one(folder, f"{path}: {legal}. Received: {shorten(wrong[0])}.")
    for name in stored.models:
        if name != resolve_name(name) or stored.models.count(name) > 1:
            legal = "models must be names of kmed's models, each once"
            raise PLAN.not_one(folder, f"{path}: {legal}. Received: {shorten(name)}.")
    return SweepPlan(folder, tuple(stored.models), tuple(stored.options))


def train_all(
    plan: SweepPlan, *, jobs: int = 1, quiet: bool = False, finished: Callable[[Run], None] = lambda run: None
) -> list[str]:
    """Trains the models that are not trained yet, and returns those whose run failed.

    A finished run is skipped; an interrupted one continues after its last finished epoch. Each run has a process of
    its own, started by the `kmed train` command that its row of results names: the process frees its memory at its
    end, and if it fails, the others are not affected. A run is finished as soon as it has a result.csv, even if its
    process then ends with an error, for example while it draws the page; `resume` treats such a run in the same way.

    Args:
      plan: from `make_plan` or `read_plan`.
      jobs: how many processes run at once. If there are several, each has its share of the processor cores, and what
        it prints goes to a file MODEL.log in the sweep's folder.
      quiet: whether the runs print only results and errors.
      finished: called with the Run of each model as soon as it is trained, or found to be trained already.
    Raises: KeyboardInterrupt: Ctrl-C, after the current runs have stopped too.
    """
    failed: list[str] = []
    with _ended_with_us([]) as running:
        for number, model in enumerate(plan.models, 1):
            run, place = plan.run(model), f"[{number}/{len(plan.models)}] {model}"
            if has_ended(run):
                say(f"{place}: already finished.")
                finished(run)
                continue
            remove_earlier_start(run)
            log = None if jobs == 1 else plan.folder / f"{model}.log"
            to = "" if log is None else f" It prints to {log}."
            say(f"{place}: {'resumes' if run.config.exists() else 'starts'}.{to} {describe_time_left(plan)}".rstrip())
            command = [sys.executable, "-m", "kmed", *(["--quiet"] if quiet else []), *plan.command(model)]
            slot = min(set(range(jobs)) - {each.slot for each in running})
            process = start_process(command, log=log, cores=_cores_of(slot, jobs))
            running.append(_Running(model, place, run, process, slot, time.monotonic()))
            failed += _conclude(running, at_most=jobs - 1, finished=finished)  # there is room for the next one
        failed += _conclude(running, at_most=0, finished=finished)
    return [model for model in plan.models if model in failed]


@dataclasses.dataclass(frozen=True)
class _Running:
    """The process of one run, with its place in the list, its share of the cores, and when it started."""

    model: str
    place: str
    run: Run
    process: subprocess.Popen
    slot: int
    start: float


def start_process(command: list[str], *, log: pathlib.Path | None, cores: set[int]) -> subprocess.Popen:
    """Starts a command.

    Args:
      command: the program and its arguments.
      log: the file for what it prints; None: where this process prints.
      cores: the processor cores that it may use; empty: all.
    """
    with contextlib.nullcontext() if log is None else log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    if cores:  # at once, before it has threads, which inherit it
        with contextlib.suppress(ProcessLookupError):  # it has already ended
            os.sched_setaffinity(process.pid, cores)
    return process


def _cores_of(slot: int, jobs: int) -> set[int]:
    """Returns the cores of one of several processes that run at once; empty where they cannot be shared out."""
    if jobs == 1 or not hasattr(os, "sched_getaffinity"):
        return set()
    return set(sorted(os.sched_getaffinity(0))[slot::jobs])


def _conclude(running: list[_Running], *, at_most: int, finished) -> list[str]:
    """Waits until at most so many processes run; returns the models whose run has failed meanwhile."""
    failed = []
    while True:
        ended = [(each, code) for each in running if (code := each.process.poll()) is not None]
        for each, code in ended:
            running.remove(each)
            if code in (130, 143, -2, -15):  # Ctrl-C or SIGTERM
                raise KeyboardInterrupt
            after = f"after {format_time(time.monotonic() - each.start)}"
            if not each.run.result.exists():
                failed.append(each.model)
                say(f"{each.place}: failed {after}.")
                continue
            but = f", but its process ended with an error (exit code {code}).{hint_at_page(each.run)}" if code else "."
            say(f"{each.place}: finished {after}{but}")
            finished(each.run)
        if len(running) <= at_most:
            return failed
        time.sleep(0.1)


@contextlib.contextmanager
def _ended_with_us(running: list[_Running]):
    """Yields the list of running processes; whatever ends the block early ends them too."""
    try:
        yield running
    except BaseException as error:
        for each in running:
            if isinstance(error, KeyboardInterrupt) and not isinstance(error, Terminated):
                _wait(each.process, 10)  # Ctrl-C in a terminal reaches them as well
            if each.process.poll() is None:
                each.process.terminate()
        for each in running:
            if not _wait(each.process, 30):
                each.process.kill()
                each.process.wait()
        raise


def _wait(process: subprocess.Popen, seconds: float) -> bool:
    """Returns whether a process ends within so many seconds."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def remove_earlier_start(run: Run) -> None:
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
