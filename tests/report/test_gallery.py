"""Which pictures are chosen for a run, ties included, and how they are read by their path and split."""

import numpy as np
import pandas as pd
import pytest

import kmed
from kmed.config import load_config
from kmed.errors import DataError
from kmed.evaluation.predictions import Predictions, stored_predictions
from kmed.report import gallery
from kmed.tasks import get_task


@pytest.fixture(scope="module")
def finished(small_npz, tmp_path_factory):
    """A finished run of one epoch."""
    settings = ["data.image_size=32x40", "model.name=vit", "model.options={width: 8, depth: 1, num_heads: 2}"]
    settings += ["train.epochs=1", "train.tensorboard=false", "evaluate.num_resamples=20", f"data.path={small_npz}"]
    return kmed.fit(load_config(overrides=settings), out=tmp_path_factory.mktemp("runs") / "run")


def predictions_of(labels, probs, task, clusters=None) -> Predictions:
    names = [str(row) for row in range(len(labels))]
    rows = pd.DataFrame({"path": names, "split": "test", "group": names, "cluster": clusters or names})
    return Predictions(rows, np.array(labels, float), np.array(probs, float), ("a", "b"), get_task(task))


def test_ties_are_broken_by_the_order_of_rows():
    probs = [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]]
    labels = [[0, 1], [1, 0], [1, 0], [0, 1], [0, 1], [1, 0]]
    predictions = predictions_of(labels, probs, "multiclass")
    assert [error.row for error in gallery.confident_errors(predictions)] == [0, 2, 3]
    assert [error.class_name for error in gallery.confident_errors(predictions)] == ["a", "b", "a"]
    assert [answer.row for answer in gallery.confident_answers(predictions)] == [1, 4]
    kinds, rows = gallery.choose_pictures(predictions)
    assert kinds == ["error1", "error2", "error3", "hit1", "hit2", "hit3"]
    assert rows.tolist() == [0, 2, 3, 1, 4, 5]


def test_a_cluster_gives_one_error_and_a_missed_label_is_one():
    probs, labels = [[0.9, 0.05], [0.8, 0.5], [0.3, 0.7]], [[0, 1], [0, np.nan], [0, 1]]
    errors = gallery.confident_errors(predictions_of(labels, probs, "multilabel", ["x", "y", "y"]))
    assert [(error.row, error.class_name, error.found) for error in errors] == [(0, "b", False), (1, "a", True)]
    assert not any(error.right for error in errors)
    assert len(gallery.confident_errors(predictions_of(labels, probs, "multilabel"), number=1)) == 1


def test_the_choice_is_that_of_sorting_all_rows():
    """The rows that sorting all pictures by their highest probability gives; with many ties."""
    rng = np.random.default_rng(0)
    for task in ("multiclass", "multilabel"):
        probs = rng.integers(0, 4, (60, 2)) / 4
        labels = rng.integers(0, 2, (60, 2)).astype(float)
        labels[rng.random((60, 2)) < 0.2] = np.nan
        kinds, rows = gallery.choose_pictures(predictions_of(labels, probs, task), seed=3)
        best = probs.argmax(axis=1)
        order = np.argsort(-probs.max(axis=1), kind="stable")
        of_best = labels[np.arange(60), best]
        errors, hits = order[of_best[order] == 0][:4], order[of_best[order] == 1][:4]
        others = np.random.default_rng(3).permutation(np.setdiff1d(np.arange(60), [*errors, *hits]))[:4]
        assert rows.tolist() == [*errors, *hits, *others]
        assert kinds == [f"{kind}{number}" for kind in ("error", "hit", "random") for number in (1, 2, 3, 4)]


def test_pictures_are_read_by_their_split_and_path(finished, small_npz):
    chosen = stored_predictions(finished).split("test").take(np.array([5, 0, 5]))
    with np.load(small_npz) as archive:
        row_of = {path: row for row, path in enumerate(archive["path"])}
        expected = archive["images"][[row_of[path] for path in chosen.rows["path"]]]
    np.testing.assert_array_equal(gallery.read_pictures(finished, chosen), expected)
    table = kmed.load_table(small_npz)
    np.testing.assert_array_equal(gallery.read_pictures(finished, chosen, table), expected)
    rows = chosen.rows.assign(split="val")
    moved = Predictions(rows, chosen.labels, chosen.probs, chosen.class_names, chosen.task)
    with pytest.raises(DataError, match=f"names {rows['path'].iloc[0]}, which is not in split 'val' of"):
        gallery.read_pictures(finished, moved)


def test_attention_is_drawn_on_each_picture(finished):
    predictions = stored_predictions(finished).split("test")
    answers = gallery.confident_errors(predictions)[:2] + gallery.confident_answers(predictions)[:2]
    pictures = gallery.read_pictures(finished, predictions.take(np.array([answer.row for answer in answers])))
    drawn = gallery.draw_attention(finished, answers, pictures)
    assert drawn.shape == pictures.shape and drawn.dtype == np.uint8
    model, classes = kmed.load_model(finished.model), [answer.class_index for answer in answers]
    heat = kmed.explain(model, pictures, classes)
    np.testing.assert_array_equal(drawn, [kmed.overlay(image, of_it) for image, of_it in zip(pictures, heat)])
