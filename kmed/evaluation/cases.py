"""Scores per case beside scores per picture: the pictures of a photograph, study or patient give one answer."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd

from kmed.data.readers.groups import in_several_groups
from kmed.errors import ConfigError, ScoreError, suggest
from kmed.evaluation.predictions import Predictions
from kmed.evaluation.subgroups import CASE_ROWS, case_values, choose_columns, subgroup_values
from kmed.metrics.baselines import Prior, constant_scores
from kmed.metrics.calibration import Calibration
from kmed.metrics.cases import choose_pooling, pool_labels, pool_probs
from kmed.metrics.intervals import MIN_CLUSTERS, Bootstrap, Score
from kmed.metrics.scores import Scores
from kmed.metrics.thresholds import Thresholds
from kmed.progress import say
from kmed.schemas.tables import CASE


@dataclasses.dataclass(frozen=True)
class CaseRule:
    """How pictures become cases; fitted on the validation split.

    Attributes:
      by: "cluster", "group", or a column of the data.
      pooling: one of `kmed.metrics.cases.POOLINGS`.
      tried: pooling -> macro AUROC of the findings over validation cases; {} where there was nothing to choose.
      thresholds: those of the pooled probabilities, chosen on validation cases; None if none were chosen.
    """

    by: str
    pooling: str
    tried: dict[str, float]
    thresholds: Thresholds | None = None

    def to_dict(self) -> dict:
        """Returns the fields, for `kmed.files.write_json`."""
        chosen = {} if self.thresholds is None else {"thresholds": self.thresholds.to_dict()}
        return {"by": self.by, "pooling": self.pooling, "tried": self.tried, **chosen}

    def sentence(self, num_pictures: int, num_cases: int, num_mixed: int) -> str:
        """Returns how many pictures were pooled, how, and how many cases were left out."""
        how = {"mean": "the mean", "largest": "the largest (for 'No Finding' the smallest)"}[self.pooling]
        why = ", which ranks the validation cases better" if len(self.tried) > 1 else ""
        left_out = f" {num_mixed} are left out, because their pictures have different classes." if num_mixed else ""
        return (
            f"{num_pictures} pictures of {num_cases + num_mixed} cases ({self.by}): the answer for a case is {how} of "
            f"its pictures' calibrated logits{why}.{left_out}"
        )

    @classmethod
    def from_dict(cls, fields: dict, class_names) -> "CaseRule":
        """Returns the CaseRule whose `to_dict` gave `fields`. Raises ScoreError if it was fitted for other labels."""
        chosen = fields.get("thresholds")
        thresholds = None if chosen is None else Thresholds.from_dict(chosen, class_names)
        return cls(fields["by"], fields["pooling"], fields["tried"], thresholds)


@dataclasses.dataclass(frozen=True)
class CaseScores:
    """The scores of a split per case.

    Attributes:
      rule: the CaseRule.
      scores: the Scores over cases; `num_images` counts cases.
      constants: name -> Scores of the constant predictors over the same cases.
      by_count: name -> Score of a ranking by the number of pictures alone: who is ill has more of them. {} for classes.
      num_pictures: how many pictures were pooled.
      mixed: names of the cases that are left out, because their pictures have different classes.
    """

    rule: CaseRule
    scores: Scores
    constants: dict[str, Scores]
    by_count: dict[str, Score]
    num_pictures: int
    mixed: tuple[str, ...]

    def to_dict(self) -> dict:
        """Returns the fields, for `kmed.files.write_json`."""
        parts = {name: scores.overall() for name, scores in self.constants.items()}
        by_count = {name: score.to_dict() for name, score in self.by_count.items()}
        more = {"by_count": by_count, "num_pictures": self.num_pictures, "mixed": list(self.mixed), "constants": parts}
        pooled = dataclasses.replace(self.rule, thresholds=None).to_dict()
        return pooled | self.scores.overall() | more


def case_names(rows: pd.DataFrame, by: str) -> np.ndarray:
    """Returns (N,), the case of each row of predictions. Raises ConfigError if they do not hold the column."""
    column = by if by in CASE_ROWS else f"{CASE}{by}"
    if column not in rows.columns:
        held = [*CASE_ROWS, *(name.removeprefix(CASE) for name in rows.columns if name.startswith(CASE))]
        raise ConfigError(
            f"evaluate.case is {by!r}, but the stored predictions can be pooled by {' or '.join(held)}."
            + suggest(by, held)
        )
    return rows[column].to_numpy()


def check_columns(rows: pd.DataFrame, settings) -> None:
    """Raises ConfigError or ScoreError if the data lack what `evaluate` names. Checked before hours of training.

    Args:
      rows: those of a kmed.data.table.Table.
      settings: kmed.config.EvaluateConfig.
    """
    subgroup_values(rows, choose_columns(rows, settings.subgroups))
    if settings.case is not None:
        check_inside_groups(
            pd.concat([rows[["cluster", "group"]], case_values(rows, settings.case)], axis=1), settings.case
        )


def fit_cases(
    validation: Predictions, calibration: Calibration, by: str, choose: Callable[[Predictions], Thresholds]
) -> CaseRule:
    """Returns the CaseRule of the validation split.

    Args:
      validation: the predictions of that split.
      calibration: that of the run.
      by: "cluster", "group" or a column.
      choose: function that chooses thresholds on predictions for cases.
    Raises: ConfigError: the predictions do not hold the column. ScoreError: a case lies in several groups.
    """
    index = np.unique(case_names(validation.rows, by), return_inverse=True)[1]
    check_inside_groups(validation.rows, by)
    arrays = (validation.labels, calibration.apply(validation.probs), index, validation.class_names)
    rule = CaseRule(by, *choose_pooling(*arrays, exclusive=validation.task.exclusive))
    kept = _known_cases(*pool_cases(validation, calibration, rule))
    return dataclasses.replace(rule, thresholds=choose(kept)) if len(kept) else rule


def _known_cases(cases: Predictions, mixed: np.ndarray) -> Predictions:
    """Returns the cases that can be judged, of the two things that `pool_cases` returned."""
    return cases.take(~mixed & ~np.isnan(cases.labels).all(axis=1))


def check_inside_groups(rows: pd.DataFrame, by: str) -> None:
    """Raises ScoreError if a case lies in several groups, which a split may have cut."""
    if wide := in_several_groups(rows, case_names(rows, by)):
        raise ScoreError(
            f"A case must lie inside one group, but {len(wide)} of evaluate.case={by} lie in several, such as "
            f"{wide[0]!r}. Group the data by this column (data.group), or give a finer case."
        )


def pool_cases(predictions: Predictions, calibration: Calibration, rule: CaseRule) -> tuple[Predictions, np.ndarray]:
    """Returns (one row per case, with calibrated probabilities; bool (C,), which have pictures of several classes).

    A case is resampled with its cluster if each case lies inside one, and else with its group.
    """
    task, names = predictions.task, predictions.class_names
    cases, first, index = np.unique(case_names(predictions.rows, rule.by), return_index=True, return_inverse=True)
    check_inside_groups(predictions.rows, rule.by)
    rows = predictions.rows.iloc[first].reset_index(drop=True)[["path", "split", "group", "cluster"]]
    rows["path"] = cases
    if pd.Series(predictions.rows["cluster"].to_numpy()).groupby(index).nunique().max() > 1:
        rows["cluster"] = rows["group"]
    labels = pool_labels(predictions.labels, index, names, exclusive=task.exclusive)
    calibrated = calibration.apply(predictions.probs)
    probs = pool_probs(calibrated, index, names, rule.pooling, exclusive=task.exclusive)
    mixed = np.isnan(labels).all(axis=1) if task.exclusive else np.zeros(len(labels), bool)
    return Predictions(rows, labels, probs, names, task), mixed


def score_cases(
    predictions: Predictions, calibration: Calibration, rule: CaseRule, prior: Prior, bootstrap: Bootstrap
) -> CaseScores | None:
    """Returns the CaseScores of a split; None if its cases lie in fewer than two clusters.

    Args:
      predictions: those of the split, and no others.
      calibration: that of the run.
      rule: from `fit_cases`.
      prior: the Prior of the training labels.
      bootstrap: the settings of the intervals.
    """
    cases, mixed = pool_cases(predictions, calibration, rule)
    kept = _known_cases(cases, mixed)
    if (num_clusters := len(set(kept.clusters))) < MIN_CLUSTERS:
        left_out = f"; {mixed.sum()} are left out, because their pictures have different classes" if mixed.any() else ""
        say(
            f"There are no scores per case ({rule.by}): {len(kept)} cases of {num_clusters} cluster(s) are too few"
            f"{left_out}."
        )
        return None
    arrays = (kept.labels, kept.clusters, kept.class_names)
    thresholds, task = rule.thresholds, kept.task
    decided = None if thresholds is None else thresholds.decide(task.decode, kept.probs)
    scores = task.score(kept.labels, kept.probs, kept.clusters, kept.class_names, decided=decided, bootstrap=bootstrap)
    constants = constant_scores(kept.task, prior, *arrays, bootstrap)
    by_count = _rank_by_count(kept, case_names(predictions.rows, rule.by), bootstrap)
    return CaseScores(rule, scores, constants, by_count, len(predictions), tuple(cases.rows["path"][mixed]))


def _rank_by_count(cases: Predictions, names: np.ndarray, bootstrap: Bootstrap) -> dict[str, Score]:
    """Returns the AUROCs of findings if cases are ranked by their number of pictures; `names` is the case of each."""
    if cases.task.exclusive:
        return {}
    counts = pd.Series(names).value_counts()[cases.rows["path"]].to_numpy()
    probs = np.tile((counts / (counts + 1))[:, None], (1, len(cases.class_names)))
    ranked = cases.task.score(cases.labels, probs, cases.clusters, cases.class_names, bootstrap=bootstrap)
    return {name: score for name, score in ranked.scores.items() if name.startswith("auroc")}
