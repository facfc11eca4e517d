"""The page of a run that was recalibrated without labels: the shares that were found, and no scores."""

import pathlib

from kmed.report.page import Cited, render_page, run_content
from kmed.runs import Run


def write_unlabelled(run: Run) -> pathlib.Path:
    """Writes report.html from recalibration.json and metrics.json, and returns its path.

    Raises: RunError: the folder is damaged or cannot be written.
    """
    metrics = run.read_json(run.metrics)
    found = Cited(run.recalibration.name, run.read_json(run.recalibration))
    return render_page(
        run.report,
        "unlabelled.html.j2",
        **run_content(run),
        found=found,
        kept=found["kept"].raw,
        novelty=Cited(run.metrics.name, metrics)["novelty"] if metrics.get("novelty") else None,
        environment=run.read_json(run.environment),
    )
