"""The table of tasks: every row is complete, and its names, labels and losses are checked."""

import ast
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from kmed.errors import ConfigError, DataError
from kmed.metrics.intervals import Bootstrap
from kmed.tasks import LOWER_IS_BETTER, TASKS, check_labels, get_task

LABELS = {
    "multiclass": np.eye(3, dtype="float32")[[0, 1, 2, 0, 1, 2]],
    "multilabel": np.array([[1, 0, 1], [0, 0, 0], [np.nan, 1, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0]], "float32"),
}
FIT_METRICS = {
    "multiclass": ["accuracy", "f1_macro"],
    "multilabel": ["exact_match_ratio", "hamming_loss", "auroc_macro"],
}


def test_unknown_task_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'multilabel'"):
        get_task("multi-label")


def test_reading_the_table_imports_nothing_heavy():
    code = "import sys, kmed.tasks; sys.exit(any(name in sys.modules for name in ('keras', 'tensorflow', 'sklearn')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", TASKS)
def test_one_training_step_and_scores(name):
    task = get_task(name)
    labels = LABELS[name]
    inputs = np.random.default_rng(0).normal(size=(len(labels), 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation=task.activation)])
    loss, metrics = task.make_loss(label_smoothing=0.1), task.make_metrics(["a", "b", "c"])
    model.compile("sgd", loss=loss, metrics=metrics)
    logs = model.train_on_batch(inputs, labels, return_dict=True)
    assert set(logs) == {"loss", *FIT_METRICS[name]}
    assert np.isfinite(list(logs.values())).all()
    scores = task.score(labels, model.predict(inputs, verbose=0), range(6), ["a", "b", "c"], bootstrap=Bootstrap(20))
    assert scores.num_images == 6


@pytest.mark.parametrize("name", TASKS)
def test_decoding_labels_gives_them_back(name):
    labels = np.nan_to_num(LABELS[name])
    decoded = get_task(name).decode(labels)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, labels)


def test_decoding_probabilities():
    probs = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    np.testing.assert_array_equal(get_task("multiclass").decode(probs), [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(get_task("multilabel").decode(probs), [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(get_task("multilabel").decode(probs, [0.6, 0.1, 0.3]), [[0, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(get_task("multiclass").decode(probs, [0.1, 0.5, 0.4]), [[1, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(get_task("multiclass").decode(probs, [0.3] * 3), get_task("multiclass").decode(probs))


@pytest.mark.parametrize("name", TASKS)
def test_labels_that_fit(name):
    check_labels(name, LABELS[name])
    check_labels(get_task(name), LABELS[name])


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("multiclass", LABELS["multilabel"], "4 other rows, the first is row 0"),
        ("multiclass", [[1, 0], [0, 0]], "row 1"),
        ("multiclass", [[1, np.nan], [0, 1]], "row 0"),
        ("multiclass", [[1], [1]], "multilabel"),
        ("multilabel", [[np.nan, np.nan]], "all NaN"),
        ("multilabel", [[0.5, 1]], "0, 1 or NaN .unknown.. Received: 1 other value.s., such as 0.5"),
        ("multilabel", [0, 1], "shape="),
        ("multilabel", np.zeros((0, 3)), "shape="),
    ],
)
def test_labels_that_do_not_fit(name, labels, message):
    with pytest.raises(DataError, match=message):
        check_labels(name, np.array(labels))


@pytest.mark.parametrize("name", TASKS)
def test_label_smoothing_is_checked(name):
    with pytest.raises(ConfigError, match="label_smoothing=1.5"):
        get_task(name).make_loss(label_smoothing=1.5)


@pytest.mark.parametrize(("task", "loss"), [(task, loss) for task in TASKS for loss in ("auto", *TASKS[task].losses)])
def test_every_loss_is_lower_where_labels_and_probs_agree(task, loss):
    labels = np.nan_to_num(LABELS[task])
    made = get_task(task).make_loss(loss, positive_weights=[2.0, 3.0, 4.0])
    good, bad = (np.clip(probs, 0.1, 0.9).astype("float32") for probs in (labels, 1 - labels))
    assert float(made(labels, good)) < float(made(labels, bad))


@pytest.mark.parametrize(
    ("task", "loss", "smoothing", "message"),
    [
        ("multiclass", "focal", 0, "loss of multiclass must be crossentropy. Received: loss='focal'"),
        ("multilabel", "assymetric", 0, "Did you mean 'asymmetric'"),
        ("multilabel", "focal", 0.1, "no label smoothing"),
        ("multilabel", "weighted_bce", 0, "needs positive_weights"),
    ],
)
def test_losses_that_are_refused(task, loss, smoothing, message):
    with pytest.raises(ConfigError, match=message):
        get_task(task).make_loss(loss, label_smoothing=smoothing)


def test_no_finding_is_not_part_of_the_macro_metric():
    auroc = get_task("multilabel").make_metrics(["Mass", "No Finding", "Hernia"])[2]
    assert auroc.ignored == (1,)


def test_no_module_compares_the_name_of_a_task():
    """Readers of data may: there the name is what a user wrote."""
    package = pathlib.Path(__file__).parent.parent / "kmed"
    asking = [
        f"{path.relative_to(package)}:{node.lineno}"
        for path in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        and any(isinstance(part, ast.Constant) and part.value in TASKS for part in (node.left, *node.comparators))
    ]
    assert [place for place in asking if not place.startswith("data/readers/")] == []


@pytest.mark.parametrize("name", TASKS)
def test_the_scores_that_a_task_names_are_made(name):
    task = get_task(name)
    made = task.make_scores()
    chosen = (task.exported_scores, task.paired_scores, task.study_scores, task.compared_scores)
    chosen += (task.headline_scores, task.subgroup_scores, (task.decision_score,))
    assert {score for scores in chosen for score in scores} <= set(made)
    assert made[task.decision_score].kind == "decisions"
    assert set(task.compared_scores) == {*task.study_scores, *task.paired_scores}
    assert LOWER_IS_BETTER - {"loss"} <= {score for other in TASKS.values() for score in other.make_scores()}
