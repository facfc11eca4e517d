"""A copy is told from another exposure of the same subject, whatever was done to the copy."""

import io

import numpy as np
import pytest

pytest.importorskip("cv2", reason="OpenCV is not installed")
import cv2
from conftest import real_data
from drawn_scenes import draw_scene, memory_table, retake, turn
from PIL import Image

from kmed.data.audit.alignment import align_either
from kmed.data.audit.fingerprints import fingerprint, shrink
from kmed.data.audit.leaks import audit
from kmed.data.audit.report import list_pairs, summarize, to_json
from kmed.data.audit.residual import compare_tiles, smooth_and_fine, verdict
from kmed.data.audit.sheet import headline, worst_pairs
from kmed.data.readers.load import load_table


def recompress(picture, quality):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return np.array(Image.open(stream))


def resize(picture, factor):
    size = (round(picture.shape[1] * factor), round(picture.shape[0] * factor))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def crop(picture, fraction):
    rows, columns = (round(side * fraction) for side in picture.shape[:2])
    return picture[rows:-rows, columns:-columns]


def shade(picture, contrast=1.0, brightness=0.0):
    return np.clip(contrast * (picture.astype(float) - 128) + 128 + brightness, 0, 255).astype(np.uint8)


def annotate(picture):
    return cv2.putText(picture.copy(), "AP left", (12, 40), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (255, 255, 255), 2)


COPIES = {
    "identical": lambda picture: picture,
    "JPEG 95": lambda picture: recompress(picture, 95),
    "JPEG 75": lambda picture: recompress(picture, 75),
    "JPEG 50": lambda picture: recompress(picture, 50),
    "JPEG 30": lambda picture: recompress(picture, 30),
    "three quarters of the size": lambda picture: resize(picture, 0.75),
    "60 % of the size": lambda picture: resize(picture, 0.6),
    "half as large again": lambda picture: resize(picture, 1.5),
    "cropped by 2 %": lambda picture: crop(picture, 0.02),
    "cropped by 8 %": lambda picture: crop(picture, 0.08),
    "brighter": lambda picture: shade(picture, brightness=25),
    "more contrast": lambda picture: shade(picture, contrast=1.3),
    "less contrast": lambda picture: shade(picture, contrast=0.6),
    "gamma 0.7": lambda picture: np.round(255 * (picture / 255) ** 0.7).astype(np.uint8),
    "gamma 1.5": lambda picture: np.round(255 * (picture / 255) ** 1.5).astype(np.uint8),
    "mirrored": lambda picture: picture[:, ::-1],
    "upside down": lambda picture: picture[::-1],
    "turned by 90 degrees": lambda picture: np.rot90(picture),
    "turned by 7 degrees": lambda picture: turn(picture, angle=7),
    "negative": lambda picture: 255 - picture,
    "negative and mirrored": lambda picture: 255 - picture[:, ::-1],
    "in a border": lambda picture: cv2.copyMakeBorder(picture, 20, 20, 20, 20, cv2.BORDER_CONSTANT),
    "annotated": annotate,
    "grey": lambda picture: cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB),
    "a little blurred": lambda picture: cv2.GaussianBlur(picture, (0, 0), 0.7),
}


def subject(seed):
    return draw_scene(seed, 240, 320)


def align_pictures(first, second):
    return align_either(*(fingerprint(shrink(one)) for one in (first, second)))


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_copy_is_the_same(way, seed):
    copy = np.ascontiguousarray(COPIES[way](subject(seed)))
    found = align_pictures(subject(seed), copy)
    assert found.verdict == "same"
    assert found.inverted == ("negative" in way)
    assert found.mirrored == (way in ("mirrored", "upside down", "negative and mirrored"))


@pytest.mark.parametrize("pixels", [2.0, 2.5, 3.0, 4.0])
@pytest.mark.parametrize("seed", range(5))
def test_another_exposure_is_not_the_same(pixels, seed):
    found = align_pictures(subject(seed), retake(subject(seed), seed, pixels))
    assert found is None or found.verdict == "other"


@pytest.mark.parametrize(
    ("tile_detail", "drift", "expected"),
    [
        (0.99, 0.0, "same"),
        (0.95, 0.9, "same"),
        (0.89, 0.6, "doubt"),
        (0.7, 0.2, "same"),
        (0.7, 0.9, "other"),
        (0.83, 0.7, "doubt"),
        (0.6, 0.3, "doubt"),
        (0.3, 0.0, "other"),
        (0.0, float("inf"), "other"),
    ],
)
def test_verdicts(tile_detail, drift, expected):
    assert verdict(tile_detail, drift) == expected


def test_drift_is_measured_in_pixels():
    scene = cv2.cvtColor(subject(1), cv2.COLOR_RGB2GRAY)
    shown = np.ones(scene.shape, np.uint8)
    for shift in (0.0, 0.3, 0.6):
        matrix = np.array([[1, 0, shift], [0, 1, 0]])
        moved = cv2.warpAffine(scene, matrix, scene.shape[::-1], flags=cv2.INTER_CUBIC)
        drift = compare_tiles(smooth_and_fine(moved)[1], smooth_and_fine(scene)[1], shown)[1]
        assert drift == pytest.approx(shift, abs=0.12)


@pytest.mark.parametrize("shape", [(240, 320), (20, 20), (3, 400)])
def test_nothing_to_compare_is_no_agreement(shape):
    flat = np.full(shape, 90, np.uint8)
    fine = smooth_and_fine(flat)[1]
    assert compare_tiles(fine, fine, np.ones(shape, np.uint8)) == (0.0, float("inf"))


def patients(pictures, names, labels, splits=None):
    """Returns a Table of pictures in memory; without names, each picture is alone."""
    table = memory_table(pictures, labels, splits)
    return table if names is None else table.with_columns(group=np.array(names, dtype=object)).replace(grouped=True)


def test_inside_a_patient_only_the_same_exposure_contradicts():
    pictures = [subject(1), recompress(subject(1), 60), retake(subject(1), 5, 2.2), subject(2), shade(subject(2), 1.2)]
    found = audit(patients(pictures, ["p", "p", "p", "q", "q"], [0, 1, 1, 0, 0]))
    assert [{pair.first, pair.second} for pair in found.contradictions] == [{0, 1}]
    assert found.across_groups == found.doubts == found.overlaps == []
    assert found.num_followups == 1
    assert "1 pair of copies or overlapping photographs contradict; 0 more may be copies (in doubt)" in summarize(found)
    assert "1 are other exposures, which may differ" in summarize(found)


@pytest.mark.parametrize("grouped", [True, False])
def test_a_follow_up_contradicts_nothing_with_and_without_groups(grouped):
    pictures = [subject(1), retake(subject(1), 5, 2.2)]
    found = audit(patients(pictures, ["p", "p"] if grouped else None, [0, 1]))
    assert found.contradictions == found.doubts == []
    assert to_json(found)["followups_with_different_labels"] == 1


@pytest.mark.parametrize("way", ["identical", "JPEG 75", "negative", "follow-up"])
@pytest.mark.parametrize("labels", [[0, 0], [0, 1]])
def test_across_patients_two_ids_may_be_one_person(way, labels):
    other = retake(subject(1), 5, 2.2) if way == "follow-up" else np.ascontiguousarray(COPIES[way](subject(1)))
    found = audit(patients([subject(1), other], ["p", "q"], labels, ["train", "test"]))
    assert found.contradictions == found.doubts == []
    assert [(pair.first, pair.second, pair.groups, pair.sides) for pair in found.across_groups] == [(0, 1, True, True)]
    assert found.across_groups[0].labels == (labels == [0, 1])
    made = to_json(found)["across_groups"]
    assert made["count"] == 1
    assert made["first"][0]["told"] == made["first"][0]["groups"] == ["p", "q"]
    assert "Across groups: 1 pair of given groups" in summarize(found)
    assert "two groups" in headline(worst_pairs(found)[0])
    assert list(list_pairs(found)["problem"]) == ["across groups", "two sides"]


def test_what_is_in_doubt_is_listed_as_such(monkeypatch):
    monkeypatch.setattr("kmed.data.audit.alignment.verdict", lambda tile_detail, drift: "doubt")
    found = audit(patients([subject(1), retake(subject(1), 5, 2.2)], None, [0, 1]))
    assert found.contradictions == found.overlaps == []
    assert [pair.verdict for pair in found.doubts] == ["doubt"]
    assert headline(found.doubts[0]).startswith("In doubt: two labels: one spot, ")
    assert worst_pairs(found) == found.doubts
    assert list(list_pairs(found)["problem"]) == ["doubt"]
    assert to_json(found)["doubts"]["count"] == 1


def test_real_follow_ups():
    """Of three patients' X-rays, each file alone, only two files that are byte for byte the same contradict."""
    table = load_table(real_data("nih_cxr_sample"))
    found = audit(table.take(table.rows["path"].str.contains(r"0000(?:1934|1989|2350)_").to_numpy()))
    assert [pair.kind for pair in found.contradictions] == ["identical files"]
    pair = found.contradictions[0]
    assert {found.table.rows["path"].iloc[row][-8:] for row in (pair.first, pair.second)} == {"_004.png", "_005.png"}
    assert found.num_followups > 0
    assert len(found.doubts) <= 1
