"""The page of a comparison: several runs side by side."""

import math
import pathlib
from collections.abc import Sequence

from kmed import figures
from kmed.evaluation import comparison as comparing
from kmed.evaluation.comparison import Comparison, plot_scores, with_cases
from kmed.evaluation.result_rows import append_results, check_table
from kmed.metrics.intervals import FEW_CLUSTERS
from kmed.progress import optional, say
from kmed.report.page import Cited, inline_figure, render_page, words
from kmed.runs import default_folder, judged
from kmed.schemas.tables import CASE
from kmed.tasks import LOWER_IS_BETTER

_WIDE = 10.5


def compare(
    runs: Sequence[str | pathlib.Path],
    *,
    out: str | pathlib.Path | None = None,
    split: str = "test",
    different_pictures: bool = False,
    append: str | pathlib.Path | None = None,
) -> tuple[Comparison, list[pathlib.Path]]:
    """Compares finished runs on the same images, and writes a table, figures and a page.

    Args:
      runs: two or more run folders, or folders of cross-validations.
      out: the folder to write to; None: saved_models/comparison-TIME.
      split: "test" or "val".
      different_pictures: whether runs may have been scored on different images; such runs are not paired.
      append: a CSV table of results to add the runs' rows to; rows that it already holds are skipped.
    Returns: (Comparison, the paths of the files written).
    Raises: RunError: fewer than two runs, an unfinished run, runs of different tasks, labels or images, or a table
      that cannot take the rows.
    Example:
      >>> comparison, files = kmed.compare(["saved_models/resnet18", "saved_models/vit"])
      >>> comparison.conclusions
    """
    check_table(append, [judged(run).read_config().task for run in runs])
    comparison = comparing.compare_runs(runs, different_pictures=different_pictures, split=split)
    folder = pathlib.Path(out) if out is not None else default_folder("comparison")
    files = comparing.write_files(comparison, folder)
    with optional(f"The page {folder / 'report.html'}", "Compare the runs again to draw it."):
        files.append(write_comparison(comparison, folder))
    if append is not None:
        added = append_results([judged(run) for run in runs], append)
        say(f"Added to {append}: {added} of {len(runs)} rows.")
    return comparison, files


def write_comparison(comparison: Comparison, folder) -> pathlib.Path:
    """Writes a comparison as FOLDER/report.html, and returns its path.

    Args:
      comparison: what `kmed.evaluation.comparison.compare_runs` returned.
      folder: the one that `kmed.evaluation.comparison.write_files` wrote the tables to.
    """
    table = comparison.table.astype(object).where(comparison.table.notna(), None).to_dict("records")
    pairs = comparison.pairs.astype(object).where(comparison.pairs.notna(), None).to_dict("records")
    first, columns = comparison.runs[0], [*comparison.task.compared_scores]
    scores = {run.name: run.shown for run in comparison.runs}
    of_cases = {} if first.cases is None else first.cases.constants
    for name, constant in first.constants.items():
        scores[f"constant: {name}"] = with_cases(constant, of_cases.get(name))
    if first.cases is not None:
        columns += [f"{CASE}{name}" for name in comparison.task.paired_scores]
    curves = figures.plot_histories({run.name: run.history for run in comparison.runs})
    forest = plot_scores(comparison)
    for axes in forest.axes:
        axes.set_title(words(axes.get_title().replace(" ", "_")), fontsize=11)
    return render_page(
        pathlib.Path(folder) / "report.html",
        "comparison.html.j2",
        comparison=comparison,
        columns=columns,
        table=Cited("comparison.csv", table),
        pairs=Cited("pairs.csv", pairs),
        reach=_reach(comparison.pairs[["low", "high"]].abs().max(axis=None)),
        scores=scores,
        forest=inline_figure(forest, _forest_words(comparison), (_WIDE, forest.get_figheight())),
        curves=inline_figure(curves, _losses_words(comparison), (_WIDE, curves.get_figheight())),
        few=FEW_CLUSTERS,
        lower_is_better=LOWER_IS_BETTER,
    )


def _reach(largest: float) -> float:
    """Returns the end of the axis of differences: the largest of them, rounded up to a tenth."""
    return math.ceil(10 * largest) / 10 if largest > 0 else 1.0  # without pairs it is not a number


def _forest_words(comparison) -> str:
    names = ", ".join(run.name for run in comparison.runs)
    return f"Scores of {names} as marks with their intervals; the table gives the same numbers."


def _losses_words(comparison) -> str:
    trained = [run for run in comparison.runs if len(run.history)]  # an ensemble has no epochs
    if not trained:
        return "No losses: none of the runs has epochs of its own."
    lowest = ", ".join(f"{run.name} {run.history['val_loss'].min():.3f}" for run in trained)
    return f"Loss of each run over the epochs, training dashed and validation thick. Lowest validation loss: {lowest}."
