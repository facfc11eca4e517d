"""A run fitted to other people's data: its model as it is, with calibration and thresholds from a local sample.

The output is a run folder like any other. Its validation split are the local pictures that were fitted to, its test
split those that it was checked on, and it has no training split: those pictures belong to the run that it was made of.
Without labels all pictures are fitted to, and the run has no scores.
"""

import dataclasses
import pathlib
import shutil

import numpy as np
import pandas as pd

from kmed import runtime
from kmed.data.prepare import explain_unlabelled
from kmed.data.splits import JUDGED_BY, write_splits
from kmed.data.table import Table
from kmed.errors import ConfigError, DataError, suggest
from kmed.evaluation.decisions import Fitted, read_fitted
from kmed.evaluation.external import Foreign, foreign_config, predict_foreign, read_foreign
from kmed.evaluation.lineage import scored_run
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
from kmed.evaluation.recalibration_text import describe, describe_flagged
from kmed.evaluation.result_rows import LAST, score_columns, with_scores
from kmed.evaluation.run_evaluation import FITTED_BY, write_figures, write_scores
from kmed.files import write_frame, write_json, write_text
from kmed.metrics.baselines import Prior
from kmed.metrics.intervals import FEW_CLUSTERS, Bootstrap
from kmed.metrics.prior_shift import ASSUMPTION
from kmed.progress import say
from kmed.reading import read_text
from kmed.runs import Run, finished_run, judged_split, without_labels, write_classes, written_whole
from kmed.schemas.records import stamped

METHODS = ("labels", "prior")
SCORING = (*FITTED_BY, "num_resamples", "level", "subgroups", "batch_size")
_COPIED = ("model", "history", "novelty")  # files of the source that stay as they are
HALF = 0.5  # the share of the groups that is fitted to
ONLY_PRIOR = "Pictures without labels can be used with --method prior alone, which finds the shares of the classes."


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
      shares: {"home", "found", "true"} -> (K,), without "true" if there are no labels; None for "labels".
      kept: labels that keep what was fitted at home.
      gains: name -> Gain on the pictures that nothing was fitted to; None without labels.
      curve: see `kmed.evaluation.local_fit.learning_curve`; None for "prior".
      doubts: reasons not to trust shares that no labels check.
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
    gains: dict[str, Gain] | None
    curve: dict | None
    doubts: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether local pictures have labels, by which the fit is checked."""
        return self.gains is not None

    def sentences(self) -> list[str]:
        """Returns what was fitted to what, and what it is worth."""
        sizes = self.sizes("group")
        if not self.labelled:
            return self._unchecked(sizes["fit"])
        how = "calibration and thresholds, with the labels of" if self.method == "labels" else "shares of the classes, "
        how += "" if self.method == "labels" else "without the labels of"
        lines = [
            f"Recalibrated ({self.method}): {how} {sizes['fit']} groups; checked on {sizes['check']} others.",
            *([ASSUMPTION] if self.method == "prior" else []),
        ]
        lines += self._stayed()
        if self.curve is not None:
            lines.append(_enough(self.curve))
        return lines

    def _unchecked(self, num_groups: int | None) -> list[str]:
        return [
            f"Recalibrated (prior): shares of the classes, from {len(self.predictions):,} pictures of {num_groups:,} "
            "groups without labels.",
            "Nothing checks it: without labels there are no scores, no gain and no learning curve. Judge it on other "
            "pictures, with labels: kmed evaluate RUN --on DATA.",
            ASSUMPTION,
            *self._stayed(),
            *self.doubts,
        ]

    def _stayed(self) -> list[str]:
        if not self.kept:
            return []
        if self.method == "prior" and len(self.kept) == len(self.predictions.class_names):
            return ["No share is told from home's, so the run answers as the one that it was made of."]
        why = {
            "labels": "Too few positives or negatives to fit",
            "prior": "Shares not told from home's, or not to be found by this model",
        }
        return [f"{why[self.method]}, so these stay as at home: {', '.join(self.kept)}."]

    def sizes(self, column: str | None = None) -> dict[str, int | None]:
        """Returns how many pictures, or different values of a column, were fitted to and checked on; None: no check."""
        parts = {"fit": self.predictions.split("val"), "check": self.predictions.split("test")}
        sizes = {name: len(part) if column is None else part.rows[column].nunique() for name, part in parts.items()}
        return sizes if self.labelled else sizes | {"check": None}

    def to_dict(self, folder: pathlib.Path) -> dict:
        """Returns the content of recalibration.json in `folder`."""
        names = self.predictions.class_names
        shares: dict[str, dict | None] | None = None
        if self.shares is not None:
            shares = {kind: dict(zip(names, values.tolist(), strict=True)) for kind, values in self.shares.items()}
            shares |= {} if "true" in shares else {"true": None}
        return {
            "source": relative_path(self.source.folder, folder),
            "method": self.method,
            "assumption": ASSUMPTION if self.method == "prior" else "",
            "groups": self.sizes("group"),
            "pictures": self.sizes(),
            "kept": list(self.kept),
            "shares": shares,
            "gains": self.gains and {name: gain.to_dict() for name, gain in self.gains.items()},
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
    run_folder, on, *, method="labels", fit_fraction=None, class_map=(), settings=(), copies="pixels", data=None, seed=0
) -> Recalibration:
    """Returns the Recalibration of a run for a local sample; nothing is written.

    Args:
      run_folder: what `kmed train` made.
      on: the folder, CSV or npz with the local pictures and labels; with "prior" they may lack labels, and be a list.
      method: "labels", or "prior", which uses no labels of the pictures that it fits to.
      fit_fraction: the share of the groups that is fitted to; None: half of them, and all without labels.
      class_map, settings, copies, data: as for `kmed.evaluation.external.judge_on`.
      seed: random seed of the split and of the learning curve.
    Raises: ConfigError: an argument is not legal. Else as `kmed.evaluation.external.judge_on`.
    """
    if method not in METHODS:
        raise ConfigError(f"method must be {' or '.join(METHODS)}. Received: {method!r}." + suggest(method, METHODS))
    if fit_fraction is not None and not 0 < fit_fraction < 1:
        raise ConfigError(f"fit_fraction must be between 0 and 1. Received: {fit_fraction}.")
    run = finished_run(run_folder)
    own = stored_predictions(run)
    internal = judged_split(own.rows["split"].unique())
    reading = {"class_map": class_map, "settings": tuple(settings), "copies": copies, "data": data}
    foreign = _read_sample(run, on, internal, method, reading)
    if not foreign.labelled:
        _check_unlabelled(foreign, on, method, fit_fraction)
    say(f"Predicting {len(foreign.judging):,} pictures ...")
    predictions, flagged, novelty = predict_foreign(run, foreign)
    chosen = np.ones(len(predictions), bool)
    if foreign.labelled:
        chosen = split_groups(predictions, HALF if fit_fraction is None else fit_fraction, seed)
    splits = np.where(chosen, "val", "test").astype(object)
    predictions = dataclasses.replace(predictions, rows=predictions.rows.assign(split=splits))
    home, bootstrap = read_fitted(run), Bootstrap.from_config(foreign.config)
    if method == "labels":
        local, found = _fit_labels(predictions, home, foreign.config, seed)
    else:
        local, found = _fit_prior(predictions, home, home_shares(run, own), bootstrap)
    local = dataclasses.replace(local, cases=None)
    gains = None
    if foreign.labelled:
        gains = measure_gains(predictions.split("test"), home, local, bootstrap)
    else:
        found["doubts"] = _find_doubts(run, predictions, found["shares"]["found"], found["kept"])
    return Recalibration(run, method, foreign, predictions, flagged, novelty, home, local, gains=gains, **found)


def _read_sample(run: Run, on, internal: str, method: str, reading: dict) -> Foreign:
    """Returns the local data, without labels if they have none and the method needs none."""
    reading = reading | {"scoring": SCORING}

    def explain() -> str:  # walks the folder, so it is asked only where the answer matters
        return explain_unlabelled(foreign_config(run, on, reading["class_map"], reading["settings"], SCORING))

    if method == "prior" and (reason := explain()):
        say(reason)
        reading["settings"] += ("data.unlabelled=true",)
    try:
        return read_foreign(run, on, internal, **reading)
    except DataError as error:
        if method == "labels" and explain():
            raise DataError(f"{error} {ONLY_PRIOR}") from None
        raise


def _check_unlabelled(foreign: Foreign, on, method: str, fit_fraction: float | None) -> None:
    """Raises DataError or ConfigError unless a run can be recalibrated with pictures without labels."""
    judging = foreign.judging
    if method == "labels":
        raise DataError(f"None of the {len(judging):,} pictures in {on} has a known label. {ONLY_PRIOR}")
    if fit_fraction is not None:
        raise ConfigError(
            "fit_fraction leaves pictures to check on, which needs labels; without labels all are fitted to. Leave it "
            f"out. Received: {fit_fraction}."
        )
    if (num_groups := judging.rows["cluster"].nunique()) < FEW_CLUSTERS:
        raise DataError(
            f"Shares that are found in fewer than {FEW_CLUSTERS} groups of pictures are mostly chance, and without "
            f"labels nothing would show it. Received: {len(judging):,} pictures of {num_groups} groups in {on}. Add "
            "pictures of others."
        )


def _fit_labels(sample: Predictions, home: Fitted, config, seed: int) -> tuple[Fitted, dict]:
    """Returns (what is fitted to labels, the attributes of Recalibration that say more of it)."""
    fit, check, few = sample.split("val"), sample.split("test"), few_labels(sample.split("val"))
    local = fit_labels(fit, home, config.evaluate, config.data.not_findings)
    kept = () if fit.task.exclusive else tuple(np.array(fit.class_names, dtype=object)[few])
    curve = learning_curve(fit, check, home.calibration, lambda part: fit_calibration(part, home.calibration), seed)
    return local, {"shares": None, "kept": kept, "curve": curve}


def _fit_prior(sample: Predictions, home: Fitted, at_home: np.ndarray, bootstrap: Bootstrap) -> tuple[Fitted, dict]:
    """Returns (what is fitted without labels, the attributes of Recalibration that say more of it)."""
    local, found, used = fit_shares(sample.split("val"), home, at_home, bootstrap)
    kept = tuple(np.array(sample.class_names, dtype=object)[~used])
    shares = {"home": at_home, "found": found}
    if not np.isnan(sample.labels).all():
        shares["true"] = known_shares(sample.labels)
    return local, {"shares": shares, "kept": kept, "curve": None}


def _find_doubts(run: Run, sample: Predictions, found: np.ndarray, kept: tuple[str, ...]) -> tuple[str, ...]:
    """Returns reasons not to trust the shares (K,) that were found without labels."""
    source, doubts = scored_run(run), []
    metrics = source.read_json(source.metrics)
    verdict = metrics[judged_split(metrics)]["verdict"]
    if not verdict["learnt"]:
        doubts.append(f"At home: {verdict['sentence']} Shares that such a model finds mean nothing: do not use them.")
    none = found * len(sample) < 1
    absent = [name for name, gone in zip(sample.class_names, none, strict=True) if gone and name not in kept]
    if absent:
        doubts.append(
            f"By the shares found, none of these pictures shows {', '.join(absent)}. If one does, do not use this run."
        )
    return tuple(doubts)


def home_shares(run: Run, own: Predictions) -> np.ndarray:
    """Returns (K,), the shares that a run's calibration is for: of its validation labels, else of those in training.

    Of a run that was recalibrated without labels they are those that were found.
    """
    if without_labels(run):
        record = run.read_json(run.recalibration)
        kinds = {name: "home" if name in record["kept"] else "found" for name in own.class_names}
        return np.array([record["shares"][kind][name] for name, kind in kinds.items()])
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
    recalibration.foreign.seen.write(run.folder)
    prior = Prior.from_dict(source.read_json(source.metrics)["training"])
    stored = {"novelty": _novelty(recalibration, config)} if recalibration.flagged is not None else {}
    if not recalibration.labelled:
        _write_unscored(run, recalibration, prior, stored, out)
        return
    assessments = write_scores(run, config, recalibration.predictions, prior, recalibration.local, stored)
    write_json(run.recalibration, stamped(recalibration.to_dict(out)))
    write_text(run.summary, read_text(run.summary) + "\n" + describe(recalibration))
    write_frame(run.result, pd.DataFrame([_row(recalibration, assessments["test"])]))
    write_figures(run, assessments)


def _write_unscored(run: Run, recalibration: Recalibration, prior: Prior, stored: dict, out: pathlib.Path) -> None:
    """Writes what is known of a run without labels: no scores, and therefore no result.csv and no figures."""
    write_json(run.fitted, stamped(recalibration.local.to_dict()))
    write_json(run.metrics, stamped({"training": prior.to_dict(), **stored, "without_labels": True}))
    write_json(run.recalibration, stamped(recalibration.to_dict(out)))
    write_text(run.summary, describe(recalibration) + describe_flagged(stored.get("novelty")))


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
    for split in ("val", "test") if recalibration.labelled else ("val",):
        part = (rows["split"] == split).to_numpy()
        found[split] = false_alarms(flagged[part], rows["cluster"].to_numpy()[part], bootstrap).to_dict()
    return found


def _row(recalibration: Recalibration, assessment) -> dict:
    """Returns result.csv: the source's row with the local scores."""
    own = {"data": recalibration.foreign.table.name, "split": "test", "command": runtime.command_line()}
    return with_scores(scored_run(recalibration.source).read_result(LAST), score_columns(assessment), **own)
