"""A model on its own test pictures and on somebody else's, side by side: two independent samples and what changes."""

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np

from kmed.evaluation.assessment import score_predictions
from kmed.evaluation.decisions import DecisionRule, Fitted
from kmed.evaluation.predictions import Predictions
from kmed.labels import finding_indices
from kmed.metrics.calibration_line import calibration_lines
from kmed.metrics.class_scores import Decisions, Probabilities, Sample
from kmed.metrics.intervals import Bootstrap, Score, change_of, draw_resamples, macro_score
from kmed.metrics.operating import label_shares, operating_points
from kmed.metrics.scores import Scores


@dataclasses.dataclass(frozen=True)
class Beside:
    """One score on both sides.

    Attributes:
      internal: the score on the run's own pictures.
      external: that on the other data.
      change: external - internal, with the interval for two independent samples.
    """

    internal: Score
    external: Score
    change: Score

    @property
    def differs(self) -> bool:
        """Whether the data tell the two sides apart: the interval lies off 0 and rests on enough clusters."""
        return not self.change.few_clusters and bool(self.change.low > 0 or self.change.high < 0)

    def to_dict(self) -> dict:
        """Returns the scores and `differs`, for `kmed.files.write_json`."""
        sides = {field.name: getattr(self, field.name).to_dict() for field in dataclasses.fields(self)}
        return sides | {"differs": self.differs}


@dataclasses.dataclass(frozen=True)
class SideBySide:
    """Everything that is compared between the two sides.

    Attributes:
      classes: the classes that both sides have, over which all but `shares` is computed.
      sizes: "internal" and "external" -> (images, clusters) that are compared.
      scores: name -> Beside, of the overall scores.
      auroc: class -> Beside.
      lines: "slope" and "intercept" of the calibrated probabilities -> class, or "mean" over the classes -> Beside.
      points: "sensitivity" and "specificity" of what the run reports -> class -> Beside.
      shares: class -> Beside, over all pictures of each side.
    """

    classes: tuple[str, ...]
    sizes: dict[str, tuple[int, int]]
    scores: dict[str, Beside]
    auroc: dict[str, Beside]
    lines: dict[str, dict[str, Beside]]
    points: dict[str, dict[str, Beside]]
    shares: dict[str, Beside]

    def to_dict(self) -> dict:
        """Returns everything as a dict, for `kmed.files.write_json`."""
        return {"classes": list(self.classes), "sizes": self.sizes} | {
            name: _plain(getattr(self, name)) for name in ("scores", "auroc", "lines", "points", "shares")
        }


def _plain(values):
    return values.to_dict() if isinstance(values, Beside) else {name: _plain(each) for name, each in values.items()}


def set_side_by_side(
    internal: Predictions,
    external: Predictions,
    fitted: Fitted,
    rule: DecisionRule,
    bootstrap: Bootstrap,
    at_home: tuple[Fitted, DecisionRule] | None = None,
) -> SideBySide:
    """Returns the SideBySide of a model's predictions for its own pictures and for somebody else's.

    Scores are compared over the classes that both sides have: findings that one side lacks are left out on both, and
    so are pictures of exclusive classes that one side lacks. Otherwise a macro score would change with its classes.

    Args:
      internal: the predictions for the run's test pictures.
      external: those for the other data.
      fitted: the run's calibration and thresholds.
      rule: how the run reports classes.
      bootstrap: the settings of the intervals of the internal side; the other side has the next seed.
      at_home: what was fitted on the internal side, and how classes are reported there; None: the same as on the other.
    Raises: ScoreError: a side has no picture of a class that both have.
    """
    seeds = [bootstrap, dataclasses.replace(bootstrap, seed=bootstrap.seed + 1)]
    shares = [_shares(side, each) for side, each in zip((internal, external), seeds, strict=True)]
    shared = _shared(internal) & _shared(external)
    sides = [_only(side, shared) for side in (internal, external)]
    ways = [at_home or (fitted, rule), (fitted, rule)]
    scored = [score_predictions(side, way[0], each) for side, way, each in zip(sides, ways, seeds, strict=True)]
    lines = _with_means(
        [_lines(side, scores, way[1]) for side, scores, way in zip(sides, scored, ways, strict=True)], scored
    )
    points = [_points(side, scores, way[1]) for side, scores, way in zip(sides, scored, ways, strict=True)]
    names = [name for name, held in zip(internal.class_names, shared, strict=True) if held]

    def beside(both: Iterable[Score]) -> Beside:
        first, second = both
        return Beside(first, second, change_of(first, second, bootstrap.level))

    def of_each(both, keys, look: Callable) -> dict[str, Beside]:
        return {key: beside(look(side, key) for side in both) for key in keys}

    return SideBySide(
        classes=tuple(names),
        sizes={
            name: (scores.num_images, scores.num_clusters)
            for name, scores in zip(("internal", "external"), scored, strict=True)
        },
        scores=of_each(scored, scored[0].scores, lambda scores, name: scores.scores[name]),
        auroc=of_each(scored, names, lambda scores, name: scores.per_class[name]["auroc"]),
        lines={
            kind: of_each([side[kind] for side in lines], ["mean", *names], lambda side, name: side[name])
            for kind in lines[0]
        },
        points={
            kind: of_each([side[kind] for side in points], names, lambda side, name: side[name]) for kind in points[0]
        },
        shares=of_each(shares, internal.class_names, lambda side, name: side[name]),
    )


def _shared(side: Predictions) -> np.ndarray:
    """Returns bool (K,): the classes that a side has; of a finding, pictures with and without it."""
    has = (side.labels == 1).any(axis=0)
    return has if side.task.exclusive else has & (side.labels == 0).any(axis=0)


def _only(side: Predictions, shared: np.ndarray) -> Predictions:
    """Returns the predictions with the labels of these classes alone."""
    if side.task.exclusive:
        return side.take(np.asarray((side.labels[:, shared] == 1).any(axis=1)))
    labels = np.where(shared, side.labels, np.nan)
    return dataclasses.replace(side, labels=labels).take(np.asarray(~np.isnan(labels).all(axis=1)))


def _sample(side: Predictions, resamples) -> Sample:
    return Sample(side.labels, side.class_names, resamples, side.task.exclusive)


def _shares(side: Predictions, bootstrap: Bootstrap) -> dict[str, Score]:
    sample = _sample(side, draw_resamples(side.clusters, bootstrap))
    return dict(zip(side.class_names, label_shares(sample), strict=True))


def _lines(side: Predictions, scores: Scores, rule: DecisionRule) -> dict[str, dict[str, Score]]:
    sample = _sample(side, scores.resamples)
    lines = calibration_lines(Probabilities(sample, rule.calibration.apply(side.probs)))
    return {kind: dict(zip(side.class_names, each, strict=True)) for kind, each in lines.items()}


def _with_means(lines: list[dict[str, dict[str, Score]]], scored: list[Scores]) -> list[dict[str, dict[str, Score]]]:
    """Returns the lines of both sides with their "mean", over the classes that have a line on both sides."""
    made: list[dict[str, dict[str, Score]]] = [{}, {}]
    for kind in lines[0]:
        names = list(lines[0][kind])
        both = [k for k in finding_indices(names) if all(not math.isnan(side[kind][names[k]].value) for side in lines)]
        for side, own, scores in zip(made, lines, scored, strict=True):
            side[kind] = {"mean": macro_score(list(own[kind].values()), scores.resamples, both), **own[kind]}
    return made


def _points(side: Predictions, scores: Scores, rule: DecisionRule) -> dict[str, dict[str, Score]]:
    sample = _sample(side, scores.resamples)
    reported = rule.decide(rule.calibration.apply(side.probs)) == 1
    points = operating_points(Decisions(sample, sample.known & reported))
    return {kind: dict(zip(side.class_names, each, strict=True)) for kind, each in points.items()}
