"""Thresholds chosen together, on the validation split, for a score of whole decisions; or the best constant answer.

Thresholds that are best for each label alone, such as by F1, are often worse together than one answer for everybody:
"No Finding" for each X-ray has more exact matches. Here all labels are decided together, labels that exclude each other
never contradict, and thresholds are used only if they are better than the best constant answer on groups of images that
they were not chosen on.
"""

import collections.abc
import dataclasses

import numpy as np

from kmed.labels import negative_label
from kmed.metrics.intervals import Resamples, Score, mean_score
from kmed.metrics.objectives import Objective, make_objective
from kmed.metrics.thresholds import Choice, Exclusion, Thresholds

NUM_FOLDS = 5
_NEVER = 1.0  # a threshold that only certainty reaches
_MAX_CONSTANTS = 50  # of the label sets of the data, the most frequent ones
_MAX_SHARED = 32  # thresholds that are tried for all findings at once, among all probabilities, and among the highest
_MAX_ROUNDS = 20
_RATIOS = (1e-3, 1e3)  # of the thresholds of exclusive classes
_LESS = 1e-9  # a loss that is lower by this is lower


@dataclasses.dataclass(frozen=True)
class Problem:
    """What thresholds are chosen on, and for.

    Attributes:
      labels: (N, K) in {0, 1}, NaN where unknown.
      probs: (N, K).
      class_names: K names.
      decode: that of the kmed.tasks.Task.
      exclusive: whether each image has exactly one class, the one with the highest ratio of probability to threshold.
      exclusion: labels that exclude each other, or None.
      objective: what is to be made small.
    """

    labels: np.ndarray
    probs: np.ndarray
    class_names: tuple[str, ...]
    decode: collections.abc.Callable
    exclusive: bool
    exclusion: Exclusion | None
    objective: Objective

    def take(self, rows: np.ndarray) -> "Problem":
        """Returns the images that a boolean mask (N,) selects."""
        return dataclasses.replace(self, labels=self.labels[rows], probs=self.probs[rows])

    @property
    def negative(self) -> list[int]:
        """The index of "No Finding", if the findings exclude it."""
        return [] if self.exclusion is None else [self.class_names.index(self.exclusion.negative)]

    def resolve(self, found: np.ndarray) -> np.ndarray:
        """Returns (N, K) without contradictions."""
        return found if self.exclusion is None else self.exclusion.resolve(found, self.class_names)

    def losses(self, thresholds: np.ndarray) -> np.ndarray:
        """Returns (N,), the loss of each image at thresholds (K,)."""
        return self.objective.losses(self.resolve(self.decode(self.probs, thresholds)) == 1, self.labels)

    def constant_losses(self, answer: np.ndarray) -> np.ndarray:
        """Returns (N,), the loss of each image if all have the answer (K,)."""
        return self.objective.losses(np.tile(answer == 1, (len(self.labels), 1)), self.labels)


def choose_whole_decisions(
    labels: np.ndarray,
    probs: np.ndarray,
    groups: np.ndarray,
    class_names,
    rule: str,
    *,
    decode: collections.abc.Callable,
    exclusive: bool,
    not_findings=(),
    costs: tuple[float, float] = (1.0, 1.0),
) -> Thresholds:
    """Returns thresholds for whole decisions, with a `Choice` that may replace them by a constant answer.

    One threshold for all findings, and one per label, are chosen on four fifths of the groups and judged on the last
    fifth, in turn. Each must be better than the simpler answer before it by more than one standard error over the
    groups: the constant answer, then one threshold, then one per label. What is chosen is fitted to all images.

    Args:
      labels: (N, K) in {0, 1}, NaN where unknown, of the validation split.
      probs: (N, K) in [0, 1].
      groups: (N,), what a split keeps together.
      class_names: K names.
      rule: a key of `kmed.metrics.objectives.OBJECTIVES`.
      decode, exclusive: those of the kmed.tasks.Task.
      not_findings: labels that may stand beside "No Finding".
      costs: of a missed and of a false finding, for the rule "cost".
    Raises: ScoreError: the rule is unknown.
    """
    names, objective = tuple(class_names), make_objective(rule, class_names, *costs)
    kept = ~np.isnan(labels).all(axis=1)
    if not kept.any():
        reason = "validation has no known label"
        return Thresholds(rule, names, (0.5,) * len(names), dict.fromkeys(names, reason))
    exclusion = None if exclusive else find_exclusion(labels[kept], names, not_findings)
    problem = Problem(labels[kept], np.asarray(probs)[kept], names, decode, exclusive, exclusion, objective)
    constant = best_constant(problem)
    losses = {"constant": problem.constant_losses(constant)}
    losses |= _held_out_losses(problem, np.asarray(groups)[kept])
    chosen = _simplest(losses, np.asarray(groups)[kept])
    values = fit_shared(problem) if chosen != "separate" else fit_separate(problem)
    if problem.losses(values).sum() > losses["constant"].sum():
        chosen = "constant"
    counted = objective.counted(problem.labels)
    tried = {name: float(objective.reported(each, counted).sum() / counted.sum()) for name, each in losses.items()}
    labels_of_constant = tuple(name for name, held in zip(names, constant) if held)
    choice = Choice(chosen, labels_of_constant, exclusion, tried, objective.score, costs)
    return Thresholds(rule, names, tuple(map(float, values)), {}, choice)


def find_exclusion(labels: np.ndarray, class_names, not_findings=()) -> Exclusion | None:
    """Returns which findings "No Finding" excludes; None if there is no such label, or no finding that it excludes.

    Labels that an image has beside "No Finding" are not excluded, whatever they are called.

    Args:
      labels: (N, K) in {0, 1}, NaN where unknown.
      class_names: K names.
      not_findings: labels that may stand beside "No Finding"; the case of letters does not matter.
    """
    negative = negative_label(class_names)
    if negative is None:
        return None
    beside = {name.strip().lower() for name in not_findings}
    together = (labels[labels[:, negative] == 1] == 1).any(axis=0)
    others = [k for k, name in enumerate(class_names) if k != negative and name.strip().lower() not in beside]
    findings = [k for k in others if not together[k]]
    if not findings:
        return None
    complete = not (labels[:, [negative, *findings]] == 0).all(axis=1).any()
    return Exclusion(class_names[negative], tuple(class_names[k] for k in findings), bool(complete))


# ---- The best constant answer ----------------------------------------------------------------------


def best_constant(problem: Problem) -> np.ndarray:
    """Returns uint8 (K,): the labels that, given to every image, have the lowest loss.

    They are looked for among the most frequent label sets, the empty set, and what differs from the best of these by
    labels that each lower the loss. For the Hamming loss and for costs, no answer is better.
    """
    num_classes = len(problem.class_names)
    if problem.exclusive:
        answers = np.eye(num_classes, dtype=np.uint8)
    else:
        known = problem.resolve(np.nan_to_num(problem.labels).astype(np.uint8))
        sets, counts = np.unique(known, axis=0, return_counts=True)
        frequent = sets[np.argsort(-counts, kind="stable")[:_MAX_CONSTANTS]]
        nothing = problem.resolve(np.zeros((1, num_classes), np.uint8))
        answers = np.concatenate([_flipped(problem, answer) for answer in (frequent[0], nothing[0])] + [frequent])
    sums = [problem.constant_losses(answer).sum() for answer in answers]
    return answers[int(np.argmin(np.round(sums, 9)))]


def _flipped(problem: Problem, answer: np.ndarray) -> np.ndarray:
    """Returns (1, K): the answer with single labels added or removed while that lowers the loss."""
    lowest = problem.constant_losses(answer).sum()
    changed = True
    while changed:
        changed = False
        for k in range(len(answer)):
            other = answer.copy()
            other[k] = 1 - other[k]
            if other[k] and problem.exclusion is not None and problem.class_names[k] in problem.exclusion.findings:
                other[problem.negative] = 0
            other = problem.resolve(other[None])[0]
            loss = problem.constant_losses(other).sum()
            if loss < lowest - _LESS:
                answer, lowest, changed = other, loss, True
    return answer[None]


# ---- Thresholds ------------------------------------------------------------------------------------


def fit_shared(problem: Problem) -> np.ndarray:
    """Returns (K,): one threshold for all findings, and that of "No Finding", if there is one.

    For exclusive classes, these stand for the most probable class.
    """
    num_classes = len(problem.class_names)
    if problem.exclusive:
        return np.ones(num_classes)
    findings = [k for k in range(num_classes) if k not in problem.negative]
    levels = problem.probs[:, findings]
    tried = np.unique(np.concatenate([[0.0], _between(levels), _between(levels.max(axis=1)), [_NEVER]]))
    best, lowest = np.full(num_classes, _NEVER), np.inf
    for value in tried[::-1]:
        thresholds = np.full(num_classes, value)
        for k in problem.negative:
            thresholds[k] = _NEVER
            thresholds[k] = _best_cut(problem, thresholds, k)
        loss = problem.losses(thresholds).sum()
        if loss < lowest - _LESS:
            best, lowest = thresholds, loss
    return best


def _between(values: np.ndarray) -> np.ndarray:
    """Returns numbers, at most _MAX_SHARED, midway between neighbouring ones of the values."""
    values = np.unique(values)
    cuts = (values[1:] + values[:-1]) / 2
    return cuts[np.unique(np.linspace(0, len(cuts) - 1, _MAX_SHARED).round().astype(int))] if len(cuts) else cuts


def fit_separate(problem: Problem) -> np.ndarray:
    """Returns (K,): thresholds of which none alone can be moved to a lower loss, the best of several starts."""
    num_classes = len(problem.class_names)
    starts = [fit_shared(problem)]
    if not problem.exclusive:
        starts += [np.full(num_classes, 0.5), np.full(num_classes, _NEVER)]
    ends = [_descend(problem, start) for start in starts]
    return min(ends, key=lambda thresholds: round(problem.losses(thresholds).sum(), 9))


def _descend(problem: Problem, thresholds: np.ndarray) -> np.ndarray:
    order = [*problem.negative, *(k for k in range(len(thresholds)) if k not in problem.negative)]
    lowest = problem.losses(thresholds).sum()
    for _ in range(_MAX_ROUNDS):
        before = lowest
        for k in order:
            moved = thresholds.copy()
            moved[k] = _best_cut(problem, thresholds, k)
            loss = problem.losses(moved).sum()
            if loss < lowest - _LESS:
                thresholds, lowest = moved, loss
        if lowest == before:
            break
    return thresholds / thresholds.max() if problem.exclusive else thresholds


def _best_cut(problem: Problem, thresholds: np.ndarray, k: int) -> float:
    """Returns the threshold of label k with the lowest loss while the others stay; of equally good ones, the highest.

    It lies midway between the probabilities of two images, so that rounding does not change a decision.
    """
    level = _level(problem, thresholds, k)
    low, high = (thresholds.copy() for _ in range(2))
    low[k], high[k] = 0.0, np.inf
    order = np.argsort(-level, kind="stable")
    level = level[order]
    gain = (problem.losses(low) - problem.losses(high))[order]  # of each image, if the label is found
    sums = np.concatenate([[0.0], np.cumsum(gain)])  # [n]: the n images with the highest level have it
    below, above = _RATIOS if problem.exclusive else (0.0, _NEVER)
    ends = np.concatenate([[above], level]), np.concatenate([level, [below]])
    cuts = (ends[0] + ends[1]) / 2
    cuts = np.where(cuts > ends[1], cuts, ends[0])  # the halves of neighbouring numbers may be the lower one
    cuts[0], cuts[-1] = above, below
    legal = (ends[0] > ends[1]) & (cuts >= below) & (cuts <= above)
    legal[-1] = True
    sums = np.where(legal, sums, np.inf)
    return float(cuts[np.argmax(sums <= sums.min() + _LESS)])


def _level(problem: Problem, thresholds: np.ndarray, k: int) -> np.ndarray:
    """Returns (N,): the label k is found if this reaches its threshold."""
    if not problem.exclusive:
        return problem.probs[:, k]
    others = np.delete(problem.probs / thresholds, k, axis=1).max(axis=1)
    return problem.probs[:, k] / np.maximum(others, 1e-12)


FAMILIES = {"shared": fit_shared, "separate": fit_separate}  # from the simplest; name -> (Problem) -> thresholds (K,)


# ---- The choice ------------------------------------------------------------------------------------


def _held_out_losses(problem: Problem, groups: np.ndarray) -> dict[str, np.ndarray]:
    """Returns family -> (N,), the loss of each image at thresholds chosen on other groups; {} for a single group."""
    names, index = np.unique(groups.astype(str), return_inverse=True)
    if len(names) < 2:
        return {}
    folds = np.random.default_rng(0).permutation(np.arange(len(names)) % NUM_FOLDS)[index]  # (N,)
    losses = {name: np.empty(len(problem.labels)) for name in FAMILIES}
    for fold in np.unique(folds):
        rest, held_out = problem.take(folds != fold), problem.take(folds == fold)
        for name, fit in FAMILIES.items():
            losses[name][folds == fold] = held_out.losses(fit(rest))
    return losses


def _simplest(losses: dict[str, np.ndarray], groups: np.ndarray) -> str:
    """Returns the key of the answer that no later one is better than by more than one standard error over groups."""
    chosen, *others = losses
    index = np.unique(groups.astype(str), return_inverse=True)[1]
    for name in others:
        gains = np.bincount(index, losses[chosen] - losses[name])  # (groups,)
        error = np.sqrt(len(gains) / (len(gains) - 1) * ((gains - gains.mean()) ** 2).sum())
        if gains.sum() > error + _LESS:
            chosen = name
    return chosen


# ---- The choice on another split -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DecisionScore:
    """Whole decisions beside the best constant answer, on a split that neither was chosen on.

    Attributes:
      choice: the Choice; its `score` says what is compared.
      score: that of the decisions.
      constant: that of the constant answer, `choice.constant`.
      gain: `score` - `constant`, paired by image; for a loss or a cost, below 0 is better.
    """

    choice: Choice
    score: Score
    constant: Score
    gain: Score

    def to_dict(self) -> dict:
        """Returns the fields, for `kmed.files.write_json`."""
        scores = {"value": self.score, "constant": self.constant, "gain": self.gain}
        names = {"name": self.choice.score, "constant_name": self.choice.constant_name}
        return names | {name: score.to_dict() for name, score in scores.items()}


def score_decisions(
    thresholds: Thresholds, decided: np.ndarray, labels: np.ndarray, resamples: Resamples
) -> DecisionScore | None:
    """Returns the DecisionScore of a split; None if each label was decided for itself.

    Args:
      thresholds: what was chosen on validation.
      decided: (N, K) in {0, 1}, what they decide.
      labels: (N, K) in {0, 1}, NaN where unknown.
      resamples: draws of the clusters of these images.
    """
    choice = thresholds.choice
    if choice is None:
        return None
    objective = make_objective(thresholds.rule, thresholds.class_names, *choice.costs)
    held = np.array([name in choice.constant for name in thresholds.class_names])
    counted = objective.counted(labels)

    def score(guesses) -> Score:
        summed = objective.reported(objective.losses(guesses, labels), counted)
        return mean_score(resamples, summed.sum() / counted.sum(), summed, counted)

    score_of_these, score_of_constant = score(decided == 1), score(np.tile(held, (len(labels), 1)))
    gain = resamples.difference(score_of_these, score_of_constant)
    return DecisionScore(choice, score_of_these, score_of_constant, gain)
