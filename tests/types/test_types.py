"""The package and its public functions type-check, so that users' editors and checkers can rely on the annotations."""

import pathlib
import re
import subprocess
import sys

import pytest

import kmed

pytest.importorskip("mypy", reason='mypy is not installed: pip install -e ".[dev]"')

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def mypy(*paths, cache):
    """Returns the complaints of mypy, one per line."""
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir", str(cache), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode in (0, 1), result.stdout + result.stderr
    return [line for line in result.stdout.splitlines() if ": error: " in line]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for all calls, so that the package is read once."""
    return tmp_path_factory.mktemp("mypy")


def test_the_package_and_a_script_that_uses_it_type_check(cache):
    assert mypy("kmed", HERE / "use_of_kmed.py", cache=cache) == []


def test_the_script_uses_every_public_name():
    text = (HERE / "use_of_kmed.py").read_text(encoding="utf-8")
    assert set(re.findall(r"\bkmed\.(\w+)", text)) == set(kmed.__all__)


def test_mistakes_are_found(cache):
    text = (HERE / "misuse_of_kmed.py").read_text(encoding="utf-8")
    wrong = {number for number, line in enumerate(text.splitlines(), 1) if "# mistake:" in line}
    found = mypy(HERE / "misuse_of_kmed.py", cache=cache)
    assert {int(line.split(":")[1]) for line in found} == wrong


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "kmed" / "py.typed").exists()
    assert '"py.typed"' in (ROOT / "setup.py").read_text(encoding="utf-8")
