"""scripts/study.py: the tables of the README are those of results/, and the intervals lie to the study as they say."""

import pathlib

import pandas as pd
import pytest
from click.testing import CliRunner

from kmed.metrics.intervals import Score

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def study(script):
    return script("study")


@pytest.mark.parametrize("data", ["blood_cells", "nih_cxr"])
def test_the_readme_holds_the_tables_of_the_results(study, data):
    readme = (ROOT / "README.md").read_text()
    assert study.insert(readme, data) == readme


@pytest.mark.parametrize("data", ["blood_cells", "nih_cxr"])
def test_each_model_was_trained_as_long_as_the_others(study, data):
    rows = study.read_rows(data)
    for column in ("image_size", "epochs", "images_seen", "seed", "num_clusters"):
        assert (rows[column] == rows[column].iloc[0]).all(), column


def test_a_row_with_another_setting_is_not_the_recipes(study, tmp_path, monkeypatch):
    recipe = "kmed train --config=configs/blood_cells_six.yaml --data=data/blood_cells --model vit --out saved_models/a"
    others = [recipe.replace(" --data", f" {option} --data") for option in ("--set=train.ema=0.9", "--epochs 9")]
    others += [recipe.replace("_six", ""), f"{recipe} --lr 0.1"]
    table = pd.DataFrame({"model": "vit", "command": [*others, recipe, recipe], "minutes": range(6)})
    table.to_csv(tmp_path / "blood_cells.csv", index=False)
    study.read_study().to_csv(tmp_path / "study.csv")
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    assert study.read_rows("blood_cells")["minutes"].to_dict() == {"vit": "4"}


@pytest.mark.parametrize("data", ["blood_cells", "nih_cxr"])
def test_the_tables_have_all_six_models(study, data):
    assert set(study.read_rows(data).index) == set(study.read_study().index)


@pytest.mark.parametrize(
    ("figure", "words"),
    [(0.85, "below 0.850"), (0.8, "contains 0.800"), (0.7, "contains 0.700"), (0.69, "above 0.690")],
)
def test_an_interval_contains_a_figure_or_lies_above_or_below(study, figure, words):
    assert study.relation(Score(0.75, 0.7, 0.8, 71), figure) == words


def test_the_figure_shows_every_model_and_the_study(study):
    figure = study.plot("nih_cxr")
    axes = figure.axes
    assert figure.get_supxlabel().endswith(
        "open marks: fewer than 20 clusters\ncrosses: the study's figures, without intervals"
    )
    crosses = [line for line in axes[0].lines if line.get_marker() == "x"]
    assert [len(line.get_xdata()) for line in crosses] == [len(study.read_rows("nih_cxr"))]
    assert not [line for line in axes[1].lines if line.get_marker() == "x"]  # the study gives no AUROC


def test_a_readme_without_the_marks_is_named(study, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing\n")
    outcome = CliRunner().invoke(study.main, [str(readme), str(tmp_path)])
    assert outcome.exit_code == 1 and "the text lacks the marks <!-- six blood_cells -->" in outcome.output
    assert readme.read_text() == "nothing\n" and list(tmp_path.iterdir()) == [readme]


def test_both_tables_and_figures_are_written(study, tmp_path):
    readme = tmp_path / "README.md"
    marks = [f"<!-- six {data} -->\nold\n<!-- /six {data} -->" for data in ("nih_cxr", "blood_cells")]
    readme.write_text("\nbetween\n".join(marks))
    outcome = CliRunner().invoke(study.main, [str(readme), str(tmp_path)])
    assert outcome.exit_code == 0, outcome.output
    text = readme.read_text()
    assert "old" not in text and "\nbetween\n" in text
    assert text.count("| resnet18 ") == 2
    assert {path.name for path in tmp_path.glob("*.png")} == {"six_blood_cells.png", "six_nih_cxr.png"}
