"""A run recalibrated with pictures without labels: it predicts, says that it has no scores, and is judged elsewhere."""

import json
import pathlib
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from drawn_hospitals import draw_hospital

import kmed
from kmed.cli.main import main
from kmed.deployment.exporting import _compare_decisions
from kmed.errors import DataError, RunError
from kmed.evaluation import recalibration
from kmed.evaluation.decisions import read_fitted
from kmed.evaluation.lineage import scored_run, trained_pictures
from kmed.evaluation.predictions import stored_predictions
from kmed.evaluation.predictor import describe_run
from kmed.evaluation.recalibration import fit_to_sample
from kmed.metrics.intervals import Bootstrap
from kmed.metrics.prior_shift import shift_calibration
from kmed.reading import read_json
from kmed.runs import Run
from kmed.schemas.records import Description, check

ROOT = pathlib.Path(__file__).parent.parent
YEARS = ("2023", "2024", "2025")  # folders that are no classes


@pytest.fixture(scope="module")
def made(short_run, tmp_path_factory):
    """(the source, the run recalibrated without labels, the pictures, what the command printed). Do not change them."""
    folder = tmp_path_factory.mktemp("unlabelled")
    source = Run(shutil.copytree(short_run.folder, folder / "source"))
    archive = draw_hospital(folder / "archive", names=YEARS, patients=24)
    done = recalibrate(source, archive, folder / "here")
    assert done.exit_code == 0, done.output
    return source, Run(folder / "here"), archive, done.output


def recalibrate(source, on, out, *options):
    words = ["recalibrate", source.folder, "--on", on, "--out", out, "--method", "prior", "--copies", "none", *options]
    return CliRunner().invoke(main, list(map(str, words)))


def kmed_command(*words):
    return CliRunner().invoke(main, list(map(str, words)))


def test_all_pictures_are_fitted_to_and_nothing_is_invented(made):
    source, run, archive, output = made
    assert "No folder in" in output and "(2023, 2024, 2025" in output and "Layout: 48 pictures without labels" in output
    record = run.read_json(run.recalibration)
    assert record["groups"] == record["pictures"] == {"fit": 48, "check": None}
    assert record["gains"] is None and record["curve"] is None and record["shares"]["true"] is None
    assert sum(record["shares"]["found"].values()) == pytest.approx(1)
    splits, predictions = run.read_splits(), pd.read_csv(run.predictions)
    assert set(splits["split"]) == set(predictions["split"]) == {"val"} and len(splits) == 48
    assert predictions[["label", "label_red", "label_green", "label_blue"]].isna().all(axis=None)
    metrics = run.read_json(run.metrics)
    assert metrics["without_labels"] and not {"val", "test"} & set(metrics)
    assert metrics["novelty"]["val"]["num_clusters"] == 48
    assert not run.result.exists() and not run.figures.exists()
    assert scored_run(run).folder.resolve() == source.folder.resolve() and scored_run(source) is source


def test_its_texts_say_what_is_missing(made):
    _, run, archive, output = made
    summary, page = run.summary.read_text(), run.report.read_text()
    for text in (output, summary, page):
        assert "without labels there are no scores, no gain and no learning curve" in text
    assert "It assumes that each class looks here as it does at home" in summary
    assert "share at home  found here  used" in summary and "true here" not in summary
    assert "Flagged as unlike the training pictures: " in summary
    found = run.read_json(run.recalibration)["shares"]["found"]["red"]
    assert f'data-value="{found!r}" data-from="recalibration.json#/shares/found/red"' in page
    assert "It has no scores: nobody has checked it here." in page
    run.report.unlink()
    assert kmed_command("report", run.folder).exit_code == 0 and run.report.read_text() == page


def test_it_predicts_by_the_shares_that_were_found(made):
    source, run, archive, _ = made
    record, before = run.read_json(run.recalibration), read_fitted(source).calibration
    names = before.class_names
    used = np.array([record["shares"]["home" if name in record["kept"] else "found"][name] for name in names])
    at_home = np.array([record["shares"]["home"][name] for name in names])
    expected = shift_calibration(before, at_home, used)
    probs = stored_predictions(run).probs
    np.testing.assert_allclose(read_fitted(run).calibration.apply(probs), expected.apply(probs), atol=1e-6)
    answer = next(iter(kmed.classify_files(run.folder, [archive / stored_predictions(run).rows["path"][0]])))
    np.testing.assert_allclose(list(answer.probs.values()), expected.apply(probs[:1])[0], atol=1e-4)
    description = describe_run(run)
    assert description["test_score"] is None and "no scores are known" in description["verdict"]
    check(Description, description, "kmed.json")
    assert set(trained_pictures(run)["path"]) == set(trained_pictures(source)["path"])


def test_the_service_says_that_no_scores_are_known(made):
    service = pytest.importorskip("kmed.deployment.service.app", reason="kmed[serve] is not installed")
    answer = service.describe_service(made[1], "keras", "none", service.Limits())
    assert answer["scores"] == {} and answer["test_score"] is None and "no scores are known" in answer["verdict"]


def test_findings_are_taken_one_by_one(tmp_path):
    """Also of a run that an earlier version made."""
    source = Run(shutil.copytree(ROOT / "fixtures" / "runs_0_1_0" / "multilabel", tmp_path / "source"))
    archive = draw_hospital(tmp_path / "archive", names=YEARS, patients=12)
    fitted = fit_to_sample(source.folder, archive, method="prior", copies="none")
    assert not fitted.labelled and np.isnan(fitted.predictions.labels).all()
    assert set(fitted.kept) <= set(fitted.predictions.class_names)
    run = recalibration.write_run(fitted, tmp_path / "out")
    assert run.read_json(run.recalibration)["kept"] == list(fitted.kept) and run.read_config().data.unlabelled
    answers = list(kmed.classify_files(run.folder, sorted(archive.rglob("*.png"))[:2]))
    assert all(0 <= prob <= 1 for answer in answers for prob in answer.probs.values())


def test_shares_that_cannot_be_are_doubted(made, tmp_path):
    source = Run(shutil.copytree(made[0].folder, tmp_path / "source"))
    metrics = json.loads(source.metrics.read_text())
    metrics["test"]["verdict"] |= {"learnt": False, "sentence": "It has learnt nothing."}
    source.metrics.write_text(json.dumps(metrics))
    sample, found = stored_predictions(made[1]), np.array([0.5, 0.49, 0.01])
    doubts = recalibration._find_doubts(source, sample, found, ())
    assert doubts[0].startswith("At home: It has learnt nothing. Shares that such a model finds mean nothing")
    assert doubts[1].startswith("By the shares found, none of these pictures shows blue. If one does")
    assert recalibration._find_doubts(made[0], sample, found, ("blue",)) == ()


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "RUN"],
        ["evaluate", "RUN", "--split", "val"],
        ["evaluate", "RUN", "--rescore"],
        ["compare", "RUN", "SOURCE", "--out", "OUT"],
        ["ensemble", "RUN", "--out", "OUT"],
        ["report", "RUN", "--checklist"],
    ],
)
def test_what_needs_scores_is_one_line(made, tmp_path, words):
    places = {"RUN": made[1].folder, "SOURCE": made[0].folder, "OUT": tmp_path / "out"}
    done = kmed_command(*(places.get(word, word) for word in words))
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert "was recalibrated with pictures without labels, so it has no scores. Judge it on" in done.output
    assert f"kmed evaluate {made[1].folder} --on DATA" in done.output and not (tmp_path / "out").exists()


def test_it_is_not_trained_on(made):
    done = kmed_command("train", "--resume", made[1].folder)
    assert done.exit_code == 1 and "has already ended; its results are in" in done.output


def test_labelled_pictures_judge_it_beside_its_source_at_home(made, tmp_path):
    source = made[0]
    run = Run(shutil.copytree(made[1].folder, tmp_path / "beside" / "here"))
    shutil.copytree(source.folder, tmp_path / "beside" / "source")
    ward = draw_hospital(tmp_path / "ward", patients=24, seed=6)
    done = kmed_command(
        "evaluate", run.folder, "--on", ward, "--copies", "none", "--append", tmp_path / "table.csv"
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    metrics = read_json(run.folder / "external" / "ward" / "metrics.json")
    home, here = (Run(tmp_path / "beside" / name) for name in ("source", "here"))
    scores = metrics["side_by_side"]["scores"]["brier_calibrated"]
    stored = home.read_json(home.metrics)["test"]["scores"]["brier_calibrated"]
    assert scores["internal"]["value"] == pytest.approx(stored["value"], abs=1e-6)  # with what was fitted there
    plain = metrics["side_by_side"]["scores"]["brier"]["external"]["value"]
    assert scores["external"]["value"] == pytest.approx(metrics["external"]["scores"]["brier_calibrated"]["value"])
    assert plain != scores["external"]["value"] and metrics["internal_split"] == "test"
    assert "at home stands" in metrics["home"] and metrics["home"] in done.output
    assert metrics["home"] in (here.folder / "external" / "ward" / "report.html").read_text()
    assert metrics["novelty"]["internal"] == home.read_json(home.metrics)["novelty"]["test"]
    assert pd.read_csv(tmp_path / "table.csv")["model"].item() == "vit"
    shutil.rmtree(home.folder)
    gone = kmed_command("evaluate", run.folder, "--on", ward, "--copies", "none")
    assert gone.exit_code == 1 and "is gone, so there are no scores to set beside" in gone.output


def test_pictures_without_labels_judge_nothing(made):
    options = ["--set", "data.unlabelled=true", "--copies", "none"]
    done = kmed_command("evaluate", made[0].folder, "--on", made[2], *options)
    assert done.exit_code == 1 and re.search("All labels of the 48 pictures in .* are unknown", done.output)


def test_it_is_exported_if_the_file_decides_as_it_does(made, tmp_path, short_measurements):
    run = Run(shutil.copytree(made[1].folder, tmp_path / "here"))
    exported = kmed.export(run.folder, "savedmodel")
    checked = exported.record["checked"]
    assert (checked["score"], checked["split"], checked["keras"]) == ("agreement", "val", 1.0)
    assert checked["passed"] and checked["exported"] == checked["agreement"] == 1.0
    predictions = stored_predictions(run)
    same = np.arange(48) % 4 > 0
    lost = _compare_decisions(predictions, same, Bootstrap(50))
    assert lost["exported"] == 0.75 and lost["change"].value == -0.25
    assert lost["change"].low < -0.25 < lost["change"].high < 0


def test_it_can_be_recalibrated_again(made, tmp_path, monkeypatch):
    source, run, archive, _ = made
    again = fit_to_sample(run.folder, archive, method="prior", copies="none")
    record = run.read_json(run.recalibration)
    used = [record["shares"]["home" if name in record["kept"] else "found"][name] for name in ("red", "green", "blue")]
    assert again.shares["home"].tolist() == used
    np.testing.assert_allclose(again.shares["found"], list(record["shares"]["found"].values()), atol=1e-3)
    ward = draw_hospital(tmp_path / "ward", patients=24, seed=7)
    monkeypatch.setattr(recalibration, "write_figures", lambda *_: None)
    labelled = recalibration.write_run(fit_to_sample(run.folder, ward, method="prior", copies="none"), tmp_path / "out")
    row, before = labelled.read_result(), source.read_result()
    assert row["num_clusters"] == "12" and all(row[name] == before[name] for name in ("model", "epochs", "parameters"))


# ---- What is refused --------------------------------------------------------------------------------


def pictures_of(made, tmp_path, count):
    files = sorted(made[2].rglob("*.png"))[:count]
    (tmp_path / "list.txt").write_text("".join(f"{file}\n" for file in files))
    return tmp_path / "list.txt"


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (48, ["--method", "labels"], "Pictures without labels can be used with --method prior alone"),
        (48, ["--method", "labels", "--set", "data.unlabelled=true"], "None of the 48 pictures .* has a known label"),
        (48, ["--fit-fraction", "0.3"], "without labels all are fitted to. Leave it out. Received: 0.3"),
        (48, ["--map", "crimson=red"], "The map names 'crimson', but .*list.txt is read without labels"),
        (1, [], "fewer than 20 groups .* Received: 1 pictures of 1 groups"),
        (19, [], "Received: 19 pictures of 19 groups in .*list.txt. Add pictures of others"),
        (0, [], "list.txt lists no pictures"),
    ],
)
def test_what_does_not_fit_is_one_line_and_writes_nothing(made, tmp_path, count, options, message):
    done = recalibrate(made[0], pictures_of(made, tmp_path, count), tmp_path / "out", *options)
    assert done.exit_code in (1, 2) and isinstance(done.exception, SystemExit)
    assert re.search(message, done.output), done.output
    assert done.output.strip().splitlines()[-1].startswith("Error: ") and not (tmp_path / "out").exists()


def test_the_method_that_needs_labels_says_what_is_possible(made):
    with pytest.raises(DataError, match=r"does not know .3.: 2023, 2024, 2025.* used with --method prior alone"):
        fit_to_sample(made[0].folder, made[2], copies="none")


def test_an_empty_folder_and_a_picture_are_one_line(made, tmp_path):
    (tmp_path / "empty").mkdir()
    for on, message in ((tmp_path / "empty", "No data set is found"), (next(made[2].rglob("*.png")), "Data must be a")):
        done = recalibrate(made[0], on, tmp_path / "out")
        assert done.exit_code == 1 and message in done.output and not (tmp_path / "out").exists()


def test_class_folders_given_on_purpose_have_labels(made, tmp_path):
    ward = draw_hospital(tmp_path / "ward", patients=12)
    fitted = fit_to_sample(made[0].folder, ward, method="prior", copies="none")
    assert fitted.labelled and set(fitted.predictions.rows["split"]) == {"val", "test"}
    assert fitted.shares["true"].sum() == pytest.approx(1) and not fitted.doubts


def test_a_damaged_record_is_one_line(made, tmp_path):
    run = Run(shutil.copytree(made[1].folder, tmp_path / "run"))
    record = json.loads(run.recalibration.read_text())
    for name, value, message in (
        ("groups", {"fit": 48, "check": 0}, "groups.check must be greater than or equal to 1. Received: 0"),
        ("shares", {**record["shares"], "found": {"red": 1.0}}, "shares.found lacks 'green'"),
        ("method", "guess", "method must be 'labels' or 'prior'. Received: 'guess'"),
    ):
        run.recalibration.write_text(json.dumps(record | {name: value}))
        with pytest.raises(RunError, match=message) as caught:
            run.read_json(run.recalibration)
        assert "\n" not in str(caught.value) and str(run.recalibration) in str(caught.value)
    home, found = ({f"{name}s": value for name, value in record["shares"][kind].items()} for kind in ("home", "found"))
    other = {"home": home, "found": found, "true": None}
    run.recalibration.write_text(json.dumps(record | {"shares": other, "kept": []}))
    with pytest.raises(RunError, match="class_names is .* but .*classes.json says"):
        run.read_json(run.recalibration)
    metrics = json.loads(run.metrics.read_text())
    run.metrics.write_text(json.dumps(metrics | {"without_labels": False}))
    with pytest.raises(RunError, match="val and test are both missing"):
        run.read_json(run.metrics)
