"""Copies are found however they were rotated, shared spots are not taken for copies, unrelated pictures stay apart."""

import numpy as np
import pytest

pytest.importorskip("cv2", reason="OpenCV is not installed")
from drawn_scenes import draw_scene, find_in, turn

from kmed.data.audit.alignment import align, align_either
from kmed.data.audit.fingerprints import Variant, fingerprint, products, shrink, squared_distances
from kmed.data.audit.near_duplicates import components, is_same_exposure

WAYS = {
    "turned": {"angle": 17},
    "upside down": {"angle": 180},
    "mirrored": {"flip": True},
    "mirrored and turned": {"flip": True, "angle": -25},
    "shifted": {"shift": (35, -20)},
    "sheared": {"shear": 0.12, "angle": 5},
}


def small(seed):
    return draw_scene(seed, 240, 320)


def grey(picture):
    return shrink(picture)


@pytest.mark.parametrize("way", WAYS)
def test_copies_align_and_agree(way):
    original, copy = fingerprint(grey(small(1))), fingerprint(grey(turn(small(1), **WAYS[way])))
    found = align_either(original, copy)
    assert found.mirrored == WAYS[way].get("flip", False)
    assert found.inliers > 40
    assert found.agreement > 0.995
    assert found.detail > 0.9
    assert found.share > 0.6
    assert all((outline > -0.1).all() and (outline < 1.1).all() for outline in found.outlines)


def test_unrelated_pictures_do_not_align():
    made = [fingerprint(grey(small(seed))) for seed in range(5)]
    assert all(align_either(made[i], made[j]) is None for i in range(5) for j in range(i))


def test_a_mirror_image_is_not_taken_for_a_turn():
    original, mirrored = (fingerprint(grey(turn(small(1), flip=flip))) for flip in (False, True))
    assert align(original, mirrored, Variant.PLAIN) is None
    assert align(original, mirrored, Variant.MIRRORED) is not None


def test_a_map_that_is_good_enough_is_not_refined(monkeypatch):
    original, copy = fingerprint(grey(small(1))), fingerprint(grey(turn(small(1), angle=3)))
    refined = align(original, copy, Variant.PLAIN)
    assert is_same_exposure(refined)
    asked = []
    found = align(original, copy, Variant.PLAIN, enough=lambda one: asked.append(one))
    assert found.agreement == refined.agreement != asked[0].agreement
    monkeypatch.setattr("kmed.data.audit.alignment._refine", None)
    found = align(original, copy, Variant.PLAIN, enough=lambda one: True)
    assert (found.inliers, found.agreement) == (refined.inliers, asked[0].agreement)


def test_mirrored_descriptors_are_those_of_the_mirror_image():
    original, mirrored = (fingerprint(grey(turn(small(1), flip=flip))) for flip in (False, True))
    squared = squared_distances(
        original.descriptors.astype(np.float32), mirrored.descriptors[:, Variant.MIRRORED.columns].astype(np.float32)
    )
    assert np.median(squared.min(axis=1)) < 0.05 * np.median(squared)
    assert sorted(Variant.MIRRORED.columns) == list(range(128))
    np.testing.assert_array_equal(Variant.MIRRORED.columns[Variant.MIRRORED.columns], np.arange(128))


def test_inverted_descriptors_are_those_of_the_negative():
    original, negative = fingerprint(grey(small(1))), fingerprint(255 - grey(small(1)))
    squared = squared_distances(
        original.descriptors.astype(np.float32), negative.descriptors[:, Variant.INVERTED.columns].astype(np.float32)
    )
    assert np.median(squared.min(axis=1)) < 0.05 * np.median(squared)
    np.testing.assert_array_equal(Variant.INVERTED.columns[Variant.INVERTED.columns], np.arange(128))
    np.testing.assert_array_equal(
        Variant.INVERTED.columns[Variant.MIRRORED.columns], Variant.MIRRORED.columns[Variant.INVERTED.columns]
    )


def test_products_are_exact():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 200, (size, 128)) for size in (30, 40))
    found = products(first.astype(np.float32), second.astype(np.float32))
    np.testing.assert_array_equal(found, first @ second.T)


def test_the_black_fill_has_no_features():
    blank = np.full((240, 320), 200, np.uint8)
    assert len(fingerprint(turn(blank[..., None].repeat(3, axis=2), angle=20)[..., 0]).points) == 0
    made = fingerprint(grey(turn(small(1), angle=20)))
    assert made.inside[0, 0] == 0
    assert made.inside[120, 160] == 1
    assert made.inside[made.points[:, 1].astype(int), made.points[:, 0].astype(int)].all()


def test_photographs_and_groups_are_found():
    scene = draw_scene(50, 330, 440)
    left, right = scene[:240, :320], scene[90:330, 120:440]
    pictures = [
        small(1),
        turn(small(1), angle=12),
        turn(small(1), flip=True),
        small(2),
        left,
        right,
        turn(left, angle=9),
    ]
    found = find_in(pictures)
    np.testing.assert_array_equal(found.photograph, [0, 0, 0, 1, 2, 3, 2])
    np.testing.assert_array_equal(found.group, [0, 0, 0, 1, 2, 2, 2])
    assert found.featureless.size == 0
    assert all(link.first < link.second for link in found.links)
    again = find_in(pictures)
    np.testing.assert_array_equal(again.photograph, found.photograph)
    assert [(link.first, link.second, link.alignment.agreement) for link in again.links] == [
        (link.first, link.second, link.alignment.agreement) for link in found.links
    ]


def test_another_exposure_of_one_spot_is_another_photograph():
    rng = np.random.default_rng(0)
    sharp, light = small(3).astype(float), np.linspace(0.75, 1.15, 320)[None, :, None]
    other = np.clip(sharp * light + rng.normal(0, 6, sharp.shape), 0, 255).astype(np.uint8)
    found = find_in([small(3), turn(other, angle=8), turn(small(3), angle=-8)])
    np.testing.assert_array_equal(found.photograph, [0, 1, 0])
    np.testing.assert_array_equal(found.group, [0, 0, 0])


def test_many_unrelated_pictures_stay_apart():
    pictures = [small(seed) for seed in range(100, 190)]
    found = find_in([*pictures, turn(pictures[80], angle=15, flip=True)])
    np.testing.assert_array_equal(found.photograph, [*range(90), 80])
    np.testing.assert_array_equal(found.group, found.photograph)


def test_pictures_without_detail_are_listed_and_stay_alone():
    pictures = [np.full((240, 320, 3), 90 + 40 * shade, np.uint8) for shade in range(3)]
    for several in (pictures, [*pictures, small(1)]):
        found = find_in(several)
        assert len(set(found.group)) == len(several)
        np.testing.assert_array_equal(found.featureless, [0, 1, 2])
        assert found.links == []


@pytest.mark.parametrize(
    ("size", "expected"),
    [((28, 28), (56, 56)), ((128, 128), (256, 256)), ((200, 100), (200, 100)), ((960, 1280), (240, 320))],
)
def test_pictures_are_compared_at_one_scale(size, expected):
    assert grey(np.zeros((*size, 3), np.uint8)).shape == expected


def test_components():
    np.testing.assert_array_equal(components(5, [(3, 1), (4, 3)]), [0, 1, 2, 1, 1])
    np.testing.assert_array_equal(components(2, []), [0, 1])
