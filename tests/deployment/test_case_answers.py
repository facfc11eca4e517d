"""kmed predict --by: which case a picture belongs to, and one answer per case."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from drawn_runs import NAMES, make_run
from PIL import Image

import kmed
from kmed.cli.main import main
from kmed.deployment.case_answers import choose_rule, choose_thresholds, find_cases, pool_answers
from kmed.deployment.classify import Answer, as_csv, as_text
from kmed.errors import DataError
from kmed.evaluation.decisions import decision_rule, read_fitted

RULE = "evaluate.thresholds=cost"
PATHS = ["in/p1/a_1.png", "in/p1/a_2.png", "in/p2/b_1.png"]


def table(folder, rows, column="patient_id"):
    pd.DataFrame(rows, columns=["path", column]).to_csv(folder / "list.csv", index=False)
    return f"{folder / 'list.csv'}:{column}"


def test_cases_are_folders_parts_of_paths_or_values_of_a_table(tmp_path):
    assert find_cases(PATHS, "folder") == ["in/p1", "in/p1", "in/p2"]
    assert find_cases(PATHS, r"regex:/(\w)_\d") == ["a", "a", "b"]
    by = table(tmp_path, [("sub/1.png", "A"), ("2.png", "B"), ("other.png", "C"), ("2.png", "B")])
    assert find_cases([str(tmp_path / "2.png"), str(tmp_path / "sub" / ".." / "sub" / "1.png")], by) == ["B", "A"]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("folders", "by must be folder, .* Received: 'folders'. Did you mean 'folder'?"),
        ("patient_id", "by must be folder, regex:.* or FILE.csv:COLUMN. Received: 'patient_id'"),
        ("regex:(", "by is not a valid regular expression"),
        ("regex:a", "by needs one capture group .* not 0. Received: 'a'"),
        ("regex:(b)_", "gives no case for 2 of 3 pictures, such as in/p1/a_1.png"),
    ],
)
def test_what_is_no_case_is_one_line(by, message):
    with pytest.raises(DataError, match=message.replace("?", r"\?")) as caught:
        find_cases(PATHS, by)
    assert "\n" not in str(caught.value)


def test_a_table_that_does_not_fit_is_one_line(tmp_path):
    by, pictures = table(tmp_path, [("1.png", "A"), ("2.png", "")]), [str(tmp_path / "1.png"), str(tmp_path / "2.png")]
    with pytest.raises(DataError, match="gives no case for 1 of 2 pictures, such as .*2.png"):
        find_cases(pictures, by)
    with pytest.raises(DataError, match="has no column 'patient'; it has path, patient_id. Did you mean 'patient_id'"):
        find_cases(pictures, by.replace("patient_id", "patient"))
    with pytest.raises(DataError, match="gives 1.png two values of patient_id: 'A' and 'B'"):
        find_cases(pictures[:1], table(tmp_path, [("1.png", "A"), ("1.png", "B")]))
    with pytest.raises(DataError, match="none.csv"):
        find_cases(pictures, f"{tmp_path / 'none.csv'}:patient_id")


def answers(run, probs):
    rule = decision_rule(run)
    for number, row in enumerate(probs):
        yield Answer(
            path=f"{number}.png", found=(), probs=dict(zip(rule.class_names, row)), prediction_set=rule.class_names,
            distance=float(number), threshold=3.5, unlike_training=number > 3.5,
        )  # fmt: skip


@pytest.mark.parametrize("pooling", ["mean", "largest"])
def test_an_answer_for_a_case_pools_its_pictures(tmp_path, pooling):
    run = make_run(tmp_path / "run", "multilabel")
    probs, cases = np.random.default_rng(0).uniform(0.05, 0.95, (6, 3)), ["A", "B", "A", "A", "B", "C"]
    found = list(pool_answers(answers(run, probs), cases, decision_rule(run), pooling))
    groups = pd.DataFrame(np.log(probs / (1 - probs))).groupby(cases)
    how = {"mean": ["mean"] * 3, "largest": ["max", "max", "min"]}[pooling]
    expected = 1 / (1 + np.exp(-groups.agg(dict(enumerate(how))).to_numpy()))
    assert [(answer.path, answer.pictures) for answer in found] == [("A", 3), ("B", 2), ("C", 1)]
    np.testing.assert_allclose([list(answer.probs.values()) for answer in found], expected)
    for answer, row in zip(found, expected):
        assert answer.found == tuple(name for name, prob in zip(NAMES["multilabel"], row) if prob >= 0.5)
    assert [(answer.distance, answer.unlike_training) for answer in found] == [(3, False), (4, True), (5, True)]
    assert [line.split("; ")[1] for line in as_text(iter(found))] == ["3 pictures", "2 pictures", "1 picture"]
    rows = list(csv.DictReader(as_csv(iter(found), NAMES["multilabel"])))
    assert [row["pictures"] for row in rows] == ["3", "2", "1"] and rows[0]["prediction_set"] == ""


def test_findings_of_a_case_are_those_over_its_thresholds(tmp_path, caplog):
    run = make_run(tmp_path / "run", "multilabel", 0.5, settings=["evaluate.case=cluster"])
    thresholds = choose_thresholds(read_fitted(run), exclusive=False)
    assert thresholds == read_fitted(run).cases.thresholds
    probs, cases = np.random.default_rng(0).uniform(0.05, 0.95, (6, 3)), ["A", "B", "A", "A", "B", "C"]
    for answer in pool_answers(answers(run, probs), cases, decision_rule(run), "mean", thresholds):
        over = zip(answer.probs.values(), thresholds.values, strict=True)
        assert answer.found == tuple(name for name, (prob, least) in zip(answer.probs, over) if prob >= least)
    blind = make_run(tmp_path / "blind", "multilabel", 0.0, settings=["evaluate.case=cluster", RULE])
    with caplog.at_level("INFO", "kmed"):
        constant = choose_thresholds(read_fitted(blind), exclusive=False)
    assert constant.choice.chosen == "constant" and "Decisions for the cost per case: always " in caplog.text
    found = list(pool_answers(answers(blind, probs), cases, decision_rule(blind), "mean", constant))
    assert {answer.found for answer in found} == {constant.choice.constant}
    assert choose_thresholds(read_fitted(blind), exclusive=True) is None


def test_the_pooling_is_that_of_the_run(tmp_path, caplog):
    run = make_run(tmp_path / "run", "multilabel", 0.5, settings=["evaluate.case=cluster"])
    fitted = read_fitted(run)
    assert choose_rule(fitted, False) == fitted.cases.pooling
    with caplog.at_level("INFO", "kmed"):
        assert choose_rule(read_fitted(make_run(tmp_path / "plain", "multilabel", 0.5)), False) == "mean"
    assert "The run was not scored per case" in caplog.text and "evaluate.case=group" in caplog.text


def test_the_command_gives_one_answer_per_case(short_run, small_npz, tmp_path):
    with np.load(small_npz) as data:
        for number, image in enumerate(data["images"][:4]):
            Image.fromarray(image).save(tmp_path / f"p{number // 3}_{number}.png")
    single = {answer.path: answer for answer in kmed.classify_files(short_run.folder, [tmp_path])}
    (tmp_path / "p1_9.png").write_bytes(b"damaged")
    arguments = ["--quiet", "predict", str(short_run.folder), str(tmp_path), "--by", r"regex:(p\d)_", "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1 and "1 of 5 pictures could not be read" in done.output
    broken, first, second = [json.loads(line) for line in done.output.splitlines() if line.startswith("{")]
    assert broken["path"].endswith("p1_9.png") and broken["error"]
    assert (first["path"], first["pictures"], second["path"], second["pictures"]) == ("p0", 3, "p1", 1)
    logs = np.log([list(single[str(tmp_path / f"p0_{number}.png")].probs.values()) for number in range(3)]).mean(axis=0)
    np.testing.assert_allclose(list(first["probs"].values()), np.exp(logs) / np.exp(logs).sum(), rtol=1e-4)
    assert second["probs"] == pytest.approx(single[str(tmp_path / "p1_3.png")].probs, rel=1e-4)
    done = CliRunner().invoke(main, ["--quiet", "predict", str(short_run.folder), str(tmp_path), "--by", "patient"])
    assert done.exit_code in (1, 2) and "Error: by must be folder" in done.output and "Traceback" not in done.output
