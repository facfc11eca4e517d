"""What a finished run is worth, written down: history, predictions, scores, figures, one results row."""

import pathlib
import shlex
import sys

import numpy as np
import pandas as pd

from kmed import evaluation, figures, runtime
from kmed.data.table import Table
from kmed.errors import RunError
from kmed.files import replacing, write_json, write_text
from kmed.progress import say
from kmed.runs import Run
from kmed.scores import Scores, format_scores

JUDGED = ("val", "test")


def judge(run: Run, config, table: Table, model, state) -> None:
    """Predicts the validation and test splits once and writes every file that rests on that.

    Args:
      run: where to.
      config: kmed.config.Config.
      table: all splits.
      model: the finished keras.Model.
      state: kmed.checkpoint.State of the end of training.
    """
    train_labels = table.split("train").labels
    rows, judged = [], {}
    for name in JUDGED:
        if not (table.rows["split"] == name).any():
            say(f"The data have no {name} split, so nothing is scored on one.")
            continue
        part = table.split(name)
        probs = evaluation.predict(model, part, config)
        rows.append(evaluation.prediction_rows(part, probs, config))
        judged[name] = evaluation.score(part, probs, config, train_labels)
    write_frame(run.predictions, pd.concat(rows, ignore_index=True))
    write_json(
        run.metrics,
        {
            name: {**scores.to_dict(), "task": config.task, "majority": baseline.to_dict()}
            for name, (scores, baseline) in judged.items()
        },
    )
    write_figures(run, judged, state)
    shown = "test" if "test" in judged else "val"
    write_text(run.summary, describe_scores(*judged[shown], shown) + "\n")
    # Last, since its presence says that the run has ended.
    row = result_row(run, config, table, model, state, shown, *judged[shown])
    write_frame(run.result, pd.DataFrame([row]))


def describe_scores(scores: Scores, baseline: Scores, split: str) -> str:
    """Returns the scores of a split as lines for a terminal, beside those of the constant predictor."""
    title = (
        f"{split} split: {scores.num_images} pictures; {scores.level:.0%} intervals from resampling "
        f"{scores.num_clusters} clusters"
    )
    return f"{title}\n{format_scores(scores, baseline)}"


def result_row(run: Run, config, table: Table, model, state, split: str, scores: Scores, baseline: Scores) -> dict:
    """Returns the run as one row of a results table, in the order of its columns."""
    environment = run.read_json(run.environment)
    num_training = len(table.split("train"))
    batch_size = min(config.train.batch_size, num_training)
    row = {
        "model": config.model.name,
        "task": config.task,
        "data": table.name,
        "split": split,
        "image_size": "x".join(map(str, config.data.image_size)),
        "epochs": state.epoch,
        "images_seen": state.epoch * (num_training // batch_size) * batch_size,
        "parameters": int(sum(np.prod(weight.shape) for weight in model.trainable_weights)),
        "seed": config.seed,
        **scores.flat(),
    }
    main = next(iter(scores.scores))  # accuracy, or the exact match ratio
    row[f"majority_{main}"] = baseline.scores[main].value
    row["num_clusters"] = scores.num_clusters
    row["minutes"] = round(state.seconds / 60, 1)
    row["device"] = environment["device"]
    row["versions"] = " ".join(f"{name}={version}" for name, version in environment["versions"].items())
    row["command"] = environment["command"]
    return row


def append_result(run: Run, path) -> None:
    """Adds a run's row to a results table, making the table where it does not exist.

    Raises: RunError: the run has no result yet, its row is already there, or the table has other columns.
    """
    path = pathlib.Path(path)
    if not run.result.exists():
        raise RunError(f"{run.folder} has no result.csv: the run is not finished, or its data had no test split.")
    # As text, so that what is there stays as it is, to the last digit.
    row = pd.read_csv(run.result, dtype=str, keep_default_na=False)
    if path.exists():
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if list(table.columns) != list(row.columns):
            other = sorted(set(table.columns) ^ set(row.columns))
            raise RunError(f"{path} has other columns than this run ({', '.join(other[:5])}). Give another file.")
        if (table == row.iloc[0]).all(axis=1).any():
            raise RunError(f"{path} already holds this run's row.")
        row = pd.concat([table, row], ignore_index=True)
    write_frame(path, row)


def write_figures(run: Run, judged: dict, state) -> None:
    """Writes the loss curves, and a confusion matrix of each split where the task has one."""
    curves = figures.plot_history(pd.DataFrame(state.rows), best_epoch=state.best_epoch)
    figures.save_figure(curves, run.figures / "history.png")
    for name, (scores, _) in judged.items():
        if scores.confusion is not None:
            figure = figures.plot_confusion(scores.confusion.counts, list(scores.per_class), f"{name} split")
            figures.save_figure(figure, run.figures / f"confusion_{name}.png")


def write_history(path: pathlib.Path, rows: list[dict]) -> None:
    """Writes history.csv: a row an epoch, the times in the last column."""
    write_frame(path, pd.DataFrame(rows))


def write_frame(path: pathlib.Path, frame: pd.DataFrame) -> None:
    """Writes a CSV, whole or not at all; numbers keep every digit that reading them back needs."""
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False)


def command_line() -> str:
    """Returns the command this process was started with, ready to be pasted into a shell."""
    program = pathlib.Path(sys.argv[0]).name
    return shlex.join(["kmed" if program == "__main__.py" else program, *sys.argv[1:]])


def environment() -> dict:
    """Returns what is stored as environment.json beside a run."""
    return {**runtime.environment(), "command": command_line()}
