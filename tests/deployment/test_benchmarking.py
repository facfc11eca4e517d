"""kmed.benchmark measures each format in a process of its own."""

import pandas as pd
import pytest
from click.testing import CliRunner

import kmed
from kmed.cli.main import main
from kmed.deployment import benchmarking
from kmed.deployment.exporting import export
from kmed.errors import ConfigError, RunError

pytestmark = pytest.mark.usefixtures("short_measurements")


def test_formats_are_measured_and_stored(run):
    export(run.folder, threads=1)
    pairs = [("keras", "none"), ("tflite", "none"), ("tflite", "float16"), ("onnx", "none")]
    table = kmed.benchmark(run.folder, pairs, batches=(1, 4), threads=1, seconds=0.05)
    found = list(zip(table["format"], table["quantize"], table["batch"]))
    several = [(name, "none", batch) for name in ("keras", "onnx") for batch in (1, 4)]
    assert sorted(found) == sorted([*several, ("tflite", "none", 1), ("tflite", "float16", 1)])  # no batches of 4
    assert (table["low_ms"] <= table["median_ms"]).all() and (table["median_ms"] <= table["high_ms"]).all()
    assert (table["num_calls"] >= 20).all() and (table["threads"] == 1).all()
    assert (table["images_per_s"] - 1000 * table["batch"] / table["median_ms"]).abs().max() < 1e-6
    memory = table.groupby("format")["peak_memory_mb"].max()
    assert memory["tflite"] < memory["keras"]  # without TensorFlow
    assert table.loc[table["quantize"] == "float16", "exported"].eq(False).all()
    assert table.loc[(table["format"] == "tflite") & (table["quantize"] == "none"), "exported"].all()
    assert not (run.exports / "vit-float16.tflite").exists()  # made for the measurement and removed
    assert len(pd.read_csv(run.folder / "benchmark.csv")) == len(table)


def test_a_format_that_cannot_be_made_is_left_out_with_a_message(run, monkeypatch):
    lines = []
    monkeypatch.setattr(benchmarking, "say", lines.append)
    with pytest.raises(RunError, match="Nothing could be measured"):
        kmed.benchmark(run.folder, [("tflite", "int8")], seconds=0.05, data="/nowhere")
    assert any(line.startswith("Left out: vit-int8.tflite. ") and "/nowhere" in line for line in lines)


def test_a_file_that_does_not_run_is_left_out_with_a_message(run, monkeypatch):
    lines = []
    monkeypatch.setattr(benchmarking, "say", lines.append)
    run.exports.mkdir()
    (run.exports / "vit.tflite").write_bytes(b"not a model")
    with pytest.raises(RunError, match="Nothing could be measured"):
        kmed.benchmark(run.folder, [("tflite", "none")], seconds=0.05)
    assert any("cannot be run as TFLite" in line for line in lines)


def test_smaller_batches_come_first_so_that_each_has_its_own_peak_of_memory(run):
    table = kmed.benchmark(run.folder, [("keras", "none")], batches=(8, 1, 8), threads=1, seconds=0.05)
    assert table["batch"].tolist() == [1, 8] and table["peak_memory_mb"].is_monotonic_increasing


def test_tflite_alone_needs_batch_1(run):
    with pytest.raises(ConfigError, match="take one picture at a time: measure batch 1 too"):
        kmed.benchmark(run.folder, [("tflite", "none")], batches=(32,))


@pytest.mark.parametrize("options", [{"threads": 0}, {"batches": (0,)}, {"batches": ()}, {"seconds": 0}])
def test_bad_numbers_are_refused(run, options):
    with pytest.raises(ConfigError, match="threads and batches must be at least 1, seconds above 0. Received: "):
        kmed.benchmark(run.folder, **options)


def test_the_command_prints_a_table_and_adds_rows(run, tmp_path):
    command = ["--quiet", "benchmark", str(run.folder), "--format", "tflite", "--threads", "1", "--seconds", "0.05"]
    result = CliRunner().invoke(main, [*command, "--append", str(tmp_path / "rows.csv")])
    assert result.exit_code == 0, result.output
    assert "median ms" in result.output and "1 threads, " in result.output
    assert pd.read_csv(tmp_path / "rows.csv")["format"].tolist() == ["tflite"]
    result = CliRunner().invoke(main, ["benchmark", str(run.folder), "--format", "tflite:int3"])
    assert result.exit_code == 2 and "Received: 'int3'" in result.output
