"""External validation: other people's folders, names and groups, and pictures that the run already knows."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from click.testing import CliRunner
from drawn_hospitals import COLOURS, draw_findings, draw_hospital
from PIL import Image

import kmed
from kmed.cli.main import main
from kmed.errors import ConfigError, DataError, RunError
from kmed.evaluation import external as judging
from kmed.evaluation.seen import find_seen
from kmed.reading import read_csv, read_json


@pytest.fixture
def hospital(tmp_path):
    return draw_hospital(tmp_path / "hospital")


def everything(run):
    """Returns {path: bytes} of a run's own files."""
    files = [path for path in run.folder.rglob("*") if path.is_file() and "external" not in path.parts]
    return {path: path.read_bytes() for path in files}


def test_the_command_writes_a_folder_and_leaves_the_run_alone(run, hospital, tmp_path):
    before = everything(run)
    table = tmp_path / "table.csv"
    arguments = ["evaluate", str(run.folder), "--on", str(hospital), "--append", str(table)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert everything(run) == before
    folder = run.folder / "external" / "hospital"
    assert {path.name for path in folder.iterdir()} == {
        "predictions.csv", "metrics.json", "summary.txt", "result.csv", "report.html",
    }  # fmt: skip
    metrics, page = read_json(folder / "metrics.json"), (folder / "report.html").read_text()
    assert metrics["external"]["num_images"] == 24 and metrics["external"]["num_clusters"] == 12
    beside = metrics["side_by_side"]
    assert beside["classes"] == ["red", "green", "blue"]
    change = beside["scores"]["accuracy"]
    assert change["change"]["value"] == pytest.approx(change["external"]["value"] - change["internal"]["value"])
    assert metrics["seen"]["left_out"] == 0 and "None of them shows what the run has learnt from." in page
    assert "calibration slope" in done.output and f"Results: {folder}" in done.output
    row = read_csv(table)
    assert row["split"].item() == "external" and row["data"].item() == "hospital"
    assert float(row["change_accuracy"].item()) == pytest.approx(change["change"]["value"])
    again = CliRunner().invoke(main, arguments)  # replaces the results on the same data, and adds no second row
    assert again.exit_code == 0 and len(read_csv(table)) == 1


def test_names_are_mapped_several_to_one_and_to_nothing(run, tmp_path):
    hospital = draw_hospital(tmp_path / "other", names=("crimson", "green", "blue"))
    draw_hospital(hospital, names=("scarlet", "debris", "blue"), seed=6)
    mapping = tmp_path / "names.yaml"
    mapping.write_text("crimson: red\nscarlet: red\ndebris: null\n")
    result = judging.judge_on(run.folder, hospital, class_map=[str(mapping)])
    assert len(result.predictions) == 48 - 8  # the pictures of debris are left out
    counts = result.assessment.scores.counts
    assert {name: counts[name]["positives"] for name in COLOURS} == {"red": 16, "green": 8, "blue": 16}
    assert any("crimson -> red; scarlet -> red" in note for note in result.foreign.table.notes)
    assert any("Mapped to no class: debris, and 8 pictures of them are left out" in note
               for note in result.foreign.table.notes)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "class names that the model does not know .1.: crimson. Its classes are red, green, blue. Say what"),
        (["--map", "crimson=rod"], "gives 'crimson' the class 'rod', which the model lacks.*Did you mean 'red'"),
        (["--map", "crimsn=red"], "The map names 'crimsn', which other lacks.*Did you mean 'crimson'"),
        (["--map", "crimson"], "--map needs THEIRS=OURS or a YAML file"),
        (["--map", "crimson=red", "--map", "crimson=blue"], "'crimson' is mapped twice: to 'red' and to 'blue'"),
        (["--map", "gone.yaml"], "gone.yaml cannot be read: No such file"),
        (["--map", "crimson=red", "--name", "../up"], "name becomes a folder"),
        (["--map", "crimson=red", "--set", "data.image_size=8x8"], "With --on, --set takes settings of data"),
        (["--map", "crimson=red", "--copies", "pixel"], "copies must be pixels, bytes, none.*Did you mean 'pixels'"),
        (["--map", "crimson=red", "--format", "tflite"], "--on judges the Keras model"),
        (["--map", "crimson=red", "--split", "val"], "has no pictures in split 'val'"),
        (["--rescore"], "do not give --data, --split"),
    ],
)
def test_what_does_not_fit_is_one_line(run, tmp_path, options, message):
    hospital = draw_hospital(tmp_path / "other", names=("crimson", "green", "blue"), patients=6)
    done = CliRunner().invoke(main, ["evaluate", str(run.folder), "--on", str(hospital), *options])
    assert done.exit_code in (1, 2)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    errors = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert not (run.folder / "external").exists()


def test_map_without_on_is_refused(run):
    with pytest.raises(ConfigError, match="--map, --name and --copies go with --on"):
        kmed.evaluate(run.folder, class_map=["a=b"])


def test_one_name_is_one_data_set(run, hospital, tmp_path):
    kmed.evaluate(run.folder, on=hospital, name="north", copies="none")
    other = draw_hospital(tmp_path / "south", seed=7)
    with pytest.raises(RunError, match="holds the results on .*hospital. Choose another name"):
        kmed.evaluate(run.folder, on=other, name="north", copies="none")


def test_a_class_that_the_data_lack_is_compared_on_neither_side(run, tmp_path):
    hospital = draw_hospital(tmp_path / "two")
    shutil.rmtree(hospital / "blue")
    result = judging.judge_on(run.folder, hospital)
    assert result.beside.classes == ("red", "green")
    stored = pd.read_csv(run.predictions)
    at_home = stored[(stored["split"] == "test") & (stored["label"] != "blue")]
    assert result.beside.sizes["internal"][0] == len(at_home)
    both = result.beside.scores["accuracy"]
    assert both.internal.value == pytest.approx((at_home["label"] == at_home["predicted"]).mean())
    assert result.assessment.scores.left_out == ("blue",)
    assert result.beside.shares["blue"].external.value == 0


def plant(small_npz, hospital, splits=("train", "val", "test")):
    """Adds pictures of the run to the folder: one file per split, as they are; returns their names."""
    with np.load(small_npz) as packed:
        images, split, labels = packed["images"], packed["split"], packed["labels"]
    names = []
    for name in splits:
        row = np.flatnonzero(split == name)[1]
        path = hospital / COLOURS[labels[row].argmax()] / f"stranger_{name}" / "copy.png"
        path.parent.mkdir()
        Image.fromarray(images[row]).save(path)
        names.append(path.relative_to(hospital).as_posix())
    return names


def test_known_pictures_are_named_and_left_out(run, hospital, small_npz):
    """The run's pictures are pixels in an npz, those of the hospital files: what they show decides."""
    names = plant(small_npz, hospital)
    beside_it = hospital / names[0].replace("copy", "beside")
    Image.fromarray(np.random.default_rng(9).integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(beside_it)
    result = judging.judge_on(run.folder, hospital)
    seen = result.foreign.seen
    found = seen.rows.set_index("path")
    assert set(found.index) == {*names, beside_it.relative_to(hospital).as_posix()}
    assert found.loc[names, "split"].tolist() == ["train", "val", "test"]
    assert (found.loc[names, "found"] == "one photograph").all()
    assert found["found"].value_counts()["same group"] == 1  # the other picture of that patient
    assert seen.left_out.sum() == 3 and len(result.predictions) == len(seen.left_out) - 3
    assert names[2] in result.predictions.rows["path"].tolist()  # of the test split: it may judge, and is counted
    assert "the intervals of the changes do not hold" in " ".join(seen.sentences())
    folder = judging.write_external(run, result)
    assert names[0] in (folder / "seen.csv").read_text()
    assert names[0] not in (folder / "predictions.csv").read_text()


def test_the_same_files_are_found_by_their_bytes(run, hospital, tmp_path):
    """The run's pictures are read from a folder here, with the splits of the run."""
    home = draw_hospital(tmp_path / "home", seed=8)
    config = run.read_config()
    table = kmed.load_table(home)
    splits = np.where(np.arange(len(table)) % 4 < 2, "train", "test").astype(object)
    kmed.write_splits(table.with_columns(split=splits), run.splits)
    moved = config.data.model_copy(update={"path": str(home), "class_names": list(COLOURS)})
    config.model_copy(update={"data": moved}).write(run.config)
    copied = hospital / "red" / "again.png"
    source = table.file(0)
    shutil.copy(source, copied)
    config = judging.foreign_config(run, hospital)
    seen = find_seen(run, judging.open_foreign(config), "test", copies="bytes")
    assert seen.rows[["path", "found", "split"]].values.tolist() == [["red/again.png", "identical files", "train"]]
    assert seen.num_known == len(table)  # its splits are train and test


def test_without_the_runs_own_pictures_it_says_so(run, hospital, tmp_path, caplog):
    config = run.read_config()
    moved = config.data.model_copy(update={"path": str(tmp_path / "gone.npz")})
    config.model_copy(update={"data": moved}).write(run.config)
    result = judging.judge_on(run.folder, hospital)
    assert "Not checked for pictures that the run was trained on" in result.foreign.seen.sentences()[0]
    assert result.to_dict()["seen"]["copies"] == "none"
    assert "the run's own pictures cannot be read" in caplog.text


def test_only_known_pictures_cannot_judge(run, tmp_path, small_npz):
    hospital = tmp_path / "copies"
    with np.load(small_npz) as packed:
        learnt = packed["split"] == "train"
        images, labels = packed["images"][learnt], packed["labels"][learnt]
    for channel, colour in enumerate(COLOURS):
        (hospital / colour).mkdir(parents=True)
        Image.fromarray(images[labels[:, channel] == 1][0]).save(hospital / colour / "copy.png")
    with pytest.raises(DataError, match="learnt from all 3 pictures in .*copies, so they cannot judge it"):
        judging.judge_on(run.folder, hospital)


def test_nothing_is_left_of_results_that_could_not_be_written(run, hospital, monkeypatch):
    result = judging.judge_on(run.folder, hospital, copies="none")

    def fail(*_):
        raise RunError("The disk is full.")

    monkeypatch.setattr(judging, "write_text", fail)
    with pytest.raises(RunError, match="disk is full"):
        judging.write_external(run, result)
    assert not result.folder.exists()


def test_numbers_of_the_page_are_those_of_the_file(run, hospital):
    kmed.evaluate(run.folder, on=hospital)
    folder = run.folder / "external" / "hospital"
    metrics, page = json.loads((folder / "metrics.json").read_text()), (folder / "report.html").read_text()
    cited = re.findall(r'data-value="([^"]*)" data-from="metrics.json#([^"]*)"', page)
    assert len(cited) > 100
    for value, place in cited:
        found = metrics
        for step in place.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            found = found[int(step)] if isinstance(found, list) else found[step]
        assert (value == "") if found is None else float(value) == found


# ---- Findings: unlabelled ones, class folders, and other sources -------------------------------------


@pytest.fixture(scope="module")
def findings_run(tmp_path_factory):
    """A finished run of one epoch with three labels. Do not change it but in `external`."""
    folder = tmp_path_factory.mktemp("findings")
    table = draw_findings(folder / "home", seed=0, patients=40)
    table["split"] = np.repeat(["train", "val", "test"], [40, 20, 20])
    table.to_csv(folder / "home" / "labels.csv", index=False)
    settings = ["task=multilabel", f"data.path={folder / 'home'}", "data.image_size=16x16", "data.group=patient"]
    settings += ["model.name=vit", "model.options={patch_size: 8, width: 8, depth: 1, num_heads: 2}", "train.epochs=1"]
    settings += ["train.tensorboard=false", "train.dtype=float32", "evaluate.num_resamples=50", "train.batch_size=16"]
    return kmed.fit(kmed.load_config(overrides=settings), out=folder / "run")


def test_findings_that_nobody_labelled_are_unknown_and_score_nowhere(findings_run, tmp_path):
    table = draw_findings(tmp_path / "there", seed=3)
    table = table.rename(columns={"Mass": "Tumour"}).drop(columns="No Finding")
    table.loc[:3, "Edema"] = np.nan
    table.to_csv(tmp_path / "there" / "labels.csv", index=False)
    result = judging.judge_on(
        findings_run.folder, tmp_path / "there", class_map=["Tumour=Mass"], settings=["data.group=patient"],
    )  # fmt: skip
    labels = result.predictions.labels
    first = result.predictions.rows["path"].isin(table["path"][:4]).to_numpy()
    assert np.isnan(labels[:, 2]).all() and not np.isnan(labels[:, 1]).any()
    np.testing.assert_array_equal(np.isnan(labels[:, 0]), first)
    assert "40 of them have too little detail" in " ".join(result.foreign.seen.sentences())
    assert result.beside.classes == ("Edema", "Mass")
    assert result.assessment.scores.num_clusters == 20  # the patients of that hospital
    auroc = result.beside.scores["auroc_macro"]
    stored = pd.read_csv(findings_run.predictions).query("split == 'test'")

    expected = [sklearn.metrics.roc_auc_score(stored[f"label_{name}"], stored[f"prob_{name}"])
                for name in ("Edema", "Mass")]  # fmt: skip
    assert auroc.internal.value == pytest.approx(np.mean(expected))
    assert np.isnan(result.beside.shares["No Finding"].external.value)
    folder = judging.write_external(findings_run, result)
    rows = pd.read_csv(folder / "predictions.csv")
    assert rows["label_No Finding"].isna().all() and rows["label_Edema"].isna().sum() == 4
    assert "lacks findings of the model (1), so they are unknown here" in " ".join(result.foreign.table.notes)


def test_class_folders_judge_a_model_of_findings(findings_run, tmp_path):
    table = draw_findings(tmp_path / "drawn", seed=4)
    for row in table[(table["Mass"] == 1) | (table["No Finding"] == 1)].itertuples():
        place = tmp_path / "folders" / ("TUMOUR" if row.Mass else "NORMAL") / row.path
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "drawn" / row.path, place)
    arguments = ["evaluate", str(findings_run.folder), "--on", str(tmp_path / "folders"), "--name", "folders"]
    done = CliRunner().invoke(main, [*arguments, "--map", "TUMOUR=Mass", "--map", "NORMAL=No Finding"])
    assert done.exit_code == 0, done.output
    rows = pd.read_csv(findings_run.folder / "external" / "folders" / "predictions.csv")
    assert rows["label_Edema"].isna().all()
    assert (rows["label_Mass"] == rows["path"].str.startswith("TUMOUR")).all()
    assert "Flagged as unlike the training pictures" in done.output
    page = (findings_run.folder / "external" / "folders" / "report.html").read_text()
    assert "Compared over 2 of 3 findings" in page and "Left out: Edema." in page


def test_a_run_without_a_novelty_file_counts_nothing_as_unlike(findings_run, tmp_path):
    run = type(findings_run)(shutil.copytree(findings_run.folder, tmp_path / "run"))
    run.novelty.unlink()
    draw_findings(tmp_path / "there", seed=6).to_csv(tmp_path / "there" / "labels.csv", index=False)
    kmed.evaluate(run.folder, on=tmp_path / "there", name="elsewhere", copies="none")
    folder = run.folder / "external" / "elsewhere"
    assert read_json(folder / "metrics.json")["novelty"] is None
    assert "The run has no novelty.npz" in (folder / "summary.txt").read_text()
    assert "Flagged as unlike" not in (folder / "report.html").read_text()


def test_an_npz_and_dicom_files_judge_too(findings_run, tmp_path):
    pydicom = pytest.importorskip("pydicom")
    table = draw_findings(tmp_path / "plain", seed=5)
    table.to_csv(tmp_path / "plain" / "labels.csv", index=False)
    packed = kmed.pack_data(tmp_path / "plain", tmp_path / "there", image_size="16x16",
                            settings=["task=multilabel", "data.group=patient", "data.test_fraction=0"])[1]  # fmt: skip
    from_npz = judging.judge_on(findings_run.folder, packed, copies="bytes")
    from_files = judging.judge_on(findings_run.folder, tmp_path / "plain", settings=["data.group=patient"])
    files = from_files.predictions.rows.assign(prob=from_files.predictions.probs[:, 1]).set_index("path")["prob"]
    pack = from_npz.predictions.rows.assign(prob=from_npz.predictions.probs[:, 1]).set_index("path")["prob"]
    np.testing.assert_allclose(pack, files[pack.index], atol=1e-6)

    for name in table["path"]:
        write_dicom(pydicom, tmp_path / "dicom" / name.replace(".png", ".dcm"), tmp_path / "plain" / name)
    table.assign(path=table["path"].str.replace(".png", ".dcm")).to_csv(tmp_path / "dicom" / "labels.csv", index=False)
    result = judging.judge_on(findings_run.folder, tmp_path / "dicom", settings=["data.group=patient"])
    assert len(result.predictions) == 40


def write_dicom(pydicom, path, source):
    """Writes a picture as a grey DICOM file."""
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    pixels = np.asarray(Image.open(source).convert("L"))
    content = pydicom.Dataset()
    content.file_meta = pydicom.dataset.FileMetaDataset()
    content.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content.file_meta.MediaStorageSOPClassUID = content.SOPClassUID = SecondaryCaptureImageStorage
    content.file_meta.MediaStorageSOPInstanceUID = content.SOPInstanceUID = pydicom.uid.generate_uid()
    content.PhotometricInterpretation, content.SamplesPerPixel = "MONOCHROME2", 1
    content.Rows, content.Columns = pixels.shape
    content.BitsAllocated = content.BitsStored = 8
    content.HighBit, content.PixelRepresentation = 7, 0
    content.PixelData = pixels.tobytes()
    path.parent.mkdir(exist_ok=True)
    content.save_as(path, enforce_file_format=True)
