"""The page of a comparison: several runs side by side."""

import math
import pathlib

from kmed import figures, tasks
from kmed.evaluation.comparison import Comparison, plot_scores
from kmed.metrics.intervals import FEW_CLUSTERS
from kmed.report.page import Told, inline_figure, words, write_page
from kmed.tasks import LOWER_IS_BETTER, STUDY_COLUMNS

_WIDE = 10.5


def write_comparison(comparison: Comparison, folder) -> pathlib.Path:
    """Writes FOLDER/report.html of what `kmed.evaluation.comparison.compare` found; returns its path.

    Args:
      comparison: kmed.evaluation.comparison.Comparison.
      folder: where `kmed.evaluation.comparison.write_files` puts its tables.
    """
    table = comparison.table.astype(object).where(comparison.table.notna(), None).to_dict("records")
    pairs = comparison.pairs.astype(object).where(comparison.pairs.notna(), None).to_dict("records")
    study = STUDY_COLUMNS[comparison.task]
    further = [name for name in tasks.PAIRED[comparison.task] if name not in study]
    scores = {run.name: run.scores for run in comparison.runs}
    scores |= {f"constant: {name}": constant for name, constant in comparison.runs[0].constants.items()}
    curves = figures.plot_histories({run.name: run.history for run in comparison.runs})
    forest = plot_scores(comparison)
    for axes in forest.axes:
        axes.set_title(words(axes.get_title().replace(" ", "_")), fontsize=11)
    return write_page(
        pathlib.Path(folder) / "report.html",
        "comparison.html.j2",
        comparison=comparison,
        columns=[*further[:1], *study, *further[1:]] if comparison.task == "multilabel" else [*study, *further],
        table=Told("comparison.csv", table),
        pairs=Told("pairs.csv", pairs),
        reach=_reach(comparison.pairs[["low", "high"]].abs().max(axis=None)),
        scores=scores,
        forest=inline_figure(forest, _tell_forest(comparison), (_WIDE, forest.get_figheight())),
        curves=inline_figure(curves, _tell_losses(comparison), (_WIDE, curves.get_figheight())),
        few=FEW_CLUSTERS,
        lower_is_better=LOWER_IS_BETTER,
    )


def _reach(largest: float) -> float:
    """Returns the end of the axis of differences: the largest of them, rounded up to a tenth."""
    return math.ceil(10 * largest) / 10 if largest > 0 else 1.0  # without pairs it is not a number


def _tell_forest(comparison) -> str:
    names = ", ".join(run.name for run in comparison.runs)
    return f"Scores of {names} as marks with their intervals; the same figures stand in the table."


def _tell_losses(comparison) -> str:
    lowest = ", ".join(f"{run.name} {run.history['val_loss'].min():.3f}" for run in comparison.runs)
    return f"Loss over the epochs of each run, training dashed and validation thick. Lowest on validation: {lowest}."
