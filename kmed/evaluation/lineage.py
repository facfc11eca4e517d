"""Which pictures a finished run has trained on, also through the runs that it learnt from."""

import pathlib
from collections.abc import Iterator

import numpy as np
import pandas as pd

from kmed.config import Config
from kmed.data.table import Table
from kmed.errors import RunError
from kmed.models.weight_files import is_earlier_run
from kmed.progress import warn
from kmed.runs import Run, without_labels
from kmed.schemas.records import EnsembleFile


def trained_pictures(run: Run) -> pd.DataFrame:
    """Returns the text columns path and group of the pictures that a run has trained on, each once.

    Those of the members of an ensemble, of a run's teacher and of the run that it started from count too, unless these
    are of other data. If a teacher or such a run is gone, a warning says that its pictures are not known.

    Raises: RunError: a splits.csv is missing or damaged, or a member of an ensemble is gone.
    """
    runs = {each.folder.resolve(): each for each in family(run, set())}
    frames = [each.read_splits() for each in runs.values() if _is_of_same_data(run, each)]
    rows = pd.concat([pd.DataFrame(columns=["path", "group", "split"]), *frames])
    rows = rows.loc[rows["split"] == "train", ["path", "group"]]
    return rows.drop_duplicates().reset_index(drop=True)


def are_known(rows: pd.DataFrame, known: pd.DataFrame) -> np.ndarray:
    """Returns bool (N,), which rows are pictures of `known` (from `trained_pictures`), or others of their groups."""
    return (rows["path"].isin(known["path"]) | rows["group"].isin(known["group"])).to_numpy()


def describe_leak(known: pd.DataFrame, table: Table) -> str:
    """Returns which images outside the training split are known, or are others of known groups; "" if none.

    Args:
      known: the `trained_pictures` of what a run learns from.
      table: the images of that run with their splits.
    """
    rows = table.rows
    leaked = are_known(rows, known) & (rows["split"] != "train").to_numpy()
    if not leaked.any():
        return ""
    found = " and ".join(
        f"{leaked[part].sum()} of {len(part)} images of {name}"
        for name, part in rows.groupby("split").indices.items()
        if leaked[part].any()
    )
    return f"{found}, or on images of their groups, such as {rows['path'][leaked].iloc[0]}"


def leak_of_weights(config: Config, table: Table) -> str:
    """Returns a sentence on the images outside the training split that the weights of a new run have seen; "" if none.

    Args:
      config: its settings.
      table: its images with their splits.
    """
    source = _source_of_weights(config)
    if source is None or not source.splits.exists():
        return ""
    same_place = source.read_config().data.path == config.data.path
    if not same_place and set(source.read_classes().class_names) != set(table.class_names):
        return ""  # other data, whose patients 1 to 100 are others
    leak = describe_leak(trained_pictures(source), table)
    return leak and f"the weights come from {source.folder}, which has trained on {leak}."


def _is_of_same_data(run: Run, source: Run) -> bool:
    """Returns whether two runs are of the same data: of the same place, or of the same classes.

    Patients 1 to 100 of other data are other patients. If other data have images of the same names, a warning says so.
    """
    if source.folder.resolve() == run.folder.resolve():
        return True
    if run.read_config().data.path == source.read_config().data.path:
        return True
    if set(run.read_classes().class_names) == set(source.read_classes().class_names):
        return True
    if shared := len(set(run.read_splits()["path"]) & set(source.read_splits()["path"])):
        warn(
            f"Warning: {run.folder} learnt from {source.folder}, which has other classes and other data, but {shared} "
            "images of the same names. If they are the same images, the scores may be too good."
        )
    return False


def scored_run(run: Run) -> Run:
    """Returns the run, or the one with scores that it was made of if it was recalibrated without labels.

    Raises: RunError: that run is gone.
    """
    while without_labels(run):
        source = Run(run.folder / run.read_json(run.recalibration)["source"])
        if not source.config.exists():
            raise RunError(
                f"{run.folder} was recalibrated without labels, and the run that it was made of, {source.folder}, is "
                "gone, so there are no scores to set beside. Restore it."
            )
        run = source
    return run


def read_members(run: Run) -> EnsembleFile:
    """Returns the content of an ensemble's ensemble.json. Raises RunError if it is damaged."""
    return EnsembleFile.model_validate(run.read_json(run.ensemble))


def family(run: Run, seen: set[pathlib.Path]) -> Iterator[Run]:
    """Yields the run or its members, and every run that one of them learnt from; `seen` are those that are known."""
    if run.folder.resolve() in seen:
        return
    seen.add(run.folder.resolve())
    members = _members(run)
    if not members:
        yield run
    for member in members:
        yield from family(member, seen)
    for source in _sources(run):
        if source.splits.exists():
            yield from family(source, seen)
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
    """Returns the runs that a run names as its teacher, as the origin of its weights, and as what it recalibrates."""
    config = run.read_config()
    teacher = None if config.train.teacher is None else _run_of(config.train.teacher)
    before = None
    if run.recalibration.exists():
        before = Run(run.folder / run.read_json(run.recalibration)["source"])
    return [source for source in (teacher, _source_of_weights(config), before) if source is not None]


def _source_of_weights(config: Config) -> Run | None:
    """Returns the run that the weights come from; None if they come from elsewhere."""
    if config.model.weights is None or not _names_a_run(config.model.weights):
        return None
    return _run_of(config.model.weights)


def _run_of(name: str) -> Run:
    path = pathlib.Path(name)
    return Run(path.parent if path.suffix == ".keras" else path)


def _names_a_run(weights: str) -> bool:
    """Returns whether weights came from an earlier run, which need not exist any more, and not from elsewhere."""
    path = pathlib.Path(weights)
    if weights == "imagenet" or weights.startswith("hf://"):
        return False
    return is_earlier_run(weights) or (path.suffix == "" and not path.exists())
