"""Comparing runs: the table, paired differences, what the data tell apart, and what is refused."""

import pandas as pd
import pytest
from click.testing import CliRunner
from drawn_runs import make_run

from kmed import files
from kmed.cli.main import main
from kmed.errors import ConfigError, RunError
from kmed.evaluation import comparison as comparing
from kmed.evaluation import result_rows, run_evaluation
from kmed.metrics.baselines import LEARNT_NOTHING


@pytest.fixture(scope="module", params=["multiclass", "multilabel"])
def compared(request, tmp_path_factory):
    """(Comparison, runs by model) of a good, a nearly as good, a bad model and one that outputs constants."""
    root = tmp_path_factory.mktemp("runs")
    skills = {"resnet18": 1.0, "vit": 0.98, "densenet121": 0.3, "resnet50": 0.0}
    runs = {
        model: make_run(root / model, request.param, skill, model, seed)
        for seed, (model, skill) in enumerate(skills.items())
    }
    return comparing.compare_runs([run.folder for run in runs.values()]), runs


def test_the_table_has_the_studys_columns_first_and_the_constants(compared):
    comparison, runs = compared
    study = comparison.task.study_scores
    assert list(comparison.table.columns)[:4] == ["model", *(f"{study[0]}{end}" for end in ("", "_low", "_high"))]
    models = list(comparison.table["model"])
    assert set(models[:4]) == set(runs)
    assert all(model.startswith("constant: ") for model in models[4:])
    for run in runs.values():
        result = pd.read_csv(run.result).iloc[0]
        row = comparison.table.set_index("model").loc[result["model"]]
        for name in study:
            assert row[name] == pytest.approx(result[name])
            assert row[f"{name}_high"] == pytest.approx(result[f"{name}_high"])


def test_differences_are_told_apart_where_they_are_large(compared):
    comparison, _ = compared
    assert comparison.runs[0].name in ("resnet18", "vit")
    pairs = comparison.pairs[comparison.pairs["score"] == comparison.ranked_by]
    apart = {frozenset((row["first"], row["second"])): row["told_apart"] for _, row in pairs.iterrows()}
    assert not apart[frozenset(("resnet18", "vit"))]
    assert apart[frozenset(("resnet18", "densenet121"))]
    assert apart[frozenset(("vit", "resnet50"))]
    assert len(pairs) == 6


def test_a_pair_is_the_difference_of_the_two_scores(compared):
    comparison, _ = compared
    table = comparison.table.set_index("model")
    for _, row in comparison.pairs.iterrows():
        gap = table.loc[row["first"], row["score"]] - table.loc[row["second"], row["score"]]
        assert row["difference"] == pytest.approx(gap)
        assert row["low"] <= row["difference"] <= row["high"]


def test_conclusions_name_what_learnt_nothing(compared):
    comparison, _ = compared
    text = "\n".join(comparison.conclusions)
    assert "cannot tell it apart from" in text
    assert f"resnet50: Its outputs are the same for every picture: it has {LEARNT_NOTHING}." in text
    assert "one pair in twenty" in text


def test_files(compared, tmp_path):
    comparison, _ = compared
    made = comparing.write_files(comparison, tmp_path / "out")
    assert all(path.stat().st_size > 100 for path in made)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert text.count("\n| ") == 2 + len(comparison.table) - 1
    for sentence in comparison.conclusions:
        assert sentence in text


def test_two_runs_of_one_model_go_by_their_folders(tmp_path):
    folders = [make_run(tmp_path / name, seed=seed).folder for seed, name in enumerate(("first", "second"))]
    assert {run.name for run in comparing.compare_runs(folders).runs} == {"first", "second"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "multilabel"}, "Only runs of one task can be compared"),
        ({"names": ("a", "c", "b")}, "Only runs with the same labels, in the same order"),
        ({"prefix": "x"}, "scored on different pictures .*, 0 of them shared"),
    ],
)
def test_runs_that_cannot_be_compared(tmp_path, changes, message):
    folders = [make_run(tmp_path / "one").folder, make_run(tmp_path / "two", **changes).folder]
    with pytest.raises(RunError, match=message):
        comparing.compare_runs(folders)


def test_different_pictures_can_be_asked_for_but_are_not_paired(tmp_path):
    folders = [make_run(tmp_path / "one").folder, make_run(tmp_path / "two", prefix="x").folder]
    comparison = comparing.compare_runs(folders, different_pictures=True)
    assert comparison.pairs.empty
    assert "not compared pair by pair" in "\n".join(comparison.conclusions)


def test_one_run_or_the_same_twice_or_an_unfinished_one(tmp_path):
    run = make_run(tmp_path / "one")
    for folders in ([run.folder], [run.folder, run.folder]):
        with pytest.raises(RunError, match="needs at least two different runs"):
            comparing.compare_runs(folders)
    other = make_run(tmp_path / "two")
    other.result.unlink()
    with pytest.raises(RunError, match="two has no result.csv: it is not finished. Finish it with: kmed train"):
        comparing.compare_runs([run.folder, other.folder])


def test_runs_are_compared_without_their_weights(tmp_path):
    runs = [make_run(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]
    before = comparing.compare_runs([run.folder for run in runs])
    for run in runs:
        run.model.unlink()
    pd.testing.assert_frame_equal(comparing.compare_runs([run.folder for run in runs]).pairs, before.pairs)


def test_constant_predictors_are_scored_once_per_prior_and_set_of_images(tmp_path, monkeypatch):
    calls, score = [], comparing.score_constants
    monkeypatch.setattr(comparing, "score_constants", lambda *arguments: calls.append(1) or score(*arguments))
    runs = [make_run(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two", "three"))]
    comparison = comparing.compare_runs([run.folder for run in runs])
    assert len(calls) == 1
    assert all(run.constants is comparison.runs[0].constants for run in comparison.runs)
    other = make_run(tmp_path / "other", prefix="x")
    comparing.compare_runs([run.folder for run in (*runs, other)], different_pictures=True)
    assert len(calls) == 1 + 2
    metrics = runs[2].read_json(runs[2].metrics)
    metrics["training"]["positives"][0] += 1
    files.write_json(runs[2].metrics, metrics)
    comparison = comparing.compare_runs([run.folder for run in runs])
    assert len(calls) == 3 + 2
    found = {run.name: run.constants["label prevalence"] for run in comparison.runs}
    assert found["one"] is found["two"] is not found["three"]
    assert found["one"].scores["brier"].value != found["three"].scores["brier"].value


def test_a_run_of_another_version_is_one_line(tmp_path):
    folders = [make_run(tmp_path / name, seed=seed).folder for seed, name in enumerate(("one", "two"))]
    row = pd.read_csv(folders[1] / "result.csv").drop(columns="best_epoch")
    row.to_csv(folders[1] / "result.csv", index=False)
    with pytest.raises(RunError, match="result.csv lacks best_epoch: another version"):
        comparing.compare_runs(folders)


def test_few_clusters_do_not_rank(tmp_path):
    folders = []
    for seed, name in enumerate(("one", "two")):
        run = make_run(tmp_path / name, seed=seed)
        frame = pd.read_csv(run.predictions)
        frame["cluster"] = frame["cluster"] % 12
        frame.to_csv(run.predictions, index=False)
        folders.append(run.folder)
    comparison = comparing.compare_runs(folders)
    assert comparison.ranked_by is None
    assert not comparison.pairs["told_apart"].any()
    assert "do not rank these models" in comparison.conclusions[0]


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [str(make_run(tmp_path / name, seed=seed).folder) for seed, name in enumerate(("one", "two"))]
    arguments = ["compare", *folders, "--out", "both", "--append", "table.csv"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "Added to table.csv: 2 of 2 rows." in done.output
    assert "Added to table.csv: 0 of 2 rows." in CliRunner().invoke(main, arguments).output
    assert len(pd.read_csv("table.csv")) == 2
    refused = CliRunner().invoke(main, ["compare", *folders[:1]])
    assert refused.exit_code == 1
    assert refused.output.startswith("Error: A comparison needs at least two different runs")


def test_a_table_gains_the_columns_it_lacks_and_refuses_another_task(tmp_path):
    run = make_run(tmp_path / "run")
    pd.DataFrame([{"model": "old", "task": "multiclass", "accuracy": "0.5", "command": "x", "extra": "kept"}]).to_csv(
        tmp_path / "table.csv", index=False
    )
    result_rows.append_result(run, tmp_path / "table.csv")
    table = pd.read_csv(tmp_path / "table.csv", dtype=str, keep_default_na=False)
    assert list(table["model"]) == ["old", "vit"]
    assert list(table["extra"]) == ["kept", ""]
    assert table["ece"].iloc[0] == ""
    with pytest.raises(RunError, match="already holds"):
        result_rows.append_result(run, tmp_path / "table.csv")
    with pytest.raises(RunError, match="table.csv would hold results of multiclass and multilabel"):
        result_rows.append_result(make_run(tmp_path / "other", "multilabel"), tmp_path / "table.csv")


def test_a_new_table_takes_one_task(tmp_path):
    runs = [make_run(tmp_path / task, task) for task in ("multiclass", "multilabel")]
    with pytest.raises(RunError, match="would hold results of multiclass and multilabel. Give each"):
        result_rows.append_results(runs, tmp_path / "table.csv")
    assert not (tmp_path / "table.csv").exists()


def test_a_table_that_cannot_take_the_rows_is_refused_before_anything_is_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [str(make_run(tmp_path / name, seed=seed).folder) for seed, name in enumerate(("one", "two"))]
    pd.DataFrame([{"model": "vit", "task": "multilabel", "command": "x"}]).to_csv("table.csv", index=False)
    refused = CliRunner().invoke(main, ["compare", *folders, "--out", "both", "--append", "table.csv"])
    assert refused.exit_code == 1 and "would hold results of multiclass and multilabel" in refused.output
    assert not (tmp_path / "both").exists()


def test_a_note_made_by_hand_does_not_make_another_row(tmp_path):
    run = make_run(tmp_path / "run")
    result_rows.append_result(run, tmp_path / "table.csv")
    table = pd.read_csv(tmp_path / "table.csv", dtype=str, keep_default_na=False)
    table.assign(note="seen").to_csv(tmp_path / "table.csv", index=False)
    assert result_rows.append_results([run], tmp_path / "table.csv") == 0
    row = pd.read_csv(run.result, dtype=str, keep_default_na=False)
    row.assign(minutes="9").to_csv(run.result, index=False)
    assert result_rows.append_results([run], tmp_path / "table.csv") == 1
    assert list(pd.read_csv(tmp_path / "table.csv", keep_default_na=False)["note"]) == ["seen", ""]


def test_a_run_is_scored_again_with_other_settings_without_its_pictures(tmp_path):
    run = make_run(tmp_path / "run", "multilabel")
    before = pd.read_csv(run.result).iloc[0]
    old = run.read_json(run.fitted)["thresholds"]
    run_evaluation.rescore(run.folder, ["evaluate.thresholds=sensitivity", "evaluate.sensitivity=0.99"])
    assert run.read_config().evaluate.thresholds == "sensitivity"
    after, new = pd.read_csv(run.result).iloc[0], run.read_json(run.fitted)["thresholds"]
    assert (old["rule"], new["rule"]) == ("f1", "sensitivity")
    assert old["values"] != new["values"]
    assert list(after.index) == list(before.index)
    tuned = [name for name in before.index if "_tuned" in name]
    pd.testing.assert_series_equal(after.drop(tuned), before.drop(tuned))
    with pytest.raises(ConfigError, match="only settings of evaluate. Received: 'train.epochs=3'"):
        run_evaluation.rescore(run.folder, ["train.epochs=3"])
