"""Copies the files of finished runs that `kmed compare` reads: settings, scores and test predictions, no weights.

    python scripts/keep_runs.py results/blood_cells_six saved_models/blood_six/resnet18 saved_models/blood_six/vit
    kmed compare results/blood_cells_six/*

So everyone who has the repository can compute every interval and comparison again without training anything.
"""

import json
import pathlib

import click
import pandas as pd

from kmed.cli.shared import PATH, one_line_errors
from kmed.errors import RunError
from kmed.files import write_frame, write_text
from kmed.runs import Run, judged_run

PATHS = ("path", "labels_csv", "group", "cluster", "splits")  # settings of data that may name files


@click.command(help=__doc__.split("\n")[0])
@click.argument("out", type=PATH)
@click.argument("runs", nargs=-1, required=True, type=PATH)
def main(out, runs):
    """Writes OUT/RUN for each run, where RUN is the name of its folder."""
    with one_line_errors():
        kept = {folder: Run(out / folder.resolve().name) for folder in runs}
        if len({run.folder for run in kept.values()}) < len(runs):
            raise RunError(f"Two of the runs share a name: {', '.join(map(str, runs))}. Keep them in two folders.")
        for folder, run in kept.items():
            keep(judged_run(folder), run)
            click.echo(f"Made: {run.folder}")


def keep(run: Run, kept: Run) -> None:
    """Copies the files that a comparison on the test split reads; those of `kept` are replaced one by one."""
    if run.folder.resolve() == kept.folder.resolve():
        raise RunError(f"{run.folder} would lose its validation predictions. Keep it in another folder.")
    predictions = pd.read_csv(run.predictions, dtype=str, keep_default_na=False)  # as text, to keep every digit
    tested = predictions[predictions["split"] == "test"]
    if tested.empty:
        raise RunError(f"{run.folder} has no predictions of split 'test'.")
    config = run.read_config()
    paths = {name: relative(getattr(config.data, name)) for name in PATHS}
    teacher = {"teacher": relative(config.train.teacher)}
    sections = {"data": config.data.model_copy(update=paths), "train": config.train.model_copy(update=teacher)}
    config = config.model_copy(update=sections)
    record = run.ensemble if run.ensemble.exists() else run.history  # an ensemble has no epochs
    files = (run.classes, run.fitted, run.metrics, record, run.summary, run.result)
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}  # all is read before writing
    if run.ensemble.name in texts:
        texts[run.ensemble.name] = with_relative_paths(texts[run.ensemble.name])
    write_frame(kept.predictions, tested)
    for name, text in texts.items():
        write_text(kept.folder / name, text)
    config.write(kept.config)


def with_relative_paths(ensemble: str) -> str:
    """Returns the text of an ensemble.json whose members' settings name files as `relative` does."""
    fields = json.loads(ensemble)
    for member in fields["members"]:
        for name in PATHS:
            if f"data.{name}" in member["settings"]:
                member["settings"][f"data.{name}"] = relative(member["settings"][f"data.{name}"])
    return json.dumps(fields, indent=2) + "\n"


def relative(path: str | None) -> str | None:
    """Returns a path relative to the current folder if it lies in it; anything else is returned unchanged."""
    here = pathlib.Path.cwd()
    return str(pathlib.Path(path).relative_to(here)) if path and pathlib.Path(path).is_relative_to(here) else path


if __name__ == "__main__":
    main()
