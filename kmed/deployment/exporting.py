"""`kmed.export`: writes a run's model in another format, and keeps it only if it predicts what the model predicts."""

import dataclasses
import pathlib
import shlex

import keras
import numpy as np

from kmed import runtime, tables
from kmed.config import Config
from kmed.data.table import Table
from kmed.deployment.export_record import append_record, export_words, record_path
from kmed.deployment.latency import measure_latency
from kmed.errors import ConfigError, DataError, KmedError, RunError
from kmed.evaluation.assessment import score_predictions
from kmed.evaluation.decisions import decision_rule, read_fitted
from kmed.evaluation.inference import (
    draw_training_pictures,
    open_run_table,
    predict,
    predict_calibrated,
    training_rows,
)
from kmed.evaluation.members import all_judge
from kmed.evaluation.predictions import Predictions, stored_predictions
from kmed.evaluation.predictor import describe_run, export_path, open_exported
from kmed.files import replacing, size_of, temporary_folder, write_json
from kmed.formats import graph, registry
from kmed.formats.registry import FORMATS, check_format, either, exported_formats
from kmed.metrics.calibration import Calibration
from kmed.metrics.intervals import Bootstrap, Score, draw_resamples, mean_score
from kmed.models.keras_file import load_run_model
from kmed.progress import say
from kmed.runs import Run, finished_run, judged_split
from kmed.schemas.records import stamped

TOLERANCE = 0.5  # points, hundredths of accuracy or macro AUROC
LARGEST_DIFFERENCE = 1e-3  # of a probability if nothing was quantized; more is an error of the conversion
NUM_PICTURES = 200  # of the training split, for int8


@dataclasses.dataclass(frozen=True)
class Exported:
    """An export that passed its check.

    Attributes:
      path: the file or folder.
      record: the content of the JSON beside it: what was written, how it compares with the model, its size and latency.
    """

    path: pathlib.Path
    record: dict


class ExportRefused(RunError):
    """An export that changes the model by more than is tolerated; `record` holds the comparison."""

    def __init__(self, message: str, record: dict):
        super().__init__(message)
        self.record = record


@dataclasses.dataclass(frozen=True)
class _Original:
    """The model that is exported, and everything needed to compare one or several exports with it."""

    run: Run
    config: Config
    model: keras.Model
    calibration: Calibration
    description: dict
    table: Table
    compared: Table  # the pictures on which an export is compared with the model
    predictions: Predictions  # the model's, for the same pictures in the same order
    tolerance: float
    num_pictures: int
    threads: int | None


def export(
    run_folder,
    format: str = "tflite",
    quantize: str = "none",
    *,
    data=None,
    tolerance: float = TOLERANCE,
    num_pictures: int = NUM_PICTURES,
    threads: int | None = None,
    append=None,
) -> Exported:
    """Writes a run's model in another format, and keeps the file only if it predicts what the model predicts.

    Preprocessing and calibration are part of the file: it takes raw pixels and returns calibrated probabilities. The
    file is loaded back and predicts the run's test pictures (its validation pictures if it has no test split). Its
    probabilities are compared with those that the Keras model gave when the run was scored (or gives now, if it is an
    ensemble of folds without a test split, which was scored fold by fold). The file is kept in
    RUN/export, with a JSON of the comparison beside it, unless the main score falls by more than the tolerance or, if
    nothing was quantized, a probability changes by more than 0.001.

    Args:
      run_folder: what `kmed train` made.
      format: a format that is exported, such as "tflite".
      quantize: one of the format's quantizations, such as "int8".
      data: the folder, CSV or npz to read instead of the one in the run's settings.
      tolerance: points (hundredths) of accuracy or macro AUROC that may be lost.
      num_pictures: how many training pictures are drawn to calibrate int8.
      threads: processor cores to measure the latency with; None: all.
      append: a CSV table of exports to which a row is added, also if the export is refused.
    Raises: ConfigError: an unknown format or quantization, or a package that is not installed. RunError: there is no
      such run. DataError: its pictures cannot be read. ExportRefused: the file changed the model; it is removed, and
      a file that an earlier export left under the same name stays.
    Example:
      >>> export("saved_models/latest", "tflite", "int8").record["checked"]["agreement"]
    """
    run = finished_run(run_folder)
    check_format(format, quantize)
    if not FORMATS[format].exported:
        raise ConfigError(
            f"The Keras model is already in the run folder: {run.model}. Choose {either(exported_formats())}."
        )
    if not 0 <= tolerance <= 100 or num_pictures < 1 or (threads is not None and threads < 1):
        raise ConfigError(
            "tolerance must be from 0 to 100 points, num_pictures and threads at least 1. "
            f"Received: tolerance={tolerance}, num_pictures={num_pictures}, threads={threads}."
        )
    if append is not None:
        tables.read_table(append, ("format", "quantize"))  # a mistake is found before minutes of work
    graph.check_backend()
    calibrated = quantize if quantize in FORMATS[format].needs_pictures else ""
    original = _open(run, data, calibrated, tolerance, num_pictures, threads)
    path = export_path(run, format, quantize)
    with replacing(path) as temporary:
        record = _write_and_compare(original, format, quantize, temporary) | {"file": path.name}
        if not record["checked"]["passed"]:
            if append is not None:
                append_record(record, append)
            raise ExportRefused(_describe_refusal(original, record, path), record)
        if calibrated:
            _compare_latency(original, record)
    write_json(record_path(path), stamped(record))
    if append is not None:
        append_record(record, append)
    return Exported(path, record)


def _open(run: Run, data, calibrated: str, tolerance: float, num_pictures: int, threads: int | None) -> _Original:
    """Reads all that is needed before anything is written; `calibrated` is a quantization that needs it, or ""."""
    try:
        config, table = open_run_table(run, data)
    except KmedError as error:
        purpose = (
            f"{calibrated} is calibrated on the run's training pictures and checked on its test pictures"
            if calibrated
            else "An export is checked on the run's test pictures"
        )
        raise DataError(f"{purpose}, which cannot be read: {error}") from None
    if calibrated and not training_rows(table).any():
        raise DataError(
            f"{calibrated} is calibrated on training pictures, but {run.splits} names none. Choose another "
            "quantization."
        )
    stored = stored_predictions(run)
    split = judged_split(set(stored.rows["split"]))
    compared, stored = table.split(split), stored.split(split)
    row_of = {path: row for row, path in enumerate(stored.rows["path"])}
    if missing := [path for path in compared.rows["path"] if path not in row_of]:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise DataError(f"{run.predictions} holds no predictions for {missing[0]}{others}.")
    predictions = stored.take(np.array([row_of[path] for path in compared.rows["path"]], np.int64))
    model = load_run_model(run)
    if not all_judge(run, compared):  # each picture was scored without the members that had been trained on it
        probs = predict(model, compared, config)
        predictions = dataclasses.replace(predictions, probs=np.asarray(probs, np.float64))
    return _Original(
        run=run,
        config=config,
        model=model,
        calibration=read_fitted(run).calibration,
        description=describe_run(run),
        table=table,
        compared=compared,
        predictions=predictions,
        tolerance=tolerance,
        num_pictures=num_pictures,
        threads=threads,
    )


def _write_and_compare(original: _Original, format: str, quantize: str, path: pathlib.Path) -> dict:
    """Writes the file at `path`, loads it back, compares it with the model, and returns the record of that."""
    words = format if quantize == "none" else f"{format} {quantize}"
    say(f"Writing {words} ...")
    _write(original, format, quantize, path)
    predictor = open_exported(path, format, threads=original.threads)
    split = original.predictions.rows["split"][0]
    say(f"Comparing it with the Keras model on {len(original.compared)} {split} pictures ...")
    probs = predict_calibrated(predictor, original.compared, original.config)
    latency = measure_latency(predictor, original.config.data.image_size)
    row, num_training = FORMATS[format], int(training_rows(original.table).sum())
    return {
        "format": format,
        "quantize": quantize,
        "file": path.name,
        "size_bytes": size_of(path),
        "description": original.description,
        "checked": _compare(original, probs, exact=quantize == "none"),
        "latency": latency.to_dict(),
        "threads": original.threads if original.threads and row.sets_threads else runtime.num_cores(),
        "calibration_pictures": min(original.num_pictures, num_training) if quantize in row.needs_pictures else 0,
        **{key: value for key, value in runtime.environment().items() if key in ("device", "versions", "command")},
    }


def _write(original: _Original, format: str, quantize: str, path: pathlib.Path) -> None:
    pictures = None
    if quantize in FORMATS[format].needs_pictures:
        pictures = draw_training_pictures(original.table, original.config, original.num_pictures)
    arguments = (original.model, original.calibration, path, original.description)
    registry.write(format, *arguments, quantize=quantize, pictures=pictures)


def _compare(original: _Original, probs: np.ndarray, *, exact: bool) -> dict:
    """Returns how the calibrated probabilities of an export, (N, K), differ from the model's."""
    rule, bootstrap = decision_rule(original.run), Bootstrap.from_config(original.config)
    expected = original.calibration.apply(original.predictions.probs)
    distance = np.abs(probs - expected)
    same = (rule.decide(probs) == rule.decide(expected)).all(axis=1)
    if np.isnan(original.predictions.labels).all():
        scored = _compare_decisions(original.predictions, same, bootstrap)
    else:
        scored = _compare_scores(original, expected, probs, bootstrap)
    change = scored["change"]
    reasons = _reasons(change, scored["score"], original.tolerance, float(distance.max()) if exact else 0.0)
    return {
        "split": original.predictions.rows["split"][0],
        "num_images": len(probs),
        "num_clusters": len(set(original.predictions.clusters)),
        "largest_difference": float(distance.max()),
        "mean_difference": float(distance.mean()),
        "agreement": float(same.mean()),
        **scored,
        "change": change.to_dict(),
        "tolerance_points": original.tolerance,
        "passed": not reasons,
        "reasons": reasons,
    }


def _compare_scores(original: _Original, expected: np.ndarray, probs: np.ndarray, bootstrap: Bootstrap) -> dict:
    """Returns how scores change: "score", the main one's name, "keras" and "exported", its values, and the changes."""
    # Both are turned back from calibrated float32, so that what calibration takes away counts for neither side.
    pair = (expected.astype(np.float32), probs)
    scored = (dataclasses.replace(original.predictions, probs=original.calibration.invert(each)) for each in pair)
    before, after = (score_predictions(each, None, bootstrap) for each in scored)
    main, *others = original.predictions.task.exported_scores
    change = {name: after.resamples.difference(after.scores[name], before.scores[name]) for name in (main, *others)}
    return {
        "score": main,
        "keras": before.scores[main].value,
        "exported": after.scores[main].value,
        "change": change[main],
        "other_changes": {name: change[name].to_dict() for name in others},
    }


def _compare_decisions(predictions: Predictions, same: np.ndarray, bootstrap: Bootstrap) -> dict:
    """Returns what `_compare_scores` does where there are no labels: decisions that change are taken for lost.

    Args:
      predictions: those of the Keras model.
      same: bool (N,), the pictures for which the exported file decides the same.
      bootstrap: the settings of the interval.
    """
    lost = same.astype(float) - 1
    change = mean_score(draw_resamples(predictions.clusters, bootstrap), float(lost.mean()), lost)
    return {"score": "agreement", "keras": 1.0, "exported": float(same.mean()), "change": change, "other_changes": {}}


def _reasons(change: Score, name: str, tolerance: float, largest: float) -> list[str]:
    """Returns why an export is refused; empty if it passes. NaN, an undefined score, is a reason too."""
    reasons, points = [], 100 * change.value
    if not np.isfinite(largest) or largest > LARGEST_DIFFERENCE:
        reasons.append(
            f"a probability moved by {largest:.3g}, though nothing was quantized ({LARGEST_DIFFERENCE:g} at most)"
        )
    if not points >= -tolerance:
        reasons.append(
            f"{name.replace('_', ' ')} changed by {points:+.2f} points "
            f"({100 * change.low:+.2f} to {100 * change.high:+.2f}); {tolerance:g} may be lost"
        )
    return reasons


def _describe_refusal(original: _Original, record: dict, path: pathlib.Path) -> str:
    """Returns the message of a refused export: the reasons, the nearest export that passes, and what stays."""
    reasons = "; ".join(record["checked"]["reasons"])
    refusal = f"The export to {export_words(record)} is refused and removed: {reasons}."
    stays = f" The {path.name} of an earlier export stays." if path.exists() else ""
    return f"{refusal} {_find_nearest(original, record['format'], record['quantize'])}{stays}"


def _find_nearest(original: _Original, format: str, quantize: str) -> str:
    """Returns a sentence that names the nearest export that passes; each one is tried, and none is kept."""
    reasons = []
    for other, weaker in FORMATS[format].nearest.get(quantize, ()):
        with temporary_folder() as folder:
            record = _write_and_compare(original, other, weaker, folder / "tried")
        if record["checked"]["passed"]:
            flags = f"--format {other}" + ("" if weaker == "none" else f" --quantize {weaker}")
            return f"The nearest export that passes is: kmed export {shlex.quote(str(original.run.folder))} {flags}"
        reasons.append(f"{export_words(record)}: {'; '.join(record['checked']['reasons'])}")
    if not reasons:
        return f"No other format was tried. Choose {either(exported_formats())}."
    return (
        f"No other format passes either ({' / '.join(reasons)}): perhaps model.keras and predictions.csv are of "
        "different runs."
    )


def _compare_latency(original: _Original, record: dict) -> None:
    """Adds the size and latency of float32 to the record and, if the file is slower, advice on what to use instead."""
    format, quantize = record["format"], record["quantize"]
    record["float32"] = _measure(original, format, "none")
    record["advice"] = ""
    own, plain = record["latency"]["median_ms"], record["float32"]["latency"]["median_ms"]
    if own <= plain:
        return
    names = [name for name in FORMATS[format].quantizations if name not in ("none", quantize)]
    others = {name: _measure(original, format, name)["latency"]["median_ms"] for name in names}
    times = ", ".join(f"{name} {value:.1f} ms" for name, value in {"float32": plain, **others}.items())
    record["advice"] = (
        f"{quantize} is {own / plain:.1f} times slower than float32 on this processor ({own:.1f} ms; {times}): "
        f"export with --quantize {either(names or ['none'])} instead."
    )
    say(record["advice"])


def _measure(original: _Original, format: str, quantize: str) -> dict:
    """Returns the size and latency of an export that is made for this and removed."""
    with temporary_folder() as folder:
        path = folder / f"measured{FORMATS[format].suffix}"
        _write(original, format, quantize, path)
        predictor = open_exported(path, format, threads=original.threads)
        latency = measure_latency(predictor, original.config.data.image_size)
        return {"size_bytes": size_of(path), "latency": latency.to_dict()}
