"""The page of a run that was recalibrated without labels: the shares that were found, and no scores."""

import pathlib

from kmed.report.page import Cited, render_page
from kmed.runs import Run
from kmed.tasks import get_task


def write_unlabelled(run: Run) -> pathlib.Path:
    """Writes report.html from recalibration.json and metrics.json, and returns its path.

    Raises: RunError: the folder is damaged or cannot be written.
    """
    config, metrics = run.read_config(), run.read_json(run.metrics)
    found = Cited(run.recalibration.name, run.read_json(run.recalibration))
    return render_page(
        run.report,
        "unlabelled.html.j2",
        name=run.folder.resolve().name,
        config=config,
        config_text=run.config.read_text(encoding="utf-8"),
        task=get_task(config.task),
        found=found,
        kept=found["kept"].raw,
        novelty=Cited(run.metrics.name, metrics)["novelty"] if metrics.get("novelty") else None,
        environment=run.read_json(run.environment),
    )
