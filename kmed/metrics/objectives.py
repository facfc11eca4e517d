"""What whole decisions are chosen for: exact matches, few wrong labels, or little cost of what is missed and false."""

import collections.abc
import dataclasses
import functools

import numpy as np

from kmed.errors import ScoreError
from kmed.labels import finding_indices


@dataclasses.dataclass(frozen=True)
class Objective:
    """A sum over images that decisions are to make small, divided by what is counted.

    Attributes:
      score: the name of the score in reports.
      losses: (guesses bool (N, K), labels (N, K)) -> float (N,), the loss of each image.
      counted: (labels (N, K)) -> float (N,), how much each image counts.
      is_share_right: whether reports show 1 - loss, which is better when higher.
    """

    score: str
    losses: collections.abc.Callable
    counted: collections.abc.Callable
    is_share_right: bool = False

    def reported(self, losses: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """Returns (N,), which summed and divided by the sum of `counted` is the score that reports show."""
        return counted - losses if self.is_share_right else losses


def make_objective(rule: str, class_names, cost_missed: float = 1.0, cost_false: float = 1.0) -> Objective:
    """Returns the Objective of a rule.

    Args:
      rule: "exact_match": the share of images with a wrong label; "hamming": the share of wrong labels; "cost": the
        mean price per image of findings that are missed and findings that are false. "No Finding" has no price.
      class_names: K names.
      cost_missed, cost_false: used by "cost".
    Raises: ScoreError: the rule is unknown.
    """
    if rule not in OBJECTIVES:
        raise ScoreError(f"The rule must be one of {', '.join(OBJECTIVES)}. Received: rule={rule!r}.")
    return OBJECTIVES[rule](tuple(class_names), cost_missed, cost_false)


def _exact_match(class_names, cost_missed, cost_false) -> Objective:
    return Objective("exact match ratio", lambda *arrays: _wrong(*arrays).any(axis=1).astype(float), _is_scored, True)


def _hamming(class_names, cost_missed, cost_false) -> Objective:
    return Objective("Hamming loss", lambda *arrays: _wrong(*arrays).sum(axis=1).astype(float), _num_known)


def _cost(class_names, cost_missed, cost_false) -> Objective:
    prices = (finding_indices(class_names), cost_missed, cost_false)
    return Objective("cost per picture", functools.partial(_prices, *prices), _is_scored)


def _prices(findings, cost_missed, cost_false, guesses, labels) -> np.ndarray:
    guesses, labels = guesses[:, findings], labels[:, findings]
    missed, false = ((labels == 1) & ~guesses).sum(axis=1), ((labels == 0) & guesses).sum(axis=1)
    return cost_missed * missed + cost_false * false


def _wrong(guesses, labels) -> np.ndarray:
    return ~np.isnan(labels) & (guesses != (labels == 1))


def _is_scored(labels) -> np.ndarray:
    return (~np.isnan(labels)).any(axis=1).astype(float)


def _num_known(labels) -> np.ndarray:
    return (~np.isnan(labels)).sum(axis=1).astype(float)


OBJECTIVES = {"exact_match": _exact_match, "hamming": _hamming, "cost": _cost}
