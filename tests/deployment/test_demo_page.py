"""The page of `kmed demo`: it sees what kmed sees, predicts what the TFLite file predicts, and calls no other host."""

import base64
import contextlib
import functools
import hashlib
import http.server
import io
import json
import re
import shutil
import threading

import numpy as np
import PIL
import pytest
from PIL import Image

from kmed.data.images import FITS, INTERPOLATIONS, Resizing, read_image, resize_array
from kmed.deployment import demo_page
from kmed.errors import RunError
from kmed.evaluation.predictor import open_exported
from kmed.metrics.calibration import Calibration
from kmed.metrics.thresholds import Exclusion
from kmed.tasks import get_task

SIZE = (32, 40)  # of the model's input, in pixels
NAMES = ["EOSINOPHIL", "LYMPHOCYTE", "a <b>bold</b> & \"quoted\" 'name' that is long", "NEUTROPHIL"]
THRESHOLDS = [0.3, 0.05, 0.5, 0.02]
SCORE = {
    "name": "accuracy",
    "value": 0.78126,
    "low": 0.63373,
    "high": 0.89143,
    "num_images": 2487,
    "num_clusters": 71,
    "split": "test",
}
DESCRIPTION = {
    "kmed_version": "0.0.0",
    "model": "resnet18",
    "task": "multiclass",
    "class_names": NAMES,
    "image_size": list(SIZE),
    "fit": "pad",
    "interpolation": "bilinear",
    "input": "",
    "output": "",
    "calibrated": True,
    "thresholds": None,
    "test_score": SCORE,
    "verdict": "It is better than every constant predictor.",
}
WAYS = ("reduced", "full")  # of decoding
MULTILABEL = {**DESCRIPTION, "task": "multilabel", "thresholds": dict(zip(NAMES, THRESHOLDS)), "fit": "crop"}


def draw(rng, width: int, height: int) -> np.ndarray:
    """Returns uint8 (H, W, 3): coarse spots with fine structure, as in photographs."""
    coarse = rng.integers(0, 256, (5, 4, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + rng.integers(-12, 13, (height, width, 1)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The paths of 20 picture files: grey and coloured, of all shapes, rotated by EXIF, transparent, deep, large."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(3)
    drawn = {size: Image.fromarray(draw(rng, *size)) for size in ((320, 240), (240, 320), (97, 61), (50, 400))}
    for (width, height), image in drawn.items():
        image.save(folder / f"plain_{width}x{height}.png")
        image.save(folder / f"plain_{width}x{height}.jpg", quality=93)
        image.convert("L").save(folder / f"grey_{width}x{height}.{'png' if width > 100 else 'jpg'}")
    landscape = drawn[320, 240]
    for turn in (3, 6):
        exif = Image.Exif()
        exif[0x0112] = turn
        landscape.save(folder / f"turned_{turn}.jpg", exif=exif, quality=93)
    alpha = np.linspace(0, 255, 320 * 240).reshape(240, 320).astype(np.uint8)
    Image.fromarray(np.dstack([np.asarray(landscape), alpha])).save(folder / "transparent.png")
    landscape.quantize(64).save(folder / "palette.png")
    Image.fromarray(np.asarray(landscape.convert("L")).astype(np.uint16) * 257 + 3).save(folder / "deep.png")
    Image.fromarray(draw(rng, *SIZE[::-1])).save(folder / "own_size.png")
    landscape.save(folder / "lossless.webp", lossless=True)
    Image.fromarray(draw(rng, 4000, 3000)).save(folder / "photograph.jpg", quality=80)
    paths = sorted(folder.iterdir())
    assert len(paths) == 20
    return paths


@pytest.fixture(scope="module")
def tflite(tmp_path_factory, pictures):
    """An untrained ResNet-18 as a TFLite file of batch 1, whose head is set so that the pictures differ."""
    import keras

    from kmed.formats import tflite
    from kmed.models.build import build_model

    keras.utils.set_random_seed(0)
    model = build_model("resnet18", len(NAMES), image_size=SIZE)
    images = np.stack([read_image(path, Resizing(SIZE)) for path in pictures]).astype(np.float32)
    found = keras.Model(model.input, model.get_layer("pool").output).predict(images, verbose=0)
    head = np.random.default_rng(1).normal(size=(found.shape[1], len(NAMES)))
    logits = (found - found.mean(axis=0)) @ head
    head *= 3 / logits.std()
    model.get_layer("head").set_weights([head, -found.mean(axis=0) @ head])
    path = tmp_path_factory.mktemp("model") / "resnet18.tflite"
    unchanged = Calibration("temperature", tuple(NAMES), temperature=1.0)
    tflite.write(model, unchanged, path, DESCRIPTION)
    return path


@pytest.fixture(scope="module")
def demo(tmp_path_factory, tflite):
    """The folder of a multiclass page."""
    return demo_page.write_page(tflite, DESCRIPTION, tmp_path_factory.mktemp("demo") / "page", title="<i>blood</i>")


@pytest.fixture(scope="module")
def findings(tmp_path_factory, tflite):
    """The folder of a multilabel page."""
    return demo_page.write_page(tflite, MULTILABEL, tmp_path_factory.mktemp("demo") / "page", title="x-rays")


@pytest.fixture
def small(tmp_path):
    """A file in the place of a model that is not run."""
    path = tmp_path / "small.tflite"
    path.write_bytes(b"model")
    return path


# ----- the folder -----


def test_what_a_browser_decodes_otherwise_is_said(small, tmp_path, caplog):
    caplog.set_level("INFO", "kmed")
    demo_page.write_page(small, DESCRIPTION, tmp_path / "whole", title="x")
    assert "data.decode" not in caplog.text
    demo_page.write_page(small, {**DESCRIPTION, "decode": "reduced"}, tmp_path / "reduced", title="x")
    assert "data.decode=reduced" in caplog.text and "differ a little" in caplog.text


def test_the_folder_is_whole(demo, tflite):
    assert (demo / "model.tflite").read_bytes() == tflite.read_bytes()
    description = json.loads((demo / "model.json").read_text())
    assert description == {
        **DESCRIPTION,
        "title": "<i>blood</i>",
        "model_bytes": tflite.stat().st_size,
        "pillow_version": PIL.__version__,
    }
    names = {path.relative_to(demo).as_posix() for path in demo.rglob("*") if path.is_file()}
    kept = json.loads(re.search(r"FILES = (\[.*\])", (demo / "service-worker.js").read_text())[1])
    assert set(kept) == names - {"index.html", "service-worker.js"} | {"./"}
    manifest = json.loads((demo / "manifest.webmanifest").read_text())
    assert manifest["name"] == "<i>blood</i>"
    for icon in manifest["icons"]:
        with Image.open(demo / icon["src"]) as image:
            assert f"{image.width}x{image.height}" == icon["sizes"]


def test_the_page_holds_no_code_and_no_foreign_markup(demo):
    page = (demo / "index.html").read_text()
    assert "default-src 'self'" in page and "'unsafe-inline'" not in page and "'unsafe-eval'" not in page
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|<i>|<b>|https?://(?!localhost)", page)
    for said in (
        "Not for clinical use",
        "0.781",
        "95 % interval 0.634 to 0.891",
        "2,487",
        "71",
        DESCRIPTION["verdict"],
    ):
        assert said in page, said


def test_few_clusters_and_undefined_scores_are_marked(small, tmp_path):
    score = {**SCORE, "num_clusters": 7, "value": None, "low": None, "high": float("nan"), "split": "val"}
    out = demo_page.write_page(small, {**DESCRIPTION, "test_score": score}, tmp_path / "out", title="t", level=0.9)
    page = (out / "index.html").read_text()
    assert "undefined" in page and "90 % interval undefined to undefined" in page
    assert "With fewer than 20 groups the interval is too narrow." in page and "validation pictures" in page


def test_the_version_follows_the_content(small, tmp_path):
    def version(name, **changed):
        out = demo_page.write_page(small, {**DESCRIPTION, **changed}, tmp_path / name, title="t")
        return re.search(r'VERSION = "(\w+)"', (out / "service-worker.js").read_text())[1]

    assert version("one") == version("two")
    assert version("one") != version("three", class_names=["a", "b", "c", "d"])


def test_only_an_older_demo_is_replaced(small, tmp_path, monkeypatch):
    out = tmp_path / "out"
    demo_page.write_page(small, DESCRIPTION, out, title="first")
    demo_page.write_page(small, DESCRIPTION, out, title="second")
    assert json.loads((out / "model.json").read_text())["title"] == "second"
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="is not empty"):
        demo_page.write_page(small, DESCRIPTION, precious, title="t")
    (out / "CNAME").write_text("cells.example.org")
    with pytest.raises(RunError, match="holds an older demo and also CNAME, which would be lost"):
        demo_page.write_page(small, DESCRIPTION, out, title="third")
    (out / "CNAME").unlink()
    monkeypatch.chdir(out)
    with pytest.raises(RunError, match="is the current folder"):
        demo_page.write_page(small, DESCRIPTION, ".", title="third")
    assert json.loads((out / "model.json").read_text())["title"] == "second"
    with pytest.raises(RunError, match="is a file"):
        demo_page.write_page(small, DESCRIPTION, small, title="t")
    with pytest.raises(RunError, match="no TFLite file"):
        demo_page.write_page(tmp_path / "none.tflite", DESCRIPTION, tmp_path / "new", title="t")
    assert not (tmp_path / "new").exists()
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]


def test_nothing_is_left_of_a_page_that_fails(small, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_page, "_hash", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        demo_page.write_page(small, DESCRIPTION, tmp_path / "out", title="t")
    assert [path.name for path in tmp_path.iterdir()] == ["small.tflite"]


def test_the_runtime_is_the_pinned_one():
    folder = demo_page.WEBAPP / "litert"
    pinned = json.loads((folder / "VERSION").read_text())
    assert {path.name for path in folder.iterdir()} == {*pinned["sha256"], "VERSION"}
    for name, digest in pinned["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name
    code = (folder / "litert.js").read_text() + (folder / "wasm-utils.js").read_text()
    assert set(re.findall(r'^import .* from "(.*)";', code, re.MULTILINE)) == {"./wasm-utils.js"}
    assert not re.search(r"https?://", code)


def test_a_run_becomes_a_page(run, short_measurements, tmp_path):
    out = demo_page.write_demo(run.folder, tmp_path / "demo")
    exported = run.exports / "vit.tflite"
    assert (out / "model.tflite").read_bytes() == exported.read_bytes()
    description = json.loads((out / "model.json").read_text())
    assert description["title"] == "run" and description["class_names"] == ["red", "green", "blue"]
    made = exported.stat().st_mtime_ns
    demo_page.write_demo(run.folder, out)
    assert exported.stat().st_mtime_ns == made  # an up-to-date file is not exported again
    metrics = json.loads(run.metrics.read_text())
    metrics["test"]["scores"]["accuracy"]["value"] = 0.123
    run.metrics.write_text(json.dumps(metrics))
    demo_page.write_demo(run.folder, out)
    assert exported.stat().st_mtime_ns != made
    assert "0.123" in (out / "index.html").read_text()
    with pytest.raises(RunError, match="does not exist"):
        demo_page.write_demo(tmp_path / "nowhere", tmp_path / "other")


# ----- in a browser -----


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, except the files in the server's `broken`."""

    def do_GET(self):
        """Answers, and notes the path that was asked for."""
        self.server.asked.append(self.path)
        if self.path.lstrip("/") in self.server.broken:
            self.send_error(404)
        else:
            super().do_GET()

    def log_message(self, *_):
        """Says nothing."""


@contextlib.contextmanager
def served(folder, broken=()):
    """Yields the server of a folder, with the page's address as `url`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        server.url, server.asked, server.broken = f"http://localhost:{server.server_port}/", [], set(broken)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server(demo):
    """The multiclass page on localhost."""
    with served(demo) as started:
        yield started


@pytest.fixture(scope="module")
def findings_server(findings):
    """The multilabel page on localhost."""
    with served(findings) as started:
        yield started


STATUS = "document.getElementById('status').textContent"
ERRORS = "[...document.querySelectorAll('#errors p')].map(e => e.textContent)"
RESULTS = """[...document.querySelectorAll('.result')].map(e => ({
    name: e.querySelector('h3').textContent, probs: JSON.parse(e.dataset.probs),
    decision: e.querySelector('.decision').textContent,
    rows: [...e.querySelectorAll('.rows li')].map(row => row.innerText.replace(/\\s+/g, ' ')),
    bars: [...e.querySelectorAll('.rows li')].map(row => [row.querySelector('.fill'), row.querySelector('.mark')]
        .map(part => part && (part.style.width || part.style.left))),
    pixels: (c => btoa(String.fromCharCode(...c.getContext('2d').getImageData(0, 0, c.width, c.height).data)))(
        e.querySelector('canvas')),
}))"""


def expect(page, selector: str):
    """Returns Playwright's assertions of what a selector finds: they wait until they hold, or fail."""
    from playwright.sync_api import expect

    return expect(page.locator(selector))


def open_page(page, url: str) -> None:
    """Opens a page and waits for its model."""
    page.goto(url)
    expect(page, "#status").to_have_text("The model is ready.")


def classify(page, paths) -> list[dict]:
    """Returns the page's results for picture files, in their order."""
    page.set_input_files("#files", paths)
    expect(page, f":nth-match(.result, #errors p, {len(paths)})").to_be_attached()
    return page.evaluate(RESULTS)


def unpack(text: str) -> np.ndarray:
    """Returns a canvas' pixels, uint8 (H, W, 3)."""
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(*SIZE, 4)[..., :3]


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_it_predicts_what_the_tflite_file_predicts(kind, page, noted, request, tflite, pictures):
    description = {"multiclass": DESCRIPTION, "multilabel": MULTILABEL}[kind]
    server = request.getfixturevalue({"multiclass": "server", "multilabel": "findings_server"}[kind])
    page.set_viewport_size({"width": 1280, "height": 900})
    open_page(page, server.url)
    results = classify(page, pictures)
    assert [result["name"] for result in results] == [path.name for path in pictures]
    resizing = Resizing(SIZE, description["fit"], description["interpolation"])
    images = np.stack([read_image(path, resizing) for path in pictures])
    seen = np.stack([unpack(result["pixels"]) for result in results])
    apart = {path.name: int(d) for path, d in zip(pictures, np.abs(seen.astype(int) - images).max(axis=(1, 2, 3)))}
    assert {name: d for name, d in apart.items() if d} == {}
    expected = open_exported(tflite, "tflite", threads=1).predict(images)
    found = np.array([result["probs"] for result in results])
    assert len(set(expected.argmax(axis=1))) > 2  # the pictures do differ
    np.testing.assert_allclose(found, expected, atol=1e-3)
    thresholds = None if kind == "multiclass" else np.array(THRESHOLDS)
    for result, reported, probs in zip(results, get_task(kind).decode(expected, thresholds), expected):
        check_result(result, [name for name, yes in zip(NAMES, reported) if yes], dict(zip(NAMES, probs)), thresholds)
    assert not noted.complaints
    assert not [url for url in noted.requests if not url.startswith(server.url)]


GATE = {"negative": NAMES[1], "findings": [NAMES[0], *NAMES[2:]], "complete": True}


@pytest.mark.parametrize("constant", [None, NAMES[:1], []])
def test_it_decides_findings_together(constant, page, tmp_path, tflite, pictures):
    description = {**MULTILABEL, "constant": constant, "exclusion": GATE}
    with served(demo_page.write_page(tflite, description, tmp_path / "page", title="x-rays")) as server:
        open_page(page, server.url)
        results = classify(page, pictures[:8])
        legend = page.locator(".legend").first.inner_text()
    probs = np.array([result["probs"] for result in results])
    found = get_task("multilabel").decode(probs, np.array(THRESHOLDS))
    exclusion = Exclusion(GATE["negative"], tuple(GATE["findings"]), GATE["complete"])
    expected = exclusion.resolve(found, NAMES) if constant is None else [[name in constant for name in NAMES]] * 8
    assert constant is not None or (expected != found).any()
    for result, reported, prob in zip(results, expected, probs):
        check_result(result, [name for name, yes in zip(NAMES, reported) if yes], dict(zip(NAMES, prob)), THRESHOLDS)
    words = f"and {NAMES[1]} does not" if constant is None else f"always reporting {', '.join(constant) or 'nothing'}"
    assert words in legend


def check_result(result: dict, reported: list[str], probs: dict, thresholds) -> None:
    """Checks a picture's decision, its rows of text and its bars."""
    if thresholds is None:
        assert result["decision"].startswith(reported[0])
    elif not reported:
        assert result["decision"].startswith("Nothing reported")
    else:
        names = result["decision"].removeprefix("Reported: ")
        assert set(reported) == {name for name in NAMES if name in names}
    assert len(result["rows"]) == len(NAMES)
    for row, (fill, mark) in zip(result["rows"], result["bars"]):
        name = next(name for name in NAMES if row.startswith(name))
        assert float(fill.rstrip("%")) == pytest.approx(100 * probs[name], abs=0.1)
        if 0.001 < probs[name] < 0.999:
            assert float(re.search(r"([\d.]+) %", row)[1]) == pytest.approx(100 * probs[name], abs=0.11)
        if thresholds is not None:
            assert float(mark.rstrip("%")) == pytest.approx(100 * dict(zip(NAMES, THRESHOLDS))[name])
            assert ("reported" in row) == (name in reported) and "threshold" in row


RESIZE = """(async () => {{
    const {{ resize }} = await import("./resize.js");
    const rgba = Uint8Array.from(atob("{pixels}"), c => c.charCodeAt(0));
    const readRows = (top, num) => rgba.subarray(top * {width} * 4, (top + num) * {width} * 4);
    return {cases}.map(each => btoa(String.fromCharCode(...resize({width}, {height}, readRows, each, 7))));
}})()"""


@pytest.mark.parametrize("size", [(61, 47), (40, 32), (23, 90), (7, 5), (1, 1), (33, 200), (80, 64)], ids=str)
def test_resizing_is_pillows(size, page, server):
    page.goto(server.url)
    width, height = size
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    cases = [
        {"image_size": shape, "fit": fit, "interpolation": interpolation, "pillow_version": PIL.__version__}
        for shape in ((32, 40), (50, 20))
        for fit in FITS
        for interpolation in INTERPOLATIONS
    ]
    rgba = base64.b64encode(np.dstack([pixels, np.full((height, width), 255, np.uint8)]).tobytes()).decode()
    code = RESIZE.format(pixels=rgba, width=width, height=height, cases=json.dumps(cases))
    for case, answer in zip(cases, page.evaluate(code), strict=True):
        found = np.frombuffer(base64.b64decode(answer), np.uint8).reshape(*case["image_size"], 3)
        expected = resize_array(pixels, Resizing(case["image_size"], case["fit"], case["interpolation"]))
        np.testing.assert_array_equal(found, expected, err_msg=str(case))


SHRINK = """(async () => {{
    const {{ reduction, resize, shrinkRows }} = await import("./resize.js");
    const rgba = Uint8Array.from(atob("{pixels}"), c => c.charCodeAt(0));
    const readRows = (top, num) => rgba.subarray(top * {width} * 4, (top + num) * {width} * 4);
    return {cases}.map(each => {{
        const factor = reduction({width}, {height}, each);
        const fewer = shrinkRows(readRows, {width}, {height}, factor);
        const pixels = resize({width} / factor, {height} / factor, fewer, each, 3);
        return [factor, btoa(String.fromCharCode(...pixels))];
    }});
}})()"""


@pytest.mark.parametrize("size", [(80, 64), (61, 47), (330, 203)], ids=str)
def test_a_reduced_picture_is_made_of_means(size, page, server):
    page.goto(server.url)
    width, height = size
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x % 256, y % 256, (x + y) % 200], axis=-1).astype(np.uint8)
    shapes = ((32, 40), (10, 8), (23, 30))
    cases = [
        {"image_size": shape, "fit": fit, "interpolation": "bilinear", "pillow_version": PIL.__version__} | decode
        for shape in shapes
        for fit in FITS
        for decode in ({"decode": "reduced"}, {})
    ]
    rgba = base64.b64encode(np.dstack([pixels, np.full((height, width), 255, np.uint8)]).tobytes()).decode()
    answers = page.evaluate(SHRINK.format(pixels=rgba, width=width, height=height, cases=json.dumps(cases)))
    for case, (factor, answer) in zip(cases, answers, strict=True):
        resizing = Resizing(case["image_size"], case["fit"], decode=case.get("decode", "full"))
        assert factor == resizing.reduction(height, width)
        found = np.frombuffer(base64.b64decode(answer), np.uint8).reshape(*case["image_size"], 3)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "JPEG", quality=100, subsampling=0)
        difference = np.abs(found.astype(int) - read_image(content.getvalue(), resizing))
        assert np.percentile(difference, 90) <= 3, case  # but for the edges where the greys start again


def test_the_page_sees_a_jpeg_picture_nearly_as_a_model_of_reduced_ones_does(page, tmp_path, tflite, pictures):
    chosen = [path for path in pictures if path.name in ("photograph.jpg", "turned_6.jpg", "plain_240x320.jpg")]
    description = {**DESCRIPTION, "decode": "reduced"}
    with served(demo_page.write_page(tflite, description, tmp_path / "page", title="reduced")) as server:
        open_page(page, server.url)
        seen = np.stack([unpack(result["pixels"]) for result in classify(page, chosen)]).astype(int)
    reduced, full = (np.stack([read_image(path, Resizing(SIZE, decode=way)) for path in chosen]) for way in WAYS)
    assert len(chosen) == 3 and np.abs(seen - reduced).mean() < 1.5
    assert np.abs(seen - reduced).mean() < np.abs(seen - full).mean()


@pytest.mark.parametrize("width", [320, 360, 1100])
def test_nothing_scrolls_sideways(width, page, server, findings_server, pictures):
    for url in (server.url, findings_server.url):
        page.set_viewport_size({"width": width, "height": 740})
        open_page(page, url)
        classify(page, pictures[:2])
        page.evaluate("document.querySelector('details').open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        outside = (
            "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        )
        assert page.evaluate(f"{outside}.map(e => e.outerHTML.slice(0, 80))") == []


def test_the_warning_stays_in_sight(page, server, pictures):
    page.set_viewport_size({"width": 360, "height": 740})
    open_page(page, server.url)
    classify(page, pictures[:2])
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    place = "document.querySelector('.warning').getBoundingClientRect()"
    assert page.evaluate(f"scrollY > 300 && {place}.top >= 0 && {place}.bottom < innerHeight")


# Each text whose contrast with its background (WCAG 2.2) is below 4.5, and that contrast.
CONTRAST = """(() => {
    const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgb = color => { paint.clearRect(0, 0, 1, 1); paint.fillStyle = color; paint.fillRect(0, 0, 1, 1);
        return [...paint.getImageData(0, 0, 1, 1).data]; };
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = color => { const [r, g, b] = rgb(color).map(c => linear(c / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const under = e => { while (e && rgb(getComputedStyle(e).backgroundColor)[3] < 255) e = e.parentElement;
        return getComputedStyle(e ?? document.body).backgroundColor; };
    return [...document.querySelectorAll("body *")]
        .filter(e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim()))
        .map(e => { const [a, b] = [light(getComputedStyle(e).color), light(under(e))].sort((a, b) => b - a);
            return [(a + 0.05) / (b + 0.05), e.className + " " + e.textContent.slice(0, 30)]; })
        .filter(([ratio]) => ratio < 4.5);
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(dark, page, findings_server, pictures, tmp_path):
    page.set_viewport_size({"width": 1100, "height": 800})
    page.emulate_media(color_scheme="dark" if dark else "light")
    open_page(page, findings_server.url)
    page.evaluate("document.querySelector('details').open = true")
    (tmp_path / "notes.txt").write_text("not a picture")
    classify(page, [*pictures[:3], tmp_path / "notes.txt"])
    assert page.evaluate(CONTRAST) == []


def test_it_works_by_keyboard(page, server, pictures):
    page.set_viewport_size({"width": 1100, "height": 800})
    open_page(page, server.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    assert page.evaluate("getComputedStyle(document.querySelector('label[for=files]')).outlineStyle") == "solid"
    classify(page, pictures[:1])
    reached = []
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert reached == ["clear", "SUMMARY", "A"]
    page.evaluate("document.getElementById('clear').click()")
    assert page.evaluate("document.activeElement.id + document.querySelectorAll('.result').length") == "files0"


def test_a_screen_reader_can_read_it(page, findings_server, pictures):
    page.set_viewport_size({"width": 1100, "height": 800})
    open_page(page, findings_server.url)
    result = classify(page, pictures[:1])[0]
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    heard = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    assert ("RootWebArea", "x-rays · not for clinical use") in heard
    assert ("image", f"{pictures[0].name} as the model sees it") in heard
    buttons = [name for role, name in heard if role == "button"]
    assert "Remove all" in buttons and any("Choose pictures" in name for name in buttons)
    assert all(name for role, name in heard if role in ("button", "link", "heading", "region", "progressbar"))
    assert [role for role, _ in heard].count("heading") == 5 and "status" in dict(heard) and "alert" in dict(heard)
    assert sum(role == "listitem" for role, _ in heard) == len(NAMES)
    spoken = " ".join(name for role, name in heard if role == "StaticText")
    assert all(name in spoken for name in NAMES) and "threshold 30.0 %" in spoken.replace("\u00a0", " ")
    assert result["decision"] in page.evaluate(STATUS)  # which is read aloud
    assert page.evaluate("document.documentElement.lang") == "en"


def test_pictures_are_dropped_and_pasted(page, server):
    open_page(page, server.url)
    page.evaluate("""(async () => {
        const canvas = new OffscreenCanvas(50, 40);
        canvas.getContext("2d").fillRect(5, 5, 20, 20);
        const data = new DataTransfer();
        data.items.add(new File([await canvas.convertToBlob()], "dropped.png", { type: "image/png" }));
        dispatchEvent(new DragEvent("dragover", { dataTransfer: data, cancelable: true }));
        dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
        dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
    })()""")
    expect(page, ".result").to_have_count(2)


READ = """(async () => {{
    const {{ readPicture }} = await import("./picture.js");
    const content = Uint8Array.from(atob("{content}"), c => c.charCodeAt(0));
    return await readPicture(new File([content], "a.png"), {description}).then(() => "", error => error.message);
}})()"""


def test_a_picture_of_16_bits_is_refused_if_the_model_has_a_range_of_its_own(page, server, pictures):
    page.goto(server.url)
    full = {**DESCRIPTION, "pillow_version": PIL.__version__}
    for name, description, word in (
        ("deep.png", full | {"range": [0, 4095]}, "16 bits"),
        ("own_size.png", full | {"range": [0, 4095]}, ""),
        ("deep.png", full, ""),
    ):
        content = base64.b64encode((pictures[0].parent / name).read_bytes()).decode()
        message = page.evaluate(READ.format(content=content, description=json.dumps(description)))
        assert word in message and bool(word) == bool(message), message


def test_a_file_that_is_not_a_picture_is_named(page, server, pictures, tmp_path):
    open_page(page, server.url)
    (tmp_path / "notes.txt").write_text("not a picture")
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].read_bytes()[:20])
    results = classify(page, [tmp_path / "notes.txt", broken, pictures[0]])
    assert [result["name"] for result in results] == [pictures[0].name]
    errors = page.evaluate(ERRORS)
    assert [text.split()[0] for text in errors] == ["notes.txt", "broken.png"]
    assert all("is not a picture that this browser can read" in text for text in errors)
    classify(page, [pictures[1]])
    expect(page, ".result").to_have_count(2)
    assert page.evaluate(ERRORS) == []  # those of the earlier choice are gone


@pytest.mark.parametrize(
    ("sabotage", "message"),
    [
        ("WebAssembly.validate = () => false", "This browser is too old"),
        ("delete globalThis.WebAssembly", "This browser is too old"),
        (
            "CanvasRenderingContext2D.prototype.getImageData = () => ({ data: new Uint8ClampedArray(1024) })",
            "changes the pixels that a page reads",
        ),
    ],
)
def test_a_browser_that_cannot_run_it_gets_a_message(sabotage, message, page, server):
    page.add_init_script(sabotage)
    page.goto(server.url)
    expect(page, "#errors").to_contain_text(message)


@pytest.mark.parametrize("broken", ["model.tflite", "model.json", "litert/litert_wasm_compat_internal.js"])
def test_a_model_that_does_not_load_gives_a_message(broken, page, demo):
    with served(demo, broken=[broken]) as server:
        page.goto(server.url)
        expect(page, "#errors p").to_have_count(1)
        message = page.inner_text("#errors p")
        assert message.startswith("The model did not load") and "undefined" not in message


def test_half_a_model_is_refused(page, demo, tmp_path):
    shutil.copytree(demo, tmp_path / "half")
    with (tmp_path / "half" / "model.tflite").open("r+b") as file:
        file.truncate(1000)
    with served(tmp_path / "half") as server:
        page.goto(server.url)
        expect(page, "#errors").to_contain_text("1000 bytes instead of")


def test_it_works_without_a_network(page, noted, demo, pictures, tflite, tmp_path):
    with served(shutil.copytree(demo, tmp_path / "page")) as server:
        open_page(page, server.url)
        expect(page, "#offline").to_have_text(re.compile("^Saved on this device"))
        assert {path for path in server.asked if ".wasm" in path} == {"/litert/litert_wasm_compat_internal.wasm"}
        errors = page.context.new_cdp_session(page).send("Page.getInstallabilityErrors")["installabilityErrors"]
        assert [error for error in errors if error["errorId"] != "in-incognito"] == []
    for url in (server.url, server.url + "index.html"):  # the server has ended
        open_page(page, url)
        result = classify(page, pictures[:1])[0]
        expected = open_exported(tflite, "tflite", threads=1).predict(read_image(pictures[0], Resizing(SIZE))[None])
        np.testing.assert_allclose(result["probs"], expected[0], atol=1e-3)
        assert not noted.complaints


# Whether only one cache is left, within a thousand frames.
OLDER_CACHES_GO = """(async () => {
    for (let frame = 0; frame < 1000; frame++) {
        if ((await caches.keys()).length == 1) return true;
        await new Promise(requestAnimationFrame);
    }
    return false;
})()"""


def test_a_newer_page_is_loaded_whole_and_on_request(page, demo, tflite, tmp_path):
    out = shutil.copytree(demo, tmp_path / "page")
    with served(out) as server:
        open_page(page, server.url)
        expect(page, "#offline").to_have_text(re.compile("^Saved on this device"))
        demo_page.write_page(tflite, DESCRIPTION, out, title="newer")
        open_page(page, server.url)
        assert page.evaluate("document.querySelector('h1').textContent") == "<i>blood</i>"
        page.click("#newer")
        expect(page, "h1").to_have_text("newer")
        assert page.evaluate(OLDER_CACHES_GO)


def test_without_a_server_it_says_what_to_do(page, demo):
    page.goto((demo / "index.html").as_uri())
    assert "python -m http.server" in page.evaluate(STATUS)
