"""metrics.json: the scores of a run, each with its interval, as `Assessment.to_dict` of kmed.evaluation gives it.

`kmed report` shows these numbers and `kmed export` passes them on, so a number that cannot be a score is an error.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kmed.schemas.records import (
    ROUNDING,
    Count,
    File,
    Fraction,
    Name,
    Record,
    Share,
    TaskName,
    require_all,
    require_distinct,
    require_known,
    require_names,
)
from kmed.tasks import get_task

_AT_MOST_1 = (
    "accuracy", "exact_match_ratio", "hamming_loss", "precision", "recall", "f1", "auroc", "average_precision",
)  # fmt: skip
_AT_MOST_2 = ("brier", "ece")  # earlier versions wrote intervals of the ECE that may end above 1, but not above 2

_PER_CLASS = ("precision", "recall", "f1", "auroc", "average_precision")

Undefined = list[float | None]


class ScoreRecord(Record):
    """A `kmed.metrics.intervals.Score`: null stands for an undefined score or interval."""

    value: float | None
    low: float | None
    high: float | None
    num_clusters: Count
    num_undefined: Count
    few_clusters: bool

    @model_validator(mode="after")
    def _in_order(self):
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low must not be above high. Received: low={self.low}, high={self.high}")
        return self


class Training(Record):
    """A `kmed.metrics.baselines.Prior`: the counts of the training labels."""

    class_names: list[Name]
    num_images: Annotated[int, Field(ge=1, le=2**53)]
    num_groups: Count
    positives: list[Count]
    known: list[Count]

    @model_validator(mode="after")
    def _one_per_class(self):
        require_distinct("class_names", self.class_names)
        for name in ("positives", "known"):
            if len(getattr(self, name)) != len(self.class_names):
                raise ValueError(f"{name} must hold {len(self.class_names)} counts, not {len(getattr(self, name))}")
        for positives, known in zip(self.positives, self.known, strict=True):
            if not positives <= known <= self.num_images:
                raise ValueError(f"positives ({positives}) must not exceed known ({known}), nor that num_images")
        return self


class ClassCounts(Record):
    """How many images and clusters of a split have a class."""

    positives: Count
    known: Count
    clusters: Count


class Overall(Record):
    """Scores over all classes, of a constant predictor or of a subgroup."""

    num_images: Count
    num_clusters: Count
    scores: dict[str, ScoreRecord]
    counts: dict[str, ClassCounts]
    left_out: list[str]

    @model_validator(mode="after")
    def _in_range(self):
        for name, score in self.scores.items():
            require_range(f"scores.{name}", name, score)
        return self


class ConfusionRecord(Record):
    """K x K counts of images by true class (row) and predicted class, and their shares of the row with intervals."""

    counts: list[list[Count]]
    rates: list[Undefined]
    low: list[Undefined]
    high: list[Undefined]


class ReliabilityRecord(Record):
    """A `kmed.metrics.reliability.Reliability`: null where a bin is empty."""

    predicted: list[Share | None]
    observed: list[Share | None]
    low: list[Share | None]
    high: list[Share | None]
    counts: list[Count]

    @model_validator(mode="after")
    def _same_length(self):
        require_lengths(self, ("predicted", "observed", "low", "high", "counts"), least=1)
        return self


class RiskRecord(Record):
    """A `kmed.metrics.selective.RiskCoverage`."""

    coverage: list[Share]
    risk: list[Share | None]
    low: list[Share | None]
    high: list[Share | None]
    area: ScoreRecord

    @model_validator(mode="after")
    def _same_length(self):
        require_lengths(self, ("coverage", "risk", "low", "high"), least=2)
        return self


class SetsScores(Record):
    """A `kmed.metrics.selective.PredictionSets`."""

    wanted: Fraction
    coverage: ScoreRecord
    size: ScoreRecord
    per_class: dict[str, ScoreRecord]
    uncalibrated: list[str]


class VerdictRecord(Record):
    """A `kmed.metrics.baselines.Verdict`."""

    learnt: bool
    constant: bool
    main: str
    best_constant: str
    gain: ScoreRecord
    ranking: str
    sentence: str


class DecisionRecord(Record):
    """A `kmed.metrics.whole_decisions.DecisionScore`."""

    name: Name
    value: ScoreRecord
    constant_name: Name
    constant: ScoreRecord
    gain: ScoreRecord


class CasesRecord(Overall):
    """A `kmed.evaluation.cases.CaseScores`; `num_images` counts cases."""

    by: Name
    pooling: Literal["mean", "largest"]
    tried: dict[Literal["mean", "largest"], Share]
    by_count: dict[str, ScoreRecord]
    num_pictures: Count
    mixed: list[Name]
    constants: Annotated[dict[str, Overall], Field(min_length=1)]


class SplitRecord(Overall):
    """The assessment of one split."""

    task: TaskName
    num_labels: Count
    level: Fraction
    num_resamples: Annotated[int, Field(ge=1, le=2**53)]
    per_class: dict[str, dict[str, ScoreRecord]]
    confusion: ConfusionRecord | None
    reliability: dict[str, ReliabilityRecord]
    constants: Annotated[dict[str, Overall], Field(min_length=1)]
    verdict: VerdictRecord
    decision: DecisionRecord | None = None
    risk_coverage: RiskRecord
    prediction_sets: SetsScores | None
    subgroups: dict[str, dict[str, Overall]]
    subgroups_too_small: list[str]
    cases: CasesRecord | None = None

    @model_validator(mode="after")
    def _complete(self):
        for label, scores in self.per_class.items():
            for name, score in scores.items():
                require_range(f"per_class.{label}.{name}", name, score)
        verdict = self.verdict
        require_known("verdict.best_constant", [verdict.best_constant], self.constants)
        require_known("verdict.ranking and verdict.main", [verdict.ranking, verdict.main], self.scores)
        plain = {name.removesuffix("_tuned").removesuffix("_calibrated") for name in self.scores}
        for constant, scored in self.constants.items():
            require_names(f"constants.{constant}.scores", scored.scores, sorted(plain))
        task = get_task(self.task)
        if self.cases is not None:
            require_all("cases.scores", self.cases.scores, task.paired_scores)
            for constant, scored in self.cases.constants.items():
                require_all(f"cases.constants.{constant}.scores", scored.scores, task.paired_scores)
        require_all("scores", self.scores, (*task.headline_scores, *task.exported_scores))
        for column, values in self.subgroups.items():
            for value, scored in values.items():
                require_all(f"subgroups.{column}.{value}.scores", scored.scores, task.subgroup_scores)
        return self

    def check_classes(self, names: list[str]) -> None:
        """Raises ValueError unless every part has these classes."""
        require_names("per_class", self.per_class, names)
        require_names("counts", self.counts, names)
        for label, scores in self.per_class.items():
            require_names(f"per_class.{label}", scores, list(next(iter(self.per_class.values()))))
            require_all(f"per_class.{label}", scores, _PER_CLASS)
        require_known("left_out", self.left_out, names)
        for column in self.confusion.model_dump().values() if self.confusion is not None else ():
            if [len(row) for row in column] != [len(names)] * len(names):
                raise ValueError(f"confusion must hold {len(names)} x {len(names)} numbers")
        if self.prediction_sets is not None:
            require_names("prediction_sets.per_class", self.prediction_sets.per_class, names)


class NoveltyRecord(Record):
    """The share of images that are flagged as unlike the training data; the threshold is also in novelty.npz."""

    wanted: Fraction
    threshold: Annotated[float, Field(ge=0)]
    num_reference: Annotated[int, Field(ge=1, le=2**53)]
    val: ScoreRecord | None = None
    test: ScoreRecord | None = None


class MetricsFile(File):
    """metrics.json: the counts of the training labels, the assessments of val and test, and how novelty is judged."""

    training: Training
    val: SplitRecord | None = None
    test: SplitRecord | None = None
    novelty: NoveltyRecord | None = None
    without_labels: bool = False  # of a run that was recalibrated without labels, which has no scores

    @property
    def class_names(self) -> list[str]:
        """The classes, in the order of the model's output."""
        return self.training.class_names

    @property
    def task(self) -> str | None:
        """The task of the scores; None if there are none."""
        return next((part.task for part in (self.test, self.val) if part is not None), None)

    @model_validator(mode="after")
    def _one_per_class(self):
        missing = self.val is None and self.test is None
        if missing and not self.without_labels:
            raise ValueError("val and test are both missing")
        if self.without_labels and not missing:
            raise ValueError("without_labels is true, so there must be neither val nor test")
        if self.val is not None and self.val.task != self.task:
            raise ValueError(f"val.task is {self.val.task!r}, but test.task is {self.task!r}")
        for name, part in (("val", self.val), ("test", self.test)):
            if part is not None:
                try:
                    part.check_classes(self.class_names)
                except ValueError as problem:
                    raise ValueError(f"{name}.{problem}") from None
        return self


def largest_value(name: str) -> int | None:
    """Returns the largest value that a score of this name can have, 1 or 2; None if it is not known to be a share."""
    return 2 if name.startswith(_AT_MOST_2) else 1 if name.startswith(_AT_MOST_1) else None


def require_range(place: str, name: str, score: ScoreRecord) -> None:
    """Raises ValueError if a score is below 0 or above its largest value; one that a task adds may have no range."""
    most = largest_value(name)
    for end in ("value", "low", "high"):
        value = getattr(score, end)
        if value is not None and most is not None and not -ROUNDING <= value <= most + ROUNDING:
            raise ValueError(f"{place}.{end} must be from 0 to {most}. Received: {value}")


def require_lengths(record: Record, fields: tuple[str, ...], least: int) -> None:
    """Raises ValueError unless the lists have the same length, and at least `least` numbers."""
    lengths = [len(getattr(record, name)) for name in fields]
    if min(lengths) < least or len(set(lengths)) > 1:
        raise ValueError(f"{', '.join(fields)} must have the same length, at least {least}. Received: {lengths}")
