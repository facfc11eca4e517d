"""Decisions from probabilities: calibration, thresholds and prediction sets, fitted on the validation split."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from kmed.data.readers.source import NOT_FINDINGS
from kmed.evaluation.cases import CaseRule, fit_cases
from kmed.evaluation.predictions import Predictions
from kmed.metrics.calibration import Calibration
from kmed.metrics.objectives import OBJECTIVES
from kmed.metrics.selective import conformal_thresholds
from kmed.metrics.thresholds import Choice, Thresholds, choose_thresholds
from kmed.metrics.whole_decisions import choose_whole_decisions
from kmed.runs import Run
from kmed.tasks import Task, get_task


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What was fitted on the validation split; it belongs to the model from then on, as the weights do.

    Attributes:
      calibration: the Calibration of the probabilities.
      thresholds: one per label.
      set_thresholds: (K,), those of the conformal prediction sets.
      coverage: the share of true labels that the prediction sets are meant to contain.
      cases: how pictures are pooled into cases; None unless `evaluate.case` is set.
    """

    calibration: Calibration
    thresholds: Thresholds
    set_thresholds: np.ndarray
    coverage: float
    cases: CaseRule | None = None

    def to_dict(self) -> dict:
        """Returns everything as a dict, for `kmed.files.write_json`."""
        names = self.calibration.class_names
        sets = {"coverage": self.coverage, "values": dict(zip(names, self.set_thresholds.tolist()))}
        return {
            "calibration": self.calibration.to_dict(),
            "thresholds": self.thresholds.to_dict(),
            "prediction_sets": sets,
            **({} if self.cases is None else {"cases": self.cases.to_dict()}),
        }

    @classmethod
    def from_dict(cls, fields: dict, class_names) -> "Fitted":
        """Returns the Fitted that `to_dict` was called on. Raises ScoreError if it was fitted for other labels."""
        sets = fields["prediction_sets"]
        thresholds = Thresholds.from_dict(fields["thresholds"], class_names)
        calibration = Calibration.from_dict(fields["calibration"], class_names)
        values = np.array([sets["values"][name] for name in class_names])
        cases = CaseRule.from_dict(fields["cases"], class_names) if fields.get("cases") else None
        return cls(calibration, thresholds, values, sets["coverage"], cases)


def fit_on_validation(validation: Predictions, settings, not_findings=NOT_FINDINGS) -> Fitted:
    """Returns calibration, thresholds, prediction sets and how cases are pooled, all fitted on the validation split.

    Args:
      validation: the predictions of that split.
      settings: kmed.config.EvaluateConfig.
      not_findings: labels that may stand beside "No Finding"; the setting of that name in `data`.
    """
    task, names = validation.task, validation.class_names
    labels, probs = validation.labels, validation.probs
    calibration = task.fit_calibration(labels, probs, names)
    choose = functools.partial(_choose_thresholds, settings=settings, not_findings=not_findings)
    by = settings.case
    return Fitted(
        calibration=calibration,
        thresholds=choose(validation, constant=calibration.constant),
        set_thresholds=conformal_thresholds(labels, probs, settings.coverage, exclusive=task.exclusive),
        coverage=settings.coverage,
        cases=None
        if by is None
        else fit_cases(validation, calibration, by, functools.partial(_choose_of_cases, choose)),
    )


def _choose_of_cases(choose: Callable, cases: Predictions) -> Thresholds:
    """Returns the Thresholds for cases, whose probabilities are calibrated."""
    thresholds = choose(cases)
    if (choice := thresholds.choice) is None:
        return thresholds
    return dataclasses.replace(
        thresholds, choice=dataclasses.replace(choice, score=choice.score.replace("picture", "case"))
    )


def _choose_thresholds(predictions: Predictions, settings, not_findings, constant=False) -> Thresholds:
    """Returns Thresholds by the rule of the settings.

    By whole decisions, a label that calibration makes constant is found in all images or in none: a model in use gives
    calibrated probabilities, which do not rank the images by such a label.

    Args:
      predictions: those of the validation split.
      settings: kmed.config.EvaluateConfig.
      not_findings: labels that may stand beside "No Finding".
      constant: bool (K,), the labels that calibration makes constant.
    """
    labels, probs, names = predictions.labels, predictions.probs, predictions.class_names
    if settings.thresholds not in OBJECTIVES:
        return choose_thresholds(labels, probs, names, settings.thresholds, settings.sensitivity)
    thresholds = choose_whole_decisions(
        labels,
        np.where(constant, 0.0, probs),
        predictions.rows["group"].to_numpy(),
        names,
        settings.thresholds,
        decode=predictions.task.decode,
        exclusive=predictions.task.exclusive,
        not_findings=not_findings,
        costs=(settings.cost_missed, settings.cost_false),
    )
    values = np.where(constant & (np.array(thresholds.values) > 0), 1.0, thresholds.values)
    return dataclasses.replace(thresholds, values=tuple(values.tolist()))


@dataclasses.dataclass(frozen=True)
class DecisionRule:
    """How the calibrated probabilities of an image become decisions.

    Attributes:
      task: the run's task.
      class_names: the run's K class names.
      thresholds: (K,), the calibrated probability from which a finding is reported; None for exclusive classes,
        where the most probable class is reported.
      chosen: the run's Thresholds, which also know which labels exclude each other.
      calibration: the run's Calibration, undone to find prediction sets.
      set_thresholds: (K,), those of the conformal prediction sets, for probabilities before calibration.
    """

    task: Task
    class_names: tuple[str, ...]
    thresholds: np.ndarray | None
    chosen: Thresholds
    calibration: Calibration
    set_thresholds: np.ndarray

    @property
    def constant(self) -> Choice | None:
        """The Choice of one answer for every image, since no thresholds were better; None if thresholds decide."""
        choice = None if self.thresholds is None else self.chosen.choice
        return choice if choice is not None and choice.chosen == "constant" else None

    def decide(self, calibrated: np.ndarray) -> np.ndarray:
        """Returns uint8 (N, K), 1 where a class is reported."""
        if self.thresholds is None:
            return self.task.decode(calibrated)
        return self.chosen.decide(self.task.decode, calibrated, self.thresholds)

    def prediction_sets(self, calibrated: np.ndarray) -> np.ndarray:
        """Returns uint8 (N, K), the classes in each image's conformal prediction set.

        A label that calibration makes constant is in every set, since it can never be excluded.
        """
        inside = self.calibration.invert(calibrated) >= self.set_thresholds
        return (inside | self.calibration.constant).astype(np.uint8)


def decision_rule(run: Run) -> DecisionRule:
    """Returns the DecisionRule of a run.

    Calibration keeps the order of the images for each label, so the calibrated threshold finds the same images as
    the plain one. If validation showed that order to be wrong, calibration makes the label constant: it is then
    found in all images or in none, whichever is right more often or better for the whole decision.

    Raises: RunError: the run holds no calibration, or one that is damaged or was fitted for other labels.
    """
    fitted = read_fitted(run)
    task, names = get_task(run.read_config().task), fitted.calibration.class_names
    if task.exclusive:
        thresholds = None
    else:
        plain = np.array(fitted.thresholds.values)
        thresholds = fitted.calibration.apply(plain[None])[0]
        of_constant = 0.5 if fitted.thresholds.choice is None else plain
        thresholds = np.where(fitted.calibration.constant, of_constant, thresholds)
    return DecisionRule(task, names, thresholds, fitted.thresholds, fitted.calibration, fitted.set_thresholds)


def read_fitted(run: Run) -> Fitted:
    """Returns the calibration and thresholds stored in a run.

    Raises: RunError: there are none, they are damaged, or they were fitted for other labels.
    """
    return Fitted.from_dict(run.read_json(run.fitted), run.read_classes().class_names)
