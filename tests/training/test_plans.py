import dataclasses
import pathlib

import pytest

from kmed.errors import ConfigError, RunError
from kmed.schemas.records import SweepFile
from kmed.training.plans import PlanFile, first_difference

PLAN = PlanFile("sweep.json", "sweep", SweepFile)


@dataclasses.dataclass(frozen=True)
class Models:
    """A plan of two fields."""

    folder: pathlib.Path
    models: list


def read(folder):
    return Models(folder, PLAN.read(folder).models)


def differ(stored, wanted):
    return first_difference({"models": stored.models}, {"models": wanted.models})


def test_a_stored_plan_is_found_again(tmp_path):
    plan = Models(tmp_path / "new", ["vit"])
    assert PLAN.find(plan, read, differ) is plan and not plan.folder.exists()
    PLAN.write(plan.folder, {"models": ["vit"], "options": []})
    found = PLAN.find(plan, read, differ)
    assert found == plan and found is not plan


def test_a_folder_with_something_else_is_refused(tmp_path):
    PLAN.write(tmp_path, {"models": ["vit"], "options": []})
    with pytest.raises(RunError, match=r"holds another sweep \(with models=\['vit'\]\). Resume that one with --resume"):
        PLAN.find(Models(tmp_path, ["resnet18"]), read, differ)
    (tmp_path / PLAN.name).rename(tmp_path / "mine.json")
    with pytest.raises(RunError, match="is not empty and does not hold a sweep"):
        PLAN.find(Models(tmp_path, ["vit"]), read, differ)
    with pytest.raises(RunError, match="is not the folder of a sweep: .*sweep.json cannot be read"):
        PLAN.read(tmp_path)


def test_bad_settings_in_a_stored_plan_are_a_damaged_file(tmp_path):
    expected = pytest.raises(RunError, match="sweep.json: epochs are missing. The run folder is damaged")
    with expected, PLAN.read_as_settings(tmp_path):
        raise ConfigError("epochs are missing.")


@pytest.mark.parametrize(
    ("stored", "wanted", "difference"),
    [
        ({"a": 1, "b": None}, {"b": None, "a": 1}, ""),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, "with b=2"),
        ({"a": 1, "b": None}, {"a": 1}, "with b=None"),
        ({"a": 1}, {"a": 1, "b": None}, "without b"),
    ],
)
def test_the_first_difference_is_named(stored, wanted, difference):
    assert first_difference(stored, wanted) == difference
