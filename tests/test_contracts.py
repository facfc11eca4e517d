"""What every row of the tables must keep: each loss, fit metric and final score of each task.

Adding a row adds it to these tests, so that no test file need be opened for it.
"""

import keras
import numpy as np
import pytest

from kmed.metrics.intervals import Bootstrap
from kmed.tasks import LOWER_IS_BETTER, TASKS

NAMES = ("Mass", "Edema", "Nodule", "No Finding")
LOSSES = [(task.name, name) for task in TASKS.values() for name in task.losses]
METRICS = [(task.name, metric.name) for task in TASKS.values() for metric in task.make_metrics(NAMES)]
SCORES = [(task.name, name) for task in TASKS.values() for name in task.make_scores()]


def draw(task, num_images=120, seed=0):
    """Returns labels (N, 4), good and bad probabilities for them, and the cluster of each image."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 4, num_images)
    labels = np.eye(4, dtype=np.float32)[classes]
    if not TASKS[task].exclusive:
        labels[:, :3] = np.maximum(labels[:, :3], rng.random((num_images, 3)) < 0.3)
        labels[:, 3] = ~labels[:, :3].any(axis=1)
    noise = rng.random(labels.shape).astype(np.float32)
    good, bad = 0.75 * labels + 0.25 * noise, 0.75 * (1 - labels) + 0.25 * noise
    if TASKS[task].exclusive:
        good, bad = (probs / probs.sum(axis=1, keepdims=True) for probs in (good, bad))
    return labels, good, bad, rng.integers(0, 40, num_images)


@pytest.mark.parametrize(("task", "name"), LOSSES)
def test_a_loss_is_finite_and_lower_for_better_probabilities(task, name):
    labels, good, bad, _ = draw(task)
    loss = TASKS[task].make_loss(name, positive_weights=[1.0, 2.0, 3.0, 1.0])
    right, wrong = (float(loss(labels, probs)) for probs in (good, bad))
    assert np.isfinite([right, wrong]).all() and right < wrong


@pytest.mark.parametrize(("task", "name"), LOSSES)
def test_a_loss_does_not_depend_on_the_order_of_the_images(task, name):
    labels, good, _, _ = draw(task)
    order = np.random.default_rng(1).permutation(len(labels))
    loss = TASKS[task].make_loss(name, positive_weights=[1.0, 2.0, 3.0, 1.0])
    assert float(loss(labels[order], good[order])) == pytest.approx(float(loss(labels, good)), rel=1e-5)


def measure(task, name, labels, probs, batch_size):
    """Returns the value of a fit metric over batches."""
    metric = next(metric for metric in TASKS[task].make_metrics(NAMES) if metric.name == name)
    for start in range(0, len(labels), batch_size):
        metric.update_state(labels[start : start + batch_size], probs[start : start + batch_size])
    return float(keras.ops.convert_to_numpy(metric.result()))


@pytest.mark.parametrize(("task", "name"), METRICS)
def test_a_fit_metric_is_the_same_in_batches_and_as_a_whole(task, name):
    labels, good, _, _ = draw(task)
    whole = measure(task, name, labels, good, len(labels))
    assert measure(task, name, labels, good, 7) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize(("task", "name"), METRICS)
def test_a_fit_metric_prefers_better_probabilities(task, name):
    labels, good, bad, _ = draw(task)
    right, wrong = (measure(task, name, labels, probs, 32) for probs in (good, bad))
    assert (right < wrong) if name in LOWER_IS_BETTER else (right > wrong)


@pytest.fixture(scope="module")
def scored():
    """{(task, "good", "bad" or "turned"): Scores}, the last one of the good probabilities in another order."""
    found = {}
    for task in TASKS.values():
        labels, good, bad, clusters = draw(task.name)
        order = np.random.default_rng(1).permutation(len(labels))
        bootstrap = Bootstrap(num_resamples=50)
        for key, probs, rows in (("good", good, slice(None)), ("bad", bad, slice(None)), ("turned", good, order)):
            arguments = (labels[rows], probs[rows], clusters[rows], NAMES)
            found[task.name, key] = task.score(*arguments, bootstrap=bootstrap)
    return found


@pytest.mark.parametrize(("task", "name"), SCORES)
def test_a_final_score_has_an_interval_and_does_not_depend_on_the_order(scored, task, name):
    score, turned = (scored[task, key].scores[name] for key in ("good", "turned"))
    assert score.num_clusters > 1 and np.isfinite([score.value, score.low, score.high]).all()
    assert score.low <= score.high
    for end in ("value", "low", "high"):
        assert getattr(turned, end) == pytest.approx(getattr(score, end), abs=1e-12)


@pytest.mark.parametrize(("task", "name"), SCORES)
def test_a_final_score_prefers_better_probabilities(scored, task, name):
    right, wrong = (scored[task, key].scores[name].value for key in ("good", "bad"))
    assert (right < wrong) if name in LOWER_IS_BETTER else (right > wrong)
