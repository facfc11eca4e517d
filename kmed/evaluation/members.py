"""The members of an ensemble: which runs fit together, which of them may judge a picture, and how they are averaged.

A picture is judged only by members that have not been trained on its group, and have not learnt from a run (a teacher,
or the start of the weights) that has. Held-out pictures (the test split) must be
new to every member. Of the others, those that some members have not been trained on become the validation split, where
each picture is judged by these members alone; so the runs of a cross-validation are judged out of fold.
"""

import dataclasses
import os
import pathlib

import numpy as np
import scipy.special

from kmed.config import FULL, Config, parse_range
from kmed.data.splits import HELD_OUT, JUDGED_BY, check_same_labels
from kmed.data.table import Table
from kmed.errors import DataError, RunError
from kmed.evaluation.inference import predict, predict_members, run_table
from kmed.evaluation.lineage import are_known, read_members, trained_pictures
from kmed.evaluation.novelty import feature_model
from kmed.labels import describe_difference
from kmed.metrics.baselines import Prior, count_prior
from kmed.metrics.calibration import mean_log_loss
from kmed.models.combined import AVERAGES
from kmed.reading import damaged
from kmed.runs import Run, finished_run, judged_run
from kmed.tasks import Task, get_task


@dataclasses.dataclass(frozen=True)
class Judged:
    """The pictures of an ensemble, and what each member has seen of them.

    Attributes:
      table: the pictures with the ensemble's splits, and a column `judged_by` of the members that may judge each one.
      prior: the Prior of the pictures that members were trained on.
      first: (N,) text, the split of each picture in the first member.
    """

    table: Table
    prior: Prior
    first: np.ndarray


def open_members(folders) -> list[Run]:
    """Returns the runs of an ensemble.

    Raises: RunError: no run, a run twice, an unfinished run or an ensemble; or runs that differ in task, classes, or
      the pictures that they take.
    """
    runs = [judged_run(finished_run(folder).folder) for folder in folders]
    if not runs:
        raise RunError("An ensemble needs at least one run. Received: none.")
    places = [run.folder.resolve() for run in runs]
    for number, run in enumerate(runs):
        if places[number] in places[:number]:
            raise RunError(f"{run.folder} is given twice. Give each member of the ensemble once.")
        if run.ensemble.exists():
            raise RunError(f"{run.folder} is an ensemble itself. Give its members instead; {run.ensemble} names them.")
        _check_alike(runs[0], run)
    return runs


def _check_alike(first: Run, run: Run) -> None:
    """Raises RunError unless a run takes the same pictures as the first one, and tells the same classes."""
    one, other = first.read_classes(), run.read_classes()
    both = f"Received: {first.folder} and {run.folder}."
    if other.task != one.task:
        raise RunError(f"The members of an ensemble must have one task, not {one.task} and {other.task}. {both}")
    if sorted(other.class_names) != sorted(one.class_names):
        difference = describe_difference(other.class_names, one.class_names)
        raise RunError(f"The members of an ensemble must have the same classes. They differ: {difference}. {both}")
    if other.class_names != one.class_names:
        raise RunError(
            "The members of an ensemble must have their classes in the same order, not "
            f"{', '.join(one.class_names)} and {', '.join(other.class_names)}. {both} Train one of them again with "
            "data.class_names."
        )
    for name, value in _input(first).items():
        if (own := _input(run)[name]) != value:
            raise RunError(
                f"The members of an ensemble must take the same pictures, but {name} is {value} and {own}. {both}"
            )


def _input(run: Run) -> dict:
    data = run.read_config().data
    return {
        "data.image_size": "x".join(map(str, data.image_size)),
        "data.fit": data.fit,
        "data.interpolation": data.interpolation,
        "data.decode": data.decode,
        "data.range": "{}-{}".format(*(parse_range(data.range) or FULL)),
    }


def differing_settings(configs: list[Config]) -> list[dict]:
    """Returns {"section.key": value} for each of the settings, with the keys in which they are not all the same."""
    flat = [config.flat() for config in configs]
    names = [name for name in flat[0] if any(each[name] != flat[0][name] for each in flat)]
    return [{name: each[name] for name in names} for each in flat]


def relative_path(folder: pathlib.Path, out: pathlib.Path) -> str:
    """Returns the path of a member as ensemble.json has it: from the ensemble's folder, with slashes."""
    try:
        return pathlib.Path(os.path.relpath(folder.resolve(), out.resolve())).as_posix()
    except ValueError:  # on another drive
        return folder.resolve().as_posix()


# ---- Who may judge what ----------------------------------------------------------------------------


def judge_pictures(runs: list[Run], table: Table) -> Judged:
    """Returns the pictures of an ensemble with their splits; see the top of this module.

    Args:
      runs: the members.
      table: the pictures, as they are read from the data.
    Raises: DataError: the members are of other pictures, labels or groups. RunError: a member has seen a held-out
      picture, or all members have been trained on all others.
    """
    tables = [run_table(run, table) for run in runs]
    for run, own in zip(runs, tables, strict=True):
        _check_same_pictures(runs[0], tables[0], run, own)
        check_same_labels(own, run.splits)
    shown = tables[0]
    splits = np.stack([own.rows["split"].to_numpy(str) for own in tables], axis=1)  # (N, M)
    folds = np.stack([own.rows.get("fold", shown.rows["split"].map(lambda _: "")) for own in tables], axis=1)
    known = np.stack([are_known(shown.rows, trained_pictures(run)) for run in runs], axis=1)
    trained, chosen, learned = (_by_group(shown, seen) for seen in (splits == "train", splits == "val", known))
    held_out = (~np.isin(splits, ("train", "val")) & (folds == "")).any(axis=1)
    _check_unseen(runs, shown.take(held_out), trained[held_out], chosen[held_out], learned[held_out])
    judges = ~(trained | learned)
    new = np.where(judges.any(axis=1), "val", "train").astype(object)
    new[held_out] = np.where(splits[held_out, 0] == HELD_OUT, "test", splits[held_out, 0])
    if not (new == "val").any():
        raise RunError(
            "All members of this ensemble were trained on all of its validation pictures, or learnt from runs that "
            "were, so it cannot be calibrated. Add a member that has not seen them."
        )
    names = np.array(["|".join(str(member + 1) for member in np.flatnonzero(row)) for row in judges], dtype=object)
    training = shown.take((splits == "train").any(axis=1))
    rows = shown.rows.drop(columns="fold", errors="ignore")
    return Judged(
        table=shown.replace(rows=rows.assign(**{"split": new, JUDGED_BY: names})),
        prior=count_prior(training.labels, shown.class_names, training.rows["group"].nunique()),
        first=splits[:, 0],
    )


def _check_same_pictures(first: Run, shown: Table, run: Run, own: Table) -> None:
    mine, theirs = set(shown.rows["path"]), set(own.rows["path"])
    for lacking, path_set, other in ((run, mine - theirs, first), (first, theirs - mine, run)):
        if path_set:
            raise DataError(
                f"The members of an ensemble must be of the same pictures. {lacking.splits} lacks {len(path_set)} "
                f"pictures of {other.splits}, such as {min(path_set)}."
            )


def _by_group(table: Table, seen: np.ndarray) -> np.ndarray:
    """Returns bool (N, M): whether a member has seen a picture of the same group; `seen` has the pictures alone."""
    groups = table.rows["group"]
    return np.stack([groups.isin(groups[column]).to_numpy() for column in seen.T], axis=1)


def _check_unseen(runs: list[Run], held_out: Table, *seen: np.ndarray) -> None:
    """Raises RunError if a member has seen a held-out picture, or another one of its group.

    Args:
      runs: M members.
      held_out: N pictures.
      seen: bool (N, M) each: what the members were trained on, what they chose their epochs by, and what runs that they
        learnt from were trained on.
    """
    for member, run in enumerate(runs):
        trained, chosen, learned = (each[:, member] for each in seen)
        parts = [
            (trained, "was trained on {} of"),
            (chosen & ~trained, "chose its epoch by {} of"),
            (learned & ~trained & ~chosen, "learnt from runs that were trained on {} of"),
        ]
        if does := " and ".join(text.format(mask.sum()) for mask, text in parts if mask.any()):
            first = (trained | chosen | learned).argmax()
            raise RunError(
                f"{run.folder} {does} the {len(held_out)} held-out pictures of this ensemble (or others of their "
                f"groups), such as {held_out.rows['path'].iloc[first]}: its scores would be too good. Leave this "
                "member out, or train it on the splits of the others (data.splits)."
            )


def all_judge(run: Run, part: Table) -> bool:
    """Returns whether a run's whole model may judge each picture, which all may but ensembles.

    Args:
      run: any run.
      part: pictures of `kmed.evaluation.inference.run_table`.
    """
    return not run.ensemble.exists() or bool(_judges(run, part).all())


def predict_judged(run: Run, model, part: Table, config) -> np.ndarray:
    """Returns (N, K), the probabilities of pictures; of an ensemble, from the members that may judge each one.

    Args:
      run: the run.
      model: its keras.Model.
      part: pictures of `kmed.evaluation.inference.run_table`.
      config: the run's settings.
    Raises: RunError: all members of an ensemble were trained on a picture. DataError: an unreadable picture.
    """
    if all_judge(run, part):
        return predict(model, part, config)
    judges = _judges(run, part)
    if (alone := ~judges.any(axis=1)).any():
        raise RunError(
            f"All members of {run.folder} were trained on {alone.sum()} of these {len(part)} pictures, such as "
            f"{part.rows['path'][alone].iloc[0]}, so nobody can judge them. Choose another split."
        )
    logits = predict_members(feature_model(model), part, config)
    return mean_probs(logits, judges, read_members(run).average, get_task(config.task))


def judges_of(table: Table, num_members: int) -> np.ndarray:
    """Returns bool (N, M), which of M members may judge each picture of an ensemble's table."""
    named = [text.split("|") for text in table.rows[JUDGED_BY]]
    return np.array([[str(member + 1) in row for member in range(num_members)] for row in named], bool)


def _judges(run: Run, part: Table) -> np.ndarray:
    """Returns bool (N, M), which members of the ensemble `run` may judge each picture of its table."""
    if JUDGED_BY not in part.rows.columns:
        raise damaged(f"{run.splits} has no column {JUDGED_BY!r}.")
    return judges_of(part, len(read_members(run).members))


# ---- The mean of the members -----------------------------------------------------------------------


def mean_probs(logits: np.ndarray, judges: np.ndarray, average: str, task: Task) -> np.ndarray:
    """Returns float64 (N, K), the mean over the members that may judge each picture.

    Args:
      logits: (N, M, K), those of the members.
      judges: bool (N, M), with at least one member per picture.
      average: "probabilities" or "logits".
      task: that of the members.
    """
    link = _ACTIVATIONS[task.activation]
    values = np.asarray(logits, np.float64)
    values = link(values) if average == "probabilities" else values
    mean = (values * judges[:, :, None]).sum(axis=1) / judges.sum(axis=1)[:, None]
    return mean if average == "probabilities" else link(mean)


def _softmax(logits):
    return scipy.special.softmax(logits, axis=-1)


_ACTIVATIONS = {"softmax": _softmax, "sigmoid": scipy.special.expit}


def validation_losses(logits, judges, labels, class_names, task: Task) -> dict[str, float]:
    """Returns {way of averaging: log loss per picture} of validation pictures, after calibration on them.

    Args:
      logits, judges, task: as for `mean_probs`.
      labels: (N, K), NaN where unknown.
      class_names: K names.
    """
    losses = {}
    for average in AVERAGES:
        probs = mean_probs(logits, judges, average, task)
        calibrated = task.fit_calibration(labels, probs, class_names).apply(probs)
        losses[average] = mean_log_loss(labels, calibrated, exclusive=task.exclusive)
    return losses


def disagreement(logits: np.ndarray, task: Task) -> np.ndarray:
    """Returns float64 (N,), from 0 to 0.5: how far the members' probabilities lie apart.

    It is the standard deviation over the members of one class's probability, for the class in which it is largest.

    Args:
      logits: (N, M, K), those of the members.
      task: that of the members.
    """
    return _ACTIVATIONS[task.activation](np.asarray(logits, np.float64)).std(axis=1).max(axis=1)
