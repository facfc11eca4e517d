"""The plan of several runs, stored as a JSON file in their folder: that of a sweep, a cross-validation or a study."""

import contextlib
import dataclasses
import pathlib
import shlex
import typing
from collections.abc import Callable, Iterator

from kmed.errors import ConfigError, RunError, shorten
from kmed.files import clear_leftovers, write_json
from kmed.reading import damaged, read_json
from kmed.runs import Run, check_vacant
from kmed.schemas.records import File, check, stamped

Fields = typing.TypeVar("Fields", bound=File)


class _Plan(typing.Protocol):
    """Whatever several runs are planned by."""

    @property
    def folder(self) -> pathlib.Path:
        """In which the runs have their folders."""


Plan = typing.TypeVar("Plan", bound=_Plan)


@dataclasses.dataclass(frozen=True)
class PlanFile(typing.Generic[Fields]):
    """Where plans of one kind are stored.

    Attributes:
      name: of the file, such as "sweep.json".
      kind: what its folder holds, such as "sweep".
      schema: the fields of the file.
    """

    name: str
    kind: str
    schema: type[Fields]

    def is_in(self, folder: pathlib.Path) -> bool:
        """Returns whether a plan is stored in a folder."""
        return (folder / self.name).exists()

    def write(self, folder: pathlib.Path, fields: dict) -> None:
        """Stores a plan."""
        write_json(folder / self.name, stamped(fields))

    def read(self, folder: pathlib.Path) -> Fields:
        """Returns the fields of a stored plan. Raises RunError if there is none, or it is damaged."""
        clear_leftovers(folder)
        path = folder / self.name

        def error(message: str) -> RunError:
            return self.not_one(folder, message)

        return check(self.schema, read_json(path, error), path, error)

    def not_one(self, folder: pathlib.Path, message: str) -> RunError:
        """Returns the error about a folder without such a plan, or with one that is not legal."""
        return RunError(f"{folder} is not the folder of a {self.kind}: {message}")

    @contextlib.contextmanager
    def read_as_settings(self, folder: pathlib.Path) -> Iterator[None]:
        """Turns a ConfigError about stored settings into the RunError that names the file."""
        try:
            yield
        except ConfigError as error:
            raise damaged(f"{folder / self.name}: {error}") from None

    def find(self, plan: Plan, read: Callable[..., Plan], difference: Callable[[Plan, Plan], str]) -> Plan:
        """Returns the plan that is stored in the folder of `plan`, or `plan` itself if there is nothing yet.

        Args:
          plan: what is to be done.
          read: function folder -> the plan that is stored there.
          difference: function (stored, plan) -> what is different in the stored one; "" if they are the same.
        Raises: RunError: the folder holds something else, or another plan.
        """
        folder = plan.folder
        if not self.is_in(folder):
            check_vacant(folder, f"a {self.kind}")
            return plan
        stored = read(folder)
        if different := difference(stored, plan):
            raise RunError(
                f"{folder} holds another {self.kind} ({different}). Resume that one with --resume {folder}, or choose "
                "another --out."
            )
        return stored


def first_difference(stored: dict, wanted: dict) -> str:
    """Returns the first entry in which a stored plan differs from the one wanted, in words; "" if there is none."""
    missing = object()
    for name in dict.fromkeys([*stored, *wanted]):
        if stored.get(name, missing) != wanted.get(name, missing):
            return f"with {name}={shorten(stored[name])}" if name in stored else f"without {name}"
    return ""


def hint_at_page(run: Run) -> str:
    """Returns a sentence with the command that draws the page of a run that has ended, or "" if the page exists."""
    return "" if run.report.exists() else f" Draw its page with: kmed report {shlex.quote(str(run.folder))}"
