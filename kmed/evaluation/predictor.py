"""A finished run in use: its model in any format, and the description that goes with an exported one.

All formats give calibrated probabilities here, and the thresholds apply to those.
"""

import dataclasses
import pathlib
import shlex
import typing
from collections.abc import Callable

import numpy as np

from kmed.config import FULL, parse_range
from kmed.errors import DataError, RunError
from kmed.evaluation.decisions import DecisionRule, decision_rule, read_fitted
from kmed.formats.registry import FORMATS, check_format, open_file
from kmed.models.keras_file import load_run_model
from kmed.models.registry import ENSEMBLE, resolve_name
from kmed.runs import Run, judged_split
from kmed.schemas.records import stamped

if typing.TYPE_CHECKING:
    import keras

UNSCORED = "It was recalibrated with pictures without labels: no scores are known."


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model that is ready to predict, whatever its format.

    Attributes:
      format: a key of `kmed.formats.registry.FORMATS`.
      path: the model's file or folder.
      run_batch: (float32 (B, H, W, 3) in [0, 255]) -> float32 (B, K), calibrated probabilities.
      max_batch: the most pictures that the model takes at once; None: any number.
      keras_model: the keras.Model if the format is "keras", else None; its own output is not calibrated.
    """

    format: str
    path: pathlib.Path
    run_batch: Callable[[np.ndarray], np.ndarray]
    max_batch: int | None = None
    keras_model: "keras.Model | None" = None

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Returns float32 (B, K), the calibrated probabilities of raw pictures.

        Args:
          images: uint8 or float (B, H, W, 3) in [0, 255], of the model's size.
        Raises: DataError: another number of dimensions or channels.
        """
        if np.ndim(images) != 4 or np.shape(images)[3] != 3:
            raise DataError(f"images must be (batch, height, width, 3), RGB. Received: shape={np.shape(images)}.")
        images = np.ascontiguousarray(images, np.float32)
        if self.max_batch is None or len(images) <= self.max_batch:
            return np.asarray(self.run_batch(images), np.float32)
        parts = [images[start : start + self.max_batch] for start in range(0, len(images), self.max_batch)]
        return np.concatenate([np.asarray(self.run_batch(part), np.float32) for part in parts])


def describe_run(run: Run) -> dict:
    """Returns what a program needs to feed the model and to read its output; it travels with every export.

    Keys: version, kmed_version, model, task, class_names, image_size [height, width], fit, interpolation, input,
    output, calibrated, thresholds (class name -> calibrated probability; None: the most probable class), test_score
    (name, value, low, high, num_images, num_clusters, split; None of a run that was recalibrated without labels) and
    verdict, one sentence; range [low, high], what
    becomes 0 and 255 in pictures with more than 8 bits per value, unless it is 0 to 65535; decode, "reduced", if JPEG
    files are decoded as `kmed.data.images.Resizing` says of that; and for findings that are
    decided together, constant (names that are reported whatever the picture shows, or None) and exclusion (a
    `kmed.metrics.thresholds.Exclusion`, or None).
    """
    config, rule, metrics = run.read_config(), decision_rule(run), run.read_json(run.metrics)
    height, width = config.data.image_size
    limits = parse_range(config.data.range) or FULL
    thresholds = None if rule.thresholds is None else dict(zip(rule.class_names, rule.thresholds.tolist(), strict=True))
    fields = {
        "model": config.model.name,
        "task": config.task,
        "class_names": list(rule.class_names),
        "image_size": [height, width],
        "fit": config.data.fit,
        "interpolation": config.data.interpolation,
        **config.data.decoding,
        **({} if limits == FULL else {"range": list(limits)}),
        "input": f"float32 (batch, {height}, {width}, 3), RGB, raw 0-255; normalisation is inside",
        "output": f"float32 (batch, {len(rule.class_names)}), calibrated probabilities",
        "calibrated": True,
        "thresholds": thresholds,
        **_together(rule),
        **_judgement(metrics, rule.task.exported_scores[0]),
    }
    return stamped(fields)


def _judgement(metrics: dict, main: str) -> dict:
    """Returns the score by which a run is known, and the verdict on it, for the description."""
    split = judged_split(metrics)
    if split not in metrics:
        return {"test_score": None, "verdict": UNSCORED}
    assessed = metrics[split]
    score = {key: assessed["scores"][main][key] for key in ("value", "low", "high")}
    sizes = {key: assessed[key] for key in ("num_images", "num_clusters")}
    return {"test_score": {"name": main, **score, **sizes, "split": split}, "verdict": assessed["verdict"]["sentence"]}


def _together(rule: DecisionRule) -> dict:
    """Returns how findings are decided together, for the description; {} where each is decided for itself."""
    choice = rule.chosen.choice
    if choice is None or rule.thresholds is None:
        return {}
    exclusion = choice.exclusion and dataclasses.asdict(choice.exclusion)
    return {"constant": None if rule.constant is None else list(rule.constant.constant), "exclusion": exclusion}


def export_path(run: Run, format: str, quantize: str = "none") -> pathlib.Path:
    """Returns where a run's exported file is, or will be: export/MODEL[-QUANTIZE].SUFFIX.

    Raises: ConfigError: an unknown format or quantization, or one that the format does not have.
    """
    check_format(format, quantize)
    model = run.read_config().model.name
    if model != ENSEMBLE:
        resolve_name(model)  # it becomes part of a path
    stem = model if quantize == "none" else f"{model}-{quantize}"
    return run.exports / f"{stem}{FORMATS[format].suffix}" if FORMATS[format].exported else run.model


def open_model(run: Run, format: str = "keras", quantize: str = "none", *, threads: int | None = None) -> Predictor:
    """Returns a run's model in one of its formats, ready to predict calibrated probabilities.

    Args:
      run: a finished run.
      format: "keras", or one that was exported, such as "tflite".
      quantize: one of the format's quantizations, such as "int8".
      threads: how many processor cores an exported file may use, if its format lets one choose; None: all.
    Raises: ConfigError: an unknown format. RunError: the model has not been exported, or its file is damaged.
    """
    path = export_path(run, format, quantize)
    if not FORMATS[format].exported:
        model, calibration = load_run_model(run), read_fitted(run).calibration
        return Predictor(format, path, lambda images: calibration.apply(model.predict_on_batch(images)), None, model)
    if not path.exists():
        more = f" --format {format}" + ("" if quantize == "none" else f" --quantize {quantize}")
        raise RunError(
            f"{run.folder} has no {path.name}. Make it with: kmed export {shlex.quote(str(run.folder))}{more}"
        )
    return open_exported(path, format, threads=threads)


def open_exported(path: pathlib.Path, format: str, *, threads: int | None = None) -> Predictor:
    """Returns an exported model, ready to predict; see `open_model`."""
    return Predictor(format, path, open_file(path, format, threads), FORMATS[format].max_batch)
