"""Thresholds per label, chosen on the validation split: by the best F1, by Youden's J, or for a target sensitivity.

`kmed.metrics.whole_decisions` chooses them together, for whole decisions.
"""

import collections.abc
import dataclasses

import numpy as np
import sklearn.metrics

from kmed.errors import ScoreError

RULES = ("f1", "youden", "sensitivity")


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """A label that means "none of these findings", such as "No Finding": it is decided together with them.

    Attributes:
      negative: the label. If it reaches its threshold, none of the findings is reported.
      findings: the labels that it excludes.
      complete: whether each image has the label or one of the findings, so that the label is reported where no
        finding is.
    """

    negative: str
    findings: tuple[str, ...]
    complete: bool

    def resolve(self, found: np.ndarray, class_names) -> np.ndarray:
        """Returns `found` (N, K), of the same type, without contradictions."""
        names, found = list(class_names), found.copy()
        negative, findings = names.index(self.negative), [names.index(name) for name in self.findings]
        found[:, findings] *= found[:, [negative]] == 0
        if self.complete:
            found[:, negative] = ~(found[:, findings] == 1).any(axis=1)
        return found


@dataclasses.dataclass(frozen=True)
class Choice:
    """What whole decisions were chosen among.

    Attributes:
      chosen: "constant", one answer for every image; "shared", one threshold for all findings; "separate", one per
        label.
      constant: the labels of the best constant answer, none if it is the empty set.
      exclusion: the Exclusion; None: the data have no such label.
      tried: "constant", "shared" and "separate" -> the score on validation, of thresholds on groups of images that
        they were not chosen on. Without several groups, only "constant".
      score: what these scores are.
      costs: of a missed and of a false finding.
    """

    chosen: str
    constant: tuple[str, ...]
    exclusion: Exclusion | None
    tried: dict[str, float]
    score: str
    costs: tuple[float, float]

    def to_dict(self) -> dict:
        """Returns the fields, for `kmed.files.write_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "Choice":
        """Returns the Choice whose `to_dict` gave `fields`."""
        excluded = fields["exclusion"]
        exclusion = excluded and Exclusion(**{**excluded, "findings": tuple(excluded["findings"])})
        lists = {name: tuple(fields[name]) for name in ("constant", "costs")}
        return cls(**{**fields, **lists, "exclusion": exclusion})

    @property
    def constant_name(self) -> str:
        """What reports call the constant answer."""
        return f"always {', '.join(map(repr, self.constant))}" if self.constant else "always nothing"

    def sentence(self, exclusive: bool) -> str:
        """Returns what is decided, and why; `exclusive` says whether each image has exactly one class."""
        families = _OF_CLASSES if exclusive else _OF_FINDINGS
        constant = f"{self.constant_name} ({self.score} {self.tried['constant']:.3f} on validation)"
        others = [f"{families[name]} {self.tried[name]:.3f}" for name in families if name in self.tried]
        if self.chosen != "constant":
            return (
                f"Decisions for the {self.score}: {families[self.chosen]}, {self.tried[self.chosen]:.3f} on validation "
                f"groups that it was not chosen on; the best constant answer is {constant}."
            )
        reason = "validation holds one group, so thresholds could not be tried on another one"
        if others:
            reason = (
                "no thresholds were better by more than one standard error on validation groups that they were not "
                f"chosen on: {', '.join(others)}"
            )
        return f"Decisions for the {self.score}: {constant}, whatever the picture shows, because {reason}."


_OF_FINDINGS = {"shared": "one threshold for all findings", "separate": "one threshold per label"}
_OF_CLASSES = {"shared": "the most probable class", "separate": "one threshold per class"}


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """One threshold per label: the lowest probability at which it counts as found.

    Attributes:
      rule: how they were chosen: "f1", "youden" or "sensitivity", or a key of `kmed.metrics.objectives.OBJECTIVES`.
      class_names: K names, in the order of `values`.
      values: K thresholds.
      not_chosen: {label: reason} of the labels that keep 0.5.
      choice: what whole decisions were chosen among; None if each label is decided for itself.
    """

    rule: str
    class_names: tuple[str, ...]
    values: tuple[float, ...]
    not_chosen: dict[str, str] = dataclasses.field(default_factory=dict)
    choice: Choice | None = None

    def decide(self, decode: collections.abc.Callable, probs: np.ndarray, values=None) -> np.ndarray:
        """Returns uint8 (N, K), 1 where a label is reported.

        Args:
          decode: that of the kmed.tasks.Task.
          probs: (N, K).
          values: (K,), the thresholds of these probabilities, if they were calibrated since; None: `self.values`.
        """
        if self.choice is not None and self.choice.chosen == "constant":
            held = [name in self.choice.constant for name in self.class_names]
            return np.tile(np.array(held, np.uint8), (len(probs), 1))
        found = decode(probs, np.array(self.values if values is None else values))
        exclusion = None if self.choice is None else self.choice.exclusion
        return found if exclusion is None else exclusion.resolve(found, self.class_names)

    def to_dict(self) -> dict:
        """Returns the fields, with the values by class name, for `kmed.files.write_json`."""
        values = dict(zip(self.class_names, self.values, strict=True))
        fields = {"rule": self.rule, "values": values, "not_chosen": self.not_chosen}
        return fields if self.choice is None else {**fields, "choice": self.choice.to_dict()}

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
        choice = fields.get("choice") and Choice.from_dict(fields["choice"])
        chosen = tuple(values[name] for name in names)
        return cls(fields["rule"], names, chosen, dict(fields.get("not_chosen", {})), choice)


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
