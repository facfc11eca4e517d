"""FORMATS: what a trained model can be written as, one row per format.

A new format is a module with `write` and `open`, and its row here. Keras and the converters are imported when a
format is used, so that the command line may read the table and still start at once.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Iterable, Mapping
from types import ModuleType

from kmed.errors import ConfigError, KmedError, RunError, suggest

Choice = tuple[str, str]  # a format's name and one of its quantizations


@dataclasses.dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
      name: what users call it; the key of its row.
      suffix: of its file or folder.
      module: where its functions are: `write(model, calibration, path, description)`, which also takes `quantize` and
        `pictures` where there are several quantizations, and `open(path, threads)`, which returns a function from
        float32 images (B, H, W, 3) in [0, 255] to calibrated probabilities (B, K). See `write` below for the
        arguments. None: the Keras model itself, which every run folder holds already.
      quantizations: "none" and any others it can be written with.
      needs_pictures: those quantizations that are calibrated on training pictures.
      max_batch: how many pictures a file takes at once; None: any number.
      sets_threads: whether `open` can choose the number of threads.
      nearest: {quantization: what is tried in its place, in this order, where an export is refused}.
      benchmarked: the quantizations that `kmed benchmark` measures unless it is asked for others.
    """

    name: str
    suffix: str
    module: str | None = None
    quantizations: tuple[str, ...] = ("none",)
    needs_pictures: tuple[str, ...] = ()
    max_batch: int | None = None
    sets_threads: bool = True
    nearest: Mapping[str, tuple[Choice, ...]] = dataclasses.field(default_factory=dict)
    benchmarked: tuple[str, ...] = ("none",)

    @property
    def exported(self) -> bool:
        """Whether `kmed export` writes it."""
        return self.module is not None

    def load(self) -> ModuleType:
        """Returns the module with its `write` and `open`."""
        return importlib.import_module(self.module)


_ROWS = (
    Format(name="keras", suffix=".keras"),
    Format(
        name="savedmodel",
        suffix=".savedmodel",
        module="kmed.formats.savedmodel",
        sets_threads=False,  # it runs on TensorFlow's own, whose number cannot be changed once it has begun
        nearest={"none": (("onnx", "none"), ("tflite", "none"))},
    ),
    Format(
        name="tflite",
        suffix=".tflite",
        module="kmed.formats.tflite",
        quantizations=("none", "float16", "dynamic", "int8"),
        needs_pictures=("int8",),
        max_batch=1,
        nearest={
            "int8": (("tflite", "dynamic"), ("tflite", "float16"), ("tflite", "none"), ("savedmodel", "none")),
            "dynamic": (("tflite", "float16"), ("tflite", "none"), ("savedmodel", "none")),
            "float16": (("tflite", "none"), ("savedmodel", "none")),
            "none": (("savedmodel", "none"),),
        },
        benchmarked=("none", "float16", "dynamic", "int8"),
    ),
    Format(
        name="onnx",
        suffix=".onnx",
        module="kmed.formats.onnx",
        nearest={"none": (("savedmodel", "none"), ("tflite", "none"))},
    ),
)

FORMATS = {row.name: row for row in _ROWS}


# ----- what the table says -----


def check_format(format: str, quantize: str = "none") -> None:
    """Raises ConfigError unless the format is known and has this quantization."""
    if format not in FORMATS:
        raise ConfigError(f"The format is {', '.join(FORMATS)}. Received: {format!r}.{suggest(format, FORMATS)}")
    legal = dict.fromkeys(kind for row in FORMATS.values() for kind in row.quantizations)
    if quantize not in legal:
        raise ConfigError(f"The quantization is {', '.join(legal)}. Received: {quantize!r}.{suggest(quantize, legal)}")
    own = FORMATS[format].quantizations
    if quantize not in own:
        quantized = either(row.name for row in _quantized())
        rule = f"Only {quantized} is quantized" if own == ("none",) else f"{format} is quantized as {either(own)}"
        raise ConfigError(f"{rule}. Received: format {format!r} with quantization {quantize!r}.")


def exported_formats() -> list[str]:
    """Returns the names of the formats that `kmed export` writes."""
    return [row.name for row in FORMATS.values() if row.exported]


def benchmarked_choices() -> list[Choice]:
    """Returns the pairs of format and quantization that `kmed benchmark` measures by default."""
    return [(row.name, kind) for row in FORMATS.values() for kind in row.benchmarked]


def either(names: Iterable[str]) -> str:
    """Returns names as a choice.

    Example:
      >>> either(["keras", "savedmodel", "onnx"])
      'keras, savedmodel or onnx'
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def describe_quantizations() -> str:
    """Returns which formats can be quantized and how, such as "Of tflite: none or int8."."""
    return f"Of {'; of '.join(f'{row.name}: {either(row.quantizations)}' for row in _quantized())}."


def _quantized() -> list[Format]:
    return [row for row in FORMATS.values() if len(row.quantizations) > 1]


# ----- writing and opening -----


def open_file(path: pathlib.Path, format: str, threads: int | None = None):
    """Returns float32 images (B, H, W, 3) in [0, 255] -> calibrated probabilities (B, K) of an exported file.

    Args:
      path: the file or folder.
      format: its format, one that is exported.
      threads: how many processor cores it may use, where the format can choose; None: all.
    Raises: ConfigError: a package that is not installed. RunError: a damaged file.
    """
    return FORMATS[format].load().open(path, threads)


def write(
    format: str,
    model,
    calibration,
    path: pathlib.Path,
    description: dict,
    *,
    quantize: str = "none",
    pictures=None,
) -> None:
    """Writes a model in a format that is exported.

    Args:
      format: a name of FORMATS.
      model: keras.Model of raw pictures.
      calibration: kmed.metrics.calibration.Calibration of its probabilities.
      path: the file or folder to make.
      description: of `kmed.evaluation.predictor.describe_run`.
      quantize: one of the format's quantizations.
      pictures: uint8 (N, H, W, 3), of the training split, where the quantization needs them.
    Raises: RunError: the converter failed. ConfigError: another format, or a package that is not installed.
    """
    if format not in exported_formats():
        raise ConfigError(f"What is written is {either(exported_formats())}. Received: {format!r}.")
    row = FORMATS[format]
    options = {"quantize": quantize, "pictures": pictures} if row in _quantized() else {}
    try:
        row.load().write(model, calibration, path, description, **options)
    except (KmedError, OSError):
        raise
    except Exception as error:  # a converter raises whatever its insides lead to
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"The converter to {format} failed: {words}. Another format may work; nothing was written."
        ) from error
