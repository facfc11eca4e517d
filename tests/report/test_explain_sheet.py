"""`kmed explain`: which pictures are chosen, what is written, and one line for each mistake."""

import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from kmed.cli.main import main
from kmed.errors import DataError, RunError
from kmed.evaluation.predictions import Predictions
from kmed.report.explain_sheet import explain_run
from kmed.report.gallery import choose_pictures
from kmed.runs import Run
from kmed.tasks import get_task


def run(*arguments):
    return CliRunner().invoke(main, ["explain", *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(short_run, tmp_path_factory):
    """A copy of a finished run, to add explanations to."""
    return Run(shutil.copytree(short_run.folder, tmp_path_factory.mktemp("runs") / "run"))


def test_the_surest_errors_and_hits_are_chosen_and_others_at_random():
    labels, probs = np.zeros((12, 3)), np.tile([[0.0, 0.01, 0.02]], (12, 1))
    labels[:, 0] = [1, 0, 1, 0, np.nan, 1, 0, 0, 0, 1, 0, 1]
    probs[:, 0] = [0.9, 0.8, 0.7, 0.95, 0.99, 0.3, 0.4, 0.5, 0.6, 0.31, 0.32, 0.33]
    predictions = Predictions(pd.DataFrame(index=range(12)), labels, probs, ("a", "b", "c"), get_task("multilabel"))
    kinds, rows = choose_pictures(predictions)
    assert kinds[:8] == [f"{kind}{number}" for kind in ("error", "hit") for number in (1, 2, 3, 4)]
    np.testing.assert_array_equal(rows[:8], [3, 1, 8, 7, 0, 2, 11, 9])  # row 4 is unknown: neither
    assert kinds[8:] == ["random1", "random2", "random3", "random4"]
    assert sorted(rows[8:]) == [4, 5, 6, 10]
    kinds, rows = choose_pictures(predictions.take(np.array([0, 3])))
    assert (kinds, list(rows)) == (["error1", "hit1"], [1, 0])


def test_a_run_is_explained_by_its_predictions(finished):
    paths = explain_run(finished.folder)
    assert paths[-1] == finished.figures / "explain" / "explain.png"
    assert sorted(path.name for path in paths) == sorted(path.name for path in (finished.figures / "explain").iterdir())
    kinds = [path.name.split("_")[0].rstrip("0123456789") for path in paths[:-1]]
    assert len(kinds) <= 12 and set(kinds) <= {"error", "hit", "random"}
    frame = pd.read_csv(finished.predictions, dtype={"path": str}).query("split == 'test'").set_index("path")
    for path in paths[:-1]:
        with Image.open(path) as image:
            assert image.size == (40, 32)
        kind, name = path.stem.split("_", 1)
        if not kind.startswith("random"):
            assert (frame.label[name] == frame.predicted[name]) == kind.startswith("hit")
    with Image.open(paths[-1]) as sheet:
        assert min(sheet.size) > 300


def test_files_of_any_size_and_the_class_are_taken(finished, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("one", "two words"):
        Image.fromarray(rng.integers(0, 256, (90, 50, 3)).astype(np.uint8)).save(tmp_path / f"{name}.png")
    files = [tmp_path / "one.png", tmp_path / "two words.png"]
    result = run(finished.folder, *files, "--class", "green", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    made = ["picture1_one.png", "picture2_two_words.png", "explain.png"]
    assert result.stdout.splitlines() == [f"Made: {tmp_path / 'out' / name}" for name in made]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(made)


def test_moved_data_can_be_given(finished, small_npz, tmp_path):
    (tmp_path / "moved.npz").write_bytes(small_npz.read_bytes())
    assert len(explain_run(finished.folder, data=tmp_path / "moved.npz", out=tmp_path / "out")) > 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "gren"], "Did you mean 'green'? Its classes: red, green, blue."),
        (["nowhere.png"], "There is no picture nowhere.png"),
        (["--data", "nowhere.npz"], "There is no data at nowhere.npz"),
    ],
)
def test_a_mistake_is_one_line(finished, arguments, message):
    result = run(finished.folder, *arguments)
    assert result.exit_code == 1
    assert message in result.output.strip().splitlines()[-1]
    assert "Traceback" not in result.output


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "holds no trained model yet" in result.output


def test_predictions_that_do_not_fit_are_named(finished, tmp_path):
    for path in (finished.config, finished.classes, finished.splits, finished.model):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(RunError, match="predictions.csv cannot be read: No such file"):
        explain_run(tmp_path)
    frame = pd.read_csv(finished.predictions, dtype={"path": str})
    frame.drop(columns="prob_blue").to_csv(Run(tmp_path).predictions, index=False)
    with pytest.raises(RunError, match="prob_blue"):
        explain_run(tmp_path)
    frame.assign(path="x" + frame["path"]).to_csv(Run(tmp_path).predictions, index=False)
    with pytest.raises(DataError, match="which is not in split 'test'"):
        explain_run(tmp_path)
