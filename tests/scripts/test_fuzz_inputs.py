"""scripts/fuzz_inputs.py: damaged inputs are read or refused with one line, and the script notices if they are not."""

import pytest
from click.testing import CliRunner

from kmed.errors import DataError


@pytest.fixture
def fuzz(script):
    pytest.importorskip("pydicom", reason="pip install kmed[dicom]")
    return script("fuzz_inputs")


def test_damaged_inputs_are_read_or_refused_with_one_line(fuzz):
    outcome = CliRunner().invoke(fuzz.main, ["--number", "20", "--first", "50000"])
    assert outcome.exit_code == 0, outcome.output
    lines = outcome.output.splitlines()
    assert [line.split(":")[0] for line in lines] == list(fuzz.INPUTS)
    assert sum(int(line.split(" one line")[0].split()[-1]) for line in lines) > 100
    assert fuzz.peak_memory() < 8e9  # of a process that other tests share


def test_the_same_seed_damages_in_the_same_way(fuzz):
    content = bytes(range(256)) * 4
    damaged = [fuzz.mutate(content, seed) for seed in range(50)]
    assert damaged == [fuzz.mutate(content, seed) for seed in range(50)]
    assert len(set(damaged)) > 45 and fuzz.mutate(b"", 3) is not None


@pytest.mark.parametrize(("error", "code"), [(KeyError("x"), 1), (DataError("two\nlines"), 1), (DataError("one"), 0)])
def test_other_exceptions_are_named_with_their_seed(fuzz, monkeypatch, error, code):
    def fail(path):
        raise error

    name, make, _ = fuzz.INPUTS["yaml"]
    monkeypatch.setitem(fuzz.INPUTS, "yaml", (name, make, fail))
    outcome = CliRunner().invoke(fuzz.main, ["--format", "yaml", "--first", "7", "--number", "2"])
    assert outcome.exit_code == code and ("--format 'yaml' --first 8 --number 1" in outcome.output) == bool(code)
