"""Trackers: programs such as MLflow that gather the settings, the scores and the files of many runs.

A tracker follows a run from its first epoch on. What fails in it is one warning, and never stops the run.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import typing
from collections.abc import Callable, Iterator

from kmed.config import Config
from kmed.errors import ConfigError, KmedError, suggest
from kmed.files import write_json
from kmed.progress import warn
from kmed.report import run_page
from kmed.runs import Run
from kmed.schemas.records import stamped
from kmed.training import processes


class Stopped(Exception):
    """A run is stopped on purpose before its end; the message says why, such as "pruned at epoch 3"."""


class Tracker(typing.Protocol):
    """One run in a tracker's store."""

    id: str  # by which the store knows the run

    def write_epochs(self, rows: list[dict]) -> None:
        """Stores the rows of history.csv that are not stored yet."""

    def write_results(self) -> None:
        """Stores the final scores and files, and ends the run."""

    def write_page(self) -> None:
        """Stores report.html."""

    def stop(self, error: BaseException) -> None:
        """Notes that the run has stopped before its end, by this error: one of its own, Ctrl-C, or `Stopped`."""


@dataclasses.dataclass(frozen=True)
class TrackerRow:
    """What kmed knows of a tracker.

    Attributes:
      module: where `open_tracker` is, a function (run, config, id or None) -> Tracker. The id is that under which the
        store knows the run already.
      packages: what it imports.
      extra: the extra of kmed that installs them.
    """

    module: str
    packages: tuple[str, ...]
    extra: str


TRACKERS = {
    "mlflow": TrackerRow("kmed.training.mlflow_tracker", ("mlflow", "sqlalchemy", "alembic"), "mlflow"),
}


def check_trackers(config: Config) -> None:
    """Raises ConfigError if a tracker is unknown, named twice, or not installed."""
    names = config.train.trackers
    for name in names:
        if name not in TRACKERS or names.count(name) > 1:
            raise ConfigError(
                f"train.trackers takes {' and '.join(TRACKERS)}, each once. Received: {name!r}."
                f"{suggest(name, TRACKERS)}"
            )
        if missing := [part for part in TRACKERS[name].packages if importlib.util.find_spec(part) is None]:
            raise ConfigError(
                f"train.trackers: {name} needs {' and '.join(missing)}. Install with: pip install "
                f"kmed[{TRACKERS[name].extra}]"
            )


class Follower:
    """One tracker of one run: opened when there is something to store, silent after its first failure.

    trackers.json keeps the id under which the store knows the run, with which a resumed run continues there.
    """

    def __init__(self, name: str, run: Run, config: Config):
        self.name, self.run, self.config = name, run, config
        self.tracker: Tracker | None = None
        self.failed = False

    def call(self, do: Callable[[Tracker], None]) -> None:
        """Opens the tracker if need be, and does something with it; the first failure is a warning."""
        if self.failed:
            return
        try:
            if self.tracker is None:
                self.tracker = self._open()
            do(self.tracker)
        except Exception as error:  # of any store or network: the run matters more than its copy
            self.failed = True
            reason = (str(error).strip().splitlines() or [""])[0]
            warn(
                f"Warning: {self.name} does not follow {self.run.folder} any more ({type(error).__name__}: {reason}). "
                "The run goes on, and its folder holds everything."
            )
            with contextlib.suppress(KmedError, OSError):  # the warning says it; the run meets a full disk by itself
                self._record(failed=True)

    def _open(self) -> Tracker:
        module = importlib.import_module(TRACKERS[self.name].module)
        tracker = module.open_tracker(self.run, self.config, read_trackers(self.run).get(self.name, {}).get("id"))
        self.tracker = tracker
        self._record(failed=False)
        return tracker

    def _record(self, failed: bool) -> None:
        """Writes into trackers.json under which id the store knows the run, and whether it has failed."""
        if self.tracker is not None:
            entry = {self.name: {"id": self.tracker.id, "failed": failed}}
            write_json(self.run.trackers, stamped({"trackers": read_trackers(self.run) | entry}))


class Followers:
    """All trackers of a run."""

    def __init__(self, run: Run, config: Config):
        names = config.train.trackers if processes.leads() else []  # of several processes, the first one writes
        self.each = [Follower(name, run, config) for name in names]

    def write_epochs(self, rows: list[dict]) -> None:
        """Stores the epochs so far, those of an earlier process too."""
        for follower in self.each:
            follower.call(lambda tracker: tracker.write_epochs(rows))

    def write_results(self, rows: list[dict]) -> None:
        """Stores the epochs that are missing, since an earlier process was killed, and the final scores and files."""
        self.write_epochs(rows)
        for follower in self.each:
            follower.call(lambda tracker: tracker.write_results())

    def stop(self, error: BaseException) -> None:
        """Notes that the run has stopped, in those trackers that have begun to follow it."""
        for follower in self.each:
            if follower.tracker is not None:
                follower.call(lambda tracker: tracker.stop(error))


@contextlib.contextmanager
def following(run: Run, config: Config) -> Iterator[Followers]:
    """Yields the run's trackers; if the block raises an error, they note that the run has stopped."""
    followers = Followers(run, config)
    try:
        yield followers
    except BaseException as error:
        followers.stop(error)
        raise


def catch_up(run: Run) -> None:
    """Gives trackers the results of a run whose process was killed after it had stored them."""
    with following(run, run.read_config()) as followers:
        followers.write_results(run.read_history().to_dict("records"))


def read_trackers(run: Run) -> dict[str, dict]:
    """Returns {tracker: {"id", "failed"}} of trackers.json; {} without one. Raises RunError if it is damaged."""
    return run.read_json(run.trackers)["trackers"] if run.trackers.exists() else {}


def report_run(run: Run) -> None:
    """Draws the page of a run whose results are stored, and gives it to the trackers that have followed the run."""
    run_page.try_report(run)
    if not run.trackers.exists() or not run.report.exists():
        return
    config, known = run.read_config(), read_trackers(run)
    for name in config.train.trackers:
        if name in known and not known[name]["failed"]:
            Follower(name, run, config).call(lambda tracker: tracker.write_page())
