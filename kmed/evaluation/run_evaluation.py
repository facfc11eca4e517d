"""The evaluation of a finished run and the files it writes: predictions, scores, one results row, figures."""

import shlex
from collections.abc import Callable

import numpy as np
import pandas as pd

from kmed import figures
from kmed.config import load_config
from kmed.data.splits import HELD_OUT
from kmed.data.table import Table
from kmed.errors import ConfigError, RunError
from kmed.evaluation import inference
from kmed.evaluation.assessment import Assessment, assess
from kmed.evaluation.decisions import Fitted, fit_on_validation, read_fitted
from kmed.evaluation.inference import open_run_table, predict_calibrated, training_prior
from kmed.evaluation.members import all_judge, predict_judged
from kmed.evaluation.novelty import false_alarms, feature_model
from kmed.evaluation.predictions import Predictions, make_predictions, stored_predictions
from kmed.evaluation.predictor import open_model
from kmed.evaluation.result_rows import LAST, result_row, score_columns, with_scores
from kmed.evaluation.summary import describe_assessment, describe_novelty
from kmed.files import write_frame, write_json, write_text
from kmed.formats.registry import check_format
from kmed.metrics.baselines import Prior
from kmed.metrics.intervals import Bootstrap, check_clusters
from kmed.models.combined import with_views
from kmed.models.keras_file import load_run_model
from kmed.progress import optional, say
from kmed.reading import read_text
from kmed.runs import Run, finished_run, judged_run, judged_split, unscored, without_labels
from kmed.schemas.records import stamped
from kmed.schemas.tables import PREDICTED
from kmed.tasks import get_task

FITTED_BY = (
    "thresholds",
    "sensitivity",
    "cost_missed",
    "cost_false",
    "coverage",
    "case",
)  # settings of what is fitted on validation


def write_evaluation(run: Run, config, table: Table, model, state) -> None:
    """Predicts the validation and test splits once and writes every file that depends on them.

    The results come first: whatever happens while a figure is drawn, they are stored.

    Args:
      run: the run folder to write to.
      config: kmed.config.Config.
      table: all splits.
      model: the finished keras.Model.
      state: kmed.training.checkpoint.State at the end of training.
    """
    present = [name for name in PREDICTED if (table.rows["split"] == name).any()]
    if "test" not in present:
        held_out = HELD_OUT in set(table.rows["split"])
        say(f"The {'test pictures are held out' if held_out else 'data have no test split'}: there are no test scores.")
    parts = table.take(table.rows["split"].isin(present).to_numpy())
    both = feature_model(with_views(model, get_task(config.task).activation, config.evaluate.views))
    novelty = inference.novelty_reference(both, table, config)
    probs, distances = inference.predict_with_distances(both, parts, config, novelty)
    predictions = make_predictions(parts, probs, config.evaluate.subgroups, config.evaluate.case)
    write_frame(run.predictions, predictions.to_frame())
    fitted = fit_on_validation(predictions.split("val"), config.evaluate, config.data.not_findings)
    flagged = {"novelty": write_novelty(run, config, parts.rows, novelty, distances)}
    assessments = write_scores(run, config, predictions, training_prior(table), fitted, flagged)
    # Written after all other results, since its presence marks the run as finished.
    split = judged_split(assessments)
    row = result_row(run, config, table, model, state, split, assessments[split])
    write_frame(run.result, pd.DataFrame([row]))
    write_figures(run, assessments)


def write_novelty(run: Run, config, rows: pd.DataFrame, novelty, distances: np.ndarray) -> dict:
    """Sets the threshold on validation, writes novelty.npz, and returns its record for metrics.json.

    Args:
      run: the run folder to write to.
      config: kmed.config.Config.
      rows: (N, ...) with the columns split and cluster.
      novelty: kmed.evaluation.novelty.Novelty of the training images.
      distances: (N,), of the rows' images.
    """
    splits = rows["split"].to_numpy()
    novelty = novelty.with_threshold(distances[splits == "val"], config.evaluate.novelty_false_alarms)
    novelty.save(run.novelty)
    record = {"wanted": novelty.wanted, "threshold": novelty.threshold, "num_reference": len(novelty.reference)}
    bootstrap = Bootstrap.from_config(config)
    for name in PREDICTED:
        part = splits == name
        if part.any():
            clusters = rows["cluster"].to_numpy()[part]
            record[name] = false_alarms(novelty.flags(distances[part]), clusters, bootstrap).to_dict()
    return record


def fit_novelty(run_folder, *, data=None) -> Run:
    """Adds novelty.npz to a finished run, and the share it flags to the run's metrics.json and summary.txt.

    `kmed train` does this itself; runs of earlier versions need it. Anything the run already had is replaced.

    Args:
      run_folder: what `kmed train` made.
      data: the folder, CSV or npz to read instead of the one in the run's settings.
    Raises: RunError: no such run. DataError: its images cannot be read.
    """
    run = finished_run(run_folder)
    config, table = inference.open_run_table(run, data)
    parts = table.take(table.rows["split"].isin(PREDICTED).to_numpy())
    metrics, summary = run.read_json(run.metrics), read_text(run.summary)
    both = feature_model(load_run_model(run))
    novelty = inference.novelty_reference(both, table, config)
    distances = inference.predict_with_distances(both, parts, config, novelty)[1]
    record = write_novelty(run, config, parts.rows, novelty, distances)
    write_json(run.metrics, stamped(metrics | {"novelty": record}))
    lines = summary.splitlines(keepends=True)
    sentence = describe_novelty(record)
    kept = "".join(line for line in lines if not line.startswith(sentence.split(":")[0]))
    write_text(run.summary, kept + sentence)
    return run


def write_scores(
    run: Run, config, predictions: Predictions, prior: Prior, fitted: Fitted, stored: dict | None = None
) -> dict[str, Assessment]:
    """Writes calibration.json, metrics.json and summary.txt from predictions; returns split -> Assessment.

    Args:
      run: the run folder to write to.
      config: kmed.config.Config; its evaluate section says how.
      predictions: those of val and test, or of one of them.
      prior: the Prior of the training labels.
      fitted: from `kmed.evaluation.decisions.fit_on_validation`.
      stored: an earlier metrics.json; its "novelty", and its splits that `predictions` lack, are kept.
    """
    stored, metrics = stored or {}, {"training": prior.to_dict()}
    assessments = assess_splits(config, predictions, prior, fitted)
    for name in PREDICTED:
        if name in assessments:
            metrics[name] = {"task": config.task, **assessments[name].to_dict()}
        elif name in stored:
            metrics[name] = stored[name]
    metrics |= {"novelty": stored["novelty"]} if "novelty" in stored else {}
    write_json(run.fitted, stamped(fitted.to_dict()))
    write_json(run.metrics, stamped(metrics))
    split = judged_split(assessments)
    summary = describe_assessment(assessments[split], split)
    write_text(run.summary, summary + "\n" + describe_novelty(stored.get("novelty")))
    return assessments


def assess_splits(config, predictions: Predictions, prior: Prior, fitted: Fitted) -> dict[str, Assessment]:
    """Returns split -> Assessment of those of PREDICTED that `predictions` hold."""
    bootstrap = Bootstrap.from_config(config)
    parts = {name: predictions.split(name) for name in PREDICTED}
    return {
        # On validation itself, tuned thresholds would flatter.
        name: assess(part, prior, bootstrap, fitted if name != "val" else None)
        for name, part in parts.items()
        if len(part)
    }


def draw_again(run: Run) -> None:
    """Draws the figures of a run from its stored predictions and what was fitted on them; no score is changed."""
    prior = Prior.from_dict(run.read_json(run.metrics)["training"])
    write_figures(run, assess_splits(run.read_config(), stored_predictions(run), prior, read_fitted(run)))


def rescore(run_folder, settings=()) -> Run:
    """Scores a finished run again from its predictions.csv, with other settings; no images or weights are read.

    Its config.yaml, calibration.json, metrics.json, summary.txt, result.csv and figures are replaced.

    Args:
      run_folder: what `kmed train` made; its weights may be gone.
      settings: overrides of the evaluate section, such as "evaluate.thresholds=youden".
    Raises: ConfigError: an override of another section. RunError: the run is unfinished or damaged, or has no
      validation predictions to fit its thresholds to again.
    """
    rescore_split(run_folder, settings)
    return judged_run(run_folder)


def rescore_split(run_folder, settings=()) -> Assessment:
    """Does what `rescore` does; returns the Assessment of the test split, or else of the validation split."""
    run = judged_run(run_folder)
    for setting in settings:
        if not str(setting).startswith("evaluate."):
            raise ConfigError(f"Scoring again takes only settings of evaluate. Received: {setting!r}.")
        if str(setting).startswith("evaluate.novelty"):
            raise ConfigError(f"Distances are not stored, so scoring again cannot change {setting!r}. Train again.")
        if str(setting).startswith("evaluate.views"):
            raise ConfigError(
                f"Scoring again reads no pictures, so it cannot change {setting!r}. Make a run with these views: "
                f"kmed ensemble {shlex.quote(str(run.folder))} --set {setting} --out DIR"
            )
    config, metrics, old = load_config(run.config, settings), run.read_json(run.metrics), run.read_result(LAST)
    predictions = stored_predictions(run)
    fitted = _fit_again(run, config, predictions)
    assessments = write_scores(run, config, predictions, Prior.from_dict(metrics["training"]), fitted, metrics)
    if run.recalibration.exists():
        sentences = run.read_json(run.recalibration)["sentences"]
        write_text(run.summary, "\n".join([read_text(run.summary), *sentences]) + "\n")
    assessment = assessments[judged_split(assessments)]
    write_frame(run.result, pd.DataFrame([with_scores(old, score_columns(assessment))]))
    config.write(run.config)
    write_figures(run, assessments)
    return assessment


def _fit_again(run: Run, config, predictions: Predictions) -> Fitted:
    """Returns what is fitted on the validation predictions, or what the run stored if those are gone.

    A recalibrated run keeps what was fitted, which rests on the run that it was made of too.
    """
    validation = predictions.split("val")
    before = run.read_config().evaluate
    changed = [name for name in FITTED_BY if getattr(before, name) != getattr(config.evaluate, name)]
    if run.recalibration.exists():
        if changed:
            raise RunError(
                f"{run.folder} was recalibrated, so evaluate.{changed[0]} cannot be changed by scoring again. Make "
                "another run of its source: kmed recalibrate RUN --on DATA --out DIR --set "
                f"evaluate.{changed[0]}={getattr(config.evaluate, changed[0])}"
            )
        return read_fitted(run)
    if len(validation):
        return fit_on_validation(validation, config.evaluate, config.data.not_findings)
    if changed or not len(predictions):
        lost = f"evaluate.{changed[0]}" if changed else "the calibration"
        raise RunError(
            f"{run.predictions} holds no validation predictions, so {lost} cannot be fitted. Train the run again."
        )
    return read_fitted(run)


def write_figures(run: Run, assessments: dict[str, Assessment]) -> None:
    """Writes the curves of training, and of each split the confusion matrix or scores per label and two diagrams.

    A figure that cannot be drawn or stored is one warning, and a file of its earlier state is removed. Runs that are
    kept for comparison may lack their history.csv; they get no curves.

    Args:
      run: the run folder to write to, with its result.csv.
      assessments: split -> Assessment.
    """
    drawings: dict[str, Callable] = {"history": lambda: _draw_history(run)} if run.history.exists() else {}
    for name, part in assessments.items():
        drawings |= _drawings(name, part)
    again = f"Draw it again with: kmed evaluate {shlex.quote(str(run.folder))} --rescore"
    for name, draw in drawings.items():
        path = run.figures / f"{name}.png"
        with optional(f"The figure {path}", again):
            path.unlink(missing_ok=True)
            figures.save_figure(draw(), path)


def _draw_history(run: Run):
    best_epoch = int(float(run.read_result()["best_epoch"]))
    return figures.plot_history(pd.read_csv(run.history), best_epoch)


def _drawings(split: str, part: Assessment) -> dict[str, Callable]:
    """Returns {name of a figure's file: function that draws it} for one split."""
    scores, title = part.scores, f"{split} split"

    def draw_classes():
        if scores.confusion is None:
            return figures.plot_per_class(scores, title)
        return figures.plot_confusion(scores.confusion.counts, list(scores.per_class), title)

    return {
        f"{'per_class' if scores.confusion is None else 'confusion'}_{split}": draw_classes,
        f"reliability_{split}": lambda: figures.plot_reliability(scores.reliability, title),
        f"risk_coverage_{split}": lambda: figures.plot_risk_coverage(part.risk, title),
    }


def evaluate_split(
    run_folder, split: str = "test", *, data=None, format: str = "keras", quantize: str = "none"
) -> Assessment:
    """Returns the Assessment of a finished run on one of its splits, with new predictions.

    The images are those that the run's splits.csv names. A split that played no part in training (such as
    `test_simple`) can be scored too. Calibration and thresholds are those of the run.

    Args:
      run_folder: what `kmed train` made.
      split: a split of the run's data.
      data: the folder, CSV or npz to read instead of the one in the run's settings; the images'
        names must be the same.
      format, quantize: which of the run's files predicts; see `kmed.evaluation.predictor.open_model`. The
        calibration of an exported file is undone, so that its scores can be compared with the Keras model's.
    Raises: RunError: no such run or export, or it is not finished. DataError: the images are gone, the classes
      differ, or the split does not exist.
    """
    run = finished_run(run_folder)
    if without_labels(run):
        raise unscored(run)
    check_format(format, quantize)
    predictor = open_model(run, format, quantize)
    config, table = open_run_table(run, data)
    part = table.split(split)
    check_clusters(part.rows["cluster"])
    say(f"Scoring {len(part)} pictures of split {split!r} ...")
    fitted = read_fitted(run)
    if predictor.keras_model is not None:
        probs = predict_judged(run, predictor.keras_model, part, config)
    else:
        if not all_judge(run, part):
            raise RunError(
                f"Members of {run.folder} were trained on some of these pictures, and an exported file cannot leave "
                "these members out. Score the Keras model (--format keras), or another split."
            )
        probs = fitted.calibration.invert(predict_calibrated(predictor, part, config))
        lost = [name for name, same in zip(part.class_names, fitted.calibration.constant) if same]
        if lost:
            say(f"Calibration made {', '.join(lost)} constant, so an exported file does not rank the pictures by it.")
    predictions = make_predictions(part, probs, config.evaluate.subgroups, config.evaluate.case)
    prior, bootstrap = Prior.from_dict(run.read_json(run.metrics)["training"]), Bootstrap.from_config(config)
    return assess(predictions, prior, bootstrap, None if split == "val" else fitted)
