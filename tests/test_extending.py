"""A new score or metric is a function and one row: registered here alone, it reaches every file that a run writes."""

import dataclasses
import shutil

import keras
import numpy as np
import pandas as pd
import pytest

import kmed
from kmed.evaluation.comparison import compare_runs
from kmed.metrics.class_scores import Probabilities
from kmed.metrics.intervals import Score, mean_score
from kmed.metrics.scores import FinalScore
from kmed.report.run_page import write_report
from kmed.tasks import TASKS, get_task

MEANING = "Share of pictures whose class is among the two most probable ones."


def top_two_ratio(probabilities: Probabilities) -> Score:
    """Returns the share of images whose class is among the two most probable ones: a final score."""
    sample, probs = probabilities.sample, probabilities.probs
    among = (sample.actual & (probs >= np.sort(probs, axis=1)[:, [-2]])).any(axis=1)
    return mean_score(sample.resamples, among.mean(), among)


def confidence(labels, probs):
    """The probability of the most probable class: a metric of `fit`."""
    return keras.ops.max(probs, axis=-1)


@pytest.fixture(scope="module")
def extended(small_npz, tmp_path_factory):
    """Returns a finished run of a task with one more score and metric, which stay in the table for the whole module."""
    task = TASKS["multiclass"]
    scores = {**task.make_scores(), "top_two_ratio": FinalScore("ranking", top_two_ratio, MEANING)}
    metric = keras.metrics.MeanMetricWrapper
    extended_task = dataclasses.replace(
        task,
        make_scores=lambda: scores,
        make_metrics=lambda names: [*task.make_metrics(names), metric(confidence, name="confidence")],
    )
    settings = ["data.image_size=32x40", "model.name=vit", "model.options={width: 8, depth: 1, num_heads: 2}"]
    settings += ["train.epochs=1", "train.tensorboard=false", "evaluate.num_resamples=20", f"data.path={small_npz}"]
    settings += ["train.dtype=float32", "train.monitor=val_confidence"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "multiclass", extended_task)
        run = kmed.fit(kmed.load_config(overrides=settings), out=tmp_path_factory.mktemp("runs") / "run")
        write_report(run)
        yield run
    assert TASKS["multiclass"] is task


def test_a_final_score_is_a_function_and_a_row(extended):
    metrics, row = extended.read_json(extended.metrics), extended.read_result()
    for split in ("val", "test"):
        score = metrics[split]["scores"]["top_two_ratio"]
        assert score["low"] <= score["value"] <= score["high"] and score["num_clusters"] > 1
        assert metrics[split]["constants"]["majority class"]["scores"]["top_two_ratio"]["value"] is not None
    assert [float(row[f"top_two_ratio{end}"]) for end in ("", "_low", "_high")] == [
        metrics["test"]["scores"]["top_two_ratio"][name] for name in ("value", "low", "high")
    ]
    assert any(line.startswith("top_two_ratio ") for line in extended.summary.read_text().splitlines())
    page = extended.report.read_text(encoding="utf-8")
    assert 'data-from="metrics.json#/test/scores/top_two_ratio/value"' in page and MEANING in page


def test_a_final_score_is_compared(extended, tmp_path):
    other = shutil.copytree(extended.folder, tmp_path / "other")
    table = compare_runs([extended.folder, other]).table.set_index("model")
    value = float(extended.read_result()["top_two_ratio"])
    assert table.loc["other", "top_two_ratio"] == pytest.approx(value)
    assert table["top_two_ratio_high"].notna().all()  # of the constant predictors too


def test_a_final_score_is_scored_again(extended, tmp_path):
    run = shutil.copytree(extended.folder, tmp_path / "run")
    before = extended.read_result()
    assert kmed.rescore(run).read_result() == before


def test_a_fit_metric_is_a_function_and_a_row(extended):
    history = pd.read_csv(extended.history)
    assert history[["confidence", "val_confidence"]].gt(1 / 3).all(axis=None)
    assert get_task("multiclass").make_metrics(["a", "b"])[-1].name == "confidence"
    assert extended.read_config().train.monitor == "val_confidence"
    page = extended.report.read_text(encoding="utf-8")
    assert 'data-from="history.csv#/0/val_confidence"' in page
    assert "confidence over 1 epochs: training from " in page  # the curve, in words
