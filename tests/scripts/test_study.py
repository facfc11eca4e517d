"""scripts/study.py: the tables of the README and docs/results.md are those of results/.

The intervals contain the study's figures, or lie above or below them, as the tables say.
"""

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
def test_the_page_holds_the_tables_of_the_results(study, data):
    page = (ROOT / "docs/results.md").read_text()
    assert study.insert(page, data) == page


def test_the_readme_holds_the_overview(study):
    readme = (ROOT / "README.md").read_text()
    assert study.insert_overview(readme) == readme


def test_the_overview_has_all_six_models_and_the_constant(study):
    lines = study.markdown_overview().splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == [*study.read_study().index, "best constant"]


@pytest.mark.parametrize("data", ["blood_cells", "nih_cxr"])
def test_each_model_was_trained_as_long_as_the_others(study, data):
    rows = study.read_rows(data)
    for column in ("image_size", "epochs", "images_seen", "seed", "num_clusters"):
        assert (rows[column] == rows[column].iloc[0]).all(), column


def test_a_row_with_another_setting_is_left_out(study, tmp_path, monkeypatch):
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


@pytest.fixture
def pages(tmp_path):
    """A README and a page with the marks, and old tables between them."""
    readme, page = tmp_path / "README.md", tmp_path / "results.md"
    readme.write_text("above\n<!-- six models -->\nold\n<!-- /six models -->\n")
    marks = [f"<!-- six {data} -->\nold\n<!-- /six {data} -->" for data in ("nih_cxr", "blood_cells")]
    page.write_text("\nbetween\n".join(marks))
    return readme, page


@pytest.mark.parametrize(("number", "mark"), [(0, "six models"), (1, "six blood_cells")])
def test_a_page_without_the_marks_is_named(study, tmp_path, pages, number, mark):
    pages[number].write_text("nothing\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    outcome = CliRunner().invoke(study.main, [*map(str, pages), str(tmp_path)])
    assert outcome.exit_code == 1 and f"the text lacks the marks <!-- {mark} -->" in outcome.output
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before  # no page is written in part


def test_all_tables_and_figures_are_written(study, tmp_path, pages):
    readme, page = pages
    outcome = CliRunner().invoke(study.main, [str(readme), str(page), str(tmp_path)])
    assert outcome.exit_code == 0, outcome.output
    overview, tables = readme.read_text(), page.read_text()
    assert "old" not in overview + tables and "\nbetween\n" in tables and overview.startswith("above\n")
    assert (overview.count("| resnet18 "), tables.count("| resnet18 ")) == (1, 2)
    assert {path.name for path in tmp_path.glob("*.png")} == {"six_blood_cells.png", "six_nih_cxr.png"}
