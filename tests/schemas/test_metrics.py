"""What kmed writes is never refused when it is read back, however few pictures, patients and labels there are."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmed.config import load_config
from kmed.evaluation import result_rows
from kmed.evaluation.decisions import fit_on_validation, read_fitted
from kmed.evaluation.predictions import Predictions, stored_predictions
from kmed.evaluation.predictor import describe_run
from kmed.evaluation.run_evaluation import write_scores
from kmed.files import write_frame, write_json
from kmed.metrics.baselines import count_prior
from kmed.reading import read_json
from kmed.runs import Run, write_classes
from kmed.schemas.records import Classes, Description, check
from kmed.tasks import get_task

PROBS = ("random", "constant", "sure and right", "sure and wrong", "half")
ODD_NAMES = (
    "a$b_{c",
    "x/y",
    "two\nlines",
    "carriage\rreturn",
    "z" * 200,
    "\U0001f9ec",
    '"quoted", with comma',
    "\u2028",
)


def draw_predictions(rng, task, names, kind, *, num_clusters, per_cluster, unknown, positives, splits) -> Predictions:
    """Returns predictions of val, and maybe of test, with `num_clusters` patients each."""
    shape = (len(splits) * num_clusters * per_cluster, len(names))
    if task == "multiclass":
        labels = np.eye(len(names))[rng.choice(max(1, round(len(names) * positives)), shape[0])]
    else:
        labels = (rng.random(shape) < positives).astype(float)
        labels[rng.random(shape) < unknown] = np.nan
        for rows in np.split(np.arange(shape[0]), len(splits)):  # training needs a known label in each split
            labels[rows[0], 0] = np.nan_to_num(labels[rows[0], 0])
    probs = {
        "random": rng.random(shape),
        "constant": np.tile(rng.random(shape[1]), (shape[0], 1)),
        "sure and right": np.nan_to_num(labels),
        "sure and wrong": 1 - np.nan_to_num(labels),
        "half": np.full(shape, 0.5),
    }[kind]
    if task == "multiclass":
        probs = probs / probs.sum(axis=1, keepdims=True)
    patients = np.repeat(np.arange(len(splits) * num_clusters), per_cluster).astype(str)
    rows = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(shape[0])],
            "split": np.repeat(splits, num_clusters * per_cluster),
            "group": patients,
            "cluster": patients,
            "subgroup_sex": rng.choice(["f", "m", "unknown"], shape[0]),
        }
    )
    return Predictions(rows, labels, probs.astype(np.float32).astype(float), tuple(names), get_task(task))


def write_run(folder, predictions, more=()) -> Run:
    run, names = Run(folder), predictions.class_names
    config = load_config(overrides=[f"task={predictions.task.name}", "evaluate.num_resamples=10", *more])
    config.write(run.config)
    write_classes(run, config, names)
    write_frame(run.predictions, predictions.to_frame())
    fitted = fit_on_validation(predictions.split("val"), config.evaluate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of means over nothing
        scored = write_scores(run, config, predictions, count_prior(predictions.labels, names), fitted)
    row = {"model": "vit", "task": config.task, **result_rows.score_columns(list(scored.values())[-1]), "minutes": 0.0}
    write_frame(run.result, pd.DataFrame([row]))
    return run


def read_again(run, predictions):
    assert run.read_json(run.metrics)["val"]["num_clusters"] >= 1
    assert run.read_result(["model", "best_constant"])["model"] == "vit"
    assert read_fitted(run).calibration.class_names == predictions.class_names
    stored = stored_predictions(run)
    np.testing.assert_array_equal(stored.probs, predictions.probs)
    np.testing.assert_array_equal(stored.labels, predictions.labels)
    write_json(run.folder / "kmed.json", describe_run(run))
    check(Description, read_json(run.folder / "kmed.json"), run.folder / "kmed.json")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    task=st.sampled_from(["multiclass", "multilabel"]),
    num_classes=st.integers(1, 4),
    kind=st.sampled_from(PROBS),
    num_clusters=st.integers(2, 5),
    per_cluster=st.integers(1, 8),
    unknown=st.sampled_from([0.0, 0.5, 1.0]),
    positives=st.sampled_from([0.0, 0.5, 1.0]),
    splits=st.sampled_from([["val", "test"], ["val"]]),
    rule=st.sampled_from(["f1", "youden", "sensitivity", "exact_match", "hamming", "cost"]),
    case=st.sampled_from(["none", "cluster"]),
)
def test_scores_of_few_pictures(
    tmp_path_factory, seed, task, num_classes, kind, num_clusters, per_cluster, unknown, positives, splits, rule, case
):
    names = ["a", "No Finding", "c", "d"][: max(num_classes, 2 if task == "multiclass" else 1)]
    predictions = draw_predictions(
        np.random.default_rng(seed), task, names, kind, num_clusters=num_clusters, per_cluster=per_cluster,
        unknown=unknown, positives=positives, splits=splits,
    )  # fmt: skip
    run = write_run(
        tmp_path_factory.mktemp("run"), predictions, [f"evaluate.thresholds={rule}", f"evaluate.case={case}"]
    )
    read_again(run, predictions)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_odd_names(tmp_path, task):
    predictions = draw_predictions(
        np.random.default_rng(0), task, ODD_NAMES, "random", num_clusters=5, per_cluster=8, unknown=0.1, positives=0.5,
        splits=["val", "test"],
    )  # fmt: skip
    read_again(write_run(tmp_path, predictions), predictions)


@pytest.mark.parametrize("setting", ["auto", "full", "0-4095", "-1024-3071", "0-100000", "-9999999999-9999999999"])
def test_each_legal_range(tmp_path, setting):
    run, config = Run(tmp_path), load_config(overrides=["task=multiclass", ("data.range", setting)])
    config.write(run.config)
    write_classes(run, config, ["a", "b"])
    assert isinstance(run.read_classes(), Classes)
