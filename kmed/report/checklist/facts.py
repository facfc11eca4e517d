"""A run as a check-list sees it, and what an answer is: a text, and the places in the run folder where it stands.

A place is a file of the run folder, and after "#" a part of it: a JSON pointer (RFC 6901) in a JSON or YAML file, a
column of a CSV, or a section of report.html.
"""

import dataclasses
import functools

import yaml

from kmed.config import Config
from kmed.report.page import Cited, words
from kmed.runs import Run
from kmed.tasks import Task


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the run says on an item.

    Attributes:
      text: pieces, of which numbers from metrics.json are Cited.
      where: the places where it stands; at least one.
    """

    text: tuple
    where: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Facts:
    """A run as its page shows it; the fields are those of `kmed.report.run_page.write_report`."""

    run: Run
    config: Config
    task: Task
    result: dict[str, str]
    class_names: list[str]
    metrics: Cited
    fitted: Cited
    split: str
    assessed: Cited
    data: list[dict]
    headline: list
    ensemble: dict | None
    gallery: dict

    def settings(self, *keys: str) -> tuple[str, ...]:
        """Returns the places of settings such as "train.epochs"; earlier versions did not have all of them."""
        return tuple(f"config.yaml#/{key.replace('.', '/')}" for key in keys if _holds(self._stored, key))

    @functools.cached_property
    def _stored(self):
        return yaml.safe_load(self.run.config.read_text(encoding="utf-8"))

    def figures(self, *stems: str) -> tuple[str, ...]:
        """Returns the places of those of the run's figures that could be drawn."""
        paths = [self.run.figures / f"{stem}.png" for stem in stems]
        return tuple(f"figures/{path.name}" for path in paths if path.exists())

    def files(self, *names: str) -> tuple[str, ...]:
        """Returns the places of those files that the run holds; the part after "#" is not looked at."""
        return tuple(name for name in names if (self.run.folder / name.partition("#")[0]).exists())


def _holds(stored, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(stored, dict) or part not in stored:
            return False
        stored = stored[part]
    return True


def joined(parts: list, separator: str = "; ") -> tuple:
    """Returns the pieces of all parts, which are tuples, with the separator between them."""
    pieces: list = []
    for part in parts:
        pieces += [separator, *part] if pieces else part
    return tuple(pieces)


def count(number: int, noun: str) -> str:
    """Returns "1 image" or "2 images"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def score_text(name: str, score: Cited) -> tuple:
    """Returns the pieces of a score's name, value and interval."""
    low = score["low"]
    span = (" (no interval)",) if low.raw is None else (" (", low, " to ", score["high"], ")")
    return (f"{words(name)} ", score["value"], *span)
