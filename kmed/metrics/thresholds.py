"""Thresholds per label, chosen on the validation split: by the best F1, by Youden's J, or for a target sensitivity."""

import dataclasses

import numpy as np
import sklearn.metrics

from kmed.errors import ScoreError

RULES = ("f1", "youden", "sensitivity")


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """One threshold per label: the lowest probability at which it counts as found.

    Attributes:
      rule: how they were chosen: "f1", "youden" or "sensitivity".
      class_names: K names, in the order of `values`.
      values: K thresholds.
      not_chosen: {label: reason} of the labels that keep 0.5.
    """

    rule: str
    class_names: tuple[str, ...]
    values: tuple[float, ...]
    not_chosen: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict:
        """Returns the fields, with the values by class name, for `kmed.files.write_json`."""
        values = dict(zip(self.class_names, self.values, strict=True))
        return {"rule": self.rule, "values": values, "not_chosen": self.not_chosen}

    @classmethod
    def from_dict(cls, fields: dict, class_names) -> "Thresholds":
        """Returns the Thresholds whose `to_dict` gave `fields`, in the order of `class_names`.

        Raises: ScoreError: they were chosen for other labels.
        """
        values = fields.get("values", {})
        if set(values) != set(class_names):
            missing, other = sorted(set(class_names) - set(values)), sorted(set(values) - set(class_names))
            raise ScoreError(
                f"The thresholds are for other labels. Missing: {missing or 'none'}; unknown: {other or 'none'}. "
                f"The labels of the data are {list(class_names)}."
            )
        names = tuple(class_names)
        return cls(fields["rule"], names, tuple(values[name] for name in names), dict(fields.get("not_chosen", {})))


def choose_thresholds(
    labels: np.ndarray, probs: np.ndarray, class_names, rule: str = "f1", sensitivity: float = 0.9
) -> Thresholds:
    """Returns the best threshold for each label among its probabilities; of several equally good ones, the highest.

    Args:
      labels: (N, K) in {0, 1}, NaN where unknown, of the validation split.
      probs: (N, K) in [0, 1].
      class_names: K names.
      rule: "f1": the highest F1; "youden": the highest sensitivity + specificity - 1 (Youden, 1950);
        "sensitivity": the highest threshold that finds at least the share `sensitivity` of the positives.
      sensitivity: in (0, 1], used by the rule "sensitivity".
    Raises: ScoreError: the rule is unknown, or the sensitivity is out of range.
    """
    if rule not in RULES or not 0 < sensitivity <= 1:
        raise ScoreError(
            f"The rule must be one of {', '.join(RULES)}, and the sensitivity must be in (0, 1]. "
            f"Received: rule={rule!r}, sensitivity={sensitivity}."
        )
    values, not_chosen = [], {}
    for name, truth, prob in zip(class_names, np.asarray(labels).T, np.asarray(probs).T, strict=True):
        known = ~np.isnan(truth)
        if len(np.unique(truth[known])) < 2:
            not_chosen[name] = "validation has no positives and negatives of it"
            values.append(0.5)
        else:
            values.append(_best(truth[known], prob[known], rule, sensitivity))
    return Thresholds(rule, tuple(class_names), tuple(values), not_chosen)


def _best(truth, prob, rule, sensitivity) -> float:
    if rule == "f1":
        precision, recall, thresholds = sklearn.metrics.precision_recall_curve(truth, prob)
        precision, recall = precision[:-1], recall[:-1]  # the last pair has no threshold
        goal = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    else:
        false_rate, recall, thresholds = sklearn.metrics.roc_curve(truth, prob, drop_intermediate=False)
        false_rate, recall, thresholds = false_rate[1:], recall[1:], thresholds[1:]  # the first one is infinite
        goal = recall - false_rate if rule == "youden" else (recall >= sensitivity - 1e-12).astype(float)
    return float(thresholds[goal >= goal.max() - 1e-12].max())
