"""The table of formats: every row is complete, and a module and a row are enough to add a format."""

import json
import shutil
import subprocess
import sys
import types

import keras
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from untrained_models import CALIBRATIONS, WRITERS, build, check_same, description

import kmed
from kmed.cli.main import main
from kmed.deployment import benchmarking, exporting, latency
from kmed.errors import ConfigError, RunError
from kmed.evaluation.predictor import export_path, open_exported, open_model
from kmed.formats import onnx
from kmed.formats.registry import (
    FORMATS,
    Format,
    benchmarked_choices,
    check_format,
    describe_quantizations,
    either,
    exported_formats,
    write,
)
from kmed.runs import Run


@pytest.mark.parametrize("row", FORMATS.values(), ids=FORMATS)
def test_a_row_is_complete(row):
    assert FORMATS[row.name] is row and row.suffix.startswith(".")
    assert row.quantizations[0] == "none"
    assert set(row.needs_pictures) | set(row.benchmarked) | set(row.nearest) <= set(row.quantizations)
    if row.exported:
        module = row.load()
        assert callable(module.write) and callable(module.open)
        assert set(row.nearest) == set(row.quantizations)
    for quantize, choices in row.nearest.items():
        for choice in choices:
            check_format(*choice)
            assert choice != (row.name, quantize) and FORMATS[choice[0]].exported


def test_suffixes_do_not_repeat():
    assert len({row.suffix for row in FORMATS.values()}) == len(FORMATS)


def test_the_table_is_described():
    assert either(FORMATS) == "keras, savedmodel, tflite or onnx"
    assert either(["tflite"]) == "tflite"
    assert exported_formats() == ["savedmodel", "tflite", "onnx"]
    assert describe_quantizations() == "For tflite: none, float16, dynamic or int8."
    assert benchmarked_choices() == [
        ("keras", "none"), ("savedmodel", "none"), ("tflite", "none"), ("tflite", "float16"), ("tflite", "dynamic"),
        ("tflite", "int8"), ("onnx", "none"),
    ]  # fmt: skip


def test_reading_the_table_imports_nothing_heavy():
    code = "import sys, kmed.formats.registry; print({'keras', 'tensorflow', 'numpy', 'scipy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(("command", "words"), [
    ("export", "savedmodel, tflite or onnx."),
    ("export", "For tflite: none, float16, dynamic or int8."),
    ("predict", "keras, savedmodel, tflite or onnx."),
    ("evaluate", "keras, savedmodel, tflite or onnx."),
])  # fmt: skip
def test_help_names_the_formats(command, words):
    assert words in " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())


def test_what_is_not_exported_is_not_written(tmp_path):
    with pytest.raises(ConfigError, match="keras has no module: a run folder already holds this format"):
        FORMATS["keras"].load()
    for format in ("keras", "coreml"):
        with pytest.raises(ConfigError, match=f"The format must be savedmodel, tflite or onnx. Received: '{format}'"):
            write(format, None, None, tmp_path / "model", {})


@pytest.mark.parametrize("format", list(WRITERS))
def test_many_labels_are_calibrated_one_by_one(format, tmp_path):
    check_same("small vit", "multilabel", format, tmp_path / "model")


@pytest.mark.parametrize(
    ("module", "format", "message"),
    [
        ("tf2onnx", "onnx", r"pip install kmed\[onnx\]"),
        ("onnxruntime", "onnx", r"pip install kmed\[onnx\]"),
        ("ai_edge_litert.interpreter", "tflite", "pip install ai-edge-litert"),
    ],
)
def test_a_missing_package_is_named(module, format, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=message):
        if module == "tf2onnx":
            onnx.write(build("small vit"), CALIBRATIONS["multiclass"], tmp_path / "m", description("vit", "multiclass"))
        else:
            open_exported(tmp_path / "m", format)


# ----- a new format -----


def write_boxed(model, calibration, path, description, *, quantize="none", pictures=None):
    """Writes a folder with the Keras model, in half precision if it is quantized, and its calibration."""
    assert (pictures is not None) == (quantize == "small")
    path.mkdir()
    before = model.get_weights()
    if quantize == "small":
        model.set_weights([weight.astype(np.float16) for weight in before])
    model.save(path / "model.keras")
    model.set_weights(before)
    (path / "calibration.json").write_text(json.dumps([calibration.to_dict(), description["class_names"]]))


def open_boxed(path, threads):
    """Returns a function that takes at most 3 pictures at a time."""
    from kmed.metrics.calibration import Calibration

    model = keras.saving.load_model(path / "model.keras", compile=False)
    calibration = Calibration.from_dict(*json.loads((path / "calibration.json").read_text()))

    def run(images):
        assert len(images) <= 3
        return calibration.apply(model.predict_on_batch(images))

    return run


@pytest.fixture
def boxed(monkeypatch):
    """The row of a new format, whose module is made here."""
    module = types.ModuleType("boxed_format")
    module.write, module.open = write_boxed, open_boxed
    monkeypatch.setitem(sys.modules, "boxed_format", module)
    row = Format(
        name="boxed",
        suffix=".box",
        module="boxed_format",
        quantizations=("none", "small"),
        needs_pictures=("small",),
        max_batch=3,
        sets_threads=False,
        nearest={"small": (("boxed", "none"),)},
        benchmarked=("none",),
    )
    monkeypatch.setitem(FORMATS, "boxed", row)
    return row


@pytest.fixture
def run(short_run, tmp_path, monkeypatch) -> Run:
    """A copy of a finished run; latencies are measured only briefly."""
    short = {"seconds": 0.01, "least": 2}
    measure = latency.measure_latency
    for module in (exporting, latency):
        monkeypatch.setattr(module, "measure_latency", lambda *given, **named: measure(*given, **{**named, **short}))
    return Run(shutil.copytree(short_run.folder, tmp_path / "run"))


def test_a_format_is_named_wherever_formats_are(boxed):
    with pytest.raises(ConfigError, match="keras, savedmodel, tflite, onnx or boxed. Received: 'boxd'. Did you mean"):
        check_format("boxd")
    with pytest.raises(ConfigError, match="boxed is quantized as none or small. Received: format 'boxed' with .*int8"):
        check_format("boxed", "int8")
    with pytest.raises(ConfigError, match="Only tflite or boxed is quantized. Received: format 'onnx'"):
        check_format("onnx", "small")
    assert ("boxed", "none") in benchmarked_choices() and ("boxed", "small") not in benchmarked_choices()
    assert describe_quantizations().endswith("; for boxed: none or small.")


def test_a_format_is_exported_checked_opened_and_scored(boxed, run):
    exported = kmed.export(run.folder, "boxed", threads=1)
    assert exported.path == export_path(run, "boxed") == run.exports / "vit.box"
    assert exported.record["checked"]["passed"] and exported.record["checked"]["agreement"] == 1.0
    assert exported.record["calibration_pictures"] == 0 and exported.record["size_bytes"] > 1000

    images = np.random.default_rng(0).integers(0, 256, (7, 32, 40, 3))
    predictor = open_model(run, "boxed")
    assert predictor.max_batch == 3
    np.testing.assert_allclose(predictor.predict(images), open_model(run).predict(images), atol=1e-6)

    plain, other = kmed.evaluate(run.folder).flat(), kmed.evaluate(run.folder, format="boxed").flat()
    np.testing.assert_allclose(list(plain.values()), list(other.values()), atol=1e-5)
    with pytest.raises(
        RunError, match="has no vit-small.box. Make it with: kmed export .* --format boxed --quantize small"
    ):
        open_model(run, "boxed", "small")


def test_a_quantized_format_uses_pictures_and_is_compared_with_the_plain_one(boxed, run):
    record = kmed.export(run.folder, "boxed", "small", tolerance=100, num_pictures=5).record
    assert record["calibration_pictures"] == 5 and record["float32"]["size_bytes"] > 1000
    assert open_exported(run.exports / "vit-small.box", "boxed").max_batch == 3
    with pytest.raises(kmed.errors.DataError, match="small is calibrated on the run's training pictures and checked"):
        kmed.export(run.folder, "boxed", "small", data="/nowhere")


def test_a_refused_export_names_the_alternatives_of_its_row(boxed, run, monkeypatch):
    def spoil(model, *arguments, **options):
        before = model.get_weights()
        model.set_weights([weight + 1 for weight in before])
        write_boxed(model, *arguments, **options)
        model.set_weights(before)

    monkeypatch.setattr(boxed.load(), "write", spoil)
    with pytest.raises(RunError, match=r"No other format passes either \(boxed: a probability moved by"):
        kmed.export(run.folder, "boxed", "small", num_pictures=5, tolerance=0.1)
    with pytest.raises(RunError, match="No other format was tried. Choose savedmodel, tflite, onnx or boxed."):
        kmed.export(run.folder, "boxed")
    assert not run.exports.exists() or not list(run.exports.iterdir())


def test_a_format_is_benchmarked(boxed, run, monkeypatch, capsys):
    def in_this_process(command, **options):
        assert command[1:3] == ["-m", "kmed.deployment.latency"]
        latency.main(*command[3:])
        return subprocess.CompletedProcess(command, 0, capsys.readouterr().out, "")

    monkeypatch.setattr(benchmarking, "subprocess", types.SimpleNamespace(run=in_this_process))
    table = kmed.benchmark(run.folder, [("boxed", "none")], batches=(1, 3, 4), threads=1, seconds=0.01)
    assert table["batch"].tolist() == [1, 3] and (table["format"] == "boxed").all()  # 4 is more than it accepts
    assert len(pd.read_csv(run.folder / "benchmark.csv")) == 2
    with pytest.raises(ConfigError, match="Files of boxed take 3 pictures at a time: measure batch 3 too"):
        kmed.benchmark(run.folder, [("boxed", "none")], batches=(4,))
