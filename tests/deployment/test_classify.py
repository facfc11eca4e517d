"""kmed predict: one answer per file, as a stream, in which broken files are named."""

import csv
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import weakref

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import kmed
from kmed.cli.main import main
from kmed.data import images
from kmed.deployment import classify
from kmed.errors import DataError, RunError
from kmed.evaluation.decisions import read_fitted
from kmed.evaluation.predictions import read_predictions
from kmed.tasks import get_task


@pytest.fixture(scope="module")
def files(small_npz, tmp_path_factory):
    """The test pictures of the run as PNG files, named as in its predictions."""
    folder = tmp_path_factory.mktemp("files")
    with np.load(small_npz) as data:
        for path, image in zip(data["path"][data["split"] == "test"], data["images"][data["split"] == "test"]):
            Image.fromarray(image).save(folder / f"{path}.png")
    return folder


def test_files_are_predicted_as_the_run_predicted_them(short_run, files):
    answers = list(kmed.classify_files(short_run.folder, [files], batch_size=7))
    known = read_predictions(short_run.predictions, ["red", "green", "blue"], get_task("multiclass")).split("test")
    order = known.rows["path"].argsort()
    assert [answer.path for answer in answers] == [str(files / f"{path}.png") for path in known.rows["path"][order]]
    expected = read_fitted(short_run).calibration.apply(known.probs[order])
    np.testing.assert_allclose([list(answer.probs.values()) for answer in answers], expected, atol=1e-5)
    assert [answer.found[0] for answer in answers] == [["red", "green", "blue"][k] for k in expected.argmax(axis=1)]
    fitted = read_fitted(short_run)
    inside = known.probs[order] >= fitted.set_thresholds - 1e-6
    assert [len(answer.prediction_set) for answer in answers] == inside.sum(axis=1).tolist()
    flagged = np.mean([answer.unlike_training for answer in answers])
    assert flagged == pytest.approx(json.loads(short_run.metrics.read_text())["novelty"]["test"]["value"])


def test_sources_are_files_folders_and_globs(files, tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for name in ("2.png", "1.PNG", "notes.txt", ".hidden.png"):
        shutil.copy(next(files.iterdir()), inner / name)
    plain = shutil.copy(next(files.iterdir()), tmp_path / "without_suffix")
    found = classify.find_pictures([plain, tmp_path / "a", str(tmp_path / "**" / "*.png")])
    assert found == [str(plain), str(inner / "1.PNG"), str(inner / "2.png"), str(inner / "2.png")]


def test_folders_and_recursive_globs_follow_links_and_leave_out_what_is_hidden(tmp_path, caplog):
    folder = tmp_path / "new"
    for path in ("new/1.png", "new/.ipynb_checkpoints/1-checkpoint.png", "new/@eaDir/1.png", "store/2.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"picture")
    (folder / "linked").symlink_to(tmp_path / "store")
    (folder / "again").symlink_to(tmp_path / "store")
    (folder / "up").symlink_to(tmp_path)
    expected = [str(folder / "1.png"), str(folder / "again" / "2.png")]
    with caplog.at_level("INFO", "kmed"):
        assert classify.find_pictures([folder]) == expected
    assert "Linked folders are followed (2): again, linked." in caplog.text
    assert "count once (1): linked/2.png is again/2.png." in caplog.text
    (folder / "up").unlink()
    assert classify.find_pictures([folder / "**" / "*.png"]) == expected
    assert classify.find_pictures([folder / "@eaDir" / "**" / "*.png"]) == [str(folder / "@eaDir" / "1.png")]


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere.png", "does not exist"), ("*.nothing", "matches no picture"), ("", "holds no pic")],
)
def test_a_source_without_pictures_is_one_line(short_run, tmp_path, source, message):
    with pytest.raises(DataError, match=message):
        kmed.classify_files(short_run.folder, [tmp_path / source])  # at once, not at the first answer


def test_pictures_of_another_kind_are_flagged(short_run, tmp_path):
    Image.new("RGB", (40, 32)).save(tmp_path / "blank.png")
    (answer,) = kmed.classify_files(short_run.folder, [tmp_path / "blank.png"])
    assert answer.unlike_training is True and answer.distance > 0
    result = CliRunner().invoke(main, ["--quiet", "predict", str(short_run.folder), str(tmp_path / "blank.png")])
    assert "UNLIKE THE TRAINING PICTURES" in result.output


def test_a_run_without_novelty_says_so(run, files, monkeypatch):
    lines = []
    monkeypatch.setattr(classify, "say", lines.append)
    run.novelty.unlink()
    answers = list(kmed.classify_files(run.folder, [files]))
    assert all(answer.unlike_training is None and answer.distance is None for answer in answers)
    assert len(lines) == 1 and "kmed.fit_novelty(" in lines[0]


def test_an_exported_file_says_the_same(run, files, short_measurements, monkeypatch):
    lines = []
    monkeypatch.setattr(classify, "say", lines.append)
    kmed.export(run.folder, "tflite", threads=1)
    plain = list(kmed.classify_files(run.folder, [files]))
    other = list(kmed.classify_files(run.folder, [files], format="tflite"))
    assert [answer.found for answer in other] == [answer.found for answer in plain]
    np.testing.assert_allclose(
        [list(answer.probs.values()) for answer in other], [list(answer.probs.values()) for answer in plain], atol=1e-4
    )
    assert len(lines) == 2 and "99% of the run's validation pictures; " in lines[0] and "are not flagged" in lines[1]
    assert other[0].unlike_training is None
    with pytest.raises(RunError, match="has no vit.onnx"):
        kmed.classify_files(run.folder, [files], format="onnx")


def test_overlays_show_the_evidence_for_the_class(short_run, files, tmp_path):
    first = sorted(files.iterdir())[:2]
    copy = tmp_path / first[0].name  # the same name in another folder
    shutil.copy(first[0], copy)
    answers = list(kmed.classify_files(short_run.folder, [*first, copy], explain=tmp_path / "looked"))
    assert len({answer.overlay for answer in answers}) == 3
    assert all(Image.open(answer.overlay).size == (40, 32) for answer in answers)


def test_overlays_never_replace_a_source(short_run, files, tmp_path):
    sources = [tmp_path / "a.png", tmp_path / "a_explained.png"]
    for source in sources:
        shutil.copy(next(files.iterdir()), source)
    before = [source.read_bytes() for source in sources]
    answers = list(kmed.classify_files(short_run.folder, sources, explain=tmp_path))
    assert [source.read_bytes() for source in sources] == before
    assert [answer.overlay for answer in answers] == [
        str(tmp_path / "a-2_explained.png"), str(tmp_path / "a_explained_explained.png")
    ]  # fmt: skip


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_names_that_are_not_text_or_hold_a_line_break(short_run, files, tmp_path, form):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in (b"caf\xe9.png", b"two\nlines.png"):
        shutil.copy(next(files.iterdir()), folder / os.fsdecode(name))
    out = tmp_path / "answers.txt"
    result = command(short_run, folder, *form, "--out", out)
    assert result.exit_code == 0, result.output
    if form != ["--csv"]:
        assert len(out.read_bytes().splitlines()) == 2


@pytest.mark.parametrize("name", ["two\nlines", "carriage\rreturn", "\u2028", '"quoted", with comma', "a$b_{c"])
def test_odd_class_names_stay_on_their_line_and_in_their_cell(name):
    answer = classify.Answer("1.png", (name,), {name: 0.9, "b": 0.1}, (name, "b"))
    (line,) = classify.as_text([answer])
    assert len(line.splitlines()) == 1 and "0.900" in line
    rows = list(csv.reader(io.StringIO("\n".join(classify.as_csv([answer], [name, "b"])), newline="")))
    assert rows[0][:4] == ["path", "found", f"prob_{name}", "prob_b"]
    assert rows[1][:5] == ["1.png", name, "0.9", "0.1", f"{name}|b"]


def test_a_thousand_files_stream_and_broken_ones_are_named(short_run, files, tmp_path, monkeypatch):
    pictures = sorted(files.iterdir())
    for number in range(1000):
        shutil.copy(pictures[number % len(pictures)], tmp_path / f"{number:04d}.png")
    broken = ["0000.png", "0500.png", "0999.png"]
    for name in broken:
        (tmp_path / name).write_bytes(b"damaged")
    made, most = [], 0

    class Watched(np.ndarray):
        """An array that can be referenced weakly."""

    def watched(*arguments):
        image = read(*arguments).view(Watched)
        made.append(weakref.ref(image))
        return image

    read = images.read_image
    monkeypatch.setattr(classify, "read_image", watched)
    errors, seen = [], []
    for answer in kmed.classify_files(short_run.folder, [tmp_path], batch_size=32):
        most = max(most, sum(reference() is not None for reference in made))
        seen.append(answer.path)
        errors += [answer.path.rsplit("/", 1)[1]] if answer.error else []
    assert seen == [str(tmp_path / f"{number:04d}.png") for number in range(1000)]
    assert errors == broken
    assert 32 <= most <= 3 * 32  # decoded pictures: this batch, the next one, and what the pool still holds


def write_tiff(path, channels: int, side: int = 8) -> None:
    """Writes a TIFF file of any number of 8-bit channels; Pillow writes four at most."""
    size = side * side * channels
    ends = {258: 8 + 2 + 9 * 12 + 4, 273: 8 + 2 + 9 * 12 + 4 + 2 * channels}  # offsets of bits per sample, of pixels
    tags = [(256, 3, 1, side), (257, 3, 1, side), (258, 3, channels, 0), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 0), (277, 3, 1, channels), (278, 3, 1, side), (279, 4, 1, size)]
    head = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags))
    head += b"".join(struct.pack("<HHII", tag, kind, count, ends.get(tag, value)) for tag, kind, count, value in tags)
    path.write_bytes(head + bytes(4) + struct.pack(f"<{channels}H", *[8] * channels) + bytes(size))


def command(run, *more):
    return CliRunner().invoke(main, ["--quiet", "predict", str(run.folder), *map(str, more)])


def test_broken_files_give_exit_code_1_after_all_answers(short_run, files, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"damaged")
    (tmp_path / "ok.png").write_bytes(next(files.iterdir()).read_bytes())
    result = command(short_run, tmp_path)
    assert result.exit_code == 1
    assert "broken.png: not predicted: " in result.output and "ok.png: " in result.output
    assert "Error: 1 of 2 pictures could not be read" in result.output
    assert "Traceback" not in result.output


def test_json_lines(short_run, files):
    result = command(short_run, files, "--json")
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.output.splitlines()]
    assert len(rows) == 36 and set(rows[0]["probs"]) == {"red", "green", "blue"}
    assert abs(sum(rows[0]["probs"].values()) - 1) < 1e-5 and isinstance(rows[0]["unlike_training"], bool)


def test_two_forms_at_once_are_refused(short_run, files):
    result = command(short_run, files, "--json", "--csv")
    assert result.exit_code == 2 and "give only one of them" in result.output


def test_a_closed_pipe_is_not_an_error(short_run, files):
    line = f"{sys.executable} -m kmed --quiet predict {short_run.folder} {files} | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 1 and "roken pipe" not in done.stderr and "Traceback" not in done.stderr


def test_csv_into_a_file_whole_or_not_at_all(short_run, files, tmp_path, monkeypatch):
    out = tmp_path / "made" / "answers.csv"
    assert command(short_run, files, "--csv", "--out", out).exit_code == 0
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 36 and rows[0]["error"] == "" and float(rows[0]["prob_red"]) >= 0
    before = out.read_bytes()

    def interrupted(answers, class_names):
        yield "path"
        raise KeyboardInterrupt

    monkeypatch.setattr("kmed.deployment.classify.as_csv", interrupted)
    assert command(short_run, files, "--csv", "--out", out).exit_code == 130
    assert out.read_bytes() == before and [path.name for path in out.parent.iterdir()] == ["answers.csv"]


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_a_tiff_of_grey_bands_is_refused(short_run, tmp_path, channels):
    write_tiff(tmp_path / "bands.tif", channels)
    result = command(short_run, tmp_path / "bands.tif")
    assert result.exit_code == 1 and f"has {channels} channels" in result.output and "Traceback" not in result.output


def test_arrays_of_a_wrong_shape_are_refused(short_run):
    from kmed.evaluation.predictor import open_model

    with pytest.raises(DataError, match=r"RGB. Received: shape=\(1, 32, 40, 1\)"):
        open_model(short_run).predict(np.zeros((1, 32, 40, 1)))


def test_a_run_without_a_model_is_refused(run, files):
    run.model.unlink()
    result = command(run, files)
    assert result.exit_code == 1 and "holds no weights (model.keras). Train it again" in result.output
