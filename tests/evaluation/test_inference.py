"""Scoring a run again: moved data, other data, and what stands in predictions.csv."""

import shutil

import numpy as np
import pytest
from PIL import Image

import kmed
from kmed.config import load_config
from kmed.data.readers.load import load_table
from kmed.errors import DataError, RunError, ScoreError
from kmed.evaluation.predictions import make_predictions
from kmed.evaluation.run_evaluation import evaluate_split


def test_data_may_have_moved(short_run, small_npz, tmp_path):
    moved = tmp_path / "moved.npz"
    moved.write_bytes(small_npz.read_bytes())
    assessment = evaluate_split(short_run.folder, data=moved)
    assert assessment.scores.flat() == kmed.evaluate(short_run.folder).flat()
    assert assessment.constants["majority class"].scores["accuracy"].value == pytest.approx(1 / 3)


def test_thresholds_of_other_labels_are_refused(short_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(short_run.folder, folder)
    fitted = folder / "calibration.json"
    fitted.write_text(fitted.read_text().replace('"blue"', '"violet"'))
    with pytest.raises(RunError, match="calibration.json: class_names is .'red', 'green', 'violet'., but .*'blue'."):
        kmed.evaluate(folder)


def test_a_test_split_of_one_cluster_is_refused_before_training(small_npz, tmp_path):
    with np.load(small_npz) as archive:
        arrays = dict(archive)
    arrays["group"] = arrays["cluster"] = np.where(arrays["split"] == "test", "one", arrays["group"])
    np.savez(tmp_path / "one.npz", **arrays)
    with pytest.raises(ScoreError, match=r"36 pictures of 1 cluster\(s\)"):
        kmed.fit(load_config(overrides=[f"data.path={tmp_path / 'one.npz'}"]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_pictures_and_other_classes_are_refused(short_run, small_npz, tmp_path):
    with np.load(small_npz) as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "other.npz", **{**arrays, "path": np.char.add("x", arrays["path"])})
    with pytest.raises(DataError, match="Use the data that were split"):
        kmed.evaluate(short_run.folder, data=tmp_path / "other.npz")
    np.savez(tmp_path / "names.npz", **{**arrays, "class_names": np.array(["a", "b", "c"])})
    with pytest.raises(DataError, match="Use the data that the run was started with"):
        kmed.evaluate(short_run.folder, data=tmp_path / "names.npz")


def test_a_split_that_is_not_there_names_the_nearest(short_run):
    with pytest.raises(DataError, match="Did you mean 'test'"):
        kmed.evaluate(short_run.folder, "tets")


def test_a_damaged_model_is_one_line(short_run, tmp_path):
    (tmp_path / "config.yaml").write_bytes(short_run.config.read_bytes())
    for file in ("classes.json", "splits.csv"):
        (tmp_path / file).write_bytes((short_run.folder / file).read_bytes())
    (tmp_path / "model.keras").write_bytes(b"no model")
    with pytest.raises(RunError, match="cannot be loaded") as error:
        kmed.evaluate(tmp_path)
    assert "\n" not in str(error.value)


def test_prediction_rows_by_hand(small_npz):
    table = load_table(small_npz).take(np.arange(2))
    probs = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
    frame = make_predictions(table, probs).to_frame()
    assert list(frame["predicted"]) == ["green", "red"]
    assert list(frame["label"]) == ["red", "red"]
    assert list(frame["prob_blue"]) == [0.2, 0.2]
    assert list(frame["label_red"]) == [1, 1]


def test_a_picture_damaged_since_training_is_one_line(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(9):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(
                tmp_path / "pictures" / name / f"{number}.png"
            )
    settings = ["data.image_size=16x16", "model.name=vit", "model.options={width: 8, depth: 1, num_heads: 2}"]
    settings += ["train.epochs=1", "train.tensorboard=false", f"data.path={tmp_path / 'pictures'}"]
    run = kmed.fit(load_config(overrides=settings), out=tmp_path / "run")
    table = load_table(tmp_path / "pictures")
    for path in table.files:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="cannot be read") as error:
        kmed.evaluate(run.folder)
    assert "\n" not in str(error.value)
