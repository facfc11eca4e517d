"""Which pictures a finished run has trained on, also through the runs that it learnt from."""

import pathlib
from collections.abc import Iterator

import pandas as pd

from kmed.errors import RunError
from kmed.evaluation.members import read_members
from kmed.models.weight_files import is_earlier_run
from kmed.progress import warn
from kmed.runs import Run


def trained_pictures(run: Run) -> pd.DataFrame:
    """Returns the text columns path and group of the pictures that a run has trained on, each once.

    Those of the members of an ensemble, of a run's teacher and of the run that it started from count too. If a teacher
    or such a run is gone, a warning says that its pictures are not known.

    Raises: RunError: a splits.csv is missing or damaged, or a member of an ensemble is gone.
    """
    runs = {each.folder.resolve(): each for each in _family(run, set())}
    frames = [each.read_splits() for each in runs.values()]
    rows = pd.concat([frame[frame["split"] == "train"] for frame in frames])[["path", "group"]]
    return rows.drop_duplicates().reset_index(drop=True)


def _family(run: Run, seen: set[pathlib.Path]) -> Iterator[Run]:
    """Yields the run or its members, and every run that one of them learnt from; `seen` are those that are known."""
    if run.folder.resolve() in seen:
        return
    seen.add(run.folder.resolve())
    members = _members(run)
    if not members:
        yield run
    for member in members:
        yield from _family(member, seen)
    for source in _sources(run):
        if source.splits.exists():
            yield from _family(source, seen)
        else:
            warn(f"{run.folder} learnt from {source.folder}, which is gone: its training pictures are not known.")


def _members(run: Run) -> list[Run]:
    """Returns the members of an ensemble; none if the run is no ensemble."""
    if not run.ensemble.exists():
        return []
    members = [Run(run.folder / member.path) for member in read_members(run).members]
    if lost := [str(member.folder) for member in members if not member.splits.exists()]:
        raise RunError(
            f"{run.folder} is an ensemble whose member {lost[0]} is gone, so what it has trained on is not known. "
            "Restore the member."
        )
    return members


def _sources(run: Run) -> list[Run]:
    """Returns the runs that a run names as its teacher and as the origin of its weights."""
    config = run.read_config()
    named = [config.train.teacher] if config.train.teacher is not None else []
    if config.model.weights is not None and _names_a_run(config.model.weights):
        named.append(config.model.weights)
    paths = [pathlib.Path(name) for name in named]
    return [Run(path.parent if path.suffix == ".keras" else path) for path in paths]


def _names_a_run(weights: str) -> bool:
    """Returns whether weights came from an earlier run, which need not exist any more, and not from elsewhere."""
    path = pathlib.Path(weights)
    if weights == "imagenet" or weights.startswith("hf://"):
        return False
    return is_earlier_run(weights) or (path.suffix == "" and not path.exists())
