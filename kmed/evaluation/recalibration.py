"""A run fitted to other people's data: its model as it is, with calibration and thresholds from a local sample.

The output is a run folder like any other. Its validation split are the local pictures that were fitted to, its test
split those that it was checked on, and it has no training split: those pictures belong to the run that it was made of.
"""

import dataclasses
import pathlib
import shutil

import numpy as np
import pandas as pd

from kmed import runtime
from kmed.data.splits import JUDGED_BY, write_splits
from kmed.data.table import Table
from kmed.errors import ConfigError, suggest
from kmed.evaluation.decisions import Fitted, read_fitted
from kmed.evaluation.external import Foreign, predict_foreign, read_foreign
from kmed.evaluation.local_fit import (
    Gain,
    few_labels,
    fit_calibration,
    fit_labels,
    fit_shares,
    known_shares,
    learning_curve,
    measure_gains,
    split_groups,
)
from kmed.evaluation.members import read_members, relative_path
from kmed.evaluation.novelty import false_alarms
from kmed.evaluation.predictions import Predictions, stored_predictions
from kmed.evaluation.result_rows import LAST, score_columns, with_scores
from kmed.evaluation.run_evaluation import FITTED_BY, write_figures, write_scores
from kmed.evaluation.summary import aligned, cell
from kmed.files import write_frame, write_json, write_text
from kmed.metrics.baselines import Prior
from kmed.metrics.intervals import Bootstrap
from kmed.metrics.prior_shift import ASSUMPTION
from kmed.progress import say
from kmed.reading import read_text
from kmed.runs import Run, finished_run, judged_split, write_classes, written_whole
from kmed.schemas.records import stamped

METHODS = ("labels", "prior")
SCORING = (*FITTED_BY, "num_resamples", "level", "subgroups", "batch_size")
_COPIED = ("model", "history", "novelty")  # files of the source that stay as they are
SHOWN = ("brier_calibrated", "ece_calibrated")


@dataclasses.dataclass(frozen=True)
class Recalibration:
    """What was fitted to a local sample.

    Attributes:
      source: the run whose model it is.
      method: "labels" or "prior".
      foreign: the local data.
      predictions: those for the local pictures, with splits "val" (fitted to) and "test" (checked on).
      flagged: bool (N,), the pictures unlike the training pictures; None if the source cannot say.
      novelty: the source's record of that; None.
      home, local: what was fitted at home and here.
      shares: {"home", "found", "true"} -> (K,); None for "labels".
      kept: labels that keep what was fitted at home.
      gains: name -> Gain on the pictures that nothing was fitted to.
      curve: see `kmed.evaluation.local_fit.learning_curve`; None for "prior".
    """

    source: Run
    method: str
    foreign: Foreign
    predictions: Predictions
    flagged: np.ndarray | None
    novelty: dict | None
    home: Fitted
    local: Fitted
    shares: dict[str, np.ndarray] | None
    kept: tuple[str, ...]
    gains: dict[str, Gain]
    curve: dict | None

    def sentences(self) -> list[str]:
        """Returns what was fitted to what, and what it is worth."""
        sizes = self.sizes("group")
        how = "calibration and thresholds, with the labels of" if self.method == "labels" else "shares of the classes, "
        how += "" if self.method == "labels" else "without the labels of"
        lines = [
            f"Recalibrated ({self.method}): {how} {sizes['fit']} groups; checked on {sizes['check']} others.",
            *([ASSUMPTION] if self.method == "prior" else []),
        ]
        if self.kept:
            why = "Too few positives or negatives to fit" if self.method == "labels" else "Shares not told from home's"
            lines.append(f"{why}, so these stay as at home: {', '.join(self.kept)}.")
        if self.curve is not None:
            lines.append(_enough(self.curve))
        return lines

    def sizes(self, column: str | None = None) -> dict[str, int]:
        """Returns how many pictures, or different values of a column, were fitted to and checked on."""
        parts = {"fit": self.predictions.split("val"), "check": self.predictions.split("test")}
        return {name: len(part) if column is None else part.rows[column].nunique() for name, part in parts.items()}

    def to_dict(self, folder: pathlib.Path) -> dict:
        """Returns the content of recalibration.json in `folder`."""
        names = self.predictions.class_names
        shares = None
        if self.shares is not None:
            shares = {kind: dict(zip(names, values.tolist(), strict=True)) for kind, values in self.shares.items()}
        return {
            "source": relative_path(self.source.folder, folder),
            "method": self.method,
            "assumption": ASSUMPTION if self.method == "prior" else "",
            "groups": self.sizes("group"),
            "pictures": self.sizes(),
            "kept": list(self.kept),
            "shares": shares,
            "gains": {name: gain.to_dict() for name, gain in self.gains.items()},
            "curve": self.curve,
            "sentences": self.sentences(),
        }


def _enough(curve: dict) -> str:
    most = curve["points"][-1]["groups"]
    if curve["enough"] == 0:
        return f"Labels of {most} groups did not lower the log loss here: the calibration of home is as good."
    if curve["enough"] is None:
        return f"All {most} labelled groups were needed; more may still help."
    return f"Labels of {curve['enough']} groups would have been enough for nine tenths of what those of {most} gain."


# ---- Fitting ---------------------------------------------------------------------------------------


def fit_to_sample(
    run_folder, on, *, method="labels", fit_fraction=0.5, class_map=(), settings=(), copies="pixels", data=None, seed=0
) -> Recalibration:
    """Returns the Recalibration of a run for a local sample; nothing is written.

    Args:
      run_folder: what `kmed train` made.
      on: the folder, CSV or npz with the local pictures and labels.
      method: "labels", or "prior", which uses no labels of the pictures that it fits to.
      fit_fraction: the share of the groups that is fitted to.
      class_map, settings, copies, data: as for `kmed.evaluation.external.judge_on`.
      seed: random seed of the split and of the learning curve.
    Raises: ConfigError: an argument is not legal. Else as `kmed.evaluation.external.judge_on`.
    """
    if method not in METHODS:
        raise ConfigError(f"method must be {' or '.join(METHODS)}. Received: {method!r}." + suggest(method, METHODS))
    if not 0 < fit_fraction < 1:
        raise ConfigError(f"fit_fraction must be between 0 and 1. Received: {fit_fraction}.")
    run = finished_run(run_folder)
    own = stored_predictions(run)
    internal = judged_split(own.rows["split"].unique())
    reading = {"class_map": class_map, "settings": settings, "copies": copies, "data": data, "scoring": SCORING}
    foreign = read_foreign(run, on, internal, **reading)
    say(f"Predicting {len(foreign.judging):,} pictures ...")
    predictions, flagged, novelty = predict_foreign(run, foreign)
    chosen = split_groups(predictions, fit_fraction, seed)
    splits = np.where(chosen, "val", "test").astype(object)
    predictions = dataclasses.replace(predictions, rows=predictions.rows.assign(split=splits))
    fit, check, home = predictions.split("val"), predictions.split("test"), read_fitted(run)
    shares = curve = None
    kept: tuple[str, ...] = ()
    evaluate, bootstrap = foreign.config.evaluate, Bootstrap.from_config(foreign.config)
    if method == "labels":
        local = fit_labels(fit, home, evaluate, foreign.config.data.not_findings)
        if not fit.task.exclusive:
            kept = tuple(name for name, few in zip(fit.class_names, few_labels(fit), strict=True) if few)
        curve = learning_curve(
            fit, check, home.calibration, lambda part: fit_calibration(part, home.calibration), seed
        )  # fmt: skip
    else:
        at_home = home_shares(run, own)
        local, found, used = fit_shares(fit, home, at_home, bootstrap)
        kept = tuple(name for name, moved in zip(fit.class_names, used, strict=True) if not moved)
        shares = {"home": at_home, "found": found, "true": known_shares(predictions.labels)}
    local = dataclasses.replace(local, cases=None)
    gains = measure_gains(check, home, local, bootstrap)
    return Recalibration(
        run, method, foreign, predictions, flagged, novelty, home, local, shares, kept, gains, curve
    )  # fmt: skip


def home_shares(run: Run, own: Predictions) -> np.ndarray:
    """Returns (K,), the shares that a run's calibration is for: of its validation labels, else of those in training."""
    validation = own.split("val")
    prior = Prior.from_dict(run.read_json(run.metrics)["training"])
    shares = known_shares(validation.labels) if len(validation) else prior.shares
    shares = np.where((shares > 0) & (shares < 1), shares, prior.shares)
    return np.clip(shares, 1e-4, 1 - 1e-4)


# ---- Writing ---------------------------------------------------------------------------------------


def write_run(recalibration: Recalibration, out) -> Run:
    """Writes a recalibrated run, whole or not at all, and returns it.

    Raises: RunError: the folder is taken or cannot be written.
    """
    out = pathlib.Path(out)
    with written_whole(out) as run:
        _write(run, recalibration, out)
    return Run(out)


def _write(run: Run, recalibration: Recalibration, out: pathlib.Path) -> None:
    source, config = recalibration.source, recalibration.foreign.config
    path = pathlib.Path(str(config.data.path)).absolute()
    data = config.data.model_copy(update={"path": str(path)})
    evaluate = config.evaluate.model_copy(update={"case": None})
    config = config.model_copy(update={"data": data, "evaluate": evaluate})
    config.write(run.config)
    write_classes(run, config, recalibration.predictions.class_names)
    write_json(run.environment, stamped(runtime.environment()))
    for name in _COPIED:
        if getattr(source, name).exists():
            shutil.copyfile(getattr(source, name), getattr(run, name))
    table = _table(recalibration)
    if source.ensemble.exists():
        table = _write_members(run, recalibration, table, out)
    write_splits(table, run.splits, labels=True)
    write_frame(run.predictions, recalibration.predictions.to_frame())
    prior = Prior.from_dict(source.read_json(source.metrics)["training"])
    stored = {"novelty": _novelty(recalibration, config)} if recalibration.flagged is not None else {}
    assessments = write_scores(run, config, recalibration.predictions, prior, recalibration.local, stored)
    write_json(run.recalibration, stamped(recalibration.to_dict(out)))
    write_text(run.summary, read_text(run.summary) + "\n" + describe(recalibration))
    write_frame(run.result, pd.DataFrame([_row(recalibration, assessments["test"])]))
    write_figures(run, assessments)


def _table(recalibration: Recalibration) -> Table:
    judging = recalibration.foreign.judging
    return judging.with_columns(split=recalibration.predictions.rows["split"].to_numpy())


def _write_members(run: Run, recalibration: Recalibration, table: Table, out: pathlib.Path) -> Table:
    """Writes ensemble.json with the paths of the members from `out`; each of them may judge each local picture."""
    source = recalibration.source
    record = source.read_json(source.ensemble)
    members = [
        member | {"path": relative_path(source.folder / member["path"], out)} for member in record["members"]
    ]  # fmt: skip
    write_json(run.ensemble, stamped(record | {"members": members}))
    everybody = "|".join(str(number + 1) for number in range(len(read_members(source).members)))
    return table.with_columns(**{JUDGED_BY: np.full(len(table), everybody, dtype=object)})


def _novelty(recalibration: Recalibration, config) -> dict:
    """Returns the record of metrics.json: the source's threshold, and the share that it flags of each local part."""
    record, flagged = recalibration.novelty or {}, np.asarray(recalibration.flagged)
    rows, bootstrap = recalibration.predictions.rows, Bootstrap.from_config(config)
    found = {key: record[key] for key in ("wanted", "threshold", "num_reference") if key in record}
    for split in ("val", "test"):
        part = (rows["split"] == split).to_numpy()
        found[split] = false_alarms(flagged[part], rows["cluster"].to_numpy()[part], bootstrap).to_dict()
    return found


def _row(recalibration: Recalibration, assessment) -> dict:
    """Returns result.csv: the source's row with the local scores."""
    own = {"data": recalibration.foreign.table.name, "split": "test", "command": runtime.command_line()}
    return with_scores(recalibration.source.read_result(LAST), score_columns(assessment), **own)


def describe(recalibration: Recalibration) -> str:
    """Returns what the summary says of a recalibration."""
    names = [*SHOWN, *(name for name in recalibration.gains if name not in SHOWN)]
    rows: list[tuple[str, ...]] = [("score of the check", "fitted at home", "fitted here", "gain")]
    for name in names:
        gain = recalibration.gains[name]
        rows.append((name, cell(gain.home), cell(gain.local), cell(gain.gain)))
    lines = [*recalibration.sentences(), "", *aligned(rows)]
    if recalibration.shares is not None:
        shares: list[tuple[str, ...]] = [("class", "share at home", "found here", "true here")]
        columns = [recalibration.shares[kind] for kind in ("home", "found", "true")]
        for name, *values in zip(recalibration.predictions.class_names, *columns, strict=True):
            shares.append((name, *(f"{value:.3f}" for value in values)))
        lines += ["", *aligned(shares)]
    if recalibration.curve is not None:
        points: list[tuple[str, ...]] = [("labelled groups", "log loss of the check", "range of draws")]
        points.append(("0 (home)", f"{recalibration.curve['home']:.4f}", ""))
        for point in recalibration.curve["points"]:
            points.append((str(point["groups"]), f"{point['mean']:.4f}", f"{point['low']:.4f} to {point['high']:.4f}"))
        lines += ["", *aligned(points)]
    return "\n".join(lines) + "\n"
