"""The assessment of a split: its scores beside those of constant predictors, by subgroup, and a verdict."""

import dataclasses

import numpy as np

from kmed.evaluation.cases import CaseScores, score_cases
from kmed.evaluation.decisions import Fitted
from kmed.evaluation.predictions import Predictions
from kmed.metrics.baselines import Prior, Verdict, constant_scores, judge_against_constants
from kmed.metrics.intervals import MIN_CLUSTERS, Bootstrap, check_clusters
from kmed.metrics.scores import Scores
from kmed.metrics.selective import PredictionSets, RiskCoverage, confidence, prediction_sets, risk_coverage
from kmed.metrics.whole_decisions import DecisionScore, score_decisions
from kmed.tasks import Task


@dataclasses.dataclass(frozen=True)
class Assessment:
    """Everything that is known about the predictions of one split.

    Attributes:
      task: kmed.tasks.Task.
      scores: the model's Scores.
      constants: name -> Scores, of the constant predictors.
      verdict: whether the model is better than the constant predictors.
      decision: whether whole decisions are better than the best constant answer; None if each label is decided for
        itself, and on the split that they were fitted on.
      risk: the model's risk-coverage curve.
      sets: the model's prediction sets; None on the split they were fitted on.
      subgroups: column -> value -> Scores; values that lie in fewer than two clusters are left out.
      too_small: "column = value" for each value left out.
      cases: the scores per case; None unless `evaluate.case` is set, and on the split that cases were chosen on.
    """

    task: Task
    scores: Scores
    constants: dict[str, Scores]
    verdict: Verdict
    decision: DecisionScore | None
    risk: RiskCoverage
    sets: PredictionSets | None
    subgroups: dict[str, dict[str, Scores]]
    too_small: tuple[str, ...]
    cases: CaseScores | None = None

    def to_dict(self) -> dict:
        """Returns everything as a dict, for `kmed.files.write_json`."""
        return {
            **self.scores.to_dict(),
            "constants": {name: scores.overall() for name, scores in self.constants.items()},
            "verdict": self.verdict.to_dict(),
            **({} if self.decision is None else {"decision": self.decision.to_dict()}),
            "risk_coverage": self.risk.to_dict(),
            "prediction_sets": self.sets and self.sets.to_dict(),
            "subgroups": {
                column: {value: scores.overall() for value, scores in values.items()}
                for column, values in self.subgroups.items()
            },
            "subgroups_too_small": list(self.too_small),
            **({} if self.cases is None else {"cases": self.cases.to_dict()}),
        }


def assess(predictions: Predictions, prior: Prior, bootstrap: Bootstrap, fitted: Fitted | None = None) -> Assessment:
    """Returns the Assessment of a split.

    Args:
      predictions: those of the split, and no others.
      prior: the Prior of the training labels.
      bootstrap: the settings of the intervals.
      fitted: what was fitted on another split; None on that split itself, where tuned scores would flatter.
    Raises: ScoreError: no images, or fewer than two clusters.
    """
    check_clusters(predictions.clusters)
    task, names = predictions.task, predictions.class_names
    scores = score_predictions(predictions, fitted, bootstrap)
    constants = score_constants(predictions, prior, bootstrap)
    known = ~np.isnan(predictions.labels).all(axis=1)
    kept = predictions.take(known)
    wrong = (~np.isnan(kept.labels) & (kept.decided() != (kept.labels == 1))).any(axis=1)
    sets = decision = None
    if fitted is not None:
        decided = fitted.thresholds.decide(task.decode, kept.probs)
        decision = score_decisions(fitted.thresholds, decided, kept.labels, scores.resamples)
        sets = prediction_sets(kept.labels, kept.probs, fitted.set_thresholds, names, fitted.coverage, scores.resamples)
    subgroups, too_small = _subgroups(predictions, fitted, bootstrap)
    return Assessment(
        task=task,
        scores=scores,
        constants=constants,
        verdict=judge_against_constants(task, scores, constants, predictions.probs),
        decision=decision,
        risk=risk_coverage(wrong, confidence(kept.probs, exclusive=task.exclusive), scores.resamples),
        sets=sets,
        subgroups=subgroups,
        too_small=too_small,
        cases=_cases(predictions, prior, bootstrap, fitted),
    )


def _cases(predictions, prior, bootstrap, fitted) -> CaseScores | None:
    if fitted is None or fitted.cases is None:
        return None
    return score_cases(predictions, fitted.calibration, fitted.cases, prior, bootstrap)


def score_predictions(predictions: Predictions, fitted: Fitted | None, bootstrap: Bootstrap) -> Scores:
    """Returns the Scores of predictions; `fitted` adds those with tuned thresholds and calibrated probabilities."""
    more = {}
    if fitted is not None:
        more = {
            "decided": fitted.thresholds.decide(predictions.task.decode, predictions.probs),
            "calibrated": fitted.calibration.apply(predictions.probs),
        }
    arrays = (predictions.labels, predictions.probs, predictions.clusters, predictions.class_names)
    return predictions.task.score(*arrays, **more, bootstrap=bootstrap)


def score_constants(predictions: Predictions, prior: Prior, bootstrap: Bootstrap) -> dict[str, Scores]:
    """Returns name -> Scores of the constant predictors on the same images."""
    arrays = (predictions.labels, predictions.clusters, predictions.class_names)
    return constant_scores(predictions.task, prior, *arrays, bootstrap)


def _subgroups(predictions, fitted, bootstrap):
    scored, too_small = {}, []
    for column, values in predictions.subgroups.items():
        scored[column] = {}
        for value in sorted(set(values)):
            part = predictions.take(values == value)
            part = part.take(~np.isnan(part.labels).all(axis=1))
            if len(set(part.clusters)) < MIN_CLUSTERS:
                too_small.append(f"{column} = {value}")
            else:
                scored[column][value] = score_predictions(part, fitted, bootstrap)
    return scored, tuple(too_small)
