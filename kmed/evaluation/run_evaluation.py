"""What a finished run is worth, written down: history, predictions, scores, figures, one results row."""

import numpy as np
import pandas as pd

from kmed import figures
from kmed.config import load_config
from kmed.data.table import Table
from kmed.errors import ConfigError, RunError
from kmed.evaluation import assessment, decisions, inference
from kmed.evaluation.assessment import Judged, judge_split
from kmed.evaluation.decisions import read_fitted
from kmed.evaluation.inference import open_run_table, predict, predict_calibrated, training_prior
from kmed.evaluation.novelty import false_alarms, feature_model
from kmed.evaluation.predictions import Predictions, make_predictions, read_predictions
from kmed.evaluation.predictor import open_model
from kmed.evaluation.result_rows import _in_order, result_row, score_columns
from kmed.evaluation.summary import describe, describe_novelty
from kmed.files import write_frame, write_json, write_text
from kmed.formats.registry import check_format
from kmed.metrics.baselines import Prior
from kmed.metrics.intervals import check_clusters
from kmed.metrics.scores import Scores
from kmed.models.keras_file import load_model
from kmed.progress import say
from kmed.runs import Run, finished_run

JUDGED = ("val", "test")


def write_evaluation(run: Run, config, table: Table, model, state) -> None:
    """Predicts the validation and test splits once and writes every file that rests on that.

    Args:
      run: where to.
      config: kmed.config.Config.
      table: all splits.
      model: the finished keras.Model.
      state: kmed.training.checkpoint.State of the end of training.
    """
    present = [name for name in JUDGED if (table.rows["split"] == name).any()]
    if "test" not in present:
        say("The data have no test split, so nothing is scored on one.")
    parts = table.take(table.rows["split"].isin(present).to_numpy())
    both = feature_model(model)
    novelty = inference.novelty_reference(both, table, config)
    probs, distances = inference.predict_with_distances(both, parts, config, novelty)
    predictions = make_predictions(parts, probs, config.evaluate.subgroups)
    write_frame(run.predictions, predictions.to_frame())
    told = write_novelty(run, config, parts.rows, novelty, distances)
    judged = write_scores(run, config, predictions, inference.training_prior(table), told)
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
      novelty: kmed.evaluation.novelty.Novelty of the training pictures.
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
    config, table = inference.open_run_table(run, data)
    parts = table.take(table.rows["split"].isin(JUDGED).to_numpy())
    both = feature_model(load_model(run.model))
    novelty = inference.novelty_reference(both, table, config)
    _, distances = inference.predict_with_distances(both, parts, config, novelty)
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
    fitted = decisions.fit_on_validation(predictions.split("val"), config.evaluate)
    judged = {}
    for name in JUDGED:
        part = predictions.split(name)
        if len(part):
            # On validation itself, tuned thresholds would flatter.
            judged[name] = assessment.judge_split(
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


def judge(run_folder, split: str = "test", *, data=None, format: str = "keras", quantize: str = "none") -> Judged:
    """Returns all that is said of a finished run on one of its splits, predicted afresh.

    The pictures are those that the run's splits.csv names; a split that played no part in training
    (such as `test_simple`) may be asked for too. Calibration and thresholds are those of the run.

    Args:
      run_folder: what `kmed train` made.
      split: a split of the run's data.
      data: the folder, CSV or npz to read instead of the one in the run's settings; the pictures'
        names must be the same.
      format, quantize: which of the run's files predicts; see `kmed.evaluation.predictor.open_model`. What an exported
        file has calibrated is turned back, so its scores stand beside the Keras model's, name by name.
    Raises: RunError: no such run or export, or it is not finished. DataError: the pictures are gone, the
      classes are others, or the split does not exist.
    """
    run = finished_run(run_folder)
    check_format(format, quantize)
    predictor = open_model(run, format, quantize)
    config, table = open_run_table(run, data)
    part = table.split(split)
    check_clusters(part.rows["cluster"])
    say(f"Scoring {len(part)} pictures of split {split!r} ...")
    fitted = read_fitted(run)
    if predictor.keras_model is not None:
        probs = predict(predictor.keras_model, part, config)
    else:
        probs = fitted.calibration.invert(predict_calibrated(predictor, part, config))
        lost = [name for name, same in zip(part.class_names, fitted.calibration.constant) if same]
        if lost:
            say(f"Calibration made {', '.join(lost)} the same for every picture: an exported file does not rank them.")
    predictions = make_predictions(part, probs, config.evaluate.subgroups)
    prior = training_prior(table)
    return judge_split(predictions, prior, config.evaluate, config.seed, None if split == "val" else fitted)


def evaluate(run_folder, split: str = "test", **options) -> Scores:
    """Returns the `kmed.metrics.scores.Scores` of a finished run on one of its splits; see `judge`."""
    return judge(run_folder, split, **options).scores
