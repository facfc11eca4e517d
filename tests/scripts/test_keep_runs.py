"""scripts/keep_runs.py, and the runs kept in results/, whose scores equal those of the tables."""

import functools
import json
import pathlib

import pandas as pd
import pytest
from click.testing import CliRunner
from drawn_runs import make_run

import kmed
from kmed.evaluation import comparison
from kmed.runs import Run

ROOT = pathlib.Path(__file__).parents[2]
KEPT = [ROOT / "results" / name for name in ("blood_cells_six", "nih_cxr_six")]


@functools.cache
def compared(folder):
    """Returns the Comparison of the runs kept in a folder."""
    return comparison.compare_runs(sorted(path.parent for path in folder.glob("*/config.yaml")))


def contents(folder):
    """Returns {path: bytes} of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def keep_runs(script):
    return script("keep_runs")


def test_an_ensemble_is_kept_with_its_members_and_compares(keep_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    member = {"path": "../one", "model": "vit", "settings": {"seed": 0, "data.splits": str(tmp_path / "splits.csv")}}
    record = {"version": 2, "kmed_version": kmed.__version__, "members": [member], "requested": "auto"}
    record |= {"average": "logits", "reason": "the lower log loss", "validation_log_loss": {"logits": 0.1}}
    for name in ("one", "both"):
        make_run(tmp_path / name)
    (tmp_path / "both" / "history.csv").unlink()
    (tmp_path / "both" / "ensemble.json").write_text(json.dumps(record))
    outcome = CliRunner().invoke(keep_runs.main, ["kept", "one", "both"])
    assert outcome.exit_code == 0, outcome.output
    kept = Run(tmp_path / "kept" / "both")
    assert not kept.history.exists()
    assert kept.read_json(kept.ensemble)["members"][0]["settings"] == {"seed": 0, "data.splits": "splits.csv"}
    assert [run.name for run in comparison.compare_runs(["kept/one", "kept/both"]).runs] == ["one", "both"]


def test_what_is_kept_compares_as_the_runs_do(keep_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [f"data.path={tmp_path / 'data' / 'cells'}", f"data.splits={tmp_path / 'first' / 'splits.csv'}"]
    settings.append(f"train.teacher={tmp_path / 'teacher'}")
    runs = [make_run(tmp_path / name, seed=seed, settings=settings) for seed, name in enumerate(("one", "two"))]
    outcome = CliRunner().invoke(keep_runs.main, ["kept", "one", "two"])
    assert outcome.exit_code == 0, outcome.output
    kept = [Run(pathlib.Path("kept") / name) for name in ("one", "two")]
    ours, theirs = (comparison.compare_runs([run.folder for run in some]) for some in (kept, runs))
    pd.testing.assert_frame_equal(ours.table, theirs.table)
    pd.testing.assert_frame_equal(ours.pairs, theirs.pairs)
    assert ours.conclusions == theirs.conclusions
    assert not kept[0].model.exists()
    assert set(pd.read_csv(kept[0].predictions)["split"]) == {"test"}
    config = kept[0].read_config()
    assert (config.data.path, config.data.splits, config.data.group) == ("data/cells", "first/splits.csv", None)
    assert str(tmp_path) not in kept[0].config.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kept", "unfinished"], "unfinished has no result.csv: it is not finished"),
        (["kept", "one", "elsewhere/one"], "Two of the runs share a name"),
        ([".", "one"], "would lose its validation predictions"),
        (["kept", "untested"], "no predictions of split 'test'"),
        (["kept", "damaged"], "calibration.json"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_the_runs_alone(keep_runs, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    runs = {name: make_run(tmp_path / name) for name in ("one", "elsewhere/one", "unfinished", "untested", "damaged")}
    runs["unfinished"].result.unlink()
    runs["damaged"].fitted.unlink()
    predictions = pd.read_csv(runs["untested"].predictions)
    predictions[predictions["split"] == "val"].to_csv(runs["untested"].predictions, index=False)
    before = contents(tmp_path)
    outcome = CliRunner().invoke(keep_runs.main, arguments)
    assert outcome.exit_code == 1 and message in outcome.output.strip().splitlines()[-1], outcome.output
    assert contents(tmp_path) == before  # nothing is kept in part either


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_the_kept_runs_have_the_scores_of_the_table(folder):
    table = pd.read_csv(folder.parent / f"{folder.name.removesuffix('_six')}.csv", dtype=str)
    comparison = compared(folder)
    names = [f"{name}{end}" for name in comparison.task.study_scores for end in ("", "_low", "_high")]
    for run in comparison.runs:
        row = table[table["command"] == run.row["command"]].iloc[0]
        scores = run.scores.flat()
        assert [scores[name] for name in names] == pytest.approx([float(row[name]) for name in names])


def test_the_page_names_the_pairs_that_the_kept_x_ray_runs_tell_apart():
    pairs = compared(ROOT / "results" / "nih_cxr_six").pairs
    apart = pairs[pairs["told_apart"]]
    found = {
        score: {tuple(sorted(pair)) for pair in rows[["first", "second"]].to_numpy()}
        for score, rows in apart.groupby("score")
    }
    five = ("densenet121", "densenet161", "efficientnetb0", "resnet152", "resnet18")
    from_the_vit = {(name, "vit") for name in five}
    assert found == {
        "auroc_macro_common": from_the_vit - {("efficientnetb0", "vit")},
        "exact_match_ratio": from_the_vit | {("efficientnetb0", "resnet18")},
        "hamming_loss": from_the_vit | {("resnet152", "resnet18")},
    }
    page = " ".join((ROOT / "docs/results.md").read_text(encoding="utf-8").split())
    for words in (
        "tells four of the five from the ViT (not efficientnetb0), and none of the five from another",
        "resnet152 from resnet18 by 0.001 of Hamming loss, resnet18 from efficientnetb0 by 0.014 of exact match",
    ):
        assert words in page


def test_the_page_names_the_pairs_that_the_kept_blood_cell_runs_tell_apart():
    pairs = compared(ROOT / "results" / "blood_cells_six").pairs
    pairs = pairs[pairs["score"] == "accuracy"]
    page = " ".join((ROOT / "docs/results.md").read_text(encoding="utf-8").split())
    apart = pairs[pairs["told_apart"]]
    assert (len(apart), len(pairs)) == (3, 15) and "Accuracy tells three of 15 pairs apart" in page
    for pair in apart.to_dict("records"):
        first, second = (pair[name].replace("vit", "the ViT") for name in ("first", "second"))
        assert f"{first} from {second} by {pair['difference']:.3f} ({pair['low']:.3f} to {pair['high']:.3f})" in page
