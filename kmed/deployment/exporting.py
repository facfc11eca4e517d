"""What an export was worth: the JSON beside it, a row of a table, and the lines that are printed."""

import dataclasses
import pathlib
import shlex
import tempfile

import numpy as np
import pandas as pd

from kmed import runtime, tables
from kmed.deployment.latency import measure_latency
from kmed.errors import ConfigError, DataError, KmedError, RunError
from kmed.evaluation.assessment import score_predictions
from kmed.evaluation.decisions import decision_rule, read_fitted
from kmed.evaluation.inference import draw_training_pictures, open_run_table, predict_calibrated
from kmed.evaluation.predictions import Predictions, stored_predictions
from kmed.evaluation.predictor import describe_run, export_path, open_exported
from kmed.files import replacing, size_of, write_json
from kmed.formats import graph, registry
from kmed.formats.registry import FORMATS, check_format, either, exported_formats
from kmed.metrics.intervals import Bootstrap, Score
from kmed.models.keras_file import load_model
from kmed.progress import say
from kmed.runs import Run, finished_run, judged_split

TOLERANCE = 0.5  # points, hundredths of accuracy or macro AUROC
LARGEST_DIFFERENCE = 1e-3  # of a probability, where nothing was quantized: more is an error of conversion
NUM_PICTURES = 200  # of the training split, for int8


@dataclasses.dataclass(frozen=True)
class Exported:
    """An export that was checked.

    Attributes:
      path: the file or folder.
      record: what stands in the JSON beside it: what it is, what was checked, size, latency.
    """

    path: pathlib.Path
    record: dict


class ExportRefused(RunError):
    """An export that changes the model more than is tolerated; `record` tells what was found."""

    def __init__(self, message: str, record: dict):
        super().__init__(message)
        self.record = record


@dataclasses.dataclass(frozen=True)
class _Source:
    """What is exported, and what it is compared with: all that a second format needs too."""

    run: Run
    config: object
    model: object
    calibration: object
    description: dict
    table: object
    part: object  # the pictures of the split that is compared
    keras: Predictions  # what the Keras model says of them
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
    """Writes a run's model in another format, if the file says the same as the model.

    Preprocessing and calibration are inside: raw pixels in, calibrated probabilities out. The file is loaded
    back and predicts the run's test pictures (its validation pictures where it has no test split); its
    probabilities stand beside those that the Keras model gave when the run was judged. It is kept in RUN/export,
    with a JSON of the comparison beside it, unless the main score falls by more than the tolerance or, where
    nothing was quantized, a probability moves by more than 0.001.

    Args:
      run_folder: what `kmed train` made.
      format: a format that is exported, such as "tflite".
      quantize: one of the format's quantizations, such as "int8".
      data: the folder, CSV or npz to read instead of the one in the run's settings.
      tolerance: points (hundredths) of accuracy or macro AUROC that may be lost.
      num_pictures: of the training split, drawn to calibrate int8.
      threads: processor cores of the latencies; None: all.
      append: a CSV table of exports that a row is added to, also where the export is refused.
    Raises: ConfigError: an unknown format or quantization, a package that is not installed. RunError: no such
      run. DataError: its pictures cannot be read. ExportRefused: the file changed the model; it is removed, and
      what an earlier export left under its name stays.
    Example:
      >>> export("saved_models/latest", "tflite", "int8").record["checked"]["agreement"]
    """
    run = finished_run(run_folder)
    check_format(format, quantize)
    if not FORMATS[format].exported:
        raise ConfigError(
            f"The Keras model is in the run folder already: {run.model}. Choose {either(exported_formats())}."
        )
    if not 0 <= tolerance <= 100 or num_pictures < 1 or (threads is not None and threads < 1):
        raise ConfigError(
            "tolerance is from 0 to 100 points, num_pictures and threads are 1 or more. "
            f"Received: tolerance={tolerance}, num_pictures={num_pictures}, threads={threads}."
        )
    if append is not None:
        tables.read_table(append, ("format", "quantize"))  # before minutes of work
    graph.check_backend()
    learns = quantize if quantize in FORMATS[format].needs_pictures else ""
    source = _open(run, data, learns, tolerance, num_pictures, threads)
    path = export_path(run, format, quantize)
    with replacing(path) as temporary:
        record = _write_and_compare(source, format, quantize, temporary) | {"file": path.name}
        if not record["checked"]["passed"]:
            stays = f" The {path.name} of an earlier export stays." if path.exists() else ""
            if append is not None:
                append_record(record, append)
            raise ExportRefused(f"{_told(record)} {_nearest(source, format, quantize)}{stays}", record)
        if learns:
            _compare_latency(source, record)
    write_json(record_path(path), record)
    if append is not None:
        append_record(record, append)
    return Exported(path, record)


def _open(run: Run, data, learns: str, tolerance: float, num_pictures: int, threads) -> _Source:
    """Reads all that is needed before anything is written; `learns` is a quantization that needs pictures, or ""."""
    try:
        config, table = open_run_table(run, data)
    except KmedError as error:
        purpose = f"{learns} is calibrated on the run's training pictures, and checked" if learns else "checked"
        raise DataError(f"An export is {purpose} on its test pictures; they cannot be read: {error}") from None
    if learns and not (table.rows["split"] == "train").any():
        raise DataError(
            f"{learns} is calibrated on training pictures, and {run.splits} names none. Choose another format."
        )
    known = stored_predictions(run)
    split = judged_split(set(known.rows["split"]))
    part, keras = table.split(split), known.split(split)
    row_of = {path: row for row, path in enumerate(keras.rows["path"])}
    if missing := [path for path in part.rows["path"] if path not in row_of]:
        raise DataError(f"{run.predictions} holds no prediction of {missing[0]} and {len(missing) - 1} others.")
    keras = keras.take(np.array([row_of[path] for path in part.rows["path"]], np.int64))
    return _Source(
        run=run,
        config=config,
        model=load_model(run.model),
        calibration=read_fitted(run).calibration,
        description=describe_run(run),
        table=table,
        part=part,
        keras=keras,
        tolerance=tolerance,
        num_pictures=num_pictures,
        threads=threads,
    )


def _write_and_compare(source: _Source, format: str, quantize: str, path: pathlib.Path) -> dict:
    """Writes the file at `path`, loads it back, and returns the record of what it is worth."""
    words = format if quantize == "none" else f"{format} {quantize}"
    say(f"Writing {words} ...")
    _write(source, format, quantize, path)
    predictor = open_exported(path, format, threads=source.threads)
    say(f"Comparing it with the Keras model on {len(source.part)} pictures of {source.keras.rows['split'][0]} ...")
    found = predict_calibrated(predictor, source.part, source.config)
    latency = measure_latency(predictor, source.config.data.image_size)
    row, num_training = FORMATS[format], len(source.table.split("train"))
    return {
        "format": format,
        "quantize": quantize,
        "file": path.name,
        "size_bytes": size_of(path),
        "description": source.description,
        "checked": _compare(source, found, exact=quantize == "none"),
        "latency": latency.to_dict(),
        "threads": source.threads if source.threads and row.sets_threads else runtime.num_cores(),
        "calibration_pictures": min(source.num_pictures, num_training) if quantize in row.needs_pictures else 0,
        **{key: value for key, value in runtime.environment().items() if key in ("device", "versions", "command")},
    }


def _write(source: _Source, format: str, quantize: str, path: pathlib.Path) -> None:
    pictures = None
    if quantize in FORMATS[format].needs_pictures:
        pictures = draw_training_pictures(source.table, source.config, source.num_pictures)
    arguments = (source.model, source.calibration, path, source.description)
    registry.write(format, *arguments, quantize=quantize, pictures=pictures)


def _compare(source: _Source, found: np.ndarray, *, exact: bool) -> dict:
    """Returns how the probabilities `found` (N, K), calibrated, differ from the Keras model's."""
    rule, bootstrap = decision_rule(source.run), Bootstrap.from_config(source.config)
    expected = source.calibration.apply(source.keras.probs)
    distance = np.abs(found - expected)
    same = (rule.decide(found) == rule.decide(expected)).all(axis=1)
    # Both come back from calibrated float32, so that what calibration takes away counts on neither side.
    pair = (expected.astype(np.float32), found)
    scored = (dataclasses.replace(source.keras, probs=source.calibration.invert(probs)) for probs in pair)
    before, after = (score_predictions(each, None, bootstrap) for each in scored)
    main, *others = rule.task.exported_scores
    change = {name: after.resamples.difference(after.scores[name], before.scores[name]) for name in (main, *others)}
    reasons = _reasons(change[main], main, source.tolerance, float(distance.max()) if exact else 0.0)
    return {
        "split": source.keras.rows["split"][0],
        "num_images": len(found),
        "num_clusters": before.num_clusters,
        "largest_difference": float(distance.max()),
        "mean_difference": float(distance.mean()),
        "agreement": float(same.mean()),
        "score": main,
        "keras": before.scores[main].value,
        "exported": after.scores[main].value,
        "change": change[main].to_dict(),
        "other_changes": {name: change[name].to_dict() for name in others},
        "tolerance_points": source.tolerance,
        "passed": not reasons,
        "reasons": reasons,
    }


def _reasons(change: Score, name: str, tolerance: float, largest: float) -> list[str]:
    """Returns why an export is refused; empty where it is not. NaN, an undefined score, is a reason too."""
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


def _told(record: dict) -> str:
    return f"The export to {export_words(record)} is refused and removed: {'; '.join(record['checked']['reasons'])}."


def _nearest(source: _Source, format: str, quantize: str) -> str:
    """Returns a sentence that names the nearest format that passes; each is tried, and none is kept."""
    reasons = []
    for other, weaker in FORMATS[format].nearest.get(quantize, ()):
        with tempfile.TemporaryDirectory() as folder:
            record = _write_and_compare(source, other, weaker, pathlib.Path(folder) / "tried")
        if record["checked"]["passed"]:
            flags = f"--format {other}" + ("" if weaker == "none" else f" --quantize {weaker}")
            return f"The nearest that passes is: kmed export {shlex.quote(str(source.run.folder))} {flags}"
        reasons.append(f"{export_words(record)}: {'; '.join(record['checked']['reasons'])}")
    if not reasons:
        return f"No other format was tried. Choose {either(exported_formats())}."
    return (
        f"No other format passes either ({' / '.join(reasons)}): perhaps model.keras and predictions.csv are of "
        "different runs."
    )


def _compare_latency(source: _Source, record: dict) -> None:
    """Notes how large and how fast float32 is; where the file is slower, the other quantizations too, with advice."""
    format, quantize = record["format"], record["quantize"]
    record["float32"] = _measure(source, format, "none")
    record["advice"] = ""
    own, plain = record["latency"]["median_ms"], record["float32"]["latency"]["median_ms"]
    if own <= plain:
        return
    names = [name for name in FORMATS[format].quantizations if name not in ("none", quantize)]
    others = {name: _measure(source, format, name)["latency"]["median_ms"] for name in names}
    times = ", ".join(f"{name} {value:.1f} ms" for name, value in {"float32": plain, **others}.items())
    record["advice"] = (
        f"{quantize} is {own / plain:.1f} times slower than float32 on this processor ({own:.1f} ms; {times}): "
        f"export with --quantize {either(names or ['none'])} instead."
    )
    say(record["advice"])


def _measure(source: _Source, format: str, quantize: str) -> dict:
    """Returns size and latency of a file that is made for it and removed."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"measured{FORMATS[format].suffix}"
        _write(source, format, quantize, path)
        predictor = open_exported(path, format, threads=source.threads)
        latency = measure_latency(predictor, source.config.data.image_size)
        return {"size_bytes": size_of(path), "latency": latency.to_dict()}


def record_path(path: pathlib.Path) -> pathlib.Path:
    """Returns where the JSON beside an exported file is."""
    return path.with_name(f"{path.name}.json")


def result_row(record: dict) -> dict:
    """Returns an export, kept or refused, as one row of a results table."""
    checked, latency, description = record["checked"], record["latency"], record["description"]
    return {
        "model": description["model"],
        "task": description["task"],
        "image_size": "x".join(map(str, description["image_size"])),
        "format": record["format"],
        "quantize": record["quantize"],
        "megabytes": round(record["size_bytes"] / 1e6, 3),
        "latency_ms": round(latency["median_ms"], 3),
        "threads": record["threads"],
        "split": checked["split"],
        "num_images": checked["num_images"],
        "largest_difference": checked["largest_difference"],
        "mean_difference": checked["mean_difference"],
        "agreement": checked["agreement"],
        "score": checked["score"],
        "keras": checked["keras"],
        "exported": checked["exported"],
        **{
            f"change{end}": checked["change"][name] for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))
        },
        "tolerance_points": checked["tolerance_points"],
        "passed": checked["passed"],
        "device": record["device"],
        "versions": runtime.join_versions(record["versions"]),
        "command": record["command"],
    }


def append_record(record: dict, path) -> None:
    """Adds an export, kept or refused, to a results table."""
    row = {name: "" if value is None else str(value) for name, value in result_row(record).items()}
    tables.append_rows(path, [pd.DataFrame([row])])


def describe_record(record: dict) -> str:
    """Returns the lines that `kmed export` ends with."""
    checked, latency = record["checked"], record["latency"]
    change, name = checked["change"], checked["score"].replace("_", " ")
    lines = [
        f"{export_words(record)}: {record['size_bytes'] / 1e6:.1f} MB; one picture in {latency['median_ms']:.1f} ms "
        f"({record['threads']} threads, {record['device']})",
        f"beside the Keras model, {checked['num_images']} pictures of {checked['split']}, "
        f"{checked['num_clusters']} clusters:",
        f"  same decision for {checked['agreement']:.2%}; probabilities differ by {checked['largest_difference']:.2g} "
        f"at most, {checked['mean_difference']:.2g} on average",
        f"  {name} {checked['exported']:.4f} against {checked['keras']:.4f}: {100 * change['value']:+.2f} points "
        f"({100 * change['low']:+.2f} to {100 * change['high']:+.2f}); {checked['tolerance_points']:g} may be lost",
    ]
    if record.get("float32"):
        plain = record["float32"]
        lines.append(f"  float32: {plain['size_bytes'] / 1e6:.1f} MB, {plain['latency']['median_ms']:.1f} ms a picture")
    return "\n".join(lines)


def export_words(record: dict) -> str:
    """Returns the format and quantization, such as "tflite int8"."""
    return record["format"] if record["quantize"] == "none" else f"{record['format']} {record['quantize']}"
