"""The results of a cross-validation: every picture judged by a run that was not trained on it, scored together."""

import dataclasses

import numpy as np
import pandas as pd

from kmed.errors import RunError, shorten
from kmed.evaluation.assessment import Assessment, assess
from kmed.evaluation.cases import CaseRule, CaseScores, case_names, score_cases
from kmed.evaluation.decisions import fit_on_validation, read_fitted
from kmed.evaluation.predictions import Predictions, stored_predictions
from kmed.evaluation.result_rows import in_order, score_columns
from kmed.evaluation.summary import aligned, describe_assessment, number
from kmed.files import write_frame, write_json, write_text
from kmed.metrics.baselines import Prior, count_prior
from kmed.metrics.calibration import Calibration
from kmed.metrics.cases import POOLINGS
from kmed.metrics.intervals import Bootstrap
from kmed.metrics.scores import Scores
from kmed.runs import Run, write_classes
from kmed.schemas.records import stamped
from kmed.schemas.tables import CASE
from kmed.tasks import Task

SPREAD = ("mean", "std", "min", "max")  # over the folds; columns of result.csv are NAME_folds_mean, ...


@dataclasses.dataclass(frozen=True)
class Part:
    """One run of a cross-validation.

    Attributes:
      repeat: which drawing of the folds, from 0.
      fold: which fold the run judges, from 0.
      run: its folder.
    """

    repeat: int
    fold: int
    run: Run


def part_name(repeat: int, fold: int, repeats: int) -> str:
    """Returns the name of the folder of a run, in that of its cross-validation."""
    return f"fold{fold}" if repeats == 1 else f"repeat{repeat}-fold{fold}"


def write_pooled(pooled: Run, parts: list[Part], split: str, config) -> Assessment:
    """Writes the results of a cross-validation from those of its runs, and returns the Assessment of all pictures.

    The names and columns of the files are those of a run: classes.json, config.yaml, predictions.csv, metrics.json,
    history.csv (means over the runs), summary.txt and, last, result.csv. fold_scores.csv has the scores of each run.
    Scores of calibrated probabilities and tuned thresholds are those of `score_pooled`. There is no calibration.json,
    since each run has its own; scores per case use those calibrations.

    Args:
      pooled: the folder to write to; it has environment.json.
      parts: the finished runs, repeat by repeat.
      split: the split in which each run judges its fold, "val" or "test".
      config: kmed.config.Config that the runs share.
    Raises: RunError: a run lacks predictions, or two of one repeat judge the same picture.
    """
    predictions = pool(parts, split)
    first = predictions.take((predictions.rows["repeat"] == "0").to_numpy())
    prior = count_prior(first.labels, first.class_names, first.rows["group"].nunique())
    config.write(pooled.config)
    write_classes(pooled, config, predictions.class_names)
    bootstrap = Bootstrap.from_config(config)
    cases = score_pooled_cases(pooled, predictions, prior, bootstrap)
    scores = score_pooled(predictions, config, bootstrap)
    assessment = dataclasses.replace(assess(predictions, prior, bootstrap), scores=scores, cases=cases)
    table = fold_scores(parts, split, assessment)
    write_frame(pooled.predictions, predictions.to_frame())
    write_frame(pooled.folder / "fold_scores.csv", table)
    write_frame(pooled.history, mean_history([part.run for part in parts]))
    write_json(pooled.metrics, stamped(metrics_of(prior, split, assessment)))
    write_text(pooled.summary, describe(assessment, split, table))
    write_frame(pooled.result, pd.DataFrame([pooled_row(pooled, parts, split, assessment, table)]))
    return assessment


def pool(parts: list[Part], split: str) -> Predictions:
    """Returns the predictions of all runs for the pictures of `split`, with the columns repeat and fold.

    Raises: RunError: a run lacks them, the runs differ in their classes, or two of one repeat judge the same picture.
    """
    found = []
    for part in parts:
        own = stored_predictions(part.run).split(split)
        if not len(own):
            raise RunError(f"{part.run.predictions} holds no predictions of split {split!r}. Remove its folder.")
        rows = own.rows.assign(repeat=str(part.repeat), fold=str(part.fold))
        found.append(dataclasses.replace(own, rows=rows))
        if own.class_names != found[0].class_names:
            raise RunError(
                f"{part.run.folder} has the classes {shorten(list(own.class_names))}, but {parts[0].run.folder} has "
                f"{shorten(list(found[0].class_names))}. Start anew in another --out."
            )
    rows = pd.concat([each.rows for each in found], ignore_index=True).fillna("")
    twice = rows.duplicated(["repeat", "path"]).to_numpy()
    if twice.any():
        path = rows["path"].iloc[twice.argmax()]
        raise RunError(
            f"Two runs of one repeat judge {shorten(path)}: their folds overlap. Start anew in another --out."
        )
    labels = np.concatenate([each.labels for each in found])
    probs = np.concatenate([each.probs for each in found])
    return Predictions(rows, labels, probs, found[0].class_names, found[0].task)


def score_pooled(predictions: Predictions, config, bootstrap: Bootstrap) -> Scores:
    """Returns the Scores of a cross-validation, with those of calibrated probabilities and of tuned thresholds.

    Calibration and thresholds of each fold are fitted to the out-of-fold predictions of the others, so that no picture
    is judged by what was fitted to it, or to others of its group.

    Args:
      predictions: those of all folds.
      config: kmed.config.Config.
      bootstrap: the settings of the intervals.
    """
    settings = config.evaluate.model_copy(update={"case": None})
    calibrated, decided = np.empty_like(predictions.probs), np.empty(predictions.probs.shape, np.uint8)
    for _, repeat in predictions.rows.groupby("repeat"):
        for _, part in repeat.groupby("fold"):
            others = predictions.take(np.isin(predictions.rows.index, repeat.index.difference(part.index)))
            fitted, probs = fit_on_validation(others, settings, config.data.not_findings), predictions.probs[part.index]
            calibrated[part.index] = fitted.calibration.apply(probs)
            decided[part.index] = fitted.thresholds.decide(predictions.task.decode, probs)
    arrays = (predictions.labels, predictions.probs, predictions.clusters, predictions.class_names)
    return predictions.task.score(*arrays, decided=decided, calibrated=calibrated, bootstrap=bootstrap)


def score_pooled_cases(pooled: Run, predictions: Predictions, prior: Prior, bootstrap: Bootstrap) -> CaseScores | None:
    """Returns the CaseScores of a cross-validation, or None if its settings name no case.

    Each picture is calibrated as its run calibrates, and pooled as most runs have chosen on their validation pictures.
    A case that several repeats judge is a case in each of them: their mean would be the score of an ensemble.

    Args:
      pooled: the folder, with its settings and runs.
      predictions: all of its predictions.
      prior, bootstrap: as for `kmed.evaluation.cases.score_cases`.
    """
    by = pooled.read_config().evaluate.case
    if by is None:
        return None
    rows, names, exclusive = predictions.rows, predictions.class_names, predictions.task.exclusive
    repeats = rows["repeat"].nunique()
    probs, chosen = np.empty_like(predictions.probs), []
    for (repeat, fold), part in rows.groupby(["repeat", "fold"]):
        fitted = read_fitted(Run(pooled.folder / part_name(int(repeat), int(fold), repeats)))
        probs[part.index] = fitted.calibration.apply(predictions.probs[part.index])
        chosen += [fitted.cases.pooling] if fitted.cases is not None else []
    if repeats > 1:
        each = f"{by} in each repeat"
        rows = rows.assign(**{f"{CASE}{each}": case_names(rows, by) + ", repeat " + rows["repeat"]})
        by = each
    pooling = max(POOLINGS, key=chosen.count)  # the mean, if both are chosen equally often
    plain = Calibration("temperature" if exclusive else "platt", names, 1.0, (1.0,) * len(names), (0.0,) * len(names))
    calibrated = dataclasses.replace(predictions, rows=rows, probs=probs)
    return score_cases(calibrated, plain, CaseRule(by, pooling, {}), prior, bootstrap)


def spread_scores(task: Task) -> tuple[str, ...]:
    """Returns the names of the scores whose spread between the folds is reported."""
    return tuple(dict.fromkeys([*task.paired_scores, *task.study_scores]))


def fold_scores(parts: list[Part], split: str, assessment: Assessment) -> pd.DataFrame:
    """Returns one row per run: repeat, fold, pictures, clusters, best epoch, minutes, each score and its interval."""
    rows = []
    for part in parts:
        scored, row = part.run.read_json(part.run.metrics)[split], part.run.read_result(["best_epoch", "minutes"])
        described = {
            "repeat": part.repeat,
            "fold": part.fold,
            "pictures": scored["num_images"],
            "clusters": scored["num_clusters"],
            "best_epoch": int(float(row["best_epoch"])),
            "minutes": float(row["minutes"]),
        }
        for name in assessment.task.make_scores():
            score = scored["scores"][name]
            described |= {name: score["value"], f"{name}_low": score["low"], f"{name}_high": score["high"]}
        rows.append(described)
    return pd.DataFrame(rows)


def spread(table: pd.DataFrame, task: Task) -> dict[str, float]:
    """Returns {NAME_folds_mean, NAME_folds_std, ...}: how the scores of the runs differ; NaN for fewer than two."""
    columns = {}
    for name in spread_scores(task):
        values = pd.to_numeric(table[name]).dropna()
        for kind in SPREAD:
            columns[f"{name}_folds_{kind}"] = getattr(values, kind)() if len(values) > 1 else np.nan
    return columns


def mean_history(runs: list[Run]) -> pd.DataFrame:
    """Returns a history.csv of the means over the runs, of the epochs that all of them have."""
    histories = [run.read_history() for run in runs]
    length = min(map(len, histories))
    means = sum(history.head(length).drop(columns="epoch") for history in histories) / len(histories)
    means.insert(0, "epoch", np.arange(1, length + 1))
    return means


def metrics_of(prior: Prior, split: str, assessment: Assessment) -> dict:
    """Returns the content of metrics.json: the counts of all labels, and the scores of all pictures."""
    return {"training": prior.to_dict(), split: {"task": assessment.task.name, **assessment.to_dict()}}


def describe(assessment: Assessment, split: str, table: pd.DataFrame) -> str:
    """Returns summary.txt: the scores of all pictures together, then the spread between the folds."""
    repeats = table["repeat"].nunique()
    pictures = f"{assessment.scores.num_images:,} out-of-fold predictions" + (f" in {repeats} repeats" * (repeats > 1))
    lines = [describe_assessment(assessment, split, pictures=pictures).rstrip("\n"), ""]
    columns = spread(table, assessment.task)
    rows: list[tuple[str, ...]] = [("score of each fold", *SPREAD)]
    for name in spread_scores(assessment.task):
        rows.append((name, *(number(columns[f"{name}_folds_{kind}"]) for kind in SPREAD)))
    lines += aligned(rows)
    lines += ["", fitted_on_others()]
    return "\n".join([*lines, *([] if split == "test" else ["", chosen_on_fold()])]) + "\n"


def fitted_on_others() -> str:
    """Returns what the calibration and the thresholds of a cross-validation were fitted to."""
    return (
        "Calibration and tuned thresholds of each fold were fitted to the out-of-fold predictions of the other folds."
    )


def chosen_on_fold() -> str:
    """Returns what is to be known of folds that are also validation splits."""
    return (
        "Each run's best epoch was chosen on the fold that it judges, so these scores are slightly too high; the test "
        "split, which no run has seen, is for the final score."
    )


def pooled_row(pooled: Run, parts: list[Part], split: str, assessment: Assessment, table: pd.DataFrame) -> dict:
    """Returns the cross-validation as one row of a results table; counts and minutes are sums over the runs."""
    rows = [part.run.read_result(["images_seen", "minutes", "best_epoch"]) for part in parts]
    environment = pooled.read_json(pooled.environment)
    kept = ("model", "task", "data", "image_size", "parameters")
    others = {
        **{name: rows[0][name] for name in kept},
        "split": split,
        "folds": len({part.fold for part in parts}),
        "repeats": len({part.repeat for part in parts}),
        "epochs": max(int(row["epochs"]) for row in rows),
        "best_epoch": round(float(np.median(table["best_epoch"]))),
        "images_seen": sum(int(float(row["images_seen"])) for row in rows),
        "seed": pooled.read_config().seed,
        "minutes": round(float(table["minutes"].sum()), 1),
        "device": environment["device"],
        "versions": rows[0]["versions"],
        "command": environment["command"],
    }
    return in_order(others, score_columns(assessment) | spread(table, assessment.task))
