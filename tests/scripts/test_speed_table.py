"""scripts/speed_table.py: the tables of docs/performance.md are those of results/, with all models and modes."""

import pathlib

import pandas as pd
import pytest
from click.testing import CliRunner

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "results" / "training_speed.csv"
SAME_WORK = ROOT / "results" / "training_speed_same_work.csv"
MODES = {"kmed", "keras float32", "keras bfloat16", "pytorch float32", "pytorch bfloat16"}


@pytest.fixture
def speed_table(script):
    return script("speed_table")


@pytest.mark.parametrize("results", [RESULTS, SAME_WORK], ids=lambda path: path.stem)
def test_the_page_holds_the_table_of_the_results(speed_table, tmp_path, results):
    page, image = tmp_path / "performance.md", tmp_path / "speed.png"
    page.write_text(PAGE.read_text())
    mark = "training speed" if results == RESULTS else "same work"
    outcome = CliRunner().invoke(speed_table.main, [str(results), str(page), "--mark", mark, "--image", str(image)])
    assert outcome.exit_code == 0, outcome.output
    assert page.read_text() == PAGE.read_text()
    assert image.stat().st_size > 0


def test_six_models_raced_in_all_modes_at_two_sizes_in_one_run(speed_table):
    rows = pd.read_csv(RESULTS)
    assert len(set(rows["command"])) == len(set(rows["device"])) == 1
    races = list(speed_table.races(rows))
    models = ["resnet18", "resnet152", "densenet121", "densenet161", "efficientnetb0", "vit", "vit without dropout"]
    assert [model for model, _, _ in races] == [name for name in models for _ in range(2)]
    assert all(set(race.index) == MODES for _, _, race in races)
    assert (rows["steps"] >= 30).all()


def test_a_cell_shows_the_ratio_and_the_figure_draws_the_faster_mode(speed_table):
    modes = {"kmed": 1.0, "keras float32": 2.0, "keras bfloat16": 1.5, "pytorch float32": 0.9, "pytorch bfloat16": 1.2}
    rows = pd.DataFrame(
        {
            "model": "vit", "image_size": size, "mode": mode, "dtype": "float32", "images_per_second": 10.0,
            "kmed_ratio": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.1,
        }
        for size in ("8x8", "16x16") for mode, ratio in modes.items()
    )  # fmt: skip
    assert "| vit     | 8x8    | 10 (float32)     | 2.00 (1.90 to 2.10) |" in speed_table.markdown(rows)
    axes = speed_table.plot(rows).axes
    assert [panel.get_title() for panel in axes] == ["8x8", "16x16"]
    drawn = [line.get_xdata()[0] for line in axes[0].lines if line.get_marker() in "os" and len(line.get_xdata())]
    assert drawn == [1.5, 0.9]
