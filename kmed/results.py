"""What a finished run is worth, written down: history, predictions, scores, figures, one results row."""

import pathlib
import shlex
import sys

import numpy as np
import pandas as pd

from kmed import evaluation, figures, judging, runtime
from kmed.config import load_config
from kmed.data.table import Table
from kmed.errors import ConfigError, RunError
from kmed.files import replacing, write_json, write_text
from kmed.judging import Judged
from kmed.models.keras_file import load_model
from kmed.novelty import false_alarms, feature_model
from kmed.predictions import Predictions, make_predictions, read_predictions
from kmed.priors import Prior
from kmed.progress import say
from kmed.runs import Run, finished_run, judged_run
from kmed.summary import describe, describe_novelty

JUDGED = ("val", "test")

# Figures of a study that results stand beside, in its order; they are the first scores of a row.
STUDY_COLUMNS = {
    "multiclass": ("accuracy", "precision_macro", "recall_macro", "f1_macro"),
    "multilabel": ("exact_match_ratio", "hamming_loss", "recall_samples", "precision_samples", "f1_samples"),
}


def judge(run: Run, config, table: Table, model, state) -> None:
    """Predicts the validation and test splits once and writes every file that rests on that.

    Args:
      run: where to.
      config: kmed.config.Config.
      table: all splits.
      model: the finished keras.Model.
      state: kmed.checkpoint.State of the end of training.
    """
    present = [name for name in JUDGED if (table.rows["split"] == name).any()]
    if "test" not in present:
        say("The data have no test split, so nothing is scored on one.")
    parts = table.take(table.rows["split"].isin(present).to_numpy())
    both = feature_model(model)
    novelty = evaluation.novelty_reference(both, table, config)
    probs, distances = evaluation.predict_with_distances(both, parts, config, novelty)
    predictions = make_predictions(parts, probs, config.evaluate.subgroups)
    write_frame(run.predictions, predictions.to_frame())
    told = write_novelty(run, config, parts.rows, novelty, distances)
    judged = write_scores(run, config, predictions, evaluation.training_prior(table), told)
    curves = figures.plot_history(pd.DataFrame(state.rows), best_epoch=state.best_epoch)
    figures.save_figure(curves, run.figures / "history.png")
    # Last, since its presence says that the run has ended.
    shown = present[-1]
    row = result_row(run, config, table, model, state, shown, judged[shown])
    write_frame(run.result, pd.DataFrame([row]))


def write_novelty(run: Run, config, rows: pd.DataFrame, novelty, distances: np.ndarray) -> dict:
    """Sets the threshold on validation, writes novelty.npz, and returns what metrics.json tells of it.

    Args:
      run: where to.
      config: kmed.config.Config.
      rows: (N, ...) with the columns split and cluster.
      novelty: kmed.novelty.Novelty of the training pictures.
      distances: (N,), of the rows' pictures.
    """
    splits = rows["split"].to_numpy()
    novelty = novelty.with_threshold(distances[splits == "val"], config.evaluate.novelty_false_alarms)
    novelty.save(run.novelty)
    told = {"wanted": novelty.wanted, "threshold": novelty.threshold, "num_reference": len(novelty.reference)}
    for name in JUDGED:
        part = splits == name
        if part.any():
            clusters = rows["cluster"].to_numpy()[part]
            told[name] = false_alarms(novelty.flags(distances[part]), clusters, config.evaluate, config.seed).to_dict()
    return told


def fit_novelty(run_folder, *, data=None) -> Run:
    """Adds novelty.npz to a finished run, and tells of it in its metrics.json and summary.txt.

    `kmed train` does so itself; this is for runs of earlier versions. What the run had is replaced.

    Args:
      run_folder: what `kmed train` made.
      data: the folder, CSV or npz to read instead of the one in the run's settings.
    Raises: RunError: no such run. DataError: its pictures cannot be read.
    """
    run = finished_run(run_folder)
    config, table = evaluation.open_run_table(run, data)
    parts = table.take(table.rows["split"].isin(JUDGED).to_numpy())
    both = feature_model(load_model(run.model))
    novelty = evaluation.novelty_reference(both, table, config)
    _, distances = evaluation.predict_with_distances(both, parts, config, novelty)
    told = write_novelty(run, config, parts.rows, novelty, distances)
    write_json(run.metrics, run.read_json(run.metrics) | {"novelty": told})
    lines = run.summary.read_text(encoding="utf-8").splitlines(keepends=True)
    sentence = describe_novelty(told)
    kept = "".join(line for line in lines if not line.startswith(sentence.split(":")[0]))
    write_text(run.summary, kept + sentence)
    return run


def write_scores(
    run: Run, config, predictions: Predictions, prior: Prior, novelty: dict | None = None
) -> dict[str, Judged]:
    """Writes calibration.json, metrics.json, summary.txt and figures from predictions; returns what was judged.

    Args:
      run: where to.
      config: kmed.config.Config; its evaluate section says how.
      predictions: of the splits val and test.
      prior: what the training labels tell.
      novelty: of `write_novelty`, where it is known.
    """
    fitted = judging.fit_on_validation(predictions.split("val"), config.evaluate)
    judged = {}
    for name in JUDGED:
        part = predictions.split(name)
        if len(part):
            # On validation itself, tuned thresholds would flatter.
            judged[name] = judging.judge_split(
                part, prior, config.evaluate, config.seed, fitted if name != "val" else None
            )
    write_json(run.fitted, fitted.to_dict())
    told = {name: {"task": config.task, **part.to_dict()} for name, part in judged.items()}
    more = {} if novelty is None else {"novelty": novelty}
    write_json(run.metrics, {"training": prior.to_dict(), **told, **more})
    write_figures(run, judged)
    shown = list(judged)[-1]
    write_text(run.summary, describe(judged[shown], shown) + "\n" + describe_novelty(novelty))
    return judged


def rescore(run_folder, settings=()) -> Run:
    """Judges a finished run again from its predictions.csv, with other evaluate settings; no picture is read.

    Its config.yaml, calibration.json, metrics.json, summary.txt, result.csv and figures are replaced.

    Args:
      run_folder: what `kmed train` made.
      settings: overrides of the evaluate section, such as "evaluate.thresholds=youden".
    Raises: ConfigError: an override of another section. RunError: the run is not finished or damaged.
    """
    run = finished_run(run_folder)
    for setting in settings:
        if not str(setting).startswith("evaluate."):
            raise ConfigError(f"Scoring again takes settings of evaluate alone. Received: {setting!r}.")
        if str(setting).startswith("evaluate.novelty"):
            raise ConfigError(f"Distances are not stored, so scoring again cannot change {setting!r}. Train again.")
    config = load_config(run.config, settings)
    told = run.read_json(run.metrics)
    if "training" not in told:
        raise RunError(f"{run.metrics} does not tell the counts of the training labels. Train the run again.")
    names = run.read_json(run.classes)["class_names"]
    predictions = read_predictions(run.predictions, names, config.task)
    judged = write_scores(run, config, predictions, Prior.from_dict(told["training"]), told.get("novelty"))
    old = pd.read_csv(run.result, dtype=str, keep_default_na=False).iloc[0]
    scored = score_columns(config.task, list(judged.values())[-1])
    kept = {name: value for name, value in old.items() if name not in scored}
    write_frame(run.result, pd.DataFrame([_in_order(kept, scored)]))
    config.write(run.config)
    return run


def score_columns(task: str, judged: Judged) -> dict:
    """Returns the scores of a results row, the study's first, each with its interval; then what the constants reach."""
    flat = judged.scores.flat()
    study = [f"{name}{end}" for name in STUDY_COLUMNS[task] for end in ("", "_low", "_high")]
    row = {name: flat[name] for name in study} | flat
    best = judged.verdict.best_constant
    main = judged.verdict.main
    row[f"best_constant_{main}"] = judged.constants[best].scores[main].value
    row |= {"best_constant": best, "learnt": judged.verdict.learnt}
    return row | {"num_labels": judged.scores.num_labels, "num_clusters": judged.scores.num_clusters}


def _in_order(others: dict, scored: dict) -> dict:
    """Returns one row: what was trained, the scores, then time, device and command."""
    last = ("minutes", "device", "versions", "command")
    return {
        **{name: value for name, value in others.items() if name not in last},
        **scored,
        **{name: others[name] for name in last},
    }


def result_row(run: Run, config, table: Table, model, state, split: str, judged: Judged) -> dict:
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
    return _in_order(others, score_columns(config.task, judged))


def append_result(run: Run, path) -> None:
    """Adds a run's row to a results table, making the table where it does not exist.

    Columns that the table lacks are added to it, empty in its older rows; columns of it that the run
    lacks stay empty in the new one.

    Raises: RunError: the run has no result yet, its row is already there, or the file is no results table.
    """
    if not append_results([run], path):
        raise RunError(f"{path} already holds this run's row.")


def append_results(runs: list[Run], path) -> int:
    """Adds the rows of several runs, as `append_result` does, and returns how many were not there yet."""
    # As text, so that what is there stays as it is, to the last digit.
    rows = [pd.read_csv(judged_run(run.folder).result, dtype=str, keep_default_na=False) for run in runs]
    return append_rows(path, rows, read_results(path, {row["task"].iloc[0] for row in rows}))


def read_results(path, tasks: set[str] = frozenset()) -> pd.DataFrame:
    """Returns a table of runs' rows as text, without any where it does not exist yet.

    Args:
      path: the table.
      tasks: those of the rows that are to be added, where they are known.
    Raises: RunError: it cannot be read, or is a table of other rows.
    """
    table = read_table(path, ("model", "task", "command"))
    both = sorted(tasks | set(table.get("task", [])))
    if len(both) > 1:
        raise RunError(f"{path} would hold results of {' and '.join(both)}. Give each task a table of its own.")
    return table


def read_table(path, needed: tuple[str, ...] = ()) -> pd.DataFrame:
    """Returns a CSV table as text, without rows or columns where it does not exist yet.

    Raises: RunError: it is no CSV, or lacks the columns `needed`, so it is a table of other rows.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return pd.DataFrame()
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{path} cannot be read as a table of results ({reason}). Give another file.") from None
    if missing := [name for name in needed if name not in table.columns]:
        raise RunError(f"{path} is a table of other rows: it has no column {missing[0]!r}. Give another file.")
    return table


def append_rows(path, rows: list[pd.DataFrame], table: pd.DataFrame | None = None) -> int:
    """Adds rows to a CSV table, making it where it does not exist, and returns how many were not there yet.

    A row is there already where the table agrees with it in all of its own columns: what the table tells besides,
    such as a note made by hand, makes no other row of it.

    Args:
      path: the table.
      rows: frames of one row each, of text.
      table: what `path` holds; None: it is read.
    """
    table, added = read_table(path) if table is None else table, 0
    for row in rows:
        own = list(row.columns)
        columns = [*own, *(name for name in table.columns if name not in own)]
        row, table = (frame.reindex(columns=columns, fill_value="") for frame in (row, table))
        if not (table[own] == row[own].iloc[0]).all(axis=1).any():
            table = pd.concat([table, row], ignore_index=True)
            added += 1
    if added:
        write_frame(pathlib.Path(path), table)
    return added


def write_figures(run: Run, judged: dict[str, Judged]) -> None:
    """Writes, of each split, the confusion matrix or the scores a label, the reliability diagram and risk-coverage."""
    for name, part in judged.items():
        title = f"{name} split"
        if part.scores.confusion is not None:
            figure = figures.plot_confusion(part.scores.confusion.counts, list(part.scores.per_class), title)
            figures.save_figure(figure, run.figures / f"confusion_{name}.png")
        else:
            figures.save_figure(figures.plot_per_class(part.scores, title), run.figures / f"per_class_{name}.png")
        figures.save_figure(
            figures.plot_reliability(part.scores.reliability, title), run.figures / f"reliability_{name}.png"
        )
        figures.save_figure(figures.plot_risk_coverage(part.risk, title), run.figures / f"risk_coverage_{name}.png")


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
