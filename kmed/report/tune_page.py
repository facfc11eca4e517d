"""The page of a study of `kmed tune`: how the score went from trial to trial, and which settings mattered."""

import pathlib
import shlex

import pandas as pd

from kmed import figures
from kmed.progress import optional
from kmed.report.page import Cited, inline_figure, render_page, words

_PANEL = (7.5, 3.6)  # inches


def write_tune_report(
    folder: pathlib.Path,
    trials: pd.DataFrame,
    importance: dict[str, float],
    *,
    monitor: str,
    minimize: bool,
    best: int | None,
    space: dict[str, dict],
    wanted: int,
) -> pathlib.Path:
    """Writes report.html of a study, and returns its path.

    Args:
      folder: that of the study; it has trials.csv, and best.yaml if a trial has finished.
      trials: one row per trial, as in trials.csv.
      importance: {setting: its share}; {} if there are too few trials for it.
      monitor: the score by which the trials are compared.
      minimize: whether a lower score is better.
      best: the number of the best trial; None if none has finished.
      space: {setting: {kind: values}}.
      wanted: how many trials there are to be.
    Raises: RunError: the folder cannot be written.
    """
    shown = trials.sort_values(monitor, ascending=minimize, na_position="last", kind="stable")
    counts = trials["state"].value_counts().to_dict()
    scored = trials[trials[monitor].notna()]
    history = figures.plot_trials(trials, monitor, minimize=minimize) if len(scored) else None
    bars = figures.plot_importance(importance) if importance else None
    return render_page(
        folder / "report.html",
        "tune.html.j2",
        name=folder.resolve().name,
        monitor=monitor,
        minimize=minimize,
        best=best,
        values={} if best is None else {name: trials.set_index("trial").loc[best, name] for name in space},
        trials=Cited("trials.csv", shown.astype(object).where(shown.notna(), None).to_dict("records")),
        counts=counts,
        space=space,
        wanted=wanted,
        importance=importance,
        command=f"kmed train --config {shlex.quote(str(folder / 'best.yaml'))}",
        history=inline_figure(history, _describe(trials, monitor), _PANEL) if history else None,
        bars=inline_figure(bars, _describe_shares(importance), (7.5, bars.get_figheight())) if bars else None,
    )


def try_tune_report(folder: pathlib.Path, trials: pd.DataFrame, importance: dict[str, float], **content) -> None:
    """Writes report.html of a study, as `write_tune_report` does; if that fails, it is one warning."""
    again = f"kmed tune --resume {shlex.quote(str(folder))}"
    with optional(f"The page {folder / 'report.html'}", f"Draw it again with: {again}"):
        write_tune_report(folder, trials, importance, **content)


def _describe(trials: pd.DataFrame, monitor: str) -> str:
    finished = (trials["state"] == "finished").sum()
    return f"{words(monitor)} of {len(trials)} trials, {finished} of them finished; the table has the same numbers."


def _describe_shares(importance: dict[str, float]) -> str:
    return "Importance: " + ", ".join(f"{name} {share:.2f}" for name, share in importance.items()) + "."
