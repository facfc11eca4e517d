"""The runs of a cross-validation: which there are, with which settings, and how they are trained one after another."""

import contextlib
import dataclasses
import functools
import pathlib

import keras
import pandas as pd

from kmed import runtime
from kmed.config import Config, load_config
from kmed.data.folds import draw_folds, judged_by_folds
from kmed.data.images import Resizing
from kmed.data.pictures import decode_table
from kmed.data.prepare import open_table, prepare_folds
from kmed.data.splits import check_same_labels, choose_fold, read_splits, write_splits
from kmed.data.table import Table
from kmed.errors import DataError, RunError
from kmed.evaluation.cases import check_columns
from kmed.evaluation.lineage import leak_of_weights
from kmed.evaluation.pooling import Part, part_name, write_pooled
from kmed.files import made, write_json
from kmed.progress import format_time, say
from kmed.report.crossval_page import try_crossval_report
from kmed.report.ensemble import ensemble
from kmed.runs import COMBINED, CROSSVAL, Run, has_ended, held
from kmed.schemas import tables
from kmed.schemas.records import CrossvalFile, stamped
from kmed.training import fit
from kmed.training.distillation import check_lessons
from kmed.training.plans import PlanFile, first_difference
from kmed.training.trackers import report_run

PLAN = PlanFile(CROSSVAL, "cross-validation", CrossvalFile)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A cross-validation.

    Attributes:
      folder: in which each run has a folder.
      folds: K, how many folds there are.
      repeats: how often the folds are drawn, each time with another seed.
      all_splits: whether pictures of a test split get a fold too.
      config: the settings that the runs share.
    """

    folder: pathlib.Path
    folds: int
    repeats: int
    all_splits: bool
    config: Config

    @property
    def parts(self) -> list[Part]:
        """The runs, repeat by repeat."""
        return [
            Part(repeat, fold, Run(self.folder / part_name(repeat, fold, self.repeats)))
            for repeat in range(self.repeats)
            for fold in range(self.folds)
        ]

    def folds_file(self, repeat: int = 0) -> pathlib.Path:
        """Returns the splits file that has the folds of a repeat."""
        return self.folder / ("folds.csv" if repeat == 0 else f"folds-{repeat}.csv")

    def settings_of(self, part: Part, shared: Config) -> Config:
        """Returns the settings of a run: the shared ones with its fold and seed."""
        chosen = {"splits": str(self.folds_file(part.repeat).absolute()), "fold": part.fold}
        data = shared.data.model_copy(update=chosen)
        return shared.model_copy(update={"data": data, "seed": shared.seed + part.repeat})


def make_plan(folder, folds: int, repeats: int, all_splits: bool, config: Config) -> Plan:
    """Returns the Plan of a new cross-validation, or of the same one if it has already started in `folder`.

    Raises: RunError: the folder holds something else, or a cross-validation with other folds or settings.
    """
    plan = Plan(pathlib.Path(folder), folds, repeats, all_splits, fit.with_absolute_paths(config))
    return PLAN.find(plan, read_plan, _difference)


def _difference(stored: Plan, plan: Plan) -> str:
    """Returns the first thing in which a stored cross-validation differs from another one; "" if it is the same."""
    before, after = (
        {"folds": each.folds, "repeats": each.repeats, "all_splits": each.all_splits} | each.config.flat()
        for each in (stored, plan)
    )
    return first_difference(before, after)


def read_plan(folder) -> Plan:
    """Returns the Plan of a cross-validation that has started. Raises RunError if there is none in `folder`."""
    folder = pathlib.Path(folder)
    stored = PLAN.read(folder)
    with PLAN.read_as_settings(folder):
        config = load_config(None, list(stored.settings.items()))
    return Plan(folder, stored.folds, stored.repeats, stored.all_splits, config)


@contextlib.contextmanager
def working_on(plan: Plan):
    """Makes the folder of a cross-validation, and keeps other processes out of it for the duration of a block.

    If the block raises an error before the plan is stored, a folder that was made for it is removed again.
    """
    with made(plan.folder), held(Run(plan.folder)):
        yield


def open_pictures(plan: Plan) -> tuple[Table, Config]:
    """Returns (table, shared settings): the pictures, decoded if there is room, and the settings with task and range.

    The folds are drawn and stored at the first call; later ones read them, and refuse data that have changed.

    Raises: DataError: the data cannot be used, or are not those that the cross-validation was started with.
    """
    table = open_table(plan.config)
    config = fit.with_task(plan.config, table.task)
    fit.check_task_settings(config)
    stored = plan.folds_file().exists()
    table, _ = prepare_folds(table, config, functools.partial(_read_folds if stored else _draw_folds, plan=plan))
    config = fit.with_range(config, table)
    if not stored:
        for part in plan.parts[: plan.folds]:
            _check_fold(plan.settings_of(part, config), choose_fold(table, part.fold))
    _store_folds(plan, table)
    return decode_table(table, Resizing.from_settings(config.data), config.data.cache), config


def _check_fold(config: Config, table: Table) -> None:
    """Raises an error if a run of a fold could not be trained, or not be judged by its fold: now, not after hours."""
    fit.check_monitor(config, table)
    check_columns(table.rows, config.evaluate)
    check_lessons(config, table)
    if leak := leak_of_weights(config, table):
        raise RunError(
            f"A cross-validation needs weights that have seen none of its images, but {leak} The scores would be too "
            "good. Give other weights."
        )


def _draw_folds(table: Table, unreadable: pd.DataFrame, plan: Plan) -> Table:
    return draw_folds(table, plan.folds, plan.config.seed, all_splits=plan.all_splits)


def _read_folds(table: Table, unreadable: pd.DataFrame, plan: Plan) -> Table:
    lost = unreadable[unreadable["path"].isin(tables.read_splits(plan.folds_file())["path"])]
    if len(lost):
        raise DataError(
            f"{len(lost)} pictures of {plan.folds_file()} cannot be read any more, such as {lost['path'].iloc[0]} "
            f"({lost['reason'].iloc[0]}). Restore them, or begin a new cross-validation."
        )
    table = read_splits(table, plan.folds_file())
    check_same_labels(table, plan.folds_file())
    return table


def _store_folds(plan: Plan, table: Table) -> None:
    """Writes crossval.json, environment.json and the splits files, where they are missing, in this order.

    folds.csv is the last, so that it shows that all of them are there.
    """
    settings = plan.config.model_dump(mode="json")
    fields = {"folds": plan.folds, "repeats": plan.repeats, "all_splits": plan.all_splits, "settings": settings}
    if not PLAN.is_in(plan.folder):
        PLAN.write(plan.folder, fields)
    if not Run(plan.folder).environment.exists():
        write_json(Run(plan.folder).environment, stamped(runtime.environment()))
    for repeat in reversed(range(plan.repeats)):
        if not plan.folds_file(repeat).exists():
            drawn = draw_folds(table, plan.folds, plan.config.seed + repeat) if repeat else table
            write_splits(drawn, plan.folds_file(repeat), labels=True)


def train_all(plan: Plan) -> None:
    """Trains the runs that are not trained yet, in this process, on pictures that are decoded once.

    A finished run is skipped; an interrupted one continues after its last finished epoch.

    Raises: KmedError: a run fails; the same command continues with it.
    """
    opened = functools.cache(lambda: open_pictures(plan))
    for number, part in enumerate(plan.parts, 1):
        run, place = part.run, f"[{number}/{len(plan.parts)}] {part.run.folder.name}"
        if has_ended(run):
            say(f"{place}: already finished.")
        else:
            table, shared = opened()
            say(f"{place}: {'resumes' if run.config.exists() else 'starts'}. {describe_time_left(plan)}".rstrip())
            keras.utils.clear_session()  # layers and graphs of the run before
            runtime.hide_retracing_warnings()
            fit.fit(plan.settings_of(part, shared), table=table, out=run.folder)
        if not run.report.exists():
            report_run(run)


def describe_time_left(plan: Plan) -> str:
    """Returns how long the remaining runs will take, from the minutes of the finished ones; "" before the first."""
    done = [float(part.run.read_result(["minutes"])["minutes"]) for part in plan.parts if has_ended(part.run)]
    left = len(plan.parts) - len(done)
    return f"About {format_time(60 * left * sum(done) / len(done))} left." if done else ""


def read_judged_split(plan: Plan) -> str:
    """Returns the split in which each run judges its fold."""
    return judged_by_folds(tables.read_splits(plan.folds_file())["split"])


def write_results(plan: Plan) -> None:
    """Scores the pictures of all folds together, once every run has ended, and writes the results."""
    pooled, parts = Run(plan.folder), plan.parts
    own = parts[0].run.read_config()
    data = own.data.model_copy(update={"splits": plan.config.data.splits, "fold": None})
    write_pooled(pooled, parts, read_judged_split(plan), own.model_copy(update={"data": data}))


def is_combined(plan: Plan) -> bool:
    """Returns whether the ensemble of all runs is there."""
    return Run(plan.folder / COMBINED).result.exists()


def combine(plan: Plan) -> Run:
    """Returns the ensemble of all runs, which is made if it is not there; held-out pictures are its test split."""
    combined = Run(plan.folder / COMBINED)
    if not is_combined(plan):
        keras.utils.clear_session()
        ensemble([part.run.folder for part in plan.parts], combined.folder)
    return combined


def draw_missing_pages(plan: Plan) -> None:
    """Draws the pages that a killed process left out."""
    for run in (Run(plan.folder / COMBINED), *(part.run for part in plan.parts)):
        if not run.report.exists():
            report_run(run)
    if not Run(plan.folder).report.exists():
        try_crossval_report(Run(plan.folder))
