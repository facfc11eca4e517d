"""Constant predictors and whether a model beats them, which it must to have learnt anything."""

import dataclasses
import math

import numpy as np

from kmed.errors import ScoreError
from kmed.labels import one_hot_labels
from kmed.metrics.intervals import DEFAULT_BOOTSTRAP, Bootstrap, Score
from kmed.metrics.scores import Scores, compute_scores

LEARNT_NOTHING = "learnt nothing beyond the prior"
CONSTANT_SPREAD = 1e-4  # outputs that differ by less over all images are called constant


@dataclasses.dataclass(frozen=True)
class Prior:
    """What is known from the training labels alone.

    Attributes:
      class_names: K names.
      num_images, num_groups: size of the training split.
      positives, known: for each class, how many training images have it and for how many it is known.
    """

    class_names: tuple[str, ...]
    num_images: int
    num_groups: int
    positives: tuple[int, ...]
    known: tuple[int, ...]

    @property
    def shares(self) -> np.ndarray:
        """(K,): the share of the known training labels that are 1; 0 where no label is known."""
        return np.array(self.positives) / np.maximum(self.known, 1)

    def to_dict(self) -> dict:
        """Returns the fields, for `kmed.files.write_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "Prior":
        """Returns the Prior whose `to_dict` gave `fields`."""
        lists = {key: tuple(fields[key]) for key in ("class_names", "positives", "known")}
        return cls(**{**fields, **lists})


def count_prior(train_labels: np.ndarray, class_names, num_groups: int = 0) -> Prior:
    """Returns the Prior of training labels (N', K), or integers (N',). Raises ScoreError if there are none."""
    labels = one_hot_labels(train_labels, len(class_names))
    if not len(labels):
        raise ScoreError("The constant predictors need training labels. Received: 0 training images.")
    positives, known = (labels == 1).sum(axis=0), (~np.isnan(labels)).sum(axis=0)
    return Prior(tuple(class_names), len(labels), num_groups, tuple(map(int, positives)), tuple(map(int, known)))


def constant_scores(
    task, prior: Prior, labels, clusters, class_names, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP
) -> dict[str, Scores]:
    """Returns {name: Scores} of the task's constant predictors on a split.

    Args:
      task: kmed.tasks.Task.
      prior: what is known from the training split.
      labels, clusters, class_names, bootstrap: those of the split, as in `kmed.metrics.scores.compute_scores`.
    """
    return {
        name: compute_scores(task, labels, np.tile(probs, (len(labels), 1)), clusters, class_names, bootstrap=bootstrap)
        for name, probs in task.constant_predictors(prior).items()
    }


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a model is better than the constant predictors, in figures and in words.

    Attributes:
      learnt: whether its ranking or its decisions are better than theirs.
      constant: whether its outputs are the same for every image.
      main: name of the score of whole decisions: accuracy or exact match ratio.
      best_constant: name of the constant predictor with the highest main score.
      gain: the model's main score minus that of `best_constant`, paired by image.
      ranking: name of the AUROC that the verdict rests on.
      sentence: the verdict in one sentence.
    """

    learnt: bool
    constant: bool
    main: str
    best_constant: str
    gain: Score
    ranking: str
    sentence: str

    def to_dict(self) -> dict:
        """Returns the fields, the gain as a dict."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"gain": self.gain.to_dict()}


def judge_against_constants(task, scores: Scores, constants: dict[str, Scores], probs: np.ndarray) -> Verdict:
    """Returns the Verdict on a model.

    The model ranks better if the interval of its macro AUROC (of the common findings, if that is defined) lies
    above 0.5. It decides better if the interval of its gain in accuracy or exact match ratio, paired on the same
    draws, lies above 0.

    Args:
      task: kmed.tasks.Task.
      scores: the model's scores.
      constants: what `constant_scores` returns for the same images, clusters and bootstrap.
      probs: (N, K), the model's probabilities.
    """
    main = task.decision_score
    best = max(constants, key=lambda name: constants[name].scores[main].value)
    gain = scores.resamples.difference(scores.scores[main], constants[best].scores[main])
    common = scores.scores.get("auroc_macro_common")
    ranking = "auroc_macro" if common is None or math.isnan(common.value) else "auroc_macro_common"
    area = scores.scores[ranking]
    constant = bool(np.ptp(probs, axis=0).max() < CONSTANT_SPREAD)
    ranks, decides = area.low > 0.5 and not constant, gain.low > 0 and not constant  # False for NaN
    beside = f"{_words(main)} {scores.scores[main].value:.3f}, {best} {constants[best].scores[main].value:.3f}"
    if constant:
        sentence = f"Its outputs are the same for every picture: it has {LEARNT_NOTHING}."
    elif ranks and decides:
        sentence = f"It is better than every constant predictor: {beside}, {_ranked(ranking, area)}."
    elif ranks:
        sentence = (
            f"It ranks pictures better than chance ({_ranked(ranking, area)}), but its decisions are no better than "
            f"those of a constant predictor ({beside})."
        )
    elif decides:
        sentence = f"Its decisions are better than any constant predictor's ({beside}); its {_ranked(ranking, area)}."
    else:
        sentence = f"It has {LEARNT_NOTHING}: {beside}, {_ranked(ranking, area)}."
    return Verdict(ranks or decides, constant, main, best, gain, ranking, sentence)


def _ranked(name: str, area: Score) -> str:
    words = "mean AUROC of the common findings" if name.endswith("_common") else "AUROC macro"
    return f"{words} {area.value:.3f} ({area.low:.3f} to {area.high:.3f})"


def _words(name: str) -> str:
    return name.replace("_", " ")
