"""The page of a run on somebody else's data: its own test pictures and theirs side by side."""

import math
import pathlib

from kmed import figures
from kmed.evaluation.external import External, again
from kmed.evaluation.external_text import shown_scores
from kmed.metrics.intervals import FEW_CLUSTERS
from kmed.progress import optional
from kmed.reading import read_json
from kmed.report.page import Cited, inline_figure, render_page
from kmed.report.run_page import score_sections
from kmed.runs import Run
from kmed.tasks import LOWER_IS_BETTER


def try_page(run: Run, external: External, folder: pathlib.Path) -> None:
    """Writes report.html into the folder of the results; if that fails, it is one warning."""
    with optional("The page of the results", f"Draw it again with: {again(run, external)}"):
        write_page(run, external, folder)


def write_page(run: Run, external: External, folder: pathlib.Path) -> pathlib.Path:
    """Writes report.html from the metrics.json in `folder`, and returns its path.

    Args:
      run: the run.
      external: the results.
      folder: where `kmed.evaluation.external.write_external` writes them.
    """
    metrics = Cited("metrics.json", read_json(folder / "metrics.json"))
    task, beside = external.assessment.task, external.beside
    shown = shown_scores(beside, task)
    changes = [beside.scores[name].change for name in shown]
    inside = metrics["novelty"] if metrics["novelty"] else None
    return render_page(
        folder / "report.html",
        "external.html.j2",
        run=run.folder.resolve().name,
        config=external.foreign.config,
        task=task,
        metrics=metrics,
        assessed=metrics["external"],
        sections=score_sections(task, metrics["external"]),
        meanings={name: row.meaning for name, row in task.make_scores().items() if row.meaning},
        beside=metrics["side_by_side"],
        shown=shown,
        classes=external.foreign.table.class_names,
        reach=_reach([end for change in changes for end in (change.low, change.high)]),
        novelty=inside,
        headline=shown[: len(task.headline_scores) + 1],
        level=f"{100 * external.assessment.scores.level:g} %",
        reliability=_reliability(external),
        few=FEW_CLUSTERS,
        lower_is_better=LOWER_IS_BETTER,
        command=again(run, external),
    )


def _reach(ends: list[float]) -> float:
    """Returns the end of the axis of changes: the largest, rounded up to a tenth."""
    largest = max((abs(end) for end in ends if not math.isnan(end)), default=1.0)
    return math.ceil(10 * largest) / 10 or 0.1


def _reliability(external: External):
    bins = external.assessment.scores.reliability
    words = "Reliability on these data: the share of pictures that have a label, against its predicted probability."
    return inline_figure(figures.plot_reliability(bins), words, (4.0, 4.4))
