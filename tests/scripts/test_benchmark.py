"""scripts/benchmark.py train: which processes take turns, and which rows are written."""

import sys

import click
import pytest
from click.testing import CliRunner


@pytest.fixture
def benchmark(script):
    return script("benchmark")


def test_a_race_of_two_frameworks_takes_real_steps(benchmark):
    wanted = {"model": "vit", "size": [16, 16], "options": {"dropout": 0.0, "attention_dropout": 0.0}}
    modes = {"kmed": ("kmed", "float32"), "keras float32": ("keras", "float32")}
    ours, stock = benchmark.race(wanted, modes, steps=10, torch_python=None)
    assert (ours["mode"], ours["kmed_ratio"], ours["steps"]) == ("kmed", 1.0, 10)
    assert stock["ratio_low"] <= stock["kmed_ratio"] <= stock["ratio_high"]
    assert min(ours["images_per_second"], stock["images_per_second"]) > 0
    assert "tensorflow=" in stock["versions"]


def test_each_model_races_at_each_size_and_the_vit_without_dropout_too(benchmark):
    pairs = [(subject, wanted["size"]) for subject, wanted in benchmark.racers(["resnet18", "vit"], ["60x80", "8x16"])]
    assert pairs == [
        ("resnet18", [60, 80]),
        ("resnet18", [8, 16]),
        ("vit", [64, 80]),  # whole patches
        ("vit", [8, 16]),
        ("vit without dropout", [64, 80]),
        ("vit without dropout", [8, 16]),
    ]
    options = [wanted["options"] for _, wanted in benchmark.racers(["vit"], ["8x8"])]
    assert options == [{}, {"dropout": 0.0, "attention_dropout": 0.0}]


def test_ratios_are_taken_round_by_round(benchmark):
    # The machine is half as fast in the second round, for both.
    seconds = {"kmed": [1.0, 2.0, 1.0], "pytorch float32": [1.5, 3.0, 1.5]}
    row = benchmark.raced("pytorch float32", seconds, {"dtype": "float32", "versions": {"torch": "2"}})
    assert (row["ratio_low"], row["kmed_ratio"], row["ratio_high"]) == (1.5, 1.5, 1.5)
    assert row["images_per_second"] == round(5 * 32 / 1.5, 1)


def test_a_process_that_ends_early_is_named(benchmark):
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(click.ClickException, match="ended with code 3"), benchmark.started(command):
        pass


def test_pytorch_doing_the_same_work_needs_its_environment(benchmark):
    refused = CliRunner().invoke(benchmark.main, ["train", "--same-work"])
    assert refused.exit_code == 2 and "--same-work needs --torch-python" in refused.output


@pytest.mark.parametrize(
    ("more", "modes"),
    [
        ([], ["kmed", "keras float32", "keras bfloat16"]),
        (["--torch-python", "x"], ["kmed", "keras float32", "keras bfloat16", "pytorch float32", "pytorch bfloat16"]),
        (
            ["--torch-python", "x", "--same-work"],
            ["kmed", "pytorch float32, same work", "pytorch bfloat16, same work"],
        ),
    ],
)
def test_kmed_races_against_the_requested_modes(benchmark, monkeypatch, more, modes):
    raced = []
    monkeypatch.setattr(benchmark, "race", lambda wanted, modes, steps, torch_python: raced.append(list(modes)) or [])
    result = CliRunner().invoke(benchmark.main, ["train", "--models", "resnet18", "--sizes", "60x80", *more])
    assert result.exit_code == 0 and raced == [modes]
