"""recalibration.json: what was fitted to which local sample, and what it gained."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kmed.schemas.metrics import ScoreRecord, largest_value, require_range
from kmed.schemas.records import (
    ROUNDING,
    Count,
    File,
    Name,
    Record,
    Share,
    require_distinct,
    require_known,
    require_names,
)

Number = Annotated[int, Field(ge=1, le=2**53)]
Loss = Annotated[float, Field(ge=0)]


class CurvePoint(Record):
    """The log loss with so many labelled groups: the mean over draws, and the range of nine tenths of them."""

    groups: Number
    mean: Loss
    low: Loss
    high: Loss

    @model_validator(mode="after")
    def _in_order(self):
        if self.low > self.high:
            raise ValueError(f"low must not be above high. Received: low={self.low}, high={self.high}")
        return self


class CurveRecord(Record):
    """The learning curve of a recalibration."""

    home: Loss
    points: Annotated[list[CurvePoint], Field(min_length=1)]
    enough: Count | None

    @model_validator(mode="after")
    def _in_order(self):
        groups = [point.groups for point in self.points]
        if groups != sorted(set(groups)):
            raise ValueError(f"points must have ever more groups. Received: {groups}")
        if self.enough not in (None, 0, *groups):
            raise ValueError(f"enough must be 0 or the groups of a point. Received: {self.enough}")
        return self


class PartSizes(Record):
    """How many there are in the part that was fitted to, and in the one that it is checked on; null without labels."""

    fit: Number
    check: Number | None


class GainRecord(Record):
    """A `kmed.evaluation.local_fit.Gain`: a score with what was fitted at home and here, and local - home."""

    home: ScoreRecord
    local: ScoreRecord
    gain: ScoreRecord


class SharesRecord(Record):
    """The shares of the classes: those at home, those found here, and by the labels here; null if there are none."""

    home: dict[Name, Share]
    found: dict[Name, Share]
    true: dict[Name, Share | None] | None

    @model_validator(mode="after")
    def _of_the_same_classes(self):
        for name in ("found", "true"):
            if (shares := getattr(self, name)) is not None:
                require_names(name, shares, list(self.home))
        return self


class RecalibrationFile(File):
    """recalibration.json: what was fitted to a local sample of pictures, for which run.

    Without labels nothing is checked: the sizes of the check, the true shares, `gains` and `curve` are then null.
    """

    source: Name  # the run folder, from this one
    method: Literal["labels", "prior"]
    assumption: str
    groups: PartSizes
    pictures: PartSizes
    kept: list[Name]  # labels that keep what was fitted at home
    shares: SharesRecord | None
    gains: dict[Name, GainRecord] | None
    curve: CurveRecord | None
    sentences: Annotated[list[Name], Field(min_length=1)]

    @property
    def class_names(self) -> list[str] | None:
        """The classes, in the order of the model's output; None where the file does not name them."""
        return None if self.shares is None else list(self.shares.home)

    @property
    def labelled(self) -> bool:
        """Whether the local pictures have labels, so that there is a part that it is checked on."""
        return self.gains is not None

    @model_validator(mode="after")
    def _complete(self):
        require_distinct("kept", self.kept)
        require_known("kept", self.kept, self.class_names or self.kept)
        self._check_sizes()
        prior = self.method == "prior"
        for name, there, wanted in (
            ("assumption", bool(self.assumption), prior),
            ("shares", self.shares is not None, prior),
            ("curve", self.curve is not None, not prior),
        ):
            if there != wanted:
                raise ValueError(f"{name} must {'' if wanted else 'not '}be given if method is {self.method!r}")
        if self.curve is not None and self.curve.points[-1].groups != self.groups.fit:
            raise ValueError(
                f"curve.points must end with the {self.groups.fit} groups of groups.fit. Received: "
                f"{self.curve.points[-1].groups}"
            )
        for name, gain in (self.gains or {}).items():
            _check_gain(name, gain)
        return self

    def _check_sizes(self):
        """Raises ValueError unless either everything that needs labels is given, or nothing of it."""
        for name in ("fit", "check"):
            groups, pictures = getattr(self.groups, name), getattr(self.pictures, name)
            if (groups is None) != (pictures is None) or (groups or 0) > (pictures or 0):
                raise ValueError(f"groups.{name} ({groups}) must not exceed pictures.{name} ({pictures})")
        given = {"groups.check": self.groups.check, "gains": self.gains}
        given |= {"shares.true": self.shares.true} if self.shares is not None else {}
        if len({value is None for value in given.values()}) > 1:
            raise ValueError(f"{', '.join(given)} must all be null, as without labels, or none of them")
        if self.gains is None and self.method == "labels":
            raise ValueError("gains must be given if method is 'labels'")


def _check_gain(name: str, gain: GainRecord) -> None:
    """Raises ValueError if one of its scores cannot be a score of this name, or a difference of two of them."""
    for side in ("home", "local"):
        require_range(f"gains.{name}.{side}", name, getattr(gain, side))
    most = largest_value(name)
    for end in ("value", "low", "high"):
        value = getattr(gain.gain, end)
        if value is not None and most is not None and abs(value) > most + ROUNDING:
            raise ValueError(f"gains.{name}.gain.{end} must be from -{most} to {most}. Received: {value}")
