"""Which pictures a run has trained on: its own, its members', and those of whatever it learnt from."""

import logging

import numpy as np
import pandas as pd
import pytest

from kmed.config import load_config
from kmed.data.table import Table
from kmed.errors import RunError
from kmed.evaluation.lineage import leak_of_weights, trained_pictures
from kmed.files import write_json
from kmed.runs import Run, write_classes
from kmed.schemas.records import stamped


@pytest.fixture
def make_run(tmp_path):
    """A function that makes a run folder of settings and a split: {picture: split}; its group is the first letter."""

    def make(name, splits, **settings):
        run = Run(tmp_path / name)
        run.folder.mkdir()
        load_config(overrides=list(settings.items())).write(run.config)
        rows = [(path, path[0], path, split) for path, split in splits.items()]
        pd.DataFrame(rows, columns=["path", "group", "cluster", "split"]).to_csv(run.splits, index=False)
        return run

    return make


def names(run):
    rows = trained_pictures(run)
    assert list(rows.columns) == ["path", "group"] and (rows["group"] == rows["path"].str[0]).all()
    return sorted(rows["path"])


def test_only_the_training_split_counts(make_run):
    assert names(make_run("run", {"a1": "train", "b1": "val", "c1": "test", "d1": "held_out", "a2": "train"})) == [
        "a1",
        "a2",
    ]


@pytest.mark.parametrize("relative", [False, True])
def test_an_ensemble_has_trained_on_what_its_members_have(make_run, relative):
    first, second = make_run("one", {"a1": "train", "b1": "val"}), make_run("two", {"a1": "val", "b1": "train"})
    both = make_run(
        "both", {"a1": "val", "b1": "val", "c1": "train"}, task="multiclass"
    )  # a fold's pictures are its validation pictures
    paths = [f"../{run.folder.name}" if relative else str(run.folder) for run in (first, second)]
    write_classes(both, both.read_config(), ("one", "two"))
    members = [{"path": path, "model": "vit", "settings": {}} for path in paths]
    record = {"members": members, "requested": "auto", "average": "logits", "reason": "", "validation_log_loss": {}}
    write_json(both.ensemble, stamped(record))
    assert names(both) == ["a1", "b1"]
    first.splits.unlink()
    with pytest.raises(RunError, match="ensemble whose member .*one is gone, .*Restore the member") as raised:
        trained_pictures(both)
    assert "\n" not in str(raised.value)


def test_a_teacher_and_the_start_of_the_weights_count_too(make_run):
    first = make_run("first", {"a1": "train", "b1": "test"})
    second = make_run("second", {"b1": "train"}, **{"model.weights": str(first.folder / "model.keras")})
    first.model.touch()
    third = make_run("third", {"c1": "train"}, **{"train.teacher": str(second.folder)})
    assert names(third) == ["a1", "b1", "c1"]


def test_runs_that_name_each_other_are_read_once(make_run, tmp_path):
    one = make_run("one", {"a1": "train"}, **{"train.teacher": str(tmp_path / "two")})
    make_run("two", {"b1": "train"}, **{"train.teacher": str(tmp_path / "one")})
    assert names(one) == ["a1", "b1"]


@pytest.mark.parametrize("weights", ["imagenet", "hf://timm/resnet18", "backbone.pth", "folder"])
def test_weights_from_elsewhere_are_no_run(make_run, tmp_path, monkeypatch, caplog, weights):
    (tmp_path / "folder").mkdir()  # of safetensors
    monkeypatch.chdir(tmp_path)
    assert names(make_run("run", {"a1": "train"}, **{"model.weights": weights})) == ["a1"]
    assert not caplog.messages


@pytest.mark.parametrize("setting", ["train.teacher", "model.weights"])
def test_a_source_that_is_gone_is_said(make_run, tmp_path, caplog, setting):
    run = make_run("run", {"a1": "train"}, **{setting: str(tmp_path / "gone")})
    logging.getLogger("kmed").propagate = True
    with caplog.at_level(logging.WARNING, logger="kmed"):
        assert names(run) == ["a1"]
    assert len(set(caplog.messages)) == 1 and "gone, which is gone: its training pictures are" in caplog.messages[0]


def in_classes(run, *names, **settings):
    """Gives a run classes and settings, and returns it."""
    config = load_config(run.config, [*settings.items(), ("task", "multiclass")])
    config.write(run.config)
    write_classes(run, config, names)
    run.model.touch()
    return run


@pytest.mark.parametrize(
    ("classes", "place", "same"), [("ab", "here", True), ("ba", "there", True), ("xy", "there", False)]
)
def test_the_pictures_of_other_data_are_others(make_run, tmp_path, caplog, classes, place, same):
    first = in_classes(make_run("first", {"a1": "train", "b1": "val"}), *classes, **{"data.path": place})
    settings = {"model.weights": str(first.folder), "data.path": "here"}
    second = in_classes(make_run("second", {"b1": "train", "a1": "test"}, **settings), "a", "b")
    logging.getLogger("kmed").propagate = True
    with caplog.at_level(logging.WARNING, logger="kmed"):
        assert names(second) == (["a1", "b1"] if same else ["b1"])
    assert ("has other classes and other data, but 2 images of the same names" in caplog.text) == (not same)
    rows = pd.DataFrame({"path": ["a2", "c1", "b1"], "group": ["a", "c", "b"], "split": ["test", "val", "train"]})
    table = Table(rows.assign(cluster=rows["group"]), np.eye(2)[[0, 1, 0]], ("a", "b"), "multiclass", "drawn")
    leak = leak_of_weights(second.read_config(), table)
    text = f"the weights come from {first.folder}, which has trained on 1 of 1 images of test, or on images of their"
    assert leak.startswith(text) if same else not leak
