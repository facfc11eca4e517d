"""Laws of resampling whole clusters; scikit-learn with `sample_weight` as the oracle."""

import math

import numpy as np
import pytest
import sklearn.metrics

from kmed.config import load_config
from kmed.errors import ScoreError
from kmed.metrics.intervals import Bootstrap, Resamples, Score, check_clusters, draw_resamples, mean_score


def draw(num_images=60, num_clusters=9, seed=0):
    """Returns (labels with unknown ones, probs full of ties, clusters), each (N,)."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0.0, 1.0, np.nan], num_images, p=[0.5, 0.3, 0.2])
    return labels, rng.integers(0, 6, num_images) / 5, rng.integers(0, num_clusters, num_images)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_of_each_draw_equals_scikit_learn(seed):
    labels, probs, clusters = draw(seed=seed)
    resamples = draw_resamples(clusters, Bootstrap(30, seed=seed))
    known = ~np.isnan(labels)
    areas = resamples.auroc(labels, probs)
    for counts, area in zip(resamples.counts, areas, strict=True):
        weight = counts[resamples.index][known]
        expected = sklearn.metrics.roc_auc_score(labels[known], probs[known], sample_weight=weight)
        assert area == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_of_each_draw_equals_scikit_learn(seed):
    labels, probs, clusters = draw(seed=seed)
    resamples = draw_resamples(clusters, Bootstrap(30, seed=seed))
    known = ~np.isnan(labels)
    values = resamples.average_precision(labels, probs)
    for counts, value in zip(resamples.counts, values, strict=True):
        weight = counts[resamples.index][known]
        expected = sklearn.metrics.average_precision_score(labels[known], probs[known], sample_weight=weight)
        assert value == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_hand_and_without_positives():
    labels, probs = np.array([1.0, 0, 1, 0]), np.array([0.9, 0.8, 0.7, 0.1])
    resamples = Resamples(index=np.arange(4), counts=np.array([[1, 1, 1, 1], [0, 2, 0, 2]]), level=0.95)
    np.testing.assert_allclose(resamples.average_precision(labels, probs), [(1 + 2 / 3) / 2, np.nan])
    assert np.isnan(resamples.average_precision(np.full(4, np.nan), probs)).all()


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), 5)
    hard = np.repeat(rng.random(40), 5)  # the part that both models share
    first = mean_score(draw_resamples(clusters, Bootstrap(300)), np.mean(hard + 0.1), hard + 0.1)
    second = mean_score(draw_resamples(clusters, Bootstrap(300)), np.mean(hard), hard)
    gap = draw_resamples(clusters, Bootstrap(300)).difference(first, second)
    assert (gap.value, gap.low, gap.high) == (pytest.approx(0.1), pytest.approx(0.1), pytest.approx(0.1))
    assert first.low < second.high  # the two intervals overlap nevertheless


@pytest.mark.parametrize("clusters", [[], ["a"], ["a", "a"]])
def test_fewer_than_two_clusters_are_refused(clusters):
    with pytest.raises(ScoreError, match=f"{len(clusters)} pictures of {len(set(clusters))} cluster"):
        check_clusters(clusters)
    check_clusters(["a", "b"])


def test_auroc_by_hand():
    labels, probs = np.array([1.0, 0, 0, 1]), np.array([0.8, 0.8, 0.1, 0.4])
    resamples = Resamples(index=np.arange(4), counts=np.array([[1, 1, 1, 1], [2, 0, 2, 0], [0, 2, 2, 0]]), level=0.95)
    # Pairs of the first draw: a tie (1/2), right, wrong, right; the third draw has no positive.
    np.testing.assert_array_equal(resamples.auroc(labels, probs), [2.5 / 4, 1.0, np.nan])


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_auroc_of_one_class_is_undefined(value):
    resamples = draw_resamples(range(5), Bootstrap(4))
    assert np.isnan(resamples.auroc(np.full(5, value), np.linspace(0, 1, 5))).all()


def test_chunks_do_not_change_the_results(monkeypatch):
    labels, probs, clusters = draw()
    resamples = draw_resamples(clusters, Bootstrap(25))
    whole = resamples.auroc(labels, probs), resamples.sums(probs[:, None])
    precision = resamples.average_precision(labels, probs)
    monkeypatch.setattr("kmed.metrics.intervals._CHUNK_NUMBERS", 130)
    np.testing.assert_array_equal(resamples.auroc(labels, probs), whole[0])
    np.testing.assert_array_equal(resamples.average_precision(labels, probs), precision)
    np.testing.assert_allclose(resamples.sums(probs[:, None]), whole[1], rtol=1e-14)


def test_sums_equal_repeating_the_images():
    _, probs, clusters = draw()
    values = np.column_stack([probs, probs**2])
    resamples = draw_resamples(clusters, Bootstrap(10))
    for counts, sums in zip(resamples.counts, resamples.sums(values), strict=True):
        np.testing.assert_allclose(sums, np.repeat(values, counts[resamples.index], axis=0).sum(axis=0))


def test_draws_contain_whole_clusters_and_as_many_as_the_data():
    resamples = draw_resamples(["a", "b", "b", "c", "a"], Bootstrap(200))
    assert resamples.index.tolist() == [0, 1, 1, 2, 0]
    assert (resamples.counts.sum(axis=1) == 3).all()
    assert resamples.counts.mean(axis=0) == pytest.approx([1, 1, 1], abs=0.2)


def test_draws_depend_on_the_seed_alone():
    _, _, clusters = draw()
    first = draw_resamples(clusters, Bootstrap(10, seed=3)).counts
    np.testing.assert_array_equal(first, draw_resamples(clusters[::-1].astype(str), Bootstrap(10, seed=3)).counts)
    assert (first != draw_resamples(clusters, Bootstrap(10, seed=4)).counts).any()
    np.testing.assert_array_equal(first, draw_resamples(clusters, Bootstrap(20, seed=3)).counts[:10])


def test_interval_is_the_percentile_of_the_defined_draws():
    resamples = draw_resamples(range(30), Bootstrap(5, level=0.5))
    score = resamples.score(0.4, np.array([0.1, 0.5, np.nan, 0.2, 0.4]))
    assert (score.low, score.high) == (pytest.approx(0.175), pytest.approx(0.425))
    assert (score.num_undefined, score.num_clusters, score.few_clusters) == (1, 30, False)


def test_one_cluster_has_no_interval():
    resamples = draw_resamples(["a"] * 4, Bootstrap(10))
    score = resamples.score(0.5, np.full(10, 0.5))
    assert math.isnan(score.low) and math.isnan(score.high)
    assert score.few_clusters
    assert score.to_dict()["num_clusters"] == 1


def test_few_clusters_are_fewer_than_twenty():
    assert Score(0.5, 0.4, 0.6, num_clusters=19).few_clusters
    assert not Score(0.5, 0.4, 0.6, num_clusters=20).few_clusters


def test_cluster_intervals_cover_where_image_intervals_do_not():
    """200 data sets of 40 clusters of 10 images, which are right (70 %) or wrong together."""
    rng = np.random.default_rng(0)
    covered = {"clusters": 0, "images": 0}
    for seed in range(200):
        right = np.repeat(rng.random(40) < 0.7, 10)
        for name, clusters in (("clusters", np.repeat(np.arange(40), 10)), ("images", np.arange(400))):
            resamples = draw_resamples(clusters, Bootstrap(200, seed=seed))
            low, high = resamples.bounds(resamples.sums(right[:, None])[:, 0] / 400, 40)
            covered[name] += low <= 0.7 <= high
    assert 0.88 <= covered["clusters"] / 200 <= 0.99
    assert covered["images"] / 200 < 0.6


@pytest.mark.parametrize(
    ("clusters", "settings", "message"),
    [
        (["a", None], {}, "1 missing"),
        ([1.0, float("nan")], {}, "1 missing"),
        ([1, 2], {"num_resamples": 0}, "num_resamples=0"),
        ([1, 2], {"level": 95}, "level=95"),
    ],
)
def test_errors(clusters, settings, message):
    with pytest.raises(ScoreError, match=message):
        draw_resamples(clusters, Bootstrap(**settings))


def test_the_settings_of_a_run_become_those_of_its_intervals():
    config = load_config(overrides=["evaluate.num_resamples=30", "evaluate.level=0.8", "seed=7"])
    assert Bootstrap.from_config(config) == Bootstrap(num_resamples=30, level=0.8, seed=7)
    assert Bootstrap.from_config(load_config()) == Bootstrap()
