"""kmed.export keeps a file only if it predicts what the Keras model predicts."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import kmed
from kmed.cli.main import main
from kmed.deployment import exporting
from kmed.deployment.export_record import append_record, describe_record
from kmed.deployment.exporting import ExportRefused, export
from kmed.errors import ConfigError, DataError, RunError
from kmed.formats import onnx, savedmodel, tflite
from kmed.runs import Run
from kmed.runtime import num_cores
from kmed.schemas.records import stamped

pytestmark = pytest.mark.usefixtures("short_measurements")


@pytest.fixture(scope="module")
def multilabel_run(small_npz, tmp_path_factory) -> Run:
    """A finished run of three findings, any number of them per picture."""
    folder = tmp_path_factory.mktemp("multilabel")
    with np.load(small_npz) as data:
        fields = dict(data)
    rng = np.random.default_rng(1)
    labels = (rng.uniform(size=fields["labels"].shape) < 0.4).astype(np.float32)
    fields["images"] = np.clip(fields["images"] + 90 * labels[:, None, None, :], 0, 255).astype(np.uint8)
    np.savez(folder / "many.npz", **(fields | {"labels": labels, "task": np.array("multilabel")}))
    settings = ["task=multilabel", "data.image_size=32x40", "model.name=vit", "train.epochs=3", "train.batch_size=16"]
    settings += ["model.options={width: 16, depth: 1, num_heads: 2}", "train.tensorboard=false", "train.dtype=float32"]
    settings += ["evaluate.num_resamples=50", f"data.path={folder / 'many.npz'}"]
    return kmed.fit(kmed.load_config(overrides=settings), out=folder / "run")


def left(run: Run) -> list[str]:
    """Returns the names of all files in a run's export folder, hidden ones too."""
    return sorted(path.name for path in run.exports.iterdir()) if run.exports.exists() else []


@pytest.mark.parametrize(
    ("format", "name"), [("tflite", "vit.tflite"), ("onnx", "vit.onnx"), ("savedmodel", "vit.savedmodel")]
)
def test_a_faithful_file_is_kept_with_its_record(run, format, name):
    exported = export(run.folder, format, threads=1)
    assert exported.path == run.exports / name and exported.path.exists()
    assert left(run) == sorted([name, f"{name}.json"])
    record = json.loads((run.exports / f"{name}.json").read_text())
    assert record == json.loads(json.dumps(stamped(exported.record)))
    checked = record["checked"]
    assert checked["passed"] and checked["agreement"] == 1.0 and checked["largest_difference"] < 1e-4
    assert (checked["split"], checked["num_images"], checked["num_clusters"]) == ("test", 36, 9)
    assert checked["change"]["low"] <= checked["change"]["value"] == 0 <= checked["change"]["high"]
    files = [exported.path] if exported.path.is_file() else [f for f in exported.path.rglob("*") if f.is_file()]
    assert record["size_bytes"] == sum(file.stat().st_size for file in files)
    assert record["latency"]["num_calls"] >= 20 and record["latency"]["median_ms"] > 0
    assert record["threads"] == (num_cores() if format == "savedmodel" else 1)  # TensorFlow's number cannot be set
    # Every score is that of the Keras model.
    plain, other = kmed.evaluate(run.folder).flat(), kmed.evaluate(run.folder, format=format).flat()
    assert plain.keys() == other.keys()
    np.testing.assert_allclose(list(plain.values()), list(other.values()), atol=1e-5)


def test_many_labels_are_exported_and_scored(multilabel_run):
    record = export(multilabel_run.folder, threads=1).record
    assert record["checked"]["score"] == "auroc_macro" and record["checked"]["passed"]
    assert set(record["description"]["thresholds"]) == {"red", "green", "blue"}
    plain, other = (kmed.evaluate(multilabel_run.folder, format=name).flat() for name in ("keras", "tflite"))
    np.testing.assert_allclose(list(plain.values()), list(other.values()), atol=1e-4)


def test_int8_is_calibrated_on_training_pictures_and_compared_with_float32(run):
    record = export(run.folder, "tflite", "int8", tolerance=100, num_pictures=10, threads=1).record
    assert record["calibration_pictures"] == 10
    assert record["size_bytes"] < record["float32"]["size_bytes"]
    assert "compared with the Keras model on 36 test pictures in 9 clusters" in describe_record(record)
    assert "float32: " in describe_record(record)


def test_a_slower_int8_comes_with_advice_on_what_to_use_instead(run, monkeypatch):
    times = {"none": 0.001, "float16": 0.002, "dynamic": 0.0015}
    monkeypatch.setattr(
        exporting, "_measure", lambda original, format, kind: {"size_bytes": 1, "latency": {"median_ms": times[kind]}}
    )
    advice = export(run.folder, "tflite", "int8", tolerance=100, threads=1).record["advice"]
    assert "times slower than float32" in advice and "export with --quantize float16 or dynamic instead" in advice


def perturb(monkeypatch, *formats):
    """Makes these formats write another model than the given one: with noise on every weight."""
    for format in formats:
        write = format.write

        def sabotaged(model, *arguments, write=write, **options):
            before = model.get_weights()
            rng = np.random.default_rng(0)
            model.set_weights([weight + rng.normal(0, 1, weight.shape) for weight in before])
            try:
                write(model, *arguments, **options)
            finally:
                model.set_weights(before)

        monkeypatch.setattr(format, "write", sabotaged)


@pytest.mark.parametrize("quantize", ["none", "dynamic"])
def test_a_sabotaged_export_is_refused_and_leaves_no_file(run, monkeypatch, quantize):
    perturb(monkeypatch, tflite)
    with pytest.raises(ExportRefused) as caught:
        export(run.folder, "tflite", quantize, threads=1)
    message = str(caught.value)
    assert message.startswith("The export to tflite") and "is refused and removed" in message
    assert f"The nearest export that passes is: kmed export {run.folder} --format savedmodel" in message
    assert left(run) == []
    assert caught.value.record["checked"]["passed"] is False and caught.value.record["checked"]["reasons"]


def test_a_refusal_keeps_the_files_of_an_earlier_export(run, monkeypatch):
    path = export(run.folder, threads=1).path
    before = {file: (run.exports / file).read_bytes() for file in left(run)}
    perturb(monkeypatch, tflite)
    with pytest.raises(ExportRefused, match="The vit.tflite of an earlier export stays"):
        export(run.folder, threads=1)
    assert {file: (run.exports / file).read_bytes() for file in left(run)} == before and path.name in before


def test_if_no_format_passes_the_message_gives_the_reasons(run, monkeypatch):
    perturb(monkeypatch, tflite, savedmodel)
    with pytest.raises(ExportRefused, match=r"No other format passes either \(savedmodel: a probability moved by"):
        export(run.folder, threads=1)
    assert left(run) == []


def test_a_label_that_calibration_made_constant_does_not_count_against_the_file(multilabel_run, tmp_path, capsys):
    run = Run(shutil.copytree(multilabel_run.folder, tmp_path / "run"))
    fitted = json.loads(run.fitted.read_text())
    fitted["calibration"]["slopes"][1], fitted["calibration"]["intercepts"][1] = 0.0, -1.0
    run.fitted.write_text(json.dumps(fitted))
    checked = export(run.folder, threads=1).record["checked"]
    assert checked["passed"] and checked["change"]["value"] == pytest.approx(0, abs=1e-6)
    assert checked["agreement"] == 1.0
    result = CliRunner().invoke(main, ["evaluate", str(run.folder), "--format", "tflite"])
    assert result.exit_code == 0 and "so an exported file does not rank the pictures by it" in result.output
    answers = kmed.classify_files(run.folder, [_picture(tmp_path)])
    assert all("green" in answer.prediction_set for answer in answers)


def _picture(folder):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(folder / "one.png")
    return folder / "one.png"


def test_a_table_of_other_rows_is_refused_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_open", None)
    (tmp_path / "runs.csv").write_text("model,task,accuracy\nvit,multiclass,0.5\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    for name, message in (
        ("runs.csv", "is another table: it has no column"),
        ("picture.png", "cannot be read as a table"),
    ):
        result = CliRunner().invoke(main, ["export", str(run.folder), "--append", str(tmp_path / name)])
        assert result.exit_code == 1 and message in result.output, result.output


def test_a_small_loss_is_a_matter_of_the_tolerance(run, monkeypatch):
    perturb(monkeypatch, tflite)
    assert export(run.folder, "tflite", "float16", tolerance=100, threads=1).record["checked"]["passed"]


def test_the_calibration_pictures_are_training_pictures_drawn_by_the_seed(run, monkeypatch):
    seen = []
    write = tflite.write

    def noted(*arguments, quantize, pictures):
        seen.append(pictures)
        write(*arguments, quantize=quantize, pictures=pictures)

    monkeypatch.setattr(tflite, "write", noted)
    # The other quantizations would be made only to be measured beside it.
    monkeypatch.setattr(exporting, "_measure", lambda *_: {"size_bytes": 1, "latency": {"median_ms": 1.0}})
    for _ in range(2):
        export(run.folder, "tflite", "int8", tolerance=100, num_pictures=7, threads=1)
    given = [pictures for pictures in seen if pictures is not None]
    assert len(given) == 2 and (given[0] == given[1]).all() and given[0].dtype == np.uint8
    with np.load(run.read_config().data.path) as data:
        training = {image.tobytes() for image in data["images"][data["split"] == "train"]}
    assert all(picture.tobytes() in training for picture in given[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"format": "keras"}, ConfigError, "The Keras model is already in the run folder"),
        ({"format": "coreml"}, ConfigError, "The format must be keras, savedmodel, tflite or onnx. Received: 'coreml'"),
        ({"tolerance": -1}, ConfigError, "tolerance must be from 0 to 100 points"),
        ({"num_pictures": 0}, ConfigError, "num_pictures and threads at least 1"),
        (
            {"quantize": "int8", "data": "/nowhere"},
            DataError,
            "int8 is calibrated on the run's training pictures and checked on its test pictures, which cannot be read",
        ),
        ({"data": "/nowhere"}, DataError, "An export is checked on the run's test pictures, which cannot be read"),
    ],
)
def test_bad_arguments_are_one_line(run, arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        export(run.folder, **arguments)
    assert "\n" not in str(caught.value) and left(run) == []


def test_int8_without_a_training_split_is_refused(run):
    splits = pd.read_csv(run.splits, dtype=str, keep_default_na=False)
    splits["split"] = splits["split"].replace("train", "other")
    splits.to_csv(run.splits, index=False)
    with pytest.raises(DataError, match="int8 is calibrated on training pictures, but .* names none"):
        export(run.folder, "tflite", "int8")


def test_a_converter_that_fails_is_one_line(run, monkeypatch):
    def failing(*arguments, **options):
        raise ValueError("no such operation\nand forty more lines")

    monkeypatch.setattr(onnx, "write", failing)
    with pytest.raises(RunError, match="The converter to onnx failed: no such operation. Another") as caught:
        export(run.folder, "onnx")
    assert "\n" not in str(caught.value) and left(run) == []


def test_a_run_of_an_earlier_version_is_refused(run):
    metrics = json.loads(run.metrics.read_text())
    del metrics["test"]["verdict"]
    run.metrics.write_text(json.dumps(metrics))
    with pytest.raises(RunError, match="metrics.json: test.verdict is missing"):
        export(run.folder)


def test_a_run_without_a_model_is_refused(run):
    run.model.unlink()
    with pytest.raises(RunError, match="holds no weights .* Train it again: its result.csv has the command"):
        export(run.folder)


def test_kept_and_refused_exports_are_rows_of_one_table(run, monkeypatch, tmp_path):
    table = tmp_path / "export.csv"
    command = ["--quiet", "export", str(run.folder), "--threads", "1", "--append", str(table)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "same decision for 100.00%" in result.output and "Made: " in result.output
    perturb(monkeypatch, onnx)
    result = CliRunner().invoke(main, [*command, "--format", "onnx"])
    assert result.exit_code == 1 and "is refused and removed" in result.output
    rows = pd.read_csv(table)
    assert rows["format"].tolist() == ["tflite", "onnx"] and rows["passed"].tolist() == [True, False]
    assert (rows["keras"] == rows["keras"][0]).all() and rows["latency_ms"].gt(0).all()


def test_a_row_is_added_once(run, tmp_path):
    record = export(run.folder, threads=1).record
    for _ in range(2):
        append_record(record, tmp_path / "export.csv")
    assert len(pd.read_csv(tmp_path / "export.csv")) == 1


def test_evaluate_scores_an_exported_file(run):
    export(run.folder, threads=1)
    command = ["--quiet", "evaluate", str(run.folder)]
    plain, other = (CliRunner().invoke(main, [*command, *more]) for more in ([], ["--format", "tflite"]))
    assert other.exit_code == 0 and other.output == plain.output
    result = CliRunner().invoke(main, [*command, "--format", "tflite", "--append", "x.csv"])
    assert result.exit_code == 2 and "do not give --format with it" in result.output
    result = CliRunner().invoke(main, [*command, "--format", "onnx"])
    assert result.exit_code == 1 and "has no vit.onnx. Make it with: kmed export" in result.output
