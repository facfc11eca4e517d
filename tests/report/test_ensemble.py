"""`kmed.ensemble`: a run folder like any other, whose model is the mean of its members, written whole or not at all."""

import csv
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import scipy.special
from click.testing import CliRunner
from PIL import Image

import kmed
from kmed import files
from kmed.cli.main import main
from kmed.config import load_config
from kmed.deployment.classify import as_csv
from kmed.errors import ConfigError, RunError, WeightsError
from kmed.evaluation import ensembling
from kmed.evaluation.decisions import read_fitted
from kmed.evaluation.inference import draw_training_pictures, open_run_table
from kmed.evaluation.members import mean_probs
from kmed.evaluation.predictions import stored_predictions
from kmed.files import write_json
from kmed.models.build import build_model
from kmed.models.combined import with_views
from kmed.models.keras_file import load_plain_model, load_run_model, save_model
from kmed.models.weights import check_weights
from kmed.report import ensemble as combining
from kmed.runs import Run
from kmed.tasks import get_task

SAME = ("predictions.csv", "metrics.json", "calibration.json", "summary.txt", "novelty.npz", "model.keras")


def edit_config(run: Run, *settings) -> None:
    load_config(run.config, settings).write(run.config)


@pytest.fixture(scope="module")
def members(short_run, tmp_path_factory) -> list[Run]:
    """Three finished runs: a short training, and two copies of it with other heads. Do not change them."""
    runs = [Run(shutil.copytree(short_run.folder, tmp_path_factory.mktemp("members") / name)) for name in "abc"]
    for number, run in enumerate(runs[1:], 1):
        model, rng = load_plain_model(run), np.random.default_rng(number)
        model.get_layer("head").set_weights([rng.normal(0, 1, (16, 3)), rng.normal(0, 1, 3)])
        save_model(model, run.model)
        edit_config(run, f"seed={number}")
    return runs


@pytest.fixture(scope="module")
def made(members, tmp_path_factory) -> Run:
    """An ensemble of the three. Do not change it."""
    out = tmp_path_factory.mktemp("ensembles") / "three"
    return kmed.ensemble([run.folder for run in members], out, average="probabilities")


@pytest.fixture
def changed(members, tmp_path):
    """A function that returns a copy of the second member, for changes."""
    return lambda name="changed": Run(shutil.copytree(members[1].folder, tmp_path / name))


@pytest.fixture
def images(small_npz):
    with np.load(small_npz) as stored:
        return {name: stored["images"][stored["split"] == name] for name in ("train", "val", "test")}


def resplit(run: Run, **splits) -> None:
    """Puts the groups of the keywords into these splits, and all others where they were."""
    frame = pd.read_csv(run.splits, dtype=str)
    frame["split"] = frame["group"].map(splits).fillna(frame["split"])
    frame.to_csv(run.splits, index=False)


def test_an_ensemble_of_one_is_its_member_to_the_bit(members, tmp_path):
    one = kmed.ensemble([members[0].folder], tmp_path / "one")
    for name in SAME[:-1]:
        assert (one.folder / name).read_bytes() == (members[0].folder / name).read_bytes(), name
    stored = json.loads(one.ensemble.read_text())
    assert stored["reason"] == "there is one member, so nothing is averaged"
    pair = [load_plain_model(run) for run in (one, members[0])]
    for own, original in zip(*(model.get_weights() for model in pair), strict=True):
        np.testing.assert_array_equal(own, original)


def test_it_predicts_the_mean_of_its_members(made, members, images):
    expected = np.mean([load_run_model(run).predict_on_batch(images["test"]) for run in members], axis=0)
    predictions = stored_predictions(made).split("test")
    np.testing.assert_allclose(predictions.probs, expected, atol=1e-6)
    np.testing.assert_allclose(load_run_model(made).predict_on_batch(images["test"]), expected, atol=1e-6)
    scores = kmed.evaluate(made.folder)
    assert scores.scores["accuracy"].value == (expected.argmax(axis=1) == predictions.labels.argmax(axis=1)).mean()
    stored = json.loads(made.metrics.read_text())["test"]["scores"]
    assert {name: score.value for name, score in scores.scores.items()} == pytest.approx(
        {name: score["value"] for name, score in stored.items()}, abs=1e-9
    )


def test_the_way_of_averaging_with_the_lower_loss_is_chosen(members, tmp_path):
    auto = kmed.ensemble([run.folder for run in members[:2]], tmp_path / "auto")
    stored = json.loads(auto.ensemble.read_text())
    losses = stored["validation_log_loss"]
    assert stored["average"] == min(losses, key=losses.get) and stored["requested"] == "auto"
    assert stored["reason"].startswith(f"log loss {losses[stored['average']]:.4f} on validation")


def test_its_files_say_what_it_is(made, members):
    stored = json.loads(made.ensemble.read_text())
    assert [member["model"] for member in stored["members"]] == ["vit"] * 3
    assert [member["settings"] for member in stored["members"]] == [{"seed": seed} for seed in range(3)]
    assert [(made.folder / member["path"]).resolve() for member in stored["members"]] == [
        run.folder.resolve() for run in members
    ]
    assert made.read_config().model.name == "ensemble"
    row, rows = made.read_result(), [run.read_result() for run in members]
    assert (row["model"], row["members"], row["epochs"]) == ("ensemble", "3", "6")
    assert int(row["parameters"]) == sum(int(other["parameters"]) for other in rows)
    page = made.report.read_text(encoding="utf-8")
    assert "An ensemble of 3, which were trained for 6 epochs" in page and "seed=2" in page
    assert "mean of their probabilities: as requested" in page
    assert not made.history.exists() and made.novelty.exists() and (made.figures / "confusion_test.png").exists()


def test_commands_take_it_as_any_run(made, members, tmp_path):
    comparison, files = kmed.compare([made.folder, members[0].folder], out=tmp_path / "compared")
    assert {run.name for run in comparison.runs} == {"ensemble", "vit"}
    page = next(file for file in files if file.name == "report.html").read_text(encoding="utf-8")
    assert "6 epochs of 3 members" in page and "of which epoch" in page
    assert (tmp_path / "compared/curves.png").exists()
    assert kmed.explain_run(made.folder, out=tmp_path / "maps")[-1].exists()
    copy = Run(shutil.copytree(made.folder, tmp_path / "copy"))
    kmed.rescore(copy.folder, ["evaluate.thresholds=youden"])
    assert json.loads(copy.fitted.read_text())["thresholds"]["rule"] == "youden"
    with pytest.raises(ConfigError, match=r"cannot change 'evaluate.views=flips'. Make a run .*kmed ensemble .* --set"):
        kmed.rescore(copy.folder, ["evaluate.views=flips"])
    with pytest.raises(RunError, match="already ended"):
        kmed.resume(copy.folder)


def test_two_ensembles_are_compared_without_curves(made, tmp_path):
    other = shutil.copytree(made.folder, tmp_path / "other")
    comparison, files = kmed.compare([made.folder, other], out=tmp_path / "compared")
    assert {run.name for run in comparison.runs} == {"three", "other"}
    assert "none of the runs has epochs" in next(f for f in files if f.suffix == ".html").read_text(encoding="utf-8")


def test_predict_shows_how_far_members_disagree(made, members, images, tmp_path):
    for row in range(3):
        Image.fromarray(images["test"][5 * row]).save(tmp_path / f"{row}.png")
    answers = list(kmed.classify_files(made.folder, [tmp_path]))
    probs = np.stack([load_run_model(run).predict_on_batch(images["test"][[0, 5, 10]]) for run in members], axis=1)
    expected = probs.std(axis=1).max(axis=1)
    assert expected.max() > 0.05
    np.testing.assert_allclose([answer.disagreement for answer in answers], expected, atol=1e-5)
    header, first, *_ = csv.reader(io.StringIO("\n".join(as_csv(iter(answers), ["red", "green", "blue"]))))
    assert float(first[header.index("disagreement")]) == answers[0].disagreement
    alone = next(kmed.classify_files(members[0].folder, [tmp_path]))
    assert alone.disagreement is None and alone.distance is not None


@pytest.mark.parametrize(("format", "quantize"), [("tflite", "none"), ("tflite", "int8"), ("onnx", "none")])
def test_its_export_is_one_checked_file(made, format, quantize, tmp_path, short_measurements):
    copy = shutil.copytree(made.folder, tmp_path / "copy")
    exported = kmed.export(copy, format, quantize, tolerance=100, num_pictures=20)
    checked = exported.record["checked"]
    assert checked["passed"] and checked["largest_difference"] < (1e-4 if quantize == "none" else 0.2)
    assert exported.path.name == ("ensemble.onnx" if format == "onnx" else exported.path.name)
    assert exported.record["description"]["model"] == "ensemble"
    scores = kmed.evaluate(copy, format=format, quantize=quantize)
    assert scores.num_images == 36


# ---- Leaks -----------------------------------------------------------------------------------------


def test_a_member_that_was_trained_on_test_pictures_is_refused(members, changed, tmp_path):
    planted = changed("planted")
    test = pd.read_csv(planted.splits, dtype=str).query("split == 'test'")
    resplit(planted, **{test["group"].iloc[0]: "train"})
    with pytest.raises(
        RunError, match=rf"planted was trained on 4 of the 36 held-out .* such as {test['path'].iloc[0]}"
    ):
        kmed.ensemble([members[0].folder, planted.folder], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["planted"]


def test_validation_pictures_are_judged_by_members_that_have_not_seen_them(members, changed, images, tmp_path):
    other = changed("other")
    frame = pd.read_csv(other.splits, dtype=str)
    train, val = (frame["group"][frame["split"] == name].iloc[0] for name in ("train", "val"))
    resplit(other, **{train: "val", val: "train"})
    made = kmed.ensemble([members[0].folder, other.folder], tmp_path / "out", average="logits")
    validation = stored_predictions(made).split("val")
    assert len(validation) == 36 + 4
    rows = validation.rows["group"].to_numpy()
    alone = {train: load_run_model(other), val: load_run_model(members[0])}
    with np.load(load_config(made.config).data.path) as stored:
        for group, model in alone.items():
            expected = model.predict_on_batch(stored["images"][stored["group"] == group])
            np.testing.assert_allclose(validation.probs[rows == group], expected, atol=1e-6)
    scores = kmed.evaluate(made.folder, "val")
    assert scores.num_images == 40
    stored = json.loads(made.metrics.read_text())["val"]["scores"]["brier"]["value"]
    assert scores.scores["brier"].value == pytest.approx(stored, abs=1e-6)
    with pytest.raises(RunError, match="All members of .* were trained on 68 of these 68 pictures"):
        kmed.evaluate(made.folder, "train")


def test_folds_alone_make_an_ensemble_without_test_or_training_split(members, changed, tmp_path, short_measurements):
    runs = [changed(name) for name in ("fold0", "fold1", "fold2")]
    frame = pd.read_csv(runs[0].splits, dtype=str)
    groups = frame["group"].unique()
    fold_of = {group: str(number // 3 % 3) for number, group in enumerate(groups)}
    frame.insert(4, "fold", frame["group"].map(fold_of))
    for fold, run in enumerate(runs):
        names = {str(fold): "test", str((fold + 1) % 3): "val", str((fold + 2) % 3): "train"}
        frame.assign(split=frame["fold"].map(names)).to_csv(run.splits, index=False)
    made = kmed.ensemble([run.folder for run in runs], tmp_path / "out")
    predictions = stored_predictions(made)
    assert set(predictions.rows["split"]) == {"val"} and len(predictions) == len(frame)
    assert json.loads(made.metrics.read_text())["training"]["num_images"] == len(frame)
    exported = kmed.export(made.folder, tolerance=100)
    assert exported.record["checked"]["largest_difference"] < 1e-4
    with pytest.raises(RunError, match="an exported file cannot leave these members out"):
        kmed.evaluate(made.folder, "val", format="tflite")
    config, table = open_run_table(made)
    assert len(draw_training_pictures(table, config, 10)) == 10  # for int8


# ---- What is refused -------------------------------------------------------------------------------


def rename_classes(run: Run, names) -> None:
    write_json(run.classes, json.loads(run.classes.read_text()) | {"class_names": names})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda run: rename_classes(run, ["red", "green", "violet"]),
            "the same classes. They differ: new: violet; missing: b",
        ),
        (
            lambda run: rename_classes(run, ["green", "red", "blue"]),
            "in the same order, not red, green, blue and green, red",
        ),
        (lambda run: run.result.unlink(), "is not finished"),
        (lambda run: run.model.unlink(), "holds no weights"),
        (lambda run: write_json(run.ensemble, {}), "is an ensemble itself. Give its members instead"),
    ],
    ids=["classes", "order", "unfinished", "no weights", "ensemble"],
)
def test_a_run_that_does_not_fit_is_refused(members, changed, change, message, tmp_path):
    run = changed()
    change(run)
    with pytest.raises(RunError, match=message):
        kmed.ensemble([members[0].folder, run.folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "field", "value", "message"),
    [
        ("task=multilabel", "task", "multilabel", "must have one task, not multiclass and multilabel"),
        ("data.image_size=32x48", "image_size", [32, 48], "but data.image_size is 32x40 and 32x48"),
        ("data.fit=crop", "fit", "crop", "but data.fit is pad and crop"),
        ("data.range=0-4095", "range", [0, 4095], "but data.range is 0-65535 and 0-4095"),
    ],
)
def test_runs_of_other_pictures_are_refused(members, changed, setting, field, value, message, tmp_path):
    run = changed()
    edit_config(run, setting)
    write_json(run.classes, json.loads(run.classes.read_text()) | {field: value})
    with pytest.raises(RunError, match=message):
        kmed.ensemble([members[0].folder, run.folder], tmp_path / "out")


def test_mistakes_in_the_arguments_are_one_line(members, tmp_path):
    one, out = members[0].folder, tmp_path / "out"
    with pytest.raises(RunError, match="An ensemble needs at least one run. Received: none."):
        kmed.ensemble([], out)
    with pytest.raises(RunError, match="is given twice"):
        kmed.ensemble([one, members[1].folder, one], out)
    with pytest.raises(ConfigError, match=r"average must be auto, probabilities or logits. Received: 'logit'. Did you"):
        kmed.ensemble([one], out, average="logit")
    with pytest.raises(ConfigError, match="takes only settings of evaluate. Received: 'train.epochs=3'"):
        kmed.ensemble([one], out, settings=["train.epochs=3"])
    with pytest.raises(ConfigError, match="they have a top: augment.orientation is upright"):
        kmed.ensemble([one], out, settings="evaluate.views=dihedral")
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty. Choose another --out"):
        kmed.ensemble([one], out)
    with pytest.raises(RunError, match="holds another run"):
        kmed.ensemble([one], members[1].folder)
    assert (out / "mine.txt").exists()


def test_the_command_prints_the_scores_and_where_they_are(members, tmp_path):
    folders = [str(run.folder) for run in members[:2]]
    table = tmp_path / "rows.csv"
    arguments = ["ensemble", *folders, "--out", str(tmp_path / "out"), "--append", str(table)]
    for _ in range(2):  # the second time, all is there already
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        assert "accuracy" in done.output and f"Report: {tmp_path / 'out' / 'report.html'}" in done.output
        assert len(pd.read_csv(table)) == 1
    failed = CliRunner().invoke(main, ["ensemble", folders[0], str(tmp_path / "none"), "--out", str(tmp_path / "x")])
    assert failed.exit_code == 1 and "does not exist" in failed.output and "Traceback" not in failed.output


# ---- Interruptions ---------------------------------------------------------------------------------


def test_an_interrupted_ensemble_leaves_nothing_and_is_made_by_the_same_call(made, members, tmp_path, monkeypatch):
    folders = [run.folder for run in members]
    with monkeypatch.context() as patched:
        patched.setattr(ensembling, "write_figures", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            kmed.ensemble(folders, tmp_path / "out", average="probabilities")
    assert list(tmp_path.iterdir()) == []
    again = kmed.ensemble(folders, tmp_path / "out", average="probabilities")
    for name in ("predictions.csv", "metrics.json", "calibration.json"):
        assert (again.folder / name).read_bytes() == (made.folder / name).read_bytes(), name


def test_a_finished_ensemble_is_not_made_again(made, members, tmp_path, monkeypatch):
    copy = Run(shutil.copytree(made.folder, made.folder.with_name("copied")))
    copy.report.unlink()
    left, latest = copy.folder / f".kmed-{files._host()}-0123abcd.tmp", copy.folder.with_name("latest")
    left.mkdir()
    latest.unlink(missing_ok=True)
    monkeypatch.setattr(ensembling, "write_ensemble", lambda plan: pytest.fail("it is made again"))
    folders = [run.folder for run in members]
    same = combining.ensemble(folders, copy.folder, average="probabilities", append=tmp_path / "rows.csv")
    assert same == copy and copy.report.exists() and len(pd.read_csv(tmp_path / "rows.csv")) == 1
    assert not left.exists() and latest.resolve() == copy.folder.resolve()  # as a killed call leaves them, then mended
    monkeypatch.undo()
    for arguments in ({"average": "logits"}, {"average": "probabilities", "settings": ["evaluate.level=0.9"]}):
        with pytest.raises(RunError, match="holds another run"):
            combining.ensemble(folders, copy.folder, **arguments)
    with pytest.raises(RunError, match="holds another run"):
        combining.ensemble(folders[:2], copy.folder, average="probabilities")


# ---- Views -----------------------------------------------------------------------------------------


def test_views_are_predicted_scored_and_exported(members, images, tmp_path, short_measurements):
    folders = [run.folder for run in members[:2]]
    made = kmed.ensemble(folders, tmp_path / "out", average="probabilities", settings=["evaluate.views=flips"])
    sides = [images["test"], images["test"][:, :, ::-1]]
    task = get_task("multiclass")
    logits = [
        np.mean([np.log(load_plain_model(run).predict_on_batch(x)) for x in sides], axis=0) for run in members[:2]
    ]
    expected = np.mean([scipy.special.softmax(each, axis=1) for each in logits], axis=0)
    np.testing.assert_allclose(stored_predictions(made).split("test").probs, expected, atol=1e-5)
    np.testing.assert_allclose(load_run_model(made).predict_on_batch(images["test"]), expected, atol=1e-5)
    plain = with_views(load_plain_model(made), task.activation, "none").predict_on_batch(images["test"])
    assert np.abs(plain - expected).max() > 1e-3
    exported = kmed.export(made.folder, "tflite", tolerance=100)
    assert exported.record["checked"]["largest_difference"] < 1e-4
    assert "the mean over views of each picture (flips)" in made.report.read_text(encoding="utf-8")
    judges = np.ones((3, 2), bool)
    np.testing.assert_allclose(
        mean_probs(np.stack(logits, axis=1)[:3], judges, "probabilities", task), expected[:3], atol=1e-6
    )


def test_a_training_with_views_predicts_with_them(tiny, images, tmp_path):
    config = load_config(overrides=[*tiny, "train.epochs=1", "train.tensorboard=false", "evaluate.views=flips"])
    run = kmed.fit(config, out=tmp_path / "run")
    sides = [np.log(load_plain_model(run).predict_on_batch(x)) for x in (images["test"], images["test"][:, :, ::-1])]
    expected = scipy.special.softmax(np.mean(sides, axis=0), axis=1)
    np.testing.assert_allclose(stored_predictions(run).split("test").probs, expected, atol=1e-5)
    assert kmed.evaluate(run.folder).scores["brier"].value == pytest.approx(
        json.loads(run.metrics.read_text())["test"]["scores"]["brier"]["value"], abs=1e-6
    )
    Image.fromarray(images["test"][0]).save(tmp_path / "picture.png")
    answer = next(kmed.classify_files(run.folder, [tmp_path / "picture.png"]))
    calibrated = read_fitted(run).calibration.apply(expected[:1])[0]
    np.testing.assert_allclose(list(answer.probs.values()), calibrated, atol=1e-5)
    with pytest.raises(ConfigError, match="they have a top"):
        kmed.fit(load_config(overrides=[*tiny, "evaluate.views=dihedral"]), out=tmp_path / "other")


def test_no_training_starts_from_an_ensemble(made):
    with pytest.raises(
        WeightsError, match=r"model.keras is an ensemble, from which no training can start. Give one of"
    ):
        build_model("vit", 3, (32, 40), weights=made.folder, width=16, depth=1, num_heads=2)
    with pytest.raises(
        WeightsError, match="is an ensemble, from which no training can start"
    ):  # before pictures are read
        check_weights(made.folder, "vit")
