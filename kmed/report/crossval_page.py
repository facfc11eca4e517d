"""The page of a cross-validation: the scores of all pictures together, and those of each fold."""

import pathlib
import shlex

import pandas as pd

from kmed import figures
from kmed.evaluation.pooling import SPREAD, chosen_on_fold, fitted_on_others, spread_scores
from kmed.metrics.intervals import FEW_CLUSTERS, Score
from kmed.progress import optional
from kmed.reading import numbers, read_csv
from kmed.report.page import Cited, inline_figure, render_page, run_content, words
from kmed.report.run_page import describe_cases, pick_headline, score_sections
from kmed.runs import COMBINED, Run, judged_split
from kmed.tasks import LOWER_IS_BETTER, Task

_SHOWN = ("data", "folds", "repeats", "epochs", "parameters", "minutes", "device", "versions", "command")
_FOLDS, _WIDE = ("repeat", "fold", "pictures", "clusters", "best_epoch", "minutes"), 10.5


def write_crossval_report(pooled: Run) -> pathlib.Path:
    """Writes report.html of a finished cross-validation from the files in its folder; returns its path.

    Args:
      pooled: from `kmed.runs.judged_crossval`.
    Raises: RunError: the folder is damaged or cannot be written.
    """
    metrics = Cited(pooled.metrics.name, pooled.read_json(pooled.metrics))
    content, result = run_content(pooled), pooled.read_result(_SHOWN)
    split, task = judged_split(metrics), content["task"]
    table, assessed = _read_folds(pooled), metrics[split]
    sections = score_sections(task, assessed)
    return render_page(
        pooled.report,
        "crossval.html.j2",
        **content,
        result=result,
        numbers=Cited(pooled.result.name, {name: _number(text) for name, text in result.items()}),
        assessed=assessed,
        cases_sentence=describe_cases(assessed),
        sections=sections,
        headline=pick_headline(task, assessed),
        meanings={name: row.meaning for name, row in task.make_scores().items() if row.meaning},
        folds=Cited("fold_scores.csv", table.astype(object).where(table.notna(), None).to_dict("records")),
        spread_scores=spread_scores(task),
        spread_kinds=SPREAD,
        repeated=int(float(result["repeats"])) > 1,
        warning="" if split == "test" else chosen_on_fold(),
        fitted_on=fitted_on_others() if any(kind == "tuned" for kind, _ in sections) else "",
        combined=_read_ensemble(pooled, task),
        forest=_draw(table, assessed, task),
        few=FEW_CLUSTERS,
        lower_is_better=LOWER_IS_BETTER,
    )


def _read_ensemble(pooled: Run, task: Task):
    """Returns (scores, score sections) of the ensemble on the held-out pictures; None if none were held out."""
    combined = Run(pooled.folder / COMBINED)
    if not combined.result.exists():
        return None
    metrics = Cited(f"{COMBINED}/{combined.metrics.name}", combined.read_json(combined.metrics))
    return (metrics["test"], score_sections(task, metrics["test"])) if "test" in metrics else None


def try_crossval_report(pooled: Run) -> None:
    """Writes report.html of a cross-validation whose results are stored; if that fails, it is one warning."""
    again = f"kmed crossval --resume {shlex.quote(str(pooled.folder))}"
    with optional(f"The page {pooled.report}", f"Draw it again with: {again}"):
        write_crossval_report(pooled)


def _read_folds(pooled: Run) -> pd.DataFrame:
    frame = read_csv(pooled.folder / "fold_scores.csv")
    table = pd.DataFrame({name: numbers(frame[name]) for name in frame.columns})
    whole = [name for name in _FOLDS if name != "minutes"]
    return table.astype(dict.fromkeys(whole, int))


def _number(text: str):
    try:
        return float(text)
    except ValueError:
        return text


def _draw(table: pd.DataFrame, assessed: Cited, task: Task):
    """Returns the figure of the pooled scores above those of each fold, with their intervals."""
    shown = list(dict.fromkeys(spread_scores(task)))
    repeated = (table["repeat"] > 0).any()
    rows = {"all pictures": {name: _score(assessed["scores"][name].raw) for name in shown}}
    for row in table.to_dict("records"):
        name = f"repeat {row['repeat']}, fold {row['fold']}" if repeated else f"fold {row['fold']}"
        ends = {score: (row[score], row[f"{score}_low"], row[f"{score}_high"]) for score in shown}
        rows[name] = {score: Score(*three, num_clusters=row["clusters"]) for score, three in ends.items()}
    best = assessed["verdict"]["best_constant"].raw
    lines = {name: _value(assessed["constants"][best]["scores"][name]["value"].raw) for name in shown}
    figure = figures.plot_compared(rows, lines)
    for axes in figure.axes:
        axes.set_title(words(axes.get_title().replace(" ", "_")), fontsize=11)
    described = (
        f"Scores of all pictures and of {len(table)} folds as marks with their intervals; the table has them too."
    )
    return inline_figure(figure, described, (_WIDE, figure.get_figheight()))


def _score(fields: dict) -> Score:
    value, low, high = (_value(fields[name]) for name in ("value", "low", "high"))
    return Score(value, low, high, num_clusters=fields["num_clusters"])


def _value(number: float | None) -> float:
    return float("nan") if number is None else number
