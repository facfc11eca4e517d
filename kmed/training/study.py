"""The study of `kmed tune`: Optuna's trials in a journal that several processes share, and which of them is next.

Each trial in training is locked by its process, and the operating system releases the lock however the process ends. So
a trial whose lock is free, but which is not finished, has lost its process, and is taken up by the next one that asks.
"""

import contextlib
import dataclasses
import math
import pathlib
import warnings
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from kmed.errors import RunError
from kmed.files import exclusive
from kmed.locks import Lock, try_lock
from kmed.training.space import Space

JOURNAL = "journal.log"
STARTUP = 10  # trials that are drawn at random before the sampler learns from them
PRUNE_AFTER = 5  # finished trials before the first one may be pruned
MAX_STARTS = 3  # of a trial without one more epoch: what kills its process would do so again
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
}


class _JournalLock(JournalFileOpenLock):
    """A lock of the operating system; those of Optuna are files that a killed process leaves behind."""

    def __init__(self, journal: pathlib.Path):
        self._journal = journal
        self._held = contextlib.ExitStack()

    def acquire(self) -> bool:
        """Waits for the lock, and cuts off a last line that a full disk or a power cut has left incomplete."""
        self._held.enter_context(exclusive(self._journal))
        _mend(self._journal)
        return True

    def release(self) -> None:
        """Lets the next process have the lock."""
        self._held.close()


def _mend(journal: pathlib.Path) -> None:
    with journal.open("r+b") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def open_study(folder: pathlib.Path, *, minimize: bool, prune: bool, warmup: int) -> optuna.Study:
    """Returns the study whose journal is in `folder`; a new one if there is none.

    Args:
      folder: an existing folder.
      minimize: whether a lower score is better.
      prune: whether trials are stopped that are worse than the median of the others after as many epochs.
      warmup: epochs after which no trial is stopped yet.
    Raises: RunError: the journal is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    journal = folder / JOURNAL
    pruner = optuna.pruners.MedianPruner(n_startup_trials=PRUNE_AFTER, n_warmup_steps=warmup + 1)
    try:
        with exclusive(folder):
            return optuna.create_study(
                storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal), _JournalLock(journal))),
                pruner=pruner if prune else optuna.pruners.NopPruner(),
                study_name="kmed",
                direction="minimize" if minimize else "maximize",
                load_if_exists=True,
            )
    except (ValueError, KeyError, AssertionError) as error:
        raise RunError(
            f"{journal} cannot be read: {shorten_error(error)}. It is damaged: begin a new study in another folder."
        ) from None


def shorten_error(error: BaseException) -> str:
    """Returns the kind and the first line of an error."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}".rstrip(": ").rstrip(".")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A trial that this process alone trains.

    Attributes:
      trial: Optuna's trial, to which scores are reported.
      values: {setting: value}.
      lock: what keeps other processes from training it.
      again: whether another process has begun it.
      given_up: whether it was begun too often without finishing one more epoch.
    """

    trial: optuna.Trial
    values: dict[str, Any]
    lock: Lock
    again: bool
    given_up: bool

    @property
    def number(self) -> int:
        """The number of the trial, from 0."""
        return self.trial.number


def claim_trial(study: optuna.Study, folder: pathlib.Path, space: Space, *, trials: int, seed: int) -> Claim | None:
    """Returns the next trial for this process: one that has lost its process, else a new one; None if there is none.

    Args:
      study: from `open_study`.
      folder: that of the study.
      space: what is drawn from.
      trials: how many there are in all.
      seed: with the number of a trial and the trials before it, it decides the values of the trial.
    """
    with exclusive(folder):
        known = study.get_trials(deepcopy=False)
        for frozen in known:
            if frozen.state.is_finished():  # a process that was killed before it had removed its lock file
                _lock_file(folder, frozen.number).unlink(missing_ok=True)
            elif lock := _try(folder, frozen.number):
                study.sampler = _make_sampler(seed, frozen.number)
                return _begin(optuna.Trial(study, frozen._trial_id), space, lock, again=True)
        if len(known) >= trials:
            return None
        if (lock := _try(folder, len(known))) is None:
            raise RunError(f"Another process holds a lock of trial {len(known)} in {folder}, which is not begun yet.")
        study.sampler = _make_sampler(seed, len(known))
        return _begin(study.ask(), space, lock, again=False)


def _try(folder: pathlib.Path, number: int) -> Lock | None:
    """Returns the lock of a trial; None if another process trains it.

    Raises: RunError: the file system has no locks, so that a trial might be trained twice.
    """
    lock = try_lock(_lock_file(folder, number))
    if lock is not None and not lock.sure:
        lock.release()
        raise RunError(f"The file system of {folder} has no locks, which a study needs. Choose another --out.")
    return lock


def _lock_file(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f".trial{number}.lock"


def _begin(trial: optuna.Trial, space: Space, lock: Lock, *, again: bool) -> Claim:
    """Returns the Claim of a trial, whose values and start are stored."""
    values = space.suggest(trial)
    epochs = len(_epochs_of(trial))
    before, count = trial.user_attrs.get("starts", [epochs, 0])
    count = count + 1 if before == epochs else 1
    trial.set_user_attr("starts", [epochs, count])
    return Claim(trial, values, lock, again, given_up=count > MAX_STARTS)


def _epochs_of(trial: optuna.Trial) -> dict[int, float]:
    """Returns {epoch: score} of the epochs that the study knows."""
    return trial.storage.get_trial(trial._trial_id).intermediate_values


def _make_sampler(seed: int, number: int):
    """Returns the sampler of one trial: another seed in each, whichever process draws it."""
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return optuna.samplers.TPESampler(seed=own, n_startup_trials=STARTUP, constant_liar=True)


def report_epochs(claim: Claim, rows: list[dict], monitor: str) -> None:
    """Reports the epochs that the study does not know yet; an undefined score is left out."""
    known = _epochs_of(claim.trial)
    for row in rows:
        if row["epoch"] not in known and math.isfinite(row[monitor]):
            claim.trial.report(row[monitor], row["epoch"])


def interrupt_trial(claim: Claim) -> None:
    """Leaves a trial to the next process; that this one was stopped on purpose does not count against it."""
    if not claim.trial.storage.get_trial(claim.trial._trial_id).state.is_finished():
        claim.trial.set_user_attr("starts", [len(_epochs_of(claim.trial)), 0])
        claim.lock.release()


def end_trial(
    study: optuna.Study, folder: pathlib.Path, claim: Claim, state: str, *, value=None, seconds: float = 0, note=""
) -> None:
    """Stores how a trial has ended; to be called while the folder is locked, or another process might take it up.

    Args:
      study: from `open_study`.
      folder: that of the study.
      claim: the trial.
      state: "finished", "pruned" or "failed".
      value: the score of a finished trial.
      seconds: how long its epochs took.
      note: why it was pruned or has failed.
    """
    claim.trial.set_user_attr("seconds", seconds)
    if note:
        claim.trial.set_user_attr("note", note)
    study.tell(claim.trial, value, state=next(each for each, name in STATES.items() if name == state))
    claim.lock.release()  # first, since Windows removes no open file
    _lock_file(folder, claim.number).unlink(missing_ok=True)


def list_trials(study: optuna.Study, space: Space, monitor: str) -> pd.DataFrame:
    """Returns one row per trial: trial, state, the score, best_epoch, epochs, minutes, note and the settings tried.

    The score of a trial that was not finished is the best one that it had.
    """
    best = min if study.direction == optuna.study.StudyDirection.MINIMIZE else max
    rows = []
    for trial in study.get_trials(deepcopy=False):
        scores = trial.intermediate_values
        epoch = best(scores, key=lambda step: (scores[step], step) if best is min else (scores[step], -step), default=0)
        rows.append(
            {
                "trial": trial.number,
                "state": STATES[trial.state],
                monitor: scores.get(epoch, math.nan),
                "best_epoch": epoch,
                "epochs": len(scores),
                "minutes": round(trial.user_attrs.get("seconds", math.nan) / 60, 2),
                "note": trial.user_attrs.get("note", ""),
                **{name: trial.params.get(name) for name in space.names},
            }
        )
    columns = ["trial", "state", monitor, "best_epoch", "epochs", "minutes", "note", *space.names]
    return pd.DataFrame(rows, columns=columns)


def measure_importance(study: optuna.Study) -> dict[str, float]:
    """Returns {setting: its share of what the settings explain of the score}, the largest first (PED-ANOVA).

    {} as long as fewer than four trials are finished, or if all of them have the same score.
    """
    values = [trial.value for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])]
    if len(values) < 4 or len(set(values)) == 1:
        return {}
    found = optuna.importance.get_param_importances(study)
    return {name: float(share) for name, share in found.items() if math.isfinite(share)}
