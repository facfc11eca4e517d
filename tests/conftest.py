"""What several tests share: a quiet backend, the real data if they are there, a small packed data set, a browser."""

import functools
import importlib
import os
import pathlib
import shutil
import sys
import types

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

ROOT = pathlib.Path(__file__).parent.parent
TIMEOUT = 120_000  # milliseconds that a page may take


def real_data(name: str) -> pathlib.Path:
    """Returns the folder of a real data set; skips the test if it is not there."""
    for folder in (pathlib.Path(os.environ.get("KMED_DATA", "/nonexistent")) / name, ROOT / "data" / name):
        if folder.is_dir():
            return folder
    return pytest.skip(
        f"the pictures of {name} are not here: put them in data/{name}, or set KMED_DATA to their parent folder"
    )


@pytest.fixture(scope="session")
def blood_cells() -> pathlib.Path:
    """The real blood-cell pictures."""
    return real_data("blood_cells")


@pytest.fixture(scope="session")
def small_npz(tmp_path_factory) -> pathlib.Path:
    """A packed set of 3 classes that a tiny model can learn: coloured noise, 4 pictures per group, all splits."""
    rng = np.random.default_rng(0)
    num_groups, per_group = 36, 4
    labels = np.repeat(np.arange(num_groups) % 3, per_group)
    images = rng.integers(0, 120, (len(labels), 32, 40, 3))
    images[np.arange(len(labels)), :, :, labels] += 60
    groups = np.repeat([f"patient{number:02d}" for number in range(num_groups)], per_group)
    split = np.repeat(np.array(["train"] * 6 + ["val"] * 3 + ["test"] * 3)[np.arange(num_groups) // 3 % 12], per_group)
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(
        path,
        images=images.astype(np.uint8),
        labels=np.eye(3, dtype=np.float32)[labels],
        class_names=np.array(["red", "green", "blue"]),
        task=np.array("multiclass"),
        name=np.array("small"),
        path=np.array([f"{number:04d}" for number in range(len(labels))]),
        group=groups,
        cluster=groups,
        split=split,
        grouped=np.array(True),
    )
    return path


@pytest.fixture(scope="session")
def tiny(small_npz) -> list[str]:
    """Settings of a run that takes seconds: a two-layer ViT without dropout on `small_npz`."""
    options = "{patch_size: 8, width: 16, depth: 2, num_heads: 2, attention_dropout: 0.0}"
    return [
        f"data.path={small_npz}",
        "data.image_size=32x40",
        "model.name=vit",
        f"model.options={options}",
        "model.dropout=0.0",
        "train.epochs=2",
        "train.batch_size=16",
        "train.dtype=float32",
        "evaluate.num_resamples=50",
    ]


@pytest.fixture(scope="session")
def short_run(small_npz, tmp_path_factory):
    """A finished run of two epochs on `small_npz`: a tiny ViT. Do not change it; `run` is a copy."""
    import kmed

    settings = ["data.image_size=32x40", "model.name=vit", "model.options={width: 16, depth: 1, num_heads: 2}"]
    settings += ["train.epochs=2", "train.tensorboard=false", "evaluate.num_resamples=50", f"data.path={small_npz}"]
    settings += ["train.batch_size=16", "train.dtype=float32"]
    return kmed.fit(kmed.load_config(overrides=settings), out=tmp_path_factory.mktemp("runs") / "short")


@pytest.fixture
def run(short_run, tmp_path):
    """A copy of `short_run`, in which files may be added and changed."""
    return type(short_run)(shutil.copytree(short_run.folder, tmp_path / "run"))


@pytest.fixture
def short_measurements(monkeypatch):
    """Latencies are measured for an instant instead of two seconds; their values are not tested."""
    from kmed.deployment import exporting, latency

    monkeypatch.setattr(exporting, "measure_latency", functools.partial(latency.measure_latency, seconds=0.01))


@pytest.fixture
def script(monkeypatch):
    """A function that imports a file of scripts/ by its name; the modules are removed after the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield importlib.import_module
    for name in {path.stem for path in (ROOT / "scripts").glob("*.py")} & (set(sys.modules) - before):
        del sys.modules[name]


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium, headless; one per process, since Playwright can be started only once."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install playwright"
    )
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    playwright.expect.set_options(timeout=TIMEOUT)
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """An empty page in a context of its own, without storage or service workers of other tests."""
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        context.set_default_timeout(TIMEOUT)
        yield context.new_page()


@pytest.fixture
def noted(page):
    """What `page` does: `requests`, the URLs it requests; `complaints`, its errors and console messages."""
    noted = types.SimpleNamespace(requests=[], complaints=[])
    page.on("request", lambda request: noted.requests.append(request.url))
    page.on("console", lambda said: said.type == "debug" or noted.complaints.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: noted.complaints.append(f"exception: {error}"))
    return noted
