"""A finished run in use: decisions from calibrated probabilities, opening a model, refusing foreign code."""

import json
import zipfile

import keras
import numpy as np
import pytest

import kmed
from kmed.errors import ConfigError, RunError, WeightsError
from kmed.evaluation.decisions import decision_rule, read_fitted
from kmed.evaluation.predictions import read_predictions
from kmed.evaluation.predictor import describe_run, export_path, open_model
from kmed.files import write_json
from kmed.formats.registry import check_format
from kmed.metrics.calibration import Calibration
from kmed.models.build import build_model
from kmed.models.keras_file import load_model
from kmed.models.weights import load_weights
from kmed.runs import Run, write_classes
from kmed.tasks import get_task

NAMES = ("a", "b", "c")


def multilabel_run(tmp_path, slopes=(0.5, 2.0, 1.0), intercepts=(1.0, -2.0, 0.0)) -> Run:
    """A folder with what decisions rest on: settings, classes and calibration of three findings."""
    run = Run(tmp_path)
    config = kmed.load_config(overrides=["task=multilabel"])
    config.write(run.config)
    write_classes(run, config, NAMES)
    calibration = Calibration("platt", NAMES, slopes=slopes, intercepts=intercepts)
    values = dict(zip(NAMES, (0.2, 0.6, 0.5)))
    thresholds = {"rule": "f1", "values": values, "not_chosen": {}}
    sets = {"coverage": 0.9, "values": dict(zip(NAMES, (0.1, 0.0, 0.4)))}
    write_json(run.fitted, {"calibration": calibration.to_dict(), "thresholds": thresholds, "prediction_sets": sets})
    return run


def test_calibrated_thresholds_find_what_plain_ones_find(tmp_path):
    rule = decision_rule(multilabel_run(tmp_path))
    probs = np.random.default_rng(0).uniform(0.001, 0.999, (500, 3))
    found = rule.decide(rule.calibration.apply(probs))
    assert (found == (probs >= [0.2, 0.6, 0.5])).all()
    assert (rule.prediction_sets(rule.calibration.apply(probs)) == (probs >= [0.1, 0.0, 0.4])).all()


@pytest.mark.parametrize(("intercept", "expected"), [(-2.0, 0), (2.0, 1)])
def test_a_label_that_calibration_made_constant_is_found_in_all_or_none(tmp_path, intercept, expected):
    rule = decision_rule(multilabel_run(tmp_path, slopes=(0.0, 1.0, 1.0), intercepts=(intercept, 0.0, 0.0)))
    probs = np.random.default_rng(0).uniform(0, 1, (50, 3))
    assert (rule.decide(rule.calibration.apply(probs))[:, 0] == expected).all()


def test_inverting_a_calibration_gives_the_probabilities_back():
    rng = np.random.default_rng(0)
    softmax = rng.dirichlet(np.ones(3), 100)
    cooled = Calibration("temperature", NAMES, temperature=2.5)
    np.testing.assert_allclose(cooled.invert(cooled.apply(softmax)), softmax, atol=1e-6)
    # Also through the float32 of an exported file, where it is not nearly certain.
    np.testing.assert_allclose(cooled.invert(cooled.apply(softmax).astype(np.float32)), softmax, atol=1e-5)
    platt = Calibration("platt", NAMES, slopes=(0.5, 2.0, 0.0), intercepts=(1.0, -2.0, 0.5))
    probs = rng.uniform(0.01, 0.99, (100, 3))
    back = platt.invert(platt.apply(probs))
    np.testing.assert_allclose(back[:, :2], probs[:, :2], atol=1e-9)
    assert np.ptp(back[:, 2]) == 0  # what a slope of 0 has lost stays lost


def test_the_keras_model_predicts_the_calibrated_probabilities_of_the_run(short_run):
    with np.load(short_run.read_config().data.path) as data:
        images, paths = data["images"], list(data["path"])
    names = short_run.read_json(short_run.classes)["class_names"]
    known = read_predictions(short_run.predictions, names, get_task("multiclass")).split("test")
    rows = [paths.index(path) for path in known.rows["path"]]
    found = open_model(short_run).predict(images[rows])
    np.testing.assert_allclose(found, read_fitted(short_run).calibration.apply(known.probs), atol=1e-6)


def test_the_description_holds_what_a_program_needs(short_run):
    description = describe_run(short_run)
    assert description["class_names"] == ["red", "green", "blue"] and description["image_size"] == [32, 40]
    assert description["task"] == "multiclass" and description["thresholds"] is None
    score = description["test_score"]
    assert score["name"] == "accuracy" and score["low"] <= score["value"] <= score["high"]
    assert "learnt" in description["verdict"] or "better" in description["verdict"]
    json.dumps(description, allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tfile",), "keras, savedmodel, tflite or onnx. Received: 'tfile'. Did you mean 'tflite'?"),
        (("tflite", "int4"), "none, float16, dynamic or int8. Received: 'int4'. Did you mean 'int8'?"),
        (("onnx", "int8"), "Only tflite is quantized. Received: format 'onnx'"),
    ],
)
def test_unknown_formats_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        check_format(*arguments)


def test_a_missing_export_names_the_command_that_makes_it(short_run):
    with pytest.raises(RunError, match="Make it with: kmed export .* --format tflite --quantize float16"):
        open_model(short_run, "tflite", "float16")


def test_a_damaged_savedmodel_is_one_line(run, short_measurements):
    path = kmed.export(run.folder, "savedmodel", threads=1).path
    data = next(path.glob("variables/variables.data*"))
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(RunError, match="cannot be run as a SavedModel") as caught:
        open_model(run, "savedmodel")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", ["tflite", "onnx", "savedmodel"])
def test_a_damaged_export_is_one_line(run, format):
    path = export_path(run, format)
    path.parent.mkdir()
    path.write_bytes(b"no model" * 100)
    with pytest.raises(RunError, match="cannot be run as") as caught:
        open_model(run, format)
    assert "\n" not in str(caught.value)


# ----- files that ask for code -----


def test_a_lambda_is_refused(tmp_path):
    inputs = keras.Input((4,))
    path = tmp_path / "lambda.keras"
    keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs)).save(path)
    with pytest.raises(RunError, match="contains Lambda, which contains code of its own"):
        load_model(path)
    with pytest.raises(WeightsError, match="contains Lambda, which contains code of its own"):
        load_weights(build_model("vit", 2, image_size=(16, 16)), path)  # `kmed train --weights` too


def test_a_class_of_another_module_is_refused_and_not_imported(tmp_path, monkeypatch):
    path, marker = tmp_path / "foreign.keras", tmp_path / "imported"
    (tmp_path / "intruder.py").write_text(f"import pathlib; pathlib.Path({str(marker)!r}).touch()\nclass Layer: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "plain.keras")
    with zipfile.ZipFile(tmp_path / "plain.keras") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                content = content.replace(b'"module": "keras.layers", "class_name": "Dense"',
                                          b'"module": "intruder", "class_name": "Layer"')  # fmt: skip
                assert b"intruder" in content
            new.writestr(name, content)
    with pytest.raises(RunError, match="contains Layer, from the module intruder, and would run code"):
        load_model(path)
    assert not marker.exists()


def test_damaged_weights_are_one_line(short_run, tmp_path):
    content = bytearray(short_run.model.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    (tmp_path / "damaged.keras").write_bytes(content)
    with pytest.raises(RunError, match="damaged.keras cannot be loaded: ") as caught:
        load_model(tmp_path / "damaged.keras")
    assert "\n" not in str(caught.value)


def test_an_unregistered_class_is_refused(tmp_path):
    class Own(keras.layers.Layer):
        def call(self, x):
            return x

    inputs = keras.Input((4,))
    keras.Model(inputs, Own()(inputs)).save(tmp_path / "own.keras")
    with pytest.raises(RunError, match="Own"):
        load_model(tmp_path / "own.keras")


@pytest.mark.parametrize("content", [b"", b"no zip at all"])
def test_what_is_not_a_keras_file_is_refused(tmp_path, content):
    path = tmp_path / "model.keras"
    path.write_bytes(content)
    with pytest.raises(RunError, match="it is not a .keras file"):
        load_model(path)
    with pytest.raises(RunError, match="There is no model"):
        load_model(tmp_path / "absent.keras")
