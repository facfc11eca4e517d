"""kmed data labels: the CSV and the contact sheet of labels that look wrong, from a cross-validation's predictions."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import kmed
from kmed.cli.main import main
from kmed.config import load_config
from kmed.data.prepare import open_table
from kmed.evaluation.predictions import Predictions
from kmed.files import write_frame, write_text
from kmed.runs import CROSSVAL, Run, write_classes
from kmed.tasks import get_task

WRONG = {"red/photo03_0.png", "red/photo03_1.png", "green/photo21_0.png"}


@pytest.fixture
def folder(tmp_path):
    """What is left of a cross-validation: two copies of each photograph but one; photographs 3 and 21 are wrong."""
    rng, rows = np.random.default_rng(0), []
    for number in range(40):
        name = ("red", "green")[number >= 20]
        for copy in range(2 - (number == 21)):
            path = tmp_path / "pictures" / name / f"photo{number:02d}_{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 20, 3), np.uint8)).save(path)
            rows.append({"path": f"{name}/{path.name}", "cluster": f"photo{number:02d}", "label": int(number >= 20)})
    rows = pd.DataFrame(rows).assign(split="test")
    rows["group"] = rows["cluster"]
    run = Run(tmp_path / "folds")
    data = tmp_path / "pictures"
    config = load_config(overrides=["task=multiclass", f"data.path={data}", r"data.group=regex:(photo\d+)"])
    config.write(run.config)
    table = open_table(config)
    write_classes(run, config, table.class_names)
    label, wrong = rows.pop("label").to_numpy(), rows["path"].isin(WRONG).to_numpy()
    index = np.array([table.class_names.index(("red", "green")[value]) for value in label])
    sure = rng.uniform(0.9, 0.97, len(rows))
    own = np.where(wrong, 1 - sure, sure)
    labels = np.eye(2)[index]
    probs = np.where(labels == 1, own[:, None], 1 - own[:, None])
    predictions = Predictions(rows, labels, probs, table.class_names, get_task("multiclass"))
    write_frame(run.predictions, predictions.to_frame().assign(repeat=0, fold=0))
    write_text(run.result, "model\nvit\n")
    write_text(run.folder / CROSSVAL, json.dumps({"folds": 2}))
    return run.folder


@pytest.mark.parametrize("cut", [None, "0.5"])
def test_planted_labels_are_listed_by_photograph_and_drawn(folder, cut):
    if cut is None:
        pytest.importorskip("cleanlab", reason="cleanlab is not installed: pip install 'kmed[labels]'")
    result = CliRunner().invoke(main, ["data", "labels", str(folder), *([] if cut is None else ["--cut", cut])])
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(folder / "labels" / "labels.csv")
    assert sorted(rows["path"]) == ["green/photo21_0.png", "red/photo03_0.png"]
    assert dict(zip(rows["cluster"], rows["pictures"])) == {"photo03": 2, "photo21": 1}
    assert (rows["label"] == rows["given"]).all() and rows["quality"].max() < 0.11
    assert dict(zip(rows["given"], rows["suggested"])) == {"red": "green", "green": "red"}
    with Image.open(folder / "labels" / "labels.png") as sheet:
        assert sheet.size[0] > 200
    assert f"Made: {folder / 'labels' / 'labels.png'}" in result.output
    assert "2 of 40 labels look wrong (3 of 79 pictures)." in result.output


def test_the_edited_file_corrects_what_training_reads(folder):
    rows, files = kmed.find_label_errors(folder, cut=0.5)
    write_frame(files[0], rows.assign(label=rows["suggested"]))
    config = Run(folder).read_config()
    before = open_table(config)
    data = config.data.model_copy(update={"corrections": [str(files[0])]})
    after = open_table(config.model_copy(update={"data": data}))
    changed = (before.labels != after.labels).any(axis=1)
    assert set(before.rows["path"][changed]) == WRONG
    edited = files[0].read_bytes()
    result = CliRunner().invoke(main, ["data", "labels", str(folder), "--cut", "0.5"])
    assert result.exit_code == 1 and "labels.csv holds labels that were edited, which would be lost" in result.output
    assert files[0].read_bytes() == edited
    _, others = kmed.find_label_errors(folder, cut=0.5, out=folder / "again")
    assert others[0].exists()


def test_earlier_corrections_are_to_be_given_too(folder):
    run = Run(folder)
    load_config(run.config, ["data.corrections=first.csv"]).write(run.config)
    result = CliRunner().invoke(main, ["data", "labels", str(folder), "--cut", "0.5"])
    assert result.exit_code == 0 and "--set data.corrections=[first.csv,labels.csv]" in result.output


def test_nothing_that_looks_wrong_leaves_an_empty_file_and_no_sheet(folder):
    kmed.find_label_errors(folder, cut=0.5)
    result = CliRunner().invoke(main, ["data", "labels", str(folder), "--cut", "0.001"])
    assert result.exit_code == 0 and "No label looks wrong." in result.output
    assert len(pd.read_csv(folder / "labels" / "labels.csv")) == 0 and not (folder / "labels" / "labels.png").exists()


def test_pictures_that_are_gone_cost_only_the_sheet(folder):
    (folder.parent / "pictures").rename(folder.parent / "moved")
    result = CliRunner().invoke(main, ["data", "labels", str(folder), "--cut", "0.5"])
    assert result.exit_code == 0 and "The contact sheet" in result.output and "--data" in result.output
    assert len(pd.read_csv(folder / "labels" / "labels.csv")) == 2
    _, files = kmed.find_label_errors(folder, cut=0.5, data=folder.parent / "moved")
    assert files[1].exists()


def test_mistakes_are_one_line(folder, tmp_path):
    for arguments, code, message in (
        ([str(tmp_path)], 1, "is not the folder of a cross-validation. Give one that `kmed crossval` made."),
        ([str(folder), "--cut", "most"], 2, "cut must be auto, or a number between 0 and 1. Received: 'most'."),
    ):
        result = CliRunner().invoke(main, ["data", "labels", *arguments])
        assert result.exit_code == code and result.output == f"Error: {result.output[7:]}" and message in result.output
    (folder / "result.csv").unlink()
    result = CliRunner().invoke(main, ["data", "labels", str(folder)])
    assert result.exit_code == 1 and "Finish it with: kmed crossval --resume" in result.output
