"""recalibration.json: what was fitted to which local sample, and what it gained."""

import typing
from typing import Annotated, Literal

from pydantic import Field

from kmed.schemas.records import Count, File, Name, Record


class CurvePoint(Record):
    """The log loss with so many labelled groups: the mean over draws, and the range of nine tenths of them."""

    groups: Annotated[int, Field(ge=1)]
    mean: float
    low: float
    high: float


class CurveRecord(Record):
    """The learning curve of a recalibration."""

    home: float
    points: Annotated[list[CurvePoint], Field(min_length=1)]
    enough: Count | None


class RecalibrationFile(File):
    """recalibration.json: what was fitted to a local sample of pictures, for which run."""

    source: Name  # the run folder, from this one
    method: Literal["labels", "prior"]
    assumption: str
    groups: dict[Literal["fit", "check"], Count]
    pictures: dict[Literal["fit", "check"], Count]
    kept: list[Name]  # labels that keep what was fitted at home
    shares: dict[Literal["home", "found", "true"], dict[str, float | None]] | None
    gains: dict[str, dict[Literal["home", "local", "gain"], dict[str, typing.Any]]]
    curve: CurveRecord | None
    sentences: list[str]
