"""The options KEY=VALUE of kmed sweep --slurm."""

import pytest
from click.testing import CliRunner

from kmed.cli.main import main
from kmed.errors import ConfigError
from kmed.training.slurm_options import parse_options


def test_options_become_parameters():
    assert parse_options(["time=90", "cpus=4", "gpus=2", "partition=gpu,long"]) == {
        "time": 90,
        "cpus_per_task": 4,
        "gpus_per_node": 2,
        "partition": "gpu,long",
    }
    times = {"90": 90, "1:30:00": 90, "1-12:00:00": 2160, "00:30:59": 30}
    assert {text: parse_options([f"time={text}"])["time"] for text in times} == times
    sizes = {"16": "16G", "16GB": "16G", "16g": "16G", "512mb": "512M"}
    assert {text: parse_options(["time=1", f"mem={text}"])["mem"] for text in sizes} == sizes
    assert parse_options(["time=1", "setup=module load a=b", "setup=source x"])["setup"] == [
        "module load a=b",
        "source x",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Slurm needs a time limit: give --slurm time=MINUTES"),
        (["time=1", "partiton=gpu"], "Received: 'partiton=gpu'. Did you mean 'partition'"),
        (["time=1", "gpu"], "Received: 'gpu'. Did you mean 'gpus'"),
        (["time=0"], "time takes minutes, HH:MM:SS or D-HH:MM:SS. Received: '0'"),
        (["time=soon"], "time takes minutes"),
        (["time=1", "time=2"], "--slurm time is given twice"),
        (["time=1", "gpus=many"], "gpus takes a whole number of at least 1. Received: 'many'"),
        (["time=1", "mem=much"], "mem takes a size such as 16GB"),
        (["time=1", "partition=a b"], "partition takes a word. Received: 'a b'"),
    ],
)
def test_a_mistake_is_one_line(options, message):
    with pytest.raises(ConfigError, match=message):
        parse_options(options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--executor", "slrum"], "executor must be local or slurm. Received: 'slrum'. Did you mean 'slurm'"),
        (["--slurm", "time=1"], "--slurm needs --executor slurm."),
        (["--dry-run"], "--dry-run needs --executor slurm."),
        (["--jobs", "0"], "jobs must be a whole number of at least 1"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(arguments, message):
    result = CliRunner().invoke(main, ["sweep", "--models", "vit", *arguments])
    assert result.exit_code == 2 and message in result.output
