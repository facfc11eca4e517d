"""FORMATS: the formats in which a trained model can be written, one row per format.

A new format needs a module with `write` and `open`, and a row here. Keras and the converters are imported when a
format is used, so that the command line can read the table and still start at once.
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
      name: its name for users, and the key of its row.
      suffix: that of its file or folder.
      module: the module with its functions: `write(model, calibration, path, description)`, which also takes
        `quantize` and `pictures` if there are several quantizations, and `open(path, threads)`, which returns a
        function from float32 images (B, H, W, 3) in [0, 255] to calibrated probabilities (B, K). See `write` below
        for the arguments. None: the Keras model itself, which every run folder already holds.
      quantizations: "none" and any others with which it can be written.
      needs_pictures: the quantizations that are calibrated on training pictures.
      max_batch: the largest number of pictures that a file takes at once; None: any number.
      sets_threads: whether `open` can choose the number of threads.
      nearest: {quantization: the choices to try instead, in this order, if an export is refused}.
      benchmarked: the quantizations that `kmed benchmark` measures unless others are requested.
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
        """Returns the module with its `write` and `open`. Raises ConfigError if it has none."""
        if self.module is None:
            raise ConfigError(f"{self.name} has no module: a run folder already holds this format.")
        return importlib.import_module(self.module)


_ROWS = (
    Format(name="keras", suffix=".keras"),
    Format(
        name="savedmodel",
        suffix=".savedmodel",
        module="kmed.formats.savedmodel",
        sets_threads=False,  # it uses TensorFlow's threads, whose number cannot be changed after the start
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


# ----- reading the table -----


def check_format(format: str, quantize: str = "none") -> None:
    """Raises ConfigError unless the format is known and has this quantization."""
    if format not in FORMATS:
        raise ConfigError(f"The format must be {either(FORMATS)}. Received: {format!r}.{suggest(format, FORMATS)}")
    legal = dict.fromkeys(kind for row in FORMATS.values() for kind in row.quantizations)
    if quantize not in legal:
        raise ConfigError(
            f"The quantization must be {either(legal)}. Received: {quantize!r}.{suggest(quantize, legal)}"
        )
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
    """Returns the names as a choice.

    Example:
      >>> either(["keras", "savedmodel", "onnx"])
      'keras, savedmodel or onnx'
    """
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def describe_quantizations() -> str:
    """Returns which formats can be quantized and how, such as "For tflite: none or int8."."""
    return f"For {'; for '.join(f'{row.name}: {either(row.quantizations)}' for row in _quantized())}."


def _quantized() -> list[Format]:
    return [row for row in FORMATS.values() if len(row.quantizations) > 1]


# ----- writing and opening -----


def open_file(path: pathlib.Path, format: str, threads: int | None = None):
    """Opens an exported file as a function from float32 images (B, H, W, 3) in [0, 255] to probabilities (B, K).

    Args:
      path: the file or folder.
      format: its format, one that is exported.
      threads: the number of processor cores, if the format can choose it; None: all.
    Raises: ConfigError: a package is not installed. RunError: the file is damaged.
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
      path: the file or folder to write.
      description: what `kmed.evaluation.predictor.describe_run` returns.
      quantize: one of the format's quantizations.
      pictures: uint8 (N, H, W, 3), from the training split, if the quantization needs them.
    Raises: RunError: the converter failed. ConfigError: another format, or a package is not installed.
    """
    if format not in exported_formats():
        raise ConfigError(f"The format must be {either(exported_formats())}. Received: {format!r}.")
    row = FORMATS[format]
    options = {"quantize": quantize, "pictures": pictures} if row in _quantized() else {}
    try:
        row.load().write(model, calibration, path, description, **options)
    except (KmedError, OSError):
        raise
    except Exception as error:  # converters raise many kinds of errors
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"The converter to {format} failed: {words}. Another format may work; nothing was written."
        ) from error
