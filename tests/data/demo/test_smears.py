"""The demo smears are the same for the same seed, in the layout of the real set, and not solved by colours."""

import hashlib
import pathlib

import numpy as np
import pytest
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kmed.data.demo import smears
from kmed.data.demo.smears import draw_demo_smears
from kmed.data.readers.load import load_table
from kmed.data.splits import assign_splits
from kmed.errors import DataError


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return load_table(draw_demo_smears(tmp_path_factory.mktemp("demo") / "full"))


def test_the_seed_decides_every_file(tmp_path):
    settings = {"num_train": 8, "num_test": 8, "image_size": (48, 64)}
    one = digest(draw_demo_smears(tmp_path / "one", seed=4, **settings))
    assert one == digest(draw_demo_smears(tmp_path / "two", seed=4, **settings))
    other = digest(draw_demo_smears(tmp_path / "other", seed=5, **settings))
    assert len(one) == 8 + 8 + 2
    assert not {value for name, value in one.items() if name.endswith(".jpeg")} & set(other.values())


def test_layout_counts_and_groups(drawn):
    assert drawn.class_names == smears.CLASS_NAMES
    counts = drawn.counts()
    assert counts.loc["train", list(smears.CLASS_NAMES)].tolist() == [150] * 4
    assert counts.loc["test", list(smears.CLASS_NAMES)].tolist() == [50] * 4
    assert counts.loc["test", "clusters"] >= 20
    assert drawn.grouped
    assert all(path.startswith(("TRAIN/", "TEST/")) for path in drawn.rows["path"])
    assert list(drawn.rows["group"]) == [pathlib.PurePath(path).stem.split("_")[0] for path in drawn.rows["path"]]
    assert any("groups.csv" in note for note in drawn.notes)
    with Image.open(drawn.files[0]) as image:
        assert (image.size, image.mode) == ((160, 120), "RGB")


def test_slides_hold_several_types_and_never_cross_the_split(drawn):
    types = drawn.rows.assign(type=drawn.class_indices).groupby("group")["type"].nunique()
    assert types.median() >= 3
    assert drawn.rows.groupby("group")["split"].nunique().max() == 1
    assert not any("left out" in note for note in assign_splits(drawn).notes)


def test_colours_do_not_reveal_the_types(drawn):
    """Mean colours and colour histograms, tested on other slides, score far below what the shapes allow."""
    pixels = np.stack([np.asarray(Image.open(file)) for file in drawn.files])
    train = (drawn.rows["split"] == "train").to_numpy()
    labels = drawn.class_indices
    moments = np.concatenate([pixels.mean((1, 2)), pixels.std((1, 2))], axis=1)
    edges = np.linspace(0, 256, 33)
    histograms = np.stack([[np.histogram(image[..., c], edges)[0] for c in range(3)] for image in pixels])
    for features in (moments, histograms.reshape(len(pixels), -1)):
        linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        for model in (linear, RandomForestClassifier(200, random_state=0)):
            assert model.fit(features[train], labels[train]).score(features[~train], labels[~train]) < 0.6


@pytest.mark.parametrize("kind", smears.CLASS_NAMES)
def test_nuclei_have_the_requested_area_whatever_their_shape(kind):
    y, x = np.mgrid[-60:61, -60:61].astype(float)
    for seed in range(5):
        mask = smears._nucleus(np.random.default_rng(seed), kind, 1500.0, x, y)
        assert mask.sum() == pytest.approx(1500, rel=0.05)


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(smears, "draw_picture", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw_demo_smears(tmp_path / "demo", num_train=4, num_test=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"num_train": 3}, {"num_test": 0}, {"image_size": (16, 64)}])
def test_sizes_that_cannot_be_drawn(tmp_path, settings):
    with pytest.raises(DataError, match=f"Received: .*{next(iter(settings))}"):
        draw_demo_smears(tmp_path / "demo", **settings)
