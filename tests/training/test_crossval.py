"""kmed crossval: a picture is judged by a model that has not seen it; a killed one ends with the same results."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import kmed
from kmed.cli.main import main
from kmed.config import load_config
from kmed.errors import ConfigError, DataError
from kmed.runs import Run
from kmed.training import crossval as validation
from kmed.training import fold_runs

FOLDS = 2
# Starts the command anew for each line that it reads, in a process forked from this one, which has imported TensorFlow
# but never used it. The process is killed just before it renames a finished file to the path that ends in the line; an
# empty line lets it end. No figures or pages are drawn. Prints the exit codes.
KILLER = """
import os, signal, sys
from kmed.runtime import load_backend
load_backend()
from kmed.evaluation import run_evaluation
from kmed.report import crossval_page, run_page
run_evaluation.write_figures = lambda *arguments: None
run_page.try_report = crossval_page.try_crossval_report = lambda run: None
from kmed.cli.main import main

def hook(event, arguments):
    if place and event == "os.rename" and os.fsdecode(arguments[1]).endswith(place):
        os.kill(os.getpid(), signal.SIGKILL)

for line in sys.stdin:
    place, process = line.strip(), os.fork()
    if process == 0:
        os.dup2(2, 1)  # what the command prints is not for the test that reads the exit codes
        sys.addaudithook(hook)
        main()
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A packed set of 24 patients with two pictures each; the pictures of six are a test split."""
    rng = np.random.default_rng(0)
    patients = np.arange(48) // 2
    labels = patients % 2
    images = rng.integers(0, 120, (48, 16, 16, 3))
    images[np.arange(48), :, :, labels] += 60
    path = tmp_path_factory.mktemp("data") / "small.npz"
    names = np.char.add("patient", patients.astype(str))
    np.savez(
        path,
        images=images.astype(np.uint8),
        labels=np.eye(2, dtype=np.float32)[labels],
        class_names=np.array(["red", "green"]),
        task=np.array("multiclass"),
        name=np.array("small"),
        path=np.array([f"{number:02d}" for number in range(48)]),
        group=names,
        cluster=names,
        split=np.where(patients < 6, "test", ""),
        grouped=np.array(True),
    )
    return path


def arguments(data, *more) -> list[str]:
    given = ["--model", "vit", "--image-size", "16x16", "--epochs", "2", "--batch-size", "12", "--folds", str(FOLDS)]
    settings = ["train.dtype=float32", "train.tensorboard=false", "evaluate.num_resamples=20", "evaluate.case=cluster"]
    settings += ["model.options={patch_size: 8, width: 8, depth: 1, num_heads: 2}"]
    return [
        "crossval", *given, "--data", str(data), *(f"--set={setting}" for setting in settings), *map(str, more),
    ]  # fmt: skip


def finish(command) -> str:
    result = CliRunner().invoke(main, list(command))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """(folder, printed output) of a cross-validation that was not interrupted. Pages are drawn, but no PNG figures."""
    folder = tmp_path_factory.mktemp("crossval") / "whole"
    with pytest.MonkeyPatch.context() as patched:
        for module in ("ensembling", "run_evaluation"):
            patched.setattr(f"kmed.evaluation.{module}.write_figures", lambda *arguments: None)
        return folder, finish(arguments(data, "--out", folder))


def test_every_picture_is_judged_once_by_a_model_that_has_not_seen_its_patient(whole):
    folder, _ = whole
    predictions = pd.read_csv(folder / "predictions.csv")
    held_out = {f"{number:02d}" for number in range(12)}
    paths = predictions["path"].map("{:02d}".format)
    assert sorted(paths) == sorted({f"{number:02d}" for number in range(48)} - held_out)
    assert set(predictions["split"]) == {"val"}
    for fold in range(FOLDS):
        splits = pd.read_csv(folder / f"fold{fold}" / "splits.csv")
        judged = predictions[predictions["fold"] == fold]
        assert set(judged["path"]) == set(splits["path"][splits["split"] == "val"])
        assert not set(judged["group"]) & set(splits["group"][splits["split"] == "train"])


def test_the_test_split_stays_untouched(whole):
    folder, _ = whole
    for fold in range(FOLDS):
        splits = pd.read_csv(folder / f"fold{fold}" / "splits.csv", dtype=str)
        assert set(splits["path"][splits["split"] == "held_out"]) == {f"{number:02d}" for number in range(12)}
        assert set(splits["split"]) == {"train", "val", "held_out"}
        assert set(pd.read_csv(folder / f"fold{fold}" / "predictions.csv")["split"]) == {"val"}
        assert "test" not in json.loads((folder / f"fold{fold}" / "metrics.json").read_text())
        page = (folder / f"fold{fold}" / "report.html").read_text()
        assert "The test pictures are held out" in page and "have no test split" not in page


def test_the_ensemble_alone_scores_the_held_out_pictures(whole):
    folder, output = whole
    predictions = pd.read_csv(folder / "ensemble" / "predictions.csv")
    by_split = {name: set(part["path"]) for name, part in predictions.groupby("split")}
    assert by_split == {"test": set(range(12)), "val": set(range(12, 48))}
    pooled = pd.read_csv(folder / "predictions.csv").set_index("path").sort_index()
    out_of_fold = predictions[predictions["split"] == "val"].set_index("path").sort_index()
    np.testing.assert_allclose(out_of_fold["prob_red"], pooled["prob_red"], atol=1e-5)
    scored = json.loads((folder / "ensemble" / "metrics.json").read_text())["test"]
    assert scored["num_images"] == 12 and "Ensemble of all runs:\ntest split: 12 pictures" in output
    assert 'data-from="ensemble/metrics.json#/test/scores/accuracy/value"' in (folder / "report.html").read_text()


def test_the_folder_holds_pooled_results(whole):
    folder, output = whole
    run = Run(folder)
    assert run.report.exists() and "slightly too high" in run.report.read_text()
    assert "36 out-of-fold predictions, 2 labels" in output and "score of each fold" in output
    row = pd.read_csv(run.result).iloc[0]
    predictions = pd.read_csv(run.predictions)
    assert row["accuracy"] == pytest.approx((predictions["label"] == predictions["predicted"]).mean())
    assert row["folds"] == FOLDS and row["num_clusters"] == 18 and row["split"] == "val" and row["model"] == "vit"
    histories = [pd.read_csv(folder / f"fold{fold}" / "history.csv")["val_loss"] for fold in range(FOLDS)]
    assert pd.read_csv(run.history)["val_loss"].tolist() == pytest.approx(np.mean(histories, axis=0).tolist())


def test_killed_at_three_places_it_ends_with_the_same_results(whole, data, tmp_path):
    folder, printed = tmp_path / "killed", tmp_path / "printed.txt"
    command = [sys.executable, "-c", KILLER, *arguments(data, "--out", folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with printed.open("w") as output, subprocess.Popen(command, stderr=output, **pipes) as process:

        def run(place=""):
            process.stdin.write(f"{place}\n")
            return int(process.stdout.readline())

        for place, there in (
            ("fold0/history.csv", "fold0/checkpoints"),
            ("killed/result.csv", "predictions.csv"),
            ("killed/ensemble", "result.csv"),
        ):
            assert run(place) == -signal.SIGKILL, printed.read_text()
            assert (folder / there).exists() and not (folder / place).exists()
        size = len(printed.read_text())
        assert run() == 0 and f"Ensemble of {FOLDS}: " in printed.read_text()[size:]
    for name in ("predictions.csv", "metrics.json", "folds.csv", "summary.txt", "ensemble/predictions.csv"):
        assert (folder / name).read_bytes() == (whole[0] / name).read_bytes(), name
    times = ["minutes", "command"]
    tables = [pd.read_csv(path / "result.csv").drop(columns=times) for path in (whole[0], folder)]
    pd.testing.assert_frame_equal(*tables)
    assert not list(folder.rglob(".kmed-*")) and not list(folder.rglob("checkpoints"))


def test_a_finished_one_is_not_trained_again_and_its_missing_page_is_drawn(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("kmed.training.fold_runs.train_all", None)
    folder = shutil.copytree(whole[0], tmp_path / "copy", symlinks=True)
    (folder / "report.html").unlink()
    (folder / "fold1" / "report.html").unlink()
    for added in (2, 2):
        finish(["crossval", "--resume", str(folder), "--append", str(tmp_path / "rows.csv")])
        assert len(pd.read_csv(tmp_path / "rows.csv")) == added
    assert (folder / "report.html").exists() and (folder / "fold1" / "report.html").exists()
    assert (folder / "result.csv").read_bytes() == (whole[0] / "result.csv").read_bytes()


def test_cross_validations_are_compared(whole, tmp_path):
    other = shutil.copytree(whole[0], tmp_path / "other", symlinks=True)
    comparison, files = kmed.compare([whole[0], other], out=tmp_path / "compared", split="val")
    assert [run.name for run in comparison.runs] == ["whole", "other"]
    scores = ["accuracy", "f1_macro", "auroc_macro"]
    assert comparison.pairs["score"].tolist() == [*scores, *(f"case_{name}" for name in scores)]
    assert (comparison.pairs["difference"] == 0).all()
    assert (tmp_path / "compared" / "report.html").exists()
    beside, _ = kmed.compare([whole[0], whole[0] / "ensemble"], out=tmp_path / "beside", split="val")
    tuned = {run.name: "accuracy_tuned" in run.scores.scores for run in beside.runs}
    assert tuned == {"vit": True, "ensemble": False}  # the ensemble's thresholds were chosen on these pictures
    result = CliRunner().invoke(main, ["compare", str(whole[0]), str(other), "--out", str(tmp_path / "again")])
    assert result.exit_code == 1 and "It has those of val: choose them with --split val." in result.output


def test_it_is_no_run(whole):
    for command in (["evaluate"], ["report"], ["export", "--format", "tflite"], ["train", "--resume"]):
        result = CliRunner().invoke(main, [*command, str(whole[0])])
        assert result.exit_code == 1
        assert "is a cross-validation, not a run. Give one of its runs, such as" in result.output, result.output


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--folds", "1"], 2, "folds must be a whole number of at least 2. Received: folds=1."),
        (["--repeats", "0"], 2, "repeats must be a whole number of at least 1. Received: repeats=0."),
        (["--folds", "30"], 1, "each of 30 parts needs one of its own"),
        (["--folds", "2", "--all-splits"], 1, "so 3 folds are needed. Received: 2 folds."),
        (["--set", "data.fold=1", "--set", "data.splits=folds.csv"], 2, "Received: data.fold=1."),
        (["--set", "train.monitor=val_acc"], 2, "train.monitor must be"),
        (["--image-size", "20x20"], 1, "multiple"),
        (["--data", "nowhere"], 1, "nowhere"),
        (["--out", "file"], 1, "--out file is a file."),
        (["--out", "full"], 1, "full is not empty and does not hold a cross-validation"),
        (["--resume", "full"], 2, "so it takes no others. Received: model, out, folds, task, "),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(data, tmp_path, monkeypatch, more, code, message):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("file").write_text("mine")
    pathlib.Path("full").mkdir()
    pathlib.Path("full/notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("kmed.training.fit.fit", None)
    result = CliRunner().invoke(main, [*arguments(data), "--task", "multiclass", "--out", "new/deep", *more])
    assert result.exit_code == code and message in result.output, result.output
    assert result.output.count("Error: ") == 1 and "Traceback" not in result.output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", ["--weights=", "--set=train.teacher="])
def test_what_has_seen_the_pictures_teaches_no_fold(whole, data, tmp_path, option):
    result = CliRunner().invoke(
        main, arguments(data, f"{option}{whole[0] / 'fold0'}", "--out", tmp_path / "new" / "deep")
    )
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "has trained on " in result.output and "images of val, or on images of their groups" in result.output
    assert "the scores would be too good" in result.output.lower() and "data.splits" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_holds_one_cross_validation(whole, data):
    for more, difference in ((["--folds", "4"], f"folds={FOLDS}"), (["--lr", "0.1"], "train.learning_rate=0.001")):
        result = CliRunner().invoke(main, [*arguments(data, "--out", whole[0]), *more])
        assert result.exit_code == 1
        assert f"holds another cross-validation (with {difference})" in result.output, result.output
    for more in ({"folds": 3}, {"model": "vit"}, {"all_splits": True}):
        with pytest.raises(ConfigError, match="so it takes no others"):
            kmed.crossval(resume=whole[0], **more)


def test_a_damaged_plan_is_one_line(whole, tmp_path):
    folder = shutil.copytree(whole[0], tmp_path / "copy", symlinks=True)
    stored = json.loads((folder / "crossval.json").read_text())
    for change, message in (
        ({"folds": 1}, "folds must be"),
        ({"settings": {"train": {"epochs": "many"}}}, "train.epochs"),
        ({"more": 1}, "there is no field more"),
    ):
        (folder / "crossval.json").write_text(json.dumps(stored | change))
        result = CliRunner().invoke(main, ["crossval", "--resume", str(folder)])
        assert result.exit_code == 1 and message in result.output and "Traceback" not in result.output, result.output


def test_pictures_that_cannot_be_read_any_more_are_named_with_the_reason(tmp_path):
    for number in range(24):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(path)
    (tmp_path / "pictures" / "a" / "00.png").write_bytes(b"")
    given = [f"data.path={tmp_path / 'pictures'}", "data.image_size=16x16", "data.skip_unreadable=true"]
    plan = fold_runs.make_plan(tmp_path / "folds", 3, 1, False, load_config(overrides=given))
    with fold_runs.working_on(plan):
        table, _ = fold_runs.open_pictures(plan)
        assert len(table) == 23 and len(fold_runs.open_pictures(plan)[0]) == 23  # one was so from the beginning
        (tmp_path / "pictures" / "b" / "01.png").write_bytes(b"")
        with pytest.raises(
            DataError, match=r"1 pictures of .*folds.csv cannot be read any more, such as b/01.png \(the"
        ):
            fold_runs.open_pictures(plan)


def test_the_module_is_light():
    assert validation.FOLDS == 5
    code = "import sys, kmed.training.crossval; print(sorted({'keras', 'tensorflow', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
