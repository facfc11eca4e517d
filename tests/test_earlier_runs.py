"""Runs of kmed 0.1.0 still work: they are scored, explained, exported, compared and resumed, and train to the same."""

import json
import pathlib
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

import kmed

KEPT = pathlib.Path(__file__).parent / "fixtures" / "runs_0_1_0"
TASKS = ("multiclass", "multilabel")
# Of probabilities: other processors sum in another order, and two epochs of training amplify the difference.
ROUNDING = 2e-3


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder with the images of the kept runs, drawn again: smears and xrays."""
    from kmed.data.demo.smears import draw_demo_smears
    from kmed.data.demo.xrays import draw_demo_xrays

    folder = tmp_path_factory.mktemp("drawn")
    draw_demo_smears(folder / "smears", num_train=28, num_test=12)
    draw_demo_xrays(folder / "xrays", num_patients=15)
    return folder


@pytest.fixture
def old(drawn, tmp_path):
    """A function that returns a copy of a kept run, with the path of the drawn data in its settings."""

    def copy(name, as_name=None):
        folder = tmp_path / (as_name or name)
        shutil.copytree(KEPT / name, folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["data"]["path"] = str(drawn / config["data"]["path"])
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return folder

    return copy


def probabilities(folder):
    """Returns (paths, (N, K) probabilities) of a run's predictions.csv."""
    frame = pd.read_csv(folder / "predictions.csv", dtype={"path": str})
    return list(frame["path"]), frame.filter(like="prob_").to_numpy()


def without_stamp(content):
    """Returns the content of a JSON file without what version 2 of the files added."""
    return {key: value for key, value in content.items() if key not in ("version", "kmed_version")}


def assert_same_predictions(folder, other):
    (paths, found), (other_paths, expected) = probabilities(folder), probabilities(other)
    assert paths == other_paths
    np.testing.assert_allclose(found, expected, atol=ROUNDING)


def assert_same_shape(value, other, place=""):
    """Asserts the same keys in the same order, and lists of the same length; values may differ."""
    if isinstance(other, dict):
        assert list(value) == list(other), place
        for key in other:
            assert_same_shape(value[key], other[key], f"{place}/{key}")
    elif isinstance(other, list):
        assert len(value) == len(other), place


@pytest.mark.parametrize("task", TASKS)
def test_an_old_run_is_scored_as_it_was(old, task):
    folder = old(task)
    scores = kmed.evaluate(folder).to_dict()
    expected = json.loads((folder / "metrics.json").read_text())["test"]
    assert scores["num_images"] == expected["num_images"] and scores["num_clusters"] == expected["num_clusters"]
    assert list(scores["scores"]) == list(expected["scores"])
    for name, score in expected["scores"].items():
        for end in ("value", "low", "high"):
            wanted = np.nan if score[end] is None else score[end]
            np.testing.assert_allclose(scores["scores"][name][end], wanted, atol=1e-4, err_msg=f"{name} {end}")


@pytest.mark.parametrize("task", TASKS)
def test_an_old_run_scored_again_has_the_same_files(old, task):
    folder = old(task)
    names, summary = ("metrics.json", "calibration.json"), (folder / "summary.txt").read_text()
    kept = {name: json.loads((folder / name).read_text()) for name in names}
    row = pd.read_csv(folder / "result.csv", dtype=str, keep_default_na=False)
    kmed.rescore(folder)
    for name, content in kept.items():
        assert without_stamp(json.loads((folder / name).read_text())) == content
    assert (folder / "summary.txt").read_text() == summary
    assert pd.read_csv(folder / "result.csv", dtype=str, keep_default_na=False).equals(row)


@pytest.mark.parametrize("task", TASKS)
def test_an_old_run_is_explained_and_reported(old, task):
    folder = old(task)
    files = kmed.explain_run(folder)
    assert files[-1].name == "explain.png" and all(file.exists() for file in files)
    assert "explained" not in kmed.write_report(folder).read_text().split("<body")[0]


@pytest.mark.parametrize(("task", "quantize"), [("multiclass", "none"), ("multilabel", "int8")])
def test_an_old_run_is_exported_as_it_was(old, task, quantize):
    from kmed.evaluation.predictor import open_exported
    from kmed.formats.tflite_metadata import read_description

    folder = old(task)
    exported = kmed.export(folder, "tflite", quantize, tolerance=100, threads=1)
    kept = KEPT / task / "export" / exported.path.name
    assert without_stamp(read_description(exported.path)) == without_stamp(read_description(kept))
    height, width = read_description(kept)["image_size"]
    images = np.random.default_rng(0).integers(0, 256, (4, height, width, 3))
    found, expected = (open_exported(path, "tflite", threads=1).predict(images) for path in (exported.path, kept))
    np.testing.assert_allclose(found, expected, atol=1e-6 if quantize == "none" else 0.02)


def test_the_file_of_an_old_export_is_opened(old):
    folder = old("multiclass")
    scores = kmed.evaluate(folder, format="tflite")
    expected = json.loads((folder / "metrics.json").read_text())["test"]["scores"]["accuracy"]["value"]
    assert scores.scores["accuracy"].value == pytest.approx(expected)


def test_old_runs_are_compared(old, tmp_path):
    comparison, files = kmed.compare([old("multilabel"), old("multilabel", "again")], out=tmp_path / "compared")
    assert len(comparison.runs) == 2 and all(file.exists() for file in files)
    differences = comparison.pairs["difference"].dropna()  # no finding is common enough for a mean of those
    assert len(differences) and (differences == 0).all()


def test_an_interrupted_old_run_is_resumed_to_what_the_whole_one_was(old):
    folder = old("interrupted")
    kmed.resume(folder)
    assert_same_predictions(folder, KEPT / "multiclass")
    assert list(pd.read_csv(folder / "history.csv")) == list(pd.read_csv(KEPT / "multiclass" / "history.csv"))


@pytest.mark.parametrize(
    "name",
    [
        "multiclass",
        "multilabel",
        "xrays_vit",
        pytest.param("smears_resnet18", marks=pytest.mark.slow),
    ],
)
def test_training_again_gives_the_same(old, tmp_path, name):
    again = kmed.fit(kmed.load_config(old(name) / "config.yaml"), out=tmp_path / "again")
    assert_same_predictions(again.folder, KEPT / name)
    metrics, kept = (
        without_stamp(json.loads(path.read_text())) for path in (again.metrics, KEPT / name / "metrics.json")
    )
    assert_same_shape(metrics, kept)
    assert metrics["training"] == kept["training"]
