"""The page: its figures are those of the run's files, it loads nothing, and it says what it cannot show."""

import html.parser
import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from kmed.cli.main import main
from kmed.config import load_config
from kmed.errors import ModelError, RunError
from kmed.evaluation import comparison as comparing
from kmed.evaluation import run_evaluation
from kmed.evaluation.predictions import read_predictions
from kmed.report import comparison_page, gallery, run_page
from kmed.report.page import Cited
from kmed.runs import Run
from kmed.tasks import get_task
from kmed.training import fit

HOSTILE = "<script>alert(1)</script>"
TINY = [
    "data.image_size=32x40",
    "model.name=vit",
    "model.options={patch_size: 8, width: 16, depth: 1, num_heads: 2, attention_dropout: 0.0}",
    "model.dropout=0.0",
    "train.epochs=2",
    "train.batch_size=16",
    "train.dtype=float32",
    "train.tensorboard=false",
    "evaluate.num_resamples=30",
]
WHOLE = {"metrics.json", "calibration.json"}  # the others are tables


@pytest.fixture(scope="module")
def multiclass(tmp_path_factory) -> Run:
    """A run on a packed set whose class names are hard on HTML and on JSON pointers."""
    folder = tmp_path_factory.mktemp("multiclass")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(24) % 3, 3)
    images = rng.integers(0, 120, (len(labels), 32, 40, 3))
    images[np.arange(len(labels)), :, :, labels] += 60
    patients = np.repeat([f"patient{number:02d}" for number in range(24)], 3)
    split = np.repeat(np.array(["train"] * 4 + ["val"] * 2 + ["test"] * 2)[np.arange(24) // 3], 3)
    np.savez(
        folder / "set.npz",
        images=images.astype(np.uint8),
        labels=np.eye(3, dtype=np.float32)[labels],
        class_names=np.array([HOSTILE, "a/b~c & d", 'say "x"']),
        task=np.array("multiclass"),
        name=np.array("<b>set</b>"),
        path=np.array([f"{number:04d}" for number in range(len(labels))]),
        group=patients,
        cluster=patients,
        split=split,
        grouped=np.array(True),
    )
    run = fit.fit(load_config(None, [*TINY, f"data.path={folder / 'set.npz'}"]), out=folder / "run")
    run_page.write_report(run)
    return run


@pytest.fixture(scope="module")
def multilabel(tmp_path_factory) -> Run:
    """A run on a CSV of two findings, with sex and age, some labels unknown."""
    folder = tmp_path_factory.mktemp("multilabel")
    rng = np.random.default_rng(1)
    rows = []
    for number in range(90):
        patient, found = number // 3, rng.random(2) < 0.4
        pixels = rng.integers(0, 120, (32, 40)) + 80 * np.repeat(found, 16)[:, None]
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03d}.png")
        about = {"path": f"{number:03d}.png", "patient_id": f"p{patient}", "sex": "FM"[patient % 2], "age": 5 * patient}
        rows.append({**about, "Mass": float(found[0]), "Edema": float(found[1]) if number % 10 else np.nan})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    settings = [f"data.path={folder / 'labels.csv'}", "task=multilabel", "data.label_columns=[Mass, Edema]"]
    run = fit.fit(load_config(None, [*TINY, *settings, "data.group=patient_id"]), out=folder / "run")
    run_page.write_report(run)
    return run


@pytest.fixture(scope="module")
def constant(multiclass, tmp_path_factory) -> Run:
    """The multiclass run, with the same answer for every picture."""
    run = Run(tmp_path_factory.mktemp("constant") / "run")
    shutil.copytree(multiclass.folder, run.folder)
    frame = pd.read_csv(run.predictions, dtype={"path": str})
    probs = [name for name in frame if name.startswith("prob_")]
    frame[probs] = [0.4, 0.3, 0.3]
    frame["predicted"] = probs[0].removeprefix("prob_")
    frame.to_csv(run.predictions, index=False)
    run_evaluation.rescore(run.folder)
    run_page.write_report(run)
    return run


@pytest.fixture(scope="module")
def comparison(multiclass, constant, tmp_path_factory):
    """The folder of a comparison of the two."""
    folder = tmp_path_factory.mktemp("comparison")
    found = comparing.compare_runs([multiclass.folder, constant.folder])
    comparing.write_files(found, folder)
    comparison_page.write_comparison(found, folder)
    return folder


class Page(html.parser.HTMLParser):
    """What a page holds: tags with their attributes, numbers with their sources, text, and each table's cells."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, path):
        super().__init__()
        self.tags, self.numbers, self.text, self.bare = [], [], "", {}
        self._open, self._table = [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        """Notes a tag; what it opens must be closed."""
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "table":
            self._table = attributes.get("class", "")
        if tag not in self.VOID:
            self._open.append((tag, attributes))

    def handle_startendtag(self, tag, attributes):
        """Notes a tag that is empty, as in SVG."""
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        """Closes the innermost tag."""
        assert self._open.pop()[0] == tag, self.getpos()

    def handle_data(self, data):
        """Notes the text of the page, of its numbers, and of cells outside their numbers."""
        names = [tag for tag, _ in self._open]
        if "style" in names:
            return
        self.text += data
        if self._open and "data-from" in self._open[-1][1]:
            self.numbers.append((self._open[-1][1]["data-from"], self._open[-1][1]["data-value"], data))
        elif "td" in names:
            self.bare[self._table] = self.bare.get(self._table, "") + " " + data

    def pointers(self, file):
        """Returns the places in a file whose numbers the page shows."""
        return {place.partition("#")[2] for place, _, _ in self.numbers if place.startswith(f"{file}#")}


def sources(folder) -> dict:
    """Returns file name -> its content, in the form that the page's pointers refer to."""
    read = {}
    for path in folder.iterdir():
        if path.name in WHOLE:
            read[path.name] = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".csv":
            frame = pd.read_csv(path, dtype={"path": str})
            read[path.name] = frame.set_index("path").to_dict("index") if "path" in frame else frame.to_dict("records")
    return read


def look_up(content, place: str):
    """Returns what a JSON pointer points to."""
    for step in place.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        content = content[int(step)] if isinstance(content, list) else content[step]
    return content


def check_numbers(numbers, folder) -> None:
    """Asserts that each number is that of the file it names, in every digit, and to three decimals in the text."""
    files = sources(folder)
    assert numbers
    for where, value, text in numbers:
        file, _, place = where.partition("#")
        expected = look_up(files[file], place)
        if expected is None or expected != expected:
            assert (value, text) == ("", "undefined"), where
        elif isinstance(expected, int):
            assert (int(value), int(text.replace(",", ""))) == (expected, expected), where
        else:
            assert float(value) == pytest.approx(expected, rel=1e-12, abs=1e-15), where
            assert text == f"{expected:.3f}", where


def leaves(content, place=""):
    """Yields the pointers of the numbers in nested dicts and lists."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        step = f"{place}/{str(key).replace('~', '~0').replace('/', '~1')}"
        if isinstance(value, (dict, list)):
            yield from leaves(value, step)
        elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            yield step


@pytest.fixture(params=["multiclass", "multilabel", "constant", "comparison"])
def folder(request):
    """The folder of each kind of page."""
    made = request.getfixturevalue(request.param)
    return getattr(made, "folder", made)


def test_numbers_are_those_of_the_files(folder):
    page = Page(folder / "report.html")
    check_numbers(page.numbers, folder)
    for table in ("scores", "classes", "confusion"):  # every number in them says where it was read
        assert not re.search(r"\d", page.bare.get(table, "")), table


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_no_score_is_left_out(task, request):
    run = request.getfixturevalue(task)
    page, metrics = Page(run.report), json.loads(run.metrics.read_text())
    shown, test = page.pointers("metrics.json"), metrics["test"]
    for split in ("val", "test"):
        for name in metrics[split]["scores"]:
            assert {f"/{split}/scores/{name}/{key}" for key in ("value", "num_clusters")} <= shown
            low = f"/{split}/scores/{name}/low"
            assert (low in shown) == (metrics[split]["scores"][name]["low"] is not None)
    assert {f"/test/constants/{name}/scores/brier/value" for name in test["constants"]} <= shown
    by_class = {place for place in leaves(test["per_class"], "/test/per_class") if place.endswith("/value")}
    assert by_class <= shown and len(by_class) > 10
    assert set(leaves(test["counts"], "/test/counts")) - shown == {
        place for place in leaves(test["counts"], "/test/counts") if place.endswith("/known")
    }
    assert set(leaves(test["subgroups"], "/test/subgroups")) & shown or task == "multiclass"
    assert task == "multilabel" or set(leaves(test["confusion"], "/test/confusion")) <= shown
    fitted = json.loads(run.fitted.read_text())
    assert set(leaves(fitted["thresholds"]["values"], "/thresholds/values")) <= page.pointers("calibration.json")


def test_split_table_counts_what_was_split(multilabel):
    metrics, names = Cited("metrics.json", json.loads(multilabel.metrics.read_text())), ["Mass", "Edema"]
    counted = run_page.count_splits(multilabel, metrics, names)
    rows = pd.read_csv(multilabel.splits)
    assert [part["name"] for part in counted] == ["train", "val", "test"]
    for part in counted:
        mine = rows[rows["split"] == part["name"]]
        assert (part["pictures"], part["groups"]) == (len(mine), mine["group"].nunique())
    predictions = pd.read_csv(multilabel.predictions)
    test = predictions[predictions["split"] == "test"]
    assert [number.raw for number in counted[2]["positives"]] == [int(test[f"label_{name}"].sum()) for name in names]


def test_page_is_whole_in_itself(folder):
    page = Page(folder / "report.html")
    assert len(page.source) < 3_000_000
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "form", "input", "base")
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value.startswith(("#", "data:")), value
            if name == "style":
                assert not re.search(r"url\((?!#)", value), value
        if tag == "img":
            assert attributes["src"].startswith("data:image/jpeg;base64,") and attributes["alt"]
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
    assert "://" not in re.search(r"<style>.*?</style>", page.source, re.DOTALL)[0]
    assert "@import" not in page.source
    policy = next(
        attributes["content"] for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes
    )
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_links_and_names_fit_together(folder):
    page = Page(folder / "report.html")
    names = [attributes["id"] for tag, attributes in page.tags if "id" in attributes and tag in ("h2", "main")]
    assert len(set(names)) == len(names)
    links = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert links and links <= set(names)
    assert all(attributes["scope"] for tag, attributes in page.tags if tag == "th")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert max(np.diff(levels)) <= 1


def test_hostile_names_stay_text(multiclass):
    page = Page(multiclass.report)
    assert HOSTILE in page.text and HOSTILE not in page.source
    assert "<b>set</b>" in page.text and "<b>set</b>" not in page.source


def test_words_that_must_stand_there(multiclass, multilabel):
    for run in (multiclass, multilabel):
        text = " ".join(Page(run.report).text.split())
        test = json.loads(run.metrics.read_text())["test"]
        assert test["verdict"]["sentence"] in text[: text.index("Data and split")]
        for words in (
            "Not for clinical use",
            "scored once",
            f"here {test['num_clusters']} clusters",
            "whole clusters",
            f"few clusters ({test['num_clusters']})",
            "_tuned",
            "_calibrated",
        ):
            assert words in text, words
    assert "Scores by sex" in Page(multilabel.report).text
    assert "Platt scaling" in Page(multilabel.report).text
    assert "temperature scaling" in Page(multiclass.report).text


def test_a_run_that_learnt_nothing_says_so(constant, multiclass):
    page = Page(constant.report)
    assert any(attributes.get("class") == "banner nothing" for _, attributes in page.tags)
    assert "learnt nothing beyond the prior" in page.text[: page.text.index("Data and split")]
    learnt = json.loads(multiclass.metrics.read_text())["test"]["verdict"]["learnt"]
    assert any(attributes.get("class") == "banner" for _, attributes in Page(multiclass.report).tags) == learnt


def test_pictures_and_explanations(multiclass, multilabel):
    for run in (multiclass, multilabel):
        page = Page(run.report)
        names = json.loads(run.classes.read_text())["class_names"]
        task = run.read_config().task
        predictions = read_predictions(run.predictions, names, get_task(task)).split("test")
        errors = gallery.confident_errors(predictions)
        explained = len(gallery.confident_answers(predictions)) + min(len(errors), gallery.NUM_EXPLAINED)
        assert sum(tag == "img" for tag, _ in page.tags) == len(errors) + 2 * explained


def test_confident_errors_are_the_surest_one_per_cluster(multilabel):
    predictions = read_predictions(multilabel.predictions, ["Mass", "Edema"], get_task("multilabel")).split("test")
    errors = gallery.confident_errors(predictions, number=100)
    surest = {}
    for row in range(len(predictions)):
        for k in range(2):
            label, prob = predictions.labels[row, k], predictions.probs[row, k]
            if not np.isnan(label) and (prob >= 0.5) != (label == 1):
                cluster = predictions.clusters[row]
                surest[cluster] = max(surest.get(cluster, 0), prob, 1 - prob)
    assert {error.cluster: max(error.prob, 1 - error.prob) for error in errors} == pytest.approx(surest)
    sureness = [max(error.prob, 1 - error.prob) for error in errors]
    assert sureness == sorted(sureness, reverse=True)
    assert all(not error.right for error in errors)
    assert all(answer.right and answer.found for answer in gallery.confident_answers(predictions))


def test_without_pictures(multilabel, tmp_path):
    shutil.copytree(multilabel.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    run.config.write_text(run.config.read_text().replace("labels.csv", "moved.csv"))
    page = Page(run_page.write_report(run))
    assert "The pictures cannot be shown: " in page.text and "moved.csv" in page.text
    assert not any(tag == "img" for tag, _ in page.tags)
    check_numbers(page.numbers, run.folder)
    found = Page(run_page.write_report(run, data=multilabel.folder.parent / "labels.csv"))
    assert any(tag == "img" for tag, _ in found.tags)


def test_without_explanations(multiclass, tmp_path, monkeypatch):
    def refuse(*_):
        raise ModelError("no map of it <i>can</i> be drawn")

    monkeypatch.setattr(gallery, "draw_attention", refuse)
    shutil.copytree(multiclass.folder, tmp_path / "run")
    page = Page(run_page.write_report(Run(tmp_path / "run")))
    assert "This model cannot be explained: no map of it <i>can</i> be drawn" in page.text


def test_without_weights(multiclass, tmp_path):
    run = Run(shutil.copytree(multiclass.folder, tmp_path / "run"))
    run.model.unlink()
    page = Page(run_page.write_report(run))
    assert "This model cannot be explained: the run folder no longer holds its weights (model.keras)." in page.text
    assert any(tag == "img" for tag, _ in page.tags)  # the errors are still shown
    check_numbers(page.numbers, run.folder)


def test_without_a_test_split(multiclass, tmp_path):
    run = Run(tmp_path / "run")
    shutil.copytree(multiclass.folder, run.folder)
    metrics = json.loads(run.metrics.read_text())
    del metrics["test"]
    run.metrics.write_text(json.dumps(metrics))
    text = Page(run_page.write_report(run)).text
    assert "The data have no test split" in text and "scored once" not in text


def test_several_classes_of_a_picture_are_listed_with_commas():
    example = gallery.Example(0, "a.png", "a", "Mass|Edema", 0, "Mass", found=True, right=True, prob=0.9)
    assert run_page._example(example)["truth"] == "Mass, Edema"


@pytest.mark.parametrize(("too_small", "unknown"), [([], True), (["sex = F", "sex = M"], False)])
def test_subgroups_that_are_too_small_are_not_said_to_be_unknown(multilabel, tmp_path, too_small, unknown):
    run = Run(shutil.copytree(multilabel.folder, tmp_path / "run"))
    run.model.unlink()
    metrics = json.loads(run.metrics.read_text())
    metrics["test"] |= {"subgroups": {}, "subgroups_too_small": too_small}
    run.metrics.write_text(json.dumps(metrics))
    text = Page(run_page.write_report(run)).text
    assert ("The data give no sex, age or view" in text) == unknown
    assert ("lie in fewer than two clusters: sex = F, sex = M." in text) == bool(too_small)


def test_comparison_shows_all_pairs_and_runs(comparison):
    page = Page(comparison / "report.html")
    table, pairs = pd.read_csv(comparison / "comparison.csv"), pd.read_csv(comparison / "pairs.csv")
    for name in table["model"]:
        assert name in page.text
    expected = {f"/{row}/{column}" for row in range(len(pairs)) for column in ("difference", "low", "high")}
    assert expected <= page.pointers("pairs.csv")
    expected = {f"/{row}/{name}" for row in range(len(table)) for name in ("accuracy", "f1_macro", "auroc_macro")}
    assert expected <= page.pointers("comparison.csv")
    assert "learnt nothing beyond the prior" in page.text
    reach = math.ceil(10 * pairs[["low", "high"]].abs().max(axis=None)) / 10  # the axis holds every interval
    assert f"-{reach:g} to {reach:g}" in page.text


def test_the_axis_of_differences_ends_at_a_tenth():
    assert [comparison_page._reach(largest) for largest in (0.003, 0.27, 0.3, 1.0)] == [0.1, 0.3, 0.3, 1.0]
    assert comparison_page._reach(float("nan")) == 1.0  # no pairs


def test_the_same_run_gives_the_same_page(constant):
    before = constant.report.read_bytes()
    run_page.write_report(constant)
    assert constant.report.read_bytes() == before


def test_a_run_that_is_not_finished(multiclass, tmp_path):
    shutil.copytree(multiclass.folder, tmp_path / "run")
    (tmp_path / "run" / "result.csv").unlink()
    with pytest.raises(RunError, match="has no result.csv: it is not finished"):
        run_page.write_report(Run(tmp_path / "run"))


def test_report_command(constant):
    constant.report.unlink()
    result = CliRunner().invoke(main, ["report", str(constant.folder)])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"Report: {constant.report}"
    assert constant.report.exists()


# ----- as a browser shows it -----


NUMBERS = "[...document.querySelectorAll('[data-from]')].map(e => [e.dataset.from, e.dataset.value, e.textContent])"
SCROLLING = """[...document.querySelectorAll('table')].filter(
    e => e.getBoundingClientRect().right > innerWidth && getComputedStyle(e.closest('.scroll')).overflowX != 'auto'
).length"""


def test_in_chromium(page, noted, folder):
    url = (folder / "report.html").as_uri()
    for width, height, scheme in ((360, 740, "light"), (1280, 900, "dark")):
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        page.goto(url)
        assert not noted.complaints
        assert {asked for asked in noted.requests if not asked.startswith("data:")} == {url}
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(SCROLLING) == 0
        broken = "[...document.images].filter(e => !e.complete || !e.naturalWidth).length"
        assert page.evaluate(broken) == 0
        check_numbers(page.evaluate(NUMBERS), folder)


def test_a_request_would_be_noticed(page, noted, tmp_path):
    file = tmp_path / "page.html"
    file.write_text("<!DOCTYPE html><img src='nowhere.png' alt=''><script>console.error('seen')</script>")
    page.goto(file.as_uri())
    assert any(url.endswith("nowhere.png") for url in noted.requests)
    assert any("seen" in complaint for complaint in noted.complaints)


def test_it_prints(page, multiclass):
    page.goto(multiclass.report.as_uri())
    assert page.pdf(format="A4").startswith(b"%PDF")
