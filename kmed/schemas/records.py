"""The JSON files of a run folder: one class per file, with its fields, types and ranges; any other field is an error.

Files that kmed 0.1.0 wrote have no version, which stands for version 1. A change that an older kmed would misread gets
the next version; a new field does too, since older versions refuse fields that they do not know.
"""

import re
import typing
from typing import Annotated, Literal

import pydantic
from pydantic import Field, model_validator

from kmed.errors import RunError, shorten
from kmed.reading import damaged, place_name
from kmed.version import __version__

VERSION = 2  # 2: with version and kmed_version
ROUNDING = 1e-6  # of float32: a probability may be larger than 1 by less

Count = Annotated[int, Field(ge=0, le=2**53)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1 + ROUNDING)]
Name = Annotated[str, Field(min_length=1)]
TaskName = Literal["multiclass", "multilabel"]


def _ascending(limits: list[int]) -> list[int]:
    if limits[0] >= limits[1]:
        raise ValueError("must hold two whole numbers, the lower one first")
    return limits


ImageSize = Annotated[list[Annotated[int, Field(ge=8, le=4096)]], Field(min_length=2, max_length=2)]
Limits = Annotated[
    list[Annotated[int, Field(gt=-(10**10), lt=10**10)]],  # as data.range; signed values may lie below 0
    Field(min_length=2, max_length=2),
    pydantic.AfterValidator(_ascending),
]


class Record(pydantic.BaseModel):
    """An object in a JSON file. Numbers are finite, and a text is not taken for a number."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class File(Record):
    """A whole JSON file. `version` is that of its fields; `kmed_version` says which kmed wrote it."""

    version: Annotated[int, Field(ge=1, le=VERSION)] = 1
    kmed_version: str = ""


class Interface(File):
    """What a program needs to prepare the model's input and to read its output."""

    task: TaskName
    class_names: Annotated[list[Name], Field(min_length=1)]
    image_size: ImageSize
    fit: Literal["pad", "crop", "stretch"]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]
    decode: Literal["full", "reduced"] = "full"  # at which size JPEG files are decoded
    range: Limits | None = None  # of 16-bit pictures, what becomes 0 and 255; version 1 has none
    input: str

    @model_validator(mode="after")
    def _distinct(self):
        require_distinct("class_names", self.class_names)
        return self


class Classes(Interface):
    """classes.json of a run."""


class Environment(File):
    """environment.json: device, versions and command."""

    device: str
    backend: str
    platform: str
    versions: dict[str, str]
    command: str


class TeacherFile(File):
    """teacher.json: the model that a run learns from, as it was when the run was started."""

    folder: str
    model: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TrackedRecord(Record):
    """How a tracker knows a run, and whether it has failed to follow it."""

    id: Annotated[str, Field(pattern=r"^[\w.-]{1,200}$")]
    failed: bool


class TrackersFile(File):
    """trackers.json: the trackers that follow a run."""

    trackers: dict[Name, TrackedRecord]


class SweepFile(File):
    """sweep.json: the models of a sweep, and the options of `kmed train` that all of them share."""

    models: Annotated[list[Name], Field(min_length=1)]
    options: list[str]


class CrossvalFile(File):
    """crossval.json: the folds of a cross-validation, and the settings that its runs share, as in a config.yaml."""

    folds: Annotated[int, Field(ge=2, le=2**31)]
    repeats: Annotated[int, Field(ge=1, le=2**31)]
    all_splits: bool
    settings: dict[str, typing.Any]


class MemberRecord(Record):
    """One member of an ensemble."""

    path: Name  # its run folder, from the ensemble's folder
    model: Name
    settings: dict[str, typing.Any]  # in which the members differ


class EnsembleFile(File):
    """ensemble.json: the members of an ensemble, and how their outputs are averaged."""

    members: Annotated[list[MemberRecord], Field(min_length=1)]
    requested: Literal["auto", "probabilities", "logits"]
    average: Literal["probabilities", "logits"]
    reason: str
    validation_log_loss: dict[Literal["probabilities", "logits"], Annotated[float, Field(ge=0)]]


# ---- calibration.json ------------------------------------------------------------------------------


class CalibrationRecord(Record):
    """A `kmed.metrics.calibration.Calibration`."""

    method: Literal["temperature", "platt"]
    class_names: list[Name]
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)]  # fitted between 0.05 and 20.1
    slopes: list[Annotated[float, Field(ge=0, le=1e15)]]
    intercepts: list[Annotated[float, Field(ge=-1e15, le=1e15)]]
    not_fitted: dict[str, str]
    log_weights: list[Annotated[float, Field(ge=-1e3, le=1e3)]] = []  # only of a run for other shares of the classes

    @model_validator(mode="after")
    def _one_each(self):
        require_distinct("class_names", self.class_names)
        needed = len(self.class_names) if self.method == "platt" else 0
        for name in ("slopes", "intercepts"):
            if len(getattr(self, name)) != needed:
                raise ValueError(f"{name} must hold {needed} numbers for {self.method}, not {len(getattr(self, name))}")
        if self.log_weights and (self.method != "temperature" or len(self.log_weights) != len(self.class_names)):
            raise ValueError("log_weights must hold a number per class, and only for temperature")
        return self


class ExclusionRecord(Record):
    """A `kmed.metrics.thresholds.Exclusion`."""

    negative: Name
    findings: Annotated[list[Name], Field(min_length=1)]
    complete: bool

    @model_validator(mode="after")
    def _distinct(self):
        require_distinct("findings", [self.negative, *self.findings])
        return self


class ChoiceRecord(Record):
    """A `kmed.metrics.thresholds.Choice`."""

    chosen: Literal["constant", "shared", "separate"]
    constant: list[Name]
    exclusion: ExclusionRecord | None
    tried: dict[Literal["constant", "shared", "separate"], Annotated[float, Field(ge=0)]]
    score: Name
    costs: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _complete(self):
        require_all("tried", self.tried, ["constant", self.chosen])
        return self


class ThresholdsRecord(Record):
    """A `kmed.metrics.thresholds.Thresholds`; only whole decisions have a choice."""

    rule: Literal["f1", "youden", "sensitivity", "exact_match", "hamming", "cost"]
    values: dict[str, Share]
    not_chosen: dict[str, str]
    choice: ChoiceRecord | None = None

    def require_classes(self, field: str, names: list[str]) -> None:
        """Raises ValueError unless the thresholds, which are called `field`, are those of these classes."""
        require_names(f"{field}.values", self.values, names)
        require_known(f"{field}.not_chosen", self.not_chosen, names)
        if (choice := self.choice) is not None:
            require_known(f"{field}.choice.constant", choice.constant, names)
            excluded = [] if choice.exclusion is None else [choice.exclusion.negative, *choice.exclusion.findings]
            require_known(f"{field}.choice.exclusion", excluded, names)


class SetsRecord(Record):
    """The thresholds of conformal prediction sets, and the share of true labels that the sets are meant to hold."""

    coverage: Fraction
    values: dict[str, Share]


class CaseRuleRecord(Record):
    """A `kmed.evaluation.cases.CaseRule`."""

    by: Name
    pooling: Literal["mean", "largest"]
    tried: dict[Literal["mean", "largest"], Share]
    thresholds: ThresholdsRecord | None = None


class FittedFile(File):
    """calibration.json: what was fitted on the validation split."""

    calibration: CalibrationRecord
    thresholds: ThresholdsRecord
    prediction_sets: SetsRecord
    cases: CaseRuleRecord | None = None

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the model's output."""
        return self.calibration.class_names

    @property
    def task(self) -> str:
        """The task that this kind of calibration belongs to."""
        return "multiclass" if self.calibration.method == "temperature" else "multilabel"

    @model_validator(mode="after")
    def _one_per_class(self):
        names = self.class_names
        require_names("prediction_sets.values", self.prediction_sets.values, names)
        require_known("calibration.not_fitted", self.calibration.not_fitted, names)
        self.thresholds.require_classes("thresholds", names)
        if self.cases is not None and self.cases.thresholds is not None:
            self.cases.thresholds.require_classes("cases.thresholds", names)
        return self


# ---- The description inside an exported file -------------------------------------------------------


class TestScore(Record):
    """The score by which an exported model is known."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    num_images: Count
    num_clusters: Count
    split: str


class Description(Interface):
    """kmed.json inside an exported file."""

    model: str
    output: str
    calibrated: bool
    thresholds: dict[str, Share] | None
    constant: list[Name] | None = None
    exclusion: ExclusionRecord | None = None
    test_score: TestScore | None  # none of a run that was recalibrated without labels
    verdict: str

    @model_validator(mode="after")
    def _one_per_class(self):
        if self.thresholds is not None:
            require_names("thresholds", self.thresholds, self.class_names)
        require_known("constant", self.constant or [], self.class_names)
        if self.exclusion is not None:
            require_known("exclusion", [self.exclusion.negative, *self.exclusion.findings], self.class_names)
        return self


# ---- checkpoints/epoch-NNNN/state.json -------------------------------------------------------------


class StateFile(File):
    """state.json of a checkpoint: a `kmed.training.checkpoint.State`. A score may be undefined (null or NaN)."""

    model_config = pydantic.ConfigDict(allow_inf_nan=True)

    epoch: Annotated[int, Field(ge=1, le=2**31)]
    rows: list[dict[str, float | None]]
    best_epoch: Count
    best_value: float | None
    waited: Count
    num_updates: Count
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _one_row_per_epoch(self):
        if [row.get("epoch") for row in self.rows] != list(range(1, self.epoch + 1)):
            raise ValueError(f"rows must hold the epochs 1 to {self.epoch}")
        if not self.best_epoch <= self.epoch:
            raise ValueError(f"best_epoch must be from 0 to {self.epoch}, not {self.best_epoch}")
        if len({tuple(row) for row in self.rows}) > 1:
            raise ValueError("rows must hold the same scores for each epoch")
        return self


# ---- Reading and writing ---------------------------------------------------------------------------

Schema = typing.TypeVar("Schema", bound=Record)


def stamped(fields: dict) -> dict:
    """Returns the fields of a JSON file with its version, and that of kmed, in front."""
    stamp = {"version": VERSION, "kmed_version": __version__}
    return stamp | {name: value for name, value in fields.items() if name not in stamp}


def check(schema: type[Schema], content: dict, path, error=damaged) -> Schema:
    """Returns the content of a JSON file as an object of its schema.

    Args:
      schema: one of the classes above.
      content: the object in the file.
      path: the file that errors name.
      error: what makes an error of a message.
    Raises: RunError: a newer kmed wrote the file. What `error` returns: a field is missing, unknown, or not legal.
    """
    version = content.get("version", 1)
    if isinstance(version, int) and version > VERSION:
        writer = content.get("kmed_version")
        by = f"kmed {writer}" if isinstance(writer, str) and 0 < len(writer) < 30 else "a newer kmed"
        raise RunError(
            f"{path} has version {shorten(version)} and was written by {by}; kmed {__version__} reads versions up to "
            f"{VERSION}. Upgrade kmed: pip install --upgrade kmed"
        )
    try:
        return schema.model_validate(content)
    except pydantic.ValidationError as problem:
        raise error(f"{path}: {_describe(problem.errors(include_url=False)[0])}") from None


def _describe(problem) -> str:
    """Returns pydantic's first problem in a sentence: the field, what is legal, what was received."""
    name, kind = place_name(problem["loc"]), problem["type"]
    if kind == "missing":
        return f"{name} is missing."
    if kind == "extra_forbidden":
        return f"there is no field {name} in such a file. Received: {shorten(problem['input'])}."
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error" and not message.startswith("must"):  # of a validator above, which names its fields
        return f"{name}.{message}." if name else f"{message}."
    message = re.sub("^(Input|List|Dictionary|String) should", "must", message).replace("must have", "must hold")
    message = message.replace(" after validation", "")
    if not message.startswith("must"):
        message = f"is not legal ({message[0].lower()}{message[1:]})"
    return f"{name} {message}. Received: {shorten(problem['input'])}."


def require_distinct(field: str, names) -> None:
    """Raises ValueError if a name occurs twice."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{field} names {shorten(twice[0])} twice")


def require_names(field: str, found, names) -> None:
    """Raises ValueError unless `found` holds exactly these names."""
    require_all(field, found, names)
    require_known(field, found, names)


def require_all(field: str, found, names) -> None:
    """Raises ValueError if `found` lacks one of these names."""
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"{field} lacks {shorten(missing[0])}")


def require_known(field: str, found, names) -> None:
    """Raises ValueError if `found` holds a name that is not one of `names`."""
    if unknown := [name for name in found if name not in names]:
        raise ValueError(f"{field} names {shorten(unknown[0])}, which is none of {shorten(list(names))}")
