"""Constant predictors, and the verdict on whether a model is better than they are."""

import numpy as np
import pytest

from kmed.errors import ScoreError
from kmed.metrics.baselines import (
    LEARNT_NOTHING,
    Prior,
    constant_scores,
    count_prior,
    judge_against_constants,
)
from kmed.metrics.intervals import Bootstrap
from kmed.tasks import get_task

NAMES = ("a", "b", "No Finding")
BOOTSTRAP = Bootstrap(num_resamples=200)


def draw(num_images=300, seed=0):
    """Returns (labels (N, 3), clusters): two findings, and "No Finding" for images without them."""
    rng = np.random.default_rng(seed)
    findings = rng.random((num_images, 2)) < [0.2, 0.15]
    labels = np.column_stack([findings, ~findings.any(axis=1)]).astype(float)
    return labels, rng.integers(0, 80, num_images)


def verdict(labels, probs, clusters, task="multilabel", names=NAMES):
    task, prior = get_task(task), count_prior(labels, names)
    scores = task.score(labels, probs, clusters, names, bootstrap=BOOTSTRAP)
    constants = constant_scores(task, prior, labels, clusters, names, BOOTSTRAP)
    return judge_against_constants(task, scores, constants, probs)


def test_predictors_by_hand():
    labels = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1], [1, np.nan, 0], [1, 1, 0]])
    prior = count_prior(labels, NAMES, num_groups=2)
    assert (prior.positives, prior.known, prior.num_images, prior.num_groups) == ((3, 1, 2), (5, 4, 5), 5, 2)
    assert Prior.from_dict(prior.to_dict()) == prior
    found = get_task("multilabel").constant_predictors(prior)
    assert {name: list(probs) for name, probs in found.items()} == {
        "empty set": [0, 0, 0],
        "always 'No Finding'": [0, 0, 1],
        "label prevalence": [0.6, 0.25, 0.4],
    }
    assert "always 'No Finding'" not in get_task("multilabel").constant_predictors(count_prior(labels, "abc"))
    found = get_task("multiclass").constant_predictors(count_prior(np.array([2, 2, 0]), "abc"))
    assert list(found["majority class"]) == [0, 0, 1]
    with pytest.raises(ScoreError, match="0 training images"):
        count_prior(np.zeros((0, 3)), NAMES)


def test_scores_of_constants_follow_from_the_labels():
    labels, clusters = draw()
    task, prior = get_task("multilabel"), count_prior(labels, NAMES)
    found = constant_scores(task, prior, labels, clusters, NAMES, Bootstrap(num_resamples=20))
    assert found["empty set"].scores["exact_match_ratio"].value == 0
    share = labels[:, 2].mean()
    assert found["always 'No Finding'"].scores["exact_match_ratio"].value == pytest.approx(share)
    # As for the study's three models that predict it for every image: all these scores equal its share.
    for name in ("precision_samples", "recall_samples", "f1_samples"):
        assert found["always 'No Finding'"].scores[name].value == pytest.approx(share)
    assert found["label prevalence"].scores["auroc_macro"].value == 0.5


def test_a_model_that_outputs_constants_is_called_so():
    labels, clusters = draw()
    found = verdict(labels, np.tile([0.1, 0.2, 0.7], (len(labels), 1)) + 1e-6, clusters)
    assert not found.learnt and found.constant
    assert LEARNT_NOTHING in found.sentence and "same for every picture" in found.sentence


def test_noise_is_called_so():
    labels, clusters = draw()
    rng = np.random.default_rng(1)
    found = verdict(labels, np.clip([0.1, 0.1, 0.8] + rng.normal(0, 0.05, labels.shape), 0, 1), clusters)
    assert not found.learnt and not found.constant
    assert LEARNT_NOTHING in found.sentence


def test_a_good_model_is_better_and_its_gain_is_paired():
    labels, clusters = draw()
    found = verdict(labels, np.clip(0.8 * labels + 0.1, 0, 1), clusters)
    assert found.learnt
    assert (found.main, found.best_constant) == ("exact_match_ratio", "always 'No Finding'")
    assert found.gain.value == pytest.approx(1 - labels[:, 2].mean())
    assert "better than every constant predictor" in found.sentence


def test_a_model_that_ranks_but_decides_like_a_constant():
    labels, clusters = draw()
    rng = np.random.default_rng(1)
    probs = np.clip([0.1, 0.1, 0.8] + 0.1 * (labels - 0.5) + rng.normal(0, 0.05, labels.shape), 0, 1)
    found = verdict(labels, probs, clusters)
    assert found.learnt
    assert "ranks pictures better than chance" in found.sentence
    assert "no better than those of a constant predictor" in found.sentence


def test_multiclass():
    rng = np.random.default_rng(0)
    labels, clusters = np.eye(3)[rng.choice(3, 200, p=[0.6, 0.3, 0.1])], rng.integers(0, 60, 200)
    names = ("a", "b", "c")
    nothing = verdict(labels, rng.dirichlet([6, 3, 1], 200), clusters, "multiclass", names)
    assert not nothing.learnt and nothing.main == "accuracy"
    good = verdict(labels, 0.7 * labels + 0.1, clusters, "multiclass", names)
    assert good.learnt and good.ranking == "auroc_macro"
