"""The trials of a study: what they share, how each is trained as a run folder, and what is written about them."""

import contextlib
import dataclasses
import functools
import pathlib
import shlex

import keras
import optuna
import pandas as pd

from kmed import runtime
from kmed.config import Config, load_config
from kmed.data.images import Resizing
from kmed.data.pictures import decode_table
from kmed.data.prepare import open_table, prepare_unjudged, print_counts
from kmed.data.splits import check_same_labels, write_splits
from kmed.data.table import Table
from kmed.errors import ConfigError, ModelError, RunError, WeightsError
from kmed.evaluation.cases import check_columns
from kmed.files import exclusive, make_folder, write_frame, write_text
from kmed.progress import format_time, say, warn
from kmed.report.tune_page import try_tune_report
from kmed.runs import TUNE, Run
from kmed.schemas.searches import TuneFile
from kmed.tasks import LOWER_IS_BETTER
from kmed.training import fit, study
from kmed.training.callbacks import NonFiniteLoss
from kmed.training.fine_tuning import with_recipe
from kmed.training.plans import PlanFile, first_difference
from kmed.training.space import OF_PICTURES, Space, make_space, with_values
from kmed.training.trackers import Stopped, report_run

PLAN = PlanFile(TUNE, "study", TuneFile)
BEST = "best.yaml"
# Files in the folder of a study: the splits of the trials, and those of the run that is trained with the best settings.
TRIAL_SPLITS, ALL_SPLITS = "trial_splits.csv", "splits.csv"
HOPELESS = 3  # trials that have all failed
_OF_SETTINGS = (ConfigError, ModelError, WeightsError)  # errors that another trial need not have


class Pruned(Stopped):
    """A trial is worse than the others were after as many epochs."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study.

    Attributes:
      folder: in which each trial has a run folder.
      space: what is tried.
      config: the settings that the trials share; those that were given count as given.
      trials: how many there are in all.
      prune: whether poor trials are stopped early.
    """

    folder: pathlib.Path
    space: Space
    config: Config
    trials: int
    prune: bool

    @property
    def monitor(self) -> str:
        """The score by which trials are compared."""
        return self.config.train.monitor

    @property
    def minimize(self) -> bool:
        """Whether a lower score is better."""
        return self.monitor.removeprefix("val_") in LOWER_IS_BETTER

    def run(self, number: int) -> Run:
        """Returns the run of a trial, which may not have started yet."""
        return Run(self.folder / f"trial{number}")

    def settings_of(self, values: dict, splits: str, **data) -> Config:
        """Returns the settings of a run with these values, on the splits of one of the study's files."""
        config = with_recipe(with_values(self.config, values))
        chosen = {"splits": str((self.folder / splits).absolute()), "fold": None}
        return config.model_copy(update={"data": config.data.model_copy(update=chosen | data)})

    def open_study(self) -> optuna.Study:
        """Returns the study of Optuna."""
        warmup = max(1, self.config.train.epochs // 4)
        return study.open_study(self.folder, minimize=self.minimize, prune=self.prune, warmup=warmup)


def check_settings(config: Config) -> None:
    """Raises KmedError if a trial with these settings could not begin, whatever the pictures are."""
    config = with_recipe(config)
    fit.check_settings(config)
    fit.with_normalization(config)  # which finds a mistake in the weights


def find_plan(plan: Plan) -> Plan:
    """Returns the study that has begun in the folder of `plan`, or `plan` itself if the folder is empty or not there.

    Raises: RunError: the folder holds something else, or another study.
    """
    if plan.folder.is_dir() and all(path.name.startswith(".") for path in plan.folder.iterdir()):
        return plan  # a process that has just begun the study leaves hidden files for a moment
    return PLAN.find(plan, read_plan, _difference)


def _difference(stored: Plan, plan: Plan) -> str:
    """Returns the first thing in which a stored study differs from another one; "" if it is the same."""
    facts = []
    for each in (stored, plan):
        tried = each.space.as_dict()
        facts.append(tried | {"prune": each.prune} | each.config.flat() | tried)  # what is tried stands first
    return first_difference(*facts)


def read_plan(folder) -> Plan:
    """Returns the Plan of a study that has begun. Raises RunError if there is none in `folder`."""
    folder = pathlib.Path(folder)
    stored = PLAN.read(folder)
    with PLAN.read_as_settings(folder):
        config = load_config(None, list(stored.settings.items()))
        space = make_space(stored.space, str(folder / TUNE))
    return Plan(folder, space, config, stored.trials, stored.prune)


def open_pictures(plan: Plan) -> tuple[Table, Config]:
    """Returns (table, settings): the pictures of train and val, and the shared settings with the range that they have.

    No other picture is opened. The pictures are decoded once if all trials have the same size. What the study shares is
    stored at the first call; later ones read the stored splits.

    Raises: DataError: the data cannot be used, or are not those that the study was begun with.
    """
    config = plan.config
    table = open_table(config)
    fit.check_task_settings(fit.with_task(config, table.task))
    stored = (plan.folder / TRIAL_SPLITS).exists() and (plan.folder / ALL_SPLITS).exists()
    if stored:
        config = plan.settings_of({}, ALL_SPLITS)
    table, everything, _ = prepare_unjudged(table, config)
    if stored:
        check_same_labels(table, plan.folder / TRIAL_SPLITS)
    fit.check_monitor(fit.with_task(config, table.task), table)
    check_columns(table.rows, config.evaluate)
    print_counts(table)
    if hidden := len(everything) - len(table):
        say(f"{hidden} pictures of other splits, such as test, are not opened in any trial.")
    _store(plan, table, everything)
    if not set(OF_PICTURES) & set(plan.space.names):
        table = decode_table(table, Resizing.from_settings(config.data), config.data.cache)
    return table, fit.with_range(plan.config, table)


def _store(plan: Plan, table: Table, everything: Table) -> None:
    """Writes tune.json and the splits where they are missing; nothing is written if the folder holds another study."""
    make_folder(plan.folder)
    with exclusive(plan.folder):
        if find_plan(plan) is plan:
            settings = plan.config.model_dump(mode="json", exclude_unset=True)
            fields = {"space": plan.space.as_dict(), "settings": settings, "trials": plan.trials, "prune": plan.prune}
            PLAN.write(plan.folder, fields)
        for name, content in ((ALL_SPLITS, everything), (TRIAL_SPLITS, table)):
            if not (plan.folder / name).exists():
                write_splits(content, plan.folder / name, labels=True)


def train_all(plan: Plan) -> None:
    """Trains trials until there are as many as wanted, in turn with other processes that work on the same study.

    Raises: KmedError: a trial fails for another reason than its settings; the same command continues with it.
    """
    opened = functools.cache(lambda: open_pictures(plan))
    if not PLAN.is_in(plan.folder):
        opened()  # which begins the study
    current = plan.open_study()
    while claim := study.claim_trial(current, plan.folder, plan.space, trials=plan.trials, seed=plan.config.seed):
        place = f"[{claim.number + 1}/{plan.trials}] trial{claim.number}"
        say(f"{place}: {'continues' if claim.again else 'starts'}. {describe_values(claim.values)}")
        if claim.given_up:
            often = f"its process ended {study.MAX_STARTS} times before one more epoch was finished"
            _end(plan, current, claim, place, "failed", note=often)
        else:
            with _left_to_others(claim):
                _train(plan, current, claim, place, *opened())


def describe_values(values: dict) -> str:
    """Returns {setting: value} in words, numbers with four digits."""
    texts = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return ", ".join(f"{name}={text}" for name, text in texts.items())


@contextlib.contextmanager
def _left_to_others(claim: study.Claim):
    """Leaves the trial to another process, or a later one, if this one is stopped or meets an error."""
    try:
        yield
    except BaseException:
        study.interrupt_trial(claim)
        raise


def _train(plan: Plan, current: optuna.Study, claim: study.Claim, place: str, table: Table, shared: Config) -> None:
    """Trains one trial, and stores how it has ended."""
    run = plan.run(claim.number)

    def after_epoch(rows: list[dict]) -> None:
        study.report_epochs(claim, rows, plan.monitor)
        if rows[-1]["epoch"] < config.train.epochs and claim.trial.should_prune():
            raise Pruned(f"pruned at epoch {rows[-1]['epoch']}")

    try:
        found = {} if "data.range" in claim.values else {"range": shared.data.range}
        config = plan.settings_of(claim.values, TRIAL_SPLITS, **found)
        keras.utils.clear_session()  # layers and graphs of the run before
        runtime.hide_retracing_warnings()
        fit.fit(config, table=table, out=run.folder, after_epoch=after_epoch)
    except Pruned:
        fit.remove_leftovers(run)
        _end(plan, current, claim, place, "pruned", note="worse than the median of the other trials")
    except NonFiniteLoss as error:
        _end(plan, current, claim, place, "pruned", note=str(error))
    except _OF_SETTINGS as error:
        _end(plan, current, claim, place, "failed", note=str(error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _end(plan, current, claim, place, "failed", note=f"out of memory ({study.shorten_error(error)})")
    else:
        report_run(run)
        _end(plan, current, claim, place, "finished")


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether the memory of the machine or of a device was too small."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "ResourceExhausted" in repr(error)


def _end(plan: Plan, current: optuna.Study, claim: study.Claim, place: str, state: str, *, note: str = "") -> None:
    """Stores how a trial has ended, says it, and writes the tables anew."""
    run = plan.run(claim.number)
    history = run.read_history() if run.history.exists() else pd.DataFrame({"seconds": []})
    rows = history.to_dict("records")
    study.report_epochs(claim, rows, plan.monitor)
    scores = [row[plan.monitor] for row in rows if row[plan.monitor] == row[plan.monitor]]
    value = None
    if state == "finished":
        if scores:
            value = min(scores) if plan.minimize else max(scores)
        else:
            state, note = "failed", f"{plan.monitor} was undefined in every epoch"
    seconds = float(history["seconds"].sum())
    with exclusive(plan.folder):
        study.end_trial(current, plan.folder, claim, state, value=value, seconds=seconds, note=note)
        trials = write_tables(plan, current)
    after = f"after {len(rows)} epochs" if state != "finished" else f"{plan.monitor} {value:.4f}"
    line = f"{place}: {state}, {after}, {format_time(seconds)}"
    if state == "failed":
        warn(f"{line}: {note}")
        if len(trials) >= HOPELESS and (trials["state"] == "failed").all():
            raise RunError(f"All {len(trials)} trials have failed. Correct the settings, and begin a new study.")
    elif state == "pruned":
        say(f"{line}: {note}")
    else:
        say(f"{line}{', the best so far' if best_trial(plan, trials) == claim.number else ''}.")


def best_trial(plan: Plan, trials: pd.DataFrame) -> int | None:
    """Returns the number of the finished trial with the best score, of equal ones the first; None without one."""
    finished = trials[trials["state"] == "finished"]
    if finished.empty:
        return None
    scores = finished[plan.monitor]
    return int(finished.loc[scores.idxmin() if plan.minimize else scores.idxmax(), "trial"])


def write_tables(plan: Plan, current: optuna.Study) -> pd.DataFrame:
    """Writes trials.csv and best.yaml, while the folder is locked; returns the trials."""
    trials = study.list_trials(current, plan.space, plan.monitor)
    write_frame(plan.folder / "trials.csv", trials)
    best = best_trial(plan, trials)
    if best is not None:
        values = next(trial.params for trial in current.get_trials(deepcopy=False) if trial.number == best)
        score = trials.loc[trials["trial"] == best, plan.monitor].iloc[0]
        head = (
            f"# The best of {(trials['state'] != 'running').sum()} trials of kmed tune: trial{best}, {plan.monitor} "
            f"{score:.4f}.\n# The test split has not been used. To train with these settings and score it, once:\n"
            f"#   kmed train --config {shlex.quote(str(plan.folder / BEST))}\n"
        )
        write_text(plan.folder / BEST, head + plan.settings_of(values, ALL_SPLITS).dump())
    return trials


def write_results(plan: Plan) -> pd.DataFrame:
    """Writes trials.csv, best.yaml and the page as the trials now are, and returns the trials."""
    current = plan.open_study()
    with exclusive(plan.folder):
        trials = write_tables(plan, current)
        importance = study.measure_importance(current)
    try_tune_report(
        plan.folder,
        trials,
        importance,
        monitor=plan.monitor,
        minimize=plan.minimize,
        best=best_trial(plan, trials),
        space=plan.space.as_dict(),
        wanted=plan.trials,
    )
    return trials
