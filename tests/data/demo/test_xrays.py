"""The demo X-rays are the same for the same seed, in the NIH sample's layout, and their signs are in the pictures."""

import dataclasses
import hashlib
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kmed.data.demo import xrays
from kmed.data.demo.patients import DRAWN, FINDINGS, FOLLOWERS, NO_FINDING, Visit, invent_patient
from kmed.data.demo.xrays import draw_demo_xrays, draw_xray
from kmed.data.readers.load import load_table
from kmed.errors import DataError

KAGGLE = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImageWidth,"
    "OriginalImageHeight,OriginalImagePixelSpacing_x,OriginalImagePixelSpacing_y"
)
SIZE = (128, 128)


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_demo_xrays(tmp_path_factory.mktemp("xrays") / "full")


@pytest.fixture(scope="module")
def rows(folder):
    return pd.read_csv(folder / "sample_labels.csv", dtype=str)


@pytest.fixture(scope="module")
def findings(rows):
    """One column of 0 and 1 per finding, including "No Finding"."""
    return rows["Finding Labels"].str.get_dummies("|")


def draw(number, findings, view="PA", draw_seed=0):
    """Returns float (128, 128): patient `number` with these findings, everything else the same."""
    patient = invent_patient(np.random.default_rng([1, number]), number)
    visit = Visit(0, 50, view, tuple(findings))
    return np.asarray(draw_xray(np.random.default_rng(draw_seed), patient.anatomy, visit, SIZE), float)


def change(number, finding, view="PA"):
    """Returns what a finding changes in a patient's picture: the same exposure makes the rest comparable."""
    return draw(number, [finding], view) - draw(number, [], view)


def test_the_seed_decides_every_file(tmp_path):
    settings = {"num_patients": 4, "image_size": (48, 64)}
    one = digest(draw_demo_xrays(tmp_path / "one", seed=4, **settings))
    assert one == digest(draw_demo_xrays(tmp_path / "two", seed=4, **settings))
    other = digest(draw_demo_xrays(tmp_path / "other", seed=5, **settings))
    assert not set(one.values()) & set(other.values())
    more = digest(draw_demo_xrays(tmp_path / "more", seed=4, num_patients=6, image_size=(48, 64)))
    assert all(more[name] == value for name, value in one.items() if name.endswith(".png"))


def test_the_csv_is_laid_out_as_kaggles(folder, rows):
    assert (folder / "sample_labels.csv").read_text().splitlines()[0] == KAGGLE
    assert sorted(rows["Image Index"]) == sorted(path.name for path in (folder / "images").iterdir())
    assert rows["Image Index"].map(lambda name: bool(re.fullmatch(r"\d{8}_\d{3}\.png", name))).all()
    assert rows["Patient Age"].map(lambda age: bool(re.fullmatch(r"\d{3}Y", age))).all()
    assert set(rows["Patient Gender"]) == {"F", "M"}
    assert set(rows["View Position"]) == {"AP", "PA"}
    with Image.open(folder / "images" / rows["Image Index"][0]) as image:
        assert (image.size, image.mode) == ((128, 128), "L")


def test_load_table_reads_it_with_patients_as_groups(folder):
    table = load_table(folder, task="multilabel")
    assert set(table.class_names) - {NO_FINDING} == set(FINDINGS)
    assert 900 <= len(table) <= 1200
    assert table.grouped
    assert 250 <= table.rows["group"].nunique() <= 400


def test_patients_come_several_times_and_do_not_grow_younger(rows):
    visits = rows.groupby("Patient ID")["Follow-up #"].agg(list)
    assert visits.map(len).between(1, 8).all()
    assert visits.map(len).mean() > 2.3
    assert all(numbers == [str(number) for number in range(len(numbers))] for numbers in visits)
    ages = rows["Patient Age"].str[:3].astype(int)
    assert (ages.groupby(rows["Patient ID"]).diff().dropna() >= 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_findings_are_as_frequent_as_in_a_teaching_set(seed):
    """The frequencies among 400 patients, who are invented but not drawn."""
    patients = [invent_patient(np.random.default_rng([seed, number, 0]), number) for number in range(1, 401)]
    visits = [set(visit.findings) for patient in patients for visit in patient.visits]
    share = {name: np.mean([name in found for found in visits]) for name in FINDINGS}
    assert all(0.07 <= share[name] <= 0.25 for name in DRAWN)
    assert all(0 < share[name] < 0.15 for name in FOLLOWERS)
    assert 0.35 <= np.mean([not found for found in visits]) <= 0.5
    assert 900 <= len(visits) <= 1200


def test_no_finding_stands_alone(rows, findings):
    assert set(findings.columns) == {*FINDINGS, NO_FINDING}
    assert set(rows["Finding Labels"][findings[NO_FINDING] == 1]) == {NO_FINDING}


def test_the_other_findings_follow_from_age_view_and_company(rows, findings):
    old = (rows["Patient Age"].str[:3].astype(int) >= 60).to_numpy()
    bed = (rows["View Position"] == "AP").to_numpy()
    for name, cause in (("Infiltration", bed), ("Cardiomegaly", old), ("Atelectasis", findings["Effusion"] == 1)):
        cause = np.asarray(cause)
        assert findings[name][cause].mean() > 1.5 * findings[name][~cause].mean()


def test_grey_levels_alone_do_not_reveal_the_signs(folder, rows, findings):
    pixels = np.stack([np.asarray(Image.open(folder / "images" / name)) for name in rows["Image Index"]]).astype(float)
    moments = np.stack([pixels.mean((1, 2)), pixels.std((1, 2))], axis=1)
    for name in DRAWN:
        model = make_pipeline(StandardScaler(), LogisticRegression())
        labels, split = findings[name], GroupKFold(5)
        probs = cross_val_predict(model, moments, labels, groups=rows["Patient ID"], cv=split, method="predict_proba")
        assert roc_auc_score(labels, probs[:, 1]) < 0.65


def test_a_large_heart_is_wide():
    """In the row through the heart the bright part is wider, and AP widens any heart."""

    def width(heart, view):
        patient = invent_patient(np.random.default_rng([1, 7]), 7)
        anatomy = dataclasses.replace(patient.anatomy, heart=heart, chest=0.68, lung=0.15, base=0.4)
        image = draw_xray(np.random.default_rng(0), anatomy, Visit(0, 50, view, ()), SIZE)
        row = np.asarray(image, float)[76:80].mean(0)  # y about 0.22
        middle = row[60:68].mean()
        chest = row[26:102]
        return (chest > (middle + chest.min()) / 2).sum()

    slim, large = width(0.42, "PA"), width(0.60, "PA")
    assert large > 1.2 * slim
    assert width(0.42, "AP") > slim


def test_hearts_are_large_where_cardiomegaly_is_a_finding():
    patients = [invent_patient(np.random.default_rng([0, number, 0]), number) for number in range(300)]
    for patient in patients:
        found = {"Cardiomegaly" in visit.findings for visit in patient.visits}
        assert found == {patient.anatomy.heart > 0.5}


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("view", ["AP", "PA"])
def test_signs_change_the_picture_where_they_should(number, view):
    anatomy = invent_patient(np.random.default_rng([1, number]), number).anatomy
    side = slice(64, None) if anatomy.sign_side > 0 else slice(None, 64)
    other = slice(None, 64) if anatomy.sign_side > 0 else slice(64, None)
    fluid = change(number, "Effusion", view)
    assert fluid[76:116, side].max() > 40  # the base turns bright on one side alone
    assert np.abs(fluid[:, side]).mean() > 2 * np.abs(fluid[:, other]).mean()
    air = change(number, "Pneumothorax", view)
    assert air[14:70, side].min() < -12
    assert np.abs(air[:, side]).mean() > 1.5 * np.abs(air[:, other]).mean()
    for name in ("Nodule", "Mass"):
        spot = change(number, name, view)
        row, column = np.unravel_index(spot.argmax(), spot.shape)
        x, y, radius = anatomy.spots[name]
        assert np.hypot(column - 63.5 - 64 * x, row - 63.5 - 64 * y) < 64 * radius + 8  # nobody stands quite straight
        assert spot.max() > 25


def test_pictures_of_one_patient_look_alike(folder, rows):
    """Two pictures of one patient are nearer to each other than to any other, so a split must keep them together."""
    pixels = [np.asarray(Image.open(folder / "images" / name).resize((32, 32)), float) for name in rows["Image Index"]]
    pixels = np.stack(pixels[:300]).reshape(300, -1)
    distance = ((pixels[:, None] - pixels[None]) ** 2).sum(-1) + np.diag(np.full(300, np.inf))
    patients = rows["Patient ID"].to_numpy()[:300]
    several = pd.Series(patients).duplicated(keep=False).to_numpy()
    assert (patients[distance.argmin(1)] == patients)[several].mean() > 0.2  # by chance 0.01


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(xrays, "draw_xray", interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw_demo_xrays(tmp_path / "demo", num_patients=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"num_patients": 0}, {"image_size": (16, 64)}])
def test_sizes_that_cannot_be_drawn(tmp_path, settings):
    with pytest.raises(DataError, match=f"Received: .*{next(iter(settings))}"):
        draw_demo_xrays(tmp_path / "demo", **settings)
