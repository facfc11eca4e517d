"""A run as one row of a results table."""

import functools
from collections.abc import Set

import numpy as np
import pandas as pd

from kmed import runtime
from kmed.data.table import Table
from kmed.errors import RunError
from kmed.evaluation.assessment import Assessment
from kmed.metrics.scores import Scores
from kmed.runs import Run, judged
from kmed.schemas.tables import CASE
from kmed.tables import append_rows, read_table
from kmed.tasks import Task

LAST = ("minutes", "device", "versions", "command")  # columns of a row, after its scores


def score_columns(assessment: Assessment) -> dict:
    """Returns the score columns of a results row: the study's first, with their intervals; the best constant's last."""
    best, main = assessment.verdict.best_constant, assessment.verdict.main
    return {
        **study_columns(assessment.task, assessment.scores),
        **assessment.scores.flat(),
        **_case_columns(assessment),
        f"best_constant_{main}": assessment.constants[best].scores[main].value,
        "best_constant": best,
        "learnt": assessment.verdict.learnt,
        "num_labels": assessment.scores.num_labels,
        "num_clusters": assessment.scores.num_clusters,
    }


def _case_columns(assessment: Assessment) -> dict:
    """Returns case_NAME, case_NAME_low and case_NAME_high of each score per case; {} without cases."""
    if assessment.cases is None:
        return {}
    flat = assessment.cases.scores.flat()
    return {"case": assessment.cases.rule.by, **{f"{CASE}{name}": value for name, value in flat.items()}}


def study_columns(task: Task, scores: Scores) -> dict[str, float]:
    """Returns name, name_low, name_high for each of the study's scores, in the study's order."""
    flat = scores.flat()
    return {f"{name}{end}": flat[f"{name}{end}"] for name in task.study_scores for end in ("", "_low", "_high")}


def in_order(others: dict, scored: dict) -> dict:
    """Returns one row: what was trained, the scores, then time, device and command."""
    return {
        **{name: value for name, value in others.items() if name not in LAST},
        **scored,
        **{name: others[name] for name in LAST},
    }


def with_scores(stored: dict, scored: dict, **others) -> dict:
    """Returns a stored row with other scores in the place of its own, those per case included.

    Args:
      stored: from `Run.read_result(LAST)`.
      scored: the new scores, from `score_columns`.
      others: further columns that change, such as data.
    """
    gone = {name for name in stored if name == "case" or name.startswith(CASE)} | set(scored)
    return in_order({name: value for name, value in stored.items() if name not in gone} | others, scored)


def result_row(run: Run, config, table: Table, model, state, split: str, assessment: Assessment) -> dict:
    """Returns the run as one row of a results table, in the order of its columns."""
    environment = run.read_json(run.environment)
    num_training = len(table.split("train"))
    batch_size = min(config.train.batch_size, num_training)
    others = {
        "model": config.model.name,
        "task": config.task,
        "data": table.name,
        "split": split,
        "image_size": "x".join(map(str, config.data.image_size)),
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "images_seen": state.epoch * (num_training // batch_size) * batch_size,
        "parameters": int(sum(np.prod(weight.shape) for weight in model.trainable_weights)),
        "seed": config.seed,
        "minutes": round(state.seconds / 60, 1),
        "device": environment["device"],
        "versions": runtime.join_versions(environment["versions"]),
        "command": environment["command"],
    }
    return in_order(others, score_columns(assessment))


def check_table(path, tasks) -> None:
    """Raises RunError if the table at `path` cannot take runs of these tasks. Checked before hours of training.

    Args:
      path: the table; None if nothing is to be added.
      tasks: the names of the tasks; "auto" is left out, since it is not resolved yet.
    """
    if path is not None:
        read_results(path, set(tasks) - {"auto"})


def append_result(run: Run, path) -> None:
    """Adds a run's row to a results table, creating the table if it does not exist.

    Columns that the table lacks are added, and are empty in its older rows. Columns that the run lacks are empty in
    the new row.

    Raises: RunError: the run has no result yet, its row is already there, or the file is not a results table.
    """
    if not append_results([run], path):
        raise RunError(f"{path} already holds this run's row.")


def append_results(runs: list[Run], path) -> int:
    """Adds the rows of several runs, as `append_result` does, and returns how many of them were new."""
    # Read as text, so that existing rows stay as they are, to the last digit.
    rows = [pd.DataFrame([judged(run.folder).read_result()]) for run in runs]
    tasks = {row["task"].iloc[0] for row in rows}
    return append_rows(path, rows, functools.partial(read_results, tasks=tasks))


def read_results(path, tasks: Set[str] = frozenset()) -> pd.DataFrame:
    """Returns a table of runs' rows as text, empty if it does not exist yet.

    Args:
      path: the table.
      tasks: the tasks of the rows to be added, where known.
    Raises: RunError: it cannot be read, is not a table of runs, or would hold more than one task.
    """
    table = read_table(path, ("model", "task", "command"))
    both = sorted(tasks | set(table.get("task", [])))
    if len(both) > 1:
        raise RunError(f"{path} would hold results of {' and '.join(both)}. Give each task a table of its own.")
    return table
