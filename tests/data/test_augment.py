"""Draws depend on (seed, epoch, row) alone, and pixels are changed as the draws say."""

import cv2
import numpy as np
import pytest
from scipy import ndimage

from kmed.config import load_config
from kmed.data import augment, augment_pixels
from kmed.data.augment import (
    COLOUR,
    DENSITY,
    ERASE,
    LEVELS,
    MIX,
    NUM_DRAWS,
    TRANSFORM,
    Augmentation,
    plan_epoch,
)
from kmed.data.augment_pixels import Augmenter
from kmed.errors import DataError

SIZE = (12, 16)
# OpenCV below 5 rounds positions to 1/32 of a pixel, which is much in pictures of noise.
INTERPOLATED = 0.02 if int(cv2.__version__.split(".")[0]) >= 5 else 8


def pictures(count=6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), np.uint8)


def changed(images, draws, level="strong", mix=False, labels=None, density="none"):
    rows = () if labels is None else (labels,)
    augmenter = Augmenter(Augmentation(level, mixup=float(mix), density=density))
    results = augmenter(images, draws, *rows)
    return results[0] if labels is None else results


def plan_of(count, size, *, epoch, shuffle=True, **settings):
    """Returns the plan of an epoch with these settings of an Augmentation."""
    return plan_epoch(count, size, Augmentation(**settings), epoch=epoch, shuffle=shuffle)


def still(count) -> np.ndarray:
    """Returns draws that change nothing."""
    return plan_of(count, SIZE, epoch=0, shuffle=False).draws


# ----- draws -----


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("orientation", augment.ORIENTATIONS)
def test_a_plan_is_a_function_of_seed_epoch_and_row(level, orientation):
    settings = {"level": level, "orientation": orientation, "mixup": 0.3, "cutmix": 1.0, "density": "stain"}
    plan = plan_of(50, SIZE, seed=3, epoch=7, **settings)
    again = plan_of(50, SIZE, seed=3, epoch=7, **settings)
    assert plan.draws.shape == (50, NUM_DRAWS) and plan.draws.dtype == np.float32 and np.isfinite(plan.draws).all()
    np.testing.assert_array_equal(plan.order, again.order)
    np.testing.assert_array_equal(plan.draws, again.draws)
    np.testing.assert_array_equal(np.sort(plan.order), np.arange(50))
    # A row's draws depend neither on the order nor on how many rows follow.
    by_row = plan_of(50, SIZE, seed=3, epoch=7, shuffle=False, **settings)
    np.testing.assert_array_equal(by_row.order, np.arange(50))
    np.testing.assert_array_equal(by_row.draws[plan.order], plan.draws)
    fewer = plan_of(20, SIZE, seed=3, epoch=7, shuffle=False, **settings)
    np.testing.assert_array_equal(fewer.draws, by_row.draws[:20])
    for other in ({"seed": 4, "epoch": 7}, {"seed": 3, "epoch": 8}, {"seed": 7, "epoch": 3}):
        moved = plan_of(50, SIZE, **other, **settings)
        assert (moved.order != plan.order).any() and (moved.draws != plan.draws).any()


@pytest.mark.parametrize("level", LEVELS)
def test_draws_stay_within_their_level(level):
    chosen = LEVELS[level]
    draws = plan_of(4000, SIZE, seed=0, epoch=0, level=level, shuffle=False).draws.astype(float)
    a0, a1, a2, b0, b1, b2 = draws[:, TRANSFORM].T
    angle = np.rad2deg(np.arctan2(b0, b1))
    shift_x = a0 * 7.5 + a1 * 5.5 + a2 - 7.5
    scale = np.sqrt(np.abs(a0 * b1 - a1 * b0))
    matrix = draws[:, COLOUR][:, :9].reshape(-1, 3, 3)
    erased = (draws[:, ERASE][:, 1] > draws[:, ERASE][:, 0]).mean()
    # The largest of 4,000 uniform draws is within 1 % of the limit.
    for value, limit in ((angle, chosen.rotation), (shift_x, chosen.shift * 16), (np.log(scale), chosen.zoom)):
        assert 0.99 * limit <= np.abs(value).max() <= limit + 1e-5
    np.testing.assert_allclose(matrix.sum(axis=2), np.repeat(matrix.sum(axis=2)[:, :1], 3, axis=1), atol=1e-6)
    assert 0.99 * chosen.contrast <= np.abs(matrix.sum(axis=2) - 1).max() <= chosen.contrast + 1e-6
    assert abs(erased - chosen.erase) < 0.04
    assert abs((a0 < 0).mean() - (0.5 if level != "none" else 0)) < 0.04
    assert (b1 > 0).all()  # upright: never upside down


def test_free_pictures_turn_by_any_angle_and_flip_both_ways():
    draws = plan_of(4000, SIZE, seed=0, epoch=0, level="light", orientation="free").draws
    angle = np.arctan2(draws[:, 3], draws[:, 4])
    counts = np.histogram(angle, 8, (-np.pi, np.pi))[0]
    assert counts.min() > 400  # of 500 expected in each eighth of the circle
    mirrored = draws[:, 0] * draws[:, 4] - draws[:, 1] * draws[:, 3] < 0
    assert abs(mirrored.mean() - 0.5) < 0.04


def test_other_draws_stay_as_they_are_when_densities_are_drawn():
    plain, stained = (plan_of(20, SIZE, seed=1, epoch=2, level="strong", density=name) for name in ("none", "stain"))
    np.testing.assert_array_equal(plain.draws[:, : DENSITY.start], stained.draws[:, : DENSITY.start])
    assert (plain.draws[:, DENSITY] != stained.draws[:, DENSITY]).any()


# ----- clusters -----


def uneven_clusters():
    """Returns (clusters, classes) of 600 rows: class 0 has 5 clusters of 96, 1, 1, 1, 1 rows, class 1 has 50 of 10."""
    clusters = np.concatenate([[0] * 96, [1, 2, 3, 4], np.repeat(np.arange(5, 55), 10)])
    return clusters, (clusters >= 5).astype(int)


def test_clusters_of_a_class_are_drawn_equally_often_and_classes_keep_their_shares():
    clusters, classes = uneven_clusters()
    order = plan_epoch(600, SIZE, Augmentation(), epoch=0, clusters=clusters, classes=classes).order
    assert len(order) == 600
    np.testing.assert_array_equal(np.bincount(classes[order]), [100, 500])
    drawn = np.bincount(clusters[order])
    np.testing.assert_array_equal(drawn, [20] * 5 + [10] * 50)
    assert len(set(order[clusters[order] == 0])) > 10  # not always the same row of a cluster
    assert (np.diff(classes[order]) != 0).sum() > 100  # the classes are shuffled


def test_without_classes_all_clusters_are_drawn_equally_often():
    clusters, _ = uneven_clusters()
    drawn = np.bincount(clusters[plan_epoch(600, SIZE, Augmentation(), epoch=1, clusters=clusters).order])
    assert drawn.min() >= 10 and drawn.max() <= 11  # 600 rows of 55 clusters


def test_an_order_of_clusters_depends_on_seed_and_epoch_and_repeated_rows_are_changed_differently():
    clusters, classes = uneven_clusters()
    first, again, later, other = (
        plan_epoch(600, SIZE, Augmentation("light", seed=seed), epoch=epoch, clusters=clusters, classes=classes)
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    np.testing.assert_array_equal(first.order, again.order)
    assert (first.order != later.order).any() and (first.order != other.order).any()
    repeated = first.draws[first.order == 97]
    assert len(repeated) == 20 and len(np.unique(repeated[:, TRANSFORM.start])) == 20


def test_clusters_of_one_row_each_are_a_permutation():
    order = plan_epoch(50, SIZE, Augmentation(), epoch=0, clusters=np.arange(50)).order
    np.testing.assert_array_equal(np.sort(order), np.arange(50))


# ----- pixels -----


def test_draws_that_change_nothing_change_nothing():
    images = pictures()
    np.testing.assert_array_equal(changed(images, still(6)), images)
    untouched = Augmenter(Augmentation("none"))(images, still(6))[0]
    assert untouched is images


def test_flips_are_exact():
    images, draws = pictures(), still(6)
    draws[:, TRANSFORM] = [-1, 0, 15, 0, 1, 0]
    np.testing.assert_array_equal(changed(images, draws), images[:, :, ::-1])
    draws[:, TRANSFORM] = [1, 0, 0, 0, -1, 11]
    np.testing.assert_array_equal(changed(images, draws), images[:, ::-1])


@pytest.mark.parametrize("orientation", augment.ORIENTATIONS)
def test_geometry_agrees_with_scipy(orientation):
    images = pictures()
    draws = plan_of(6, SIZE, seed=1, epoch=0, level="strong", orientation=orientation).draws
    moved = [augment_pixels.move(image.astype(np.float32), row) for image, row in zip(images, draws)]
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    for picture, result, (a0, a1, a2, b0, b1, b2) in zip(images, moved, draws[:, TRANSFORM].astype(float)):
        source = [b0 * x + b1 * y + b2, a0 * x + a1 * y + a2]
        for channel in range(3):
            expected = ndimage.map_coordinates(picture[..., channel].astype(float), source, order=1, mode="reflect")
            np.testing.assert_allclose(result[..., channel], expected, atol=INTERPOLATED)


def test_a_picture_turns_about_its_centre():
    images = np.zeros((64, 13, 13, 3), np.uint8)
    images[:, 6, 6] = 255
    level = augment.Level(rotation=180, zoom=0.3, stretch=0.1)
    uniform = np.random.default_rng(0).random((64, 7))
    draws = still(64)
    draws[:, TRANSFORM] = augment._transforms(uniform, level, "upright", (13, 13), True)
    np.testing.assert_allclose(changed(images, draws)[:, 6, 6], 255, atol=0.1)


def test_colour_is_one_matrix_and_clips():
    images = pictures()
    draws = plan_of(6, SIZE, seed=1, epoch=0, level="strong", shuffle=False).draws
    draws[:, TRANSFORM], draws[:, ERASE] = still(1)[0, TRANSFORM], 0
    matrix, offset = draws[:, COLOUR][:, :9].reshape(-1, 3, 3), draws[:, COLOUR][:, 9:]
    expected = np.einsum("bij,bhwj->bhwi", matrix, images) + offset[:, None, None]
    result = changed(images, draws)
    np.testing.assert_allclose(result, np.clip(expected, 0, 255), atol=0.01)
    assert result.min() >= 0 and result.max() <= 255 and (expected > 255).any()


def test_grey_stays_grey():
    grey = np.repeat(pictures()[..., :1], 3, axis=3)
    draws = plan_of(6, SIZE, seed=1, epoch=0, level="strong").draws
    result = changed(grey, draws)
    np.testing.assert_allclose(result, np.repeat(result[..., :1], 3, axis=3), atol=1e-3)


def test_erase_paints_its_box_and_nothing_else():
    images, draws = pictures(2), still(2)
    draws[0, ERASE] = [2, 5, 3, 9]
    expected = images.astype(np.float32)
    expected[0, 2:5, 3:9] = 127.5
    np.testing.assert_array_equal(changed(images, draws), expected)


def only_densities(count, density, **settings):
    """Returns draws that change optical densities and nothing else."""
    draws = still(count)
    draws[:, DENSITY] = plan_of(count, SIZE, shuffle=False, epoch=0, density=density, **settings).draws[:, DENSITY]
    return draws


@pytest.mark.parametrize("density", ["stain", "exposure"])
def test_density_is_a_matrix_and_an_offset_of_the_logarithm(density):
    images, draws = pictures(), only_densities(6, density, level="strong", seed=2)
    matrix, offset = draws[:, DENSITY][:, :9].reshape(-1, 3, 3), draws[:, DENSITY][:, 9:]
    densities = np.einsum("bhwi,bij->bhwj", -np.log((images + 1.0) / 256), matrix) + offset[:, None, None]
    np.testing.assert_allclose(
        changed(images, draws, density=density), np.clip(256 * np.exp(-densities) - 1, 0, 255), atol=0.05
    )


def test_stain_changes_the_amounts_of_two_dyes_and_leaves_what_is_left_of_the_picture():
    # A picture made of known amounts of haematoxylin, eosin and a rest, within the range of a byte.
    amounts = np.random.default_rng(0).uniform(0.05, 0.5, (4, *SIZE, 3))
    images = 256 * np.exp(-(amounts @ augment._STAINS)) - 1
    result = changed(images, only_densities(4, "stain", level="medium", seed=3), density="stain")
    found = -np.log((result + 1) / 256) @ np.linalg.inv(augment._STAINS)
    np.testing.assert_allclose(found[..., 2], amounts[..., 2], atol=1e-3)
    limit = LEVELS["medium"].stain
    for stain in (0, 1):
        for picture in range(4):
            factor, shift = np.polyfit(amounts[picture, ..., stain].ravel(), found[picture, ..., stain].ravel(), 1)
            assert 1 - limit <= factor <= 1 + limit and factor != pytest.approx(1, abs=1e-4)
            assert abs(shift) <= limit / 2 + 1e-3


def test_exposure_keeps_grey_grey_and_the_order_of_greys():
    ramp = np.repeat(np.linspace(0, 255, 12 * 16).reshape(1, *SIZE, 1), 3, axis=3).repeat(6, axis=0)
    result = changed(ramp, only_densities(6, "exposure", level="strong", seed=1), density="exposure")
    np.testing.assert_allclose(result, result[..., :1].repeat(3, axis=3), atol=1e-3)
    assert (np.diff(result[..., 0].reshape(6, -1), axis=1) >= 0).all()
    assert np.abs(result - ramp).max() > 10


@pytest.mark.parametrize("density", ["stain", "exposure"])
def test_without_a_level_densities_stay(density):
    images = pictures()
    assert Augmenter(Augmentation("none", density=density))(images, still(6))[0] is images


@pytest.mark.parametrize("density", augment.DENSITIES)
def test_no_level_leaves_the_range_of_pixels(density):
    for level in LEVELS:
        settings = {"level": level, "orientation": "free", "mixup": 1, "cutmix": 1, "density": density}
        draws = plan_of(6, SIZE, seed=1, epoch=0, **settings).draws
        result = changed(pictures(), draws, level, mix=True, density=density)
        assert result.dtype == np.float32 and result.min() >= 0 and result.max() <= 255


# ----- mixing -----


@pytest.mark.parametrize("mixup, cutmix", [(0.4, 0), (0, 1.0), (0.4, 1.0)])
def test_labels_are_mixed_as_the_pixels_are(mixup, cutmix):
    # Row i is wholly of grey level 40 i, so the mean of a mixed picture shows the share of each.
    images = np.broadcast_to(40.0 * np.arange(6, dtype=np.float32)[:, None, None, None], (6, *SIZE, 3)).copy()
    draws = plan_of(6, SIZE, seed=5, epoch=2, mixup=mixup, cutmix=cutmix).draws
    mixed, labels = changed(images, draws, "none", True, np.eye(6, dtype=np.float32))
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    share = draws[:, MIX][:, 5]
    np.testing.assert_allclose(labels[np.arange(6), np.arange(6)], share, atol=1e-6)
    np.testing.assert_allclose(labels[np.arange(6), (np.arange(6) + 1) % 6], 1 - share, atol=1e-6)
    np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), labels @ (40.0 * np.arange(6)), atol=1e-3)


def test_cutmix_pastes_a_whole_box_of_the_partner():
    images = pictures()
    draws = plan_of(6, SIZE, seed=5, epoch=2, cutmix=1.0).draws
    mixed = changed(images, draws, "none", True)
    for row in range(6):
        top, bottom, left, right = draws[row, MIX][1:5].astype(int)
        expected = images[row].copy()
        expected[top:bottom, left:right] = images[(row + 1) % 6, top:bottom, left:right]
        np.testing.assert_array_equal(mixed[row], expected)
        assert draws[row, MIX][5] == pytest.approx(1 - (bottom - top) * (right - left) / (SIZE[0] * SIZE[1]), abs=1e-6)


def test_shares_follow_the_beta_distribution():
    def shares(size=SIZE, **settings):
        return plan_of(4000, size, seed=0, epoch=0, **settings).draws[:, MIX][:, 5]

    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)).
    for alpha in (0.2, 1.0, 4.0):
        for settings in ({"mixup": alpha}, {"cutmix": alpha, "size": (400, 400)}):
            assert shares(**settings).mean() == pytest.approx(0.5, abs=0.03)
            assert shares(**settings).var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    pasted = plan_of(4000, SIZE, seed=0, epoch=0, mixup=1, cutmix=1).draws[:, MIX][:, 0] == 1
    assert abs(pasted.mean() - 0.5) < 0.04
    np.testing.assert_array_equal(shares(), 1)


def test_an_unknown_label_stays_unknown_when_mixed():
    labels = np.array([[1, np.nan], [0, 1], [0, 0]], np.float32)
    draws = plan_of(3, SIZE, seed=0, epoch=0, mixup=1.0).draws
    mixed = changed(pictures(3), draws, "none", True, labels)[1]
    np.testing.assert_array_equal(np.isnan(mixed), [[False, True], [False, False], [False, True]])


def test_an_augmentation_is_what_the_settings_say():
    settings = ["augment.level=strong", "augment.orientation=free", "augment.cutmix=0.5", "augment.density=stain"]
    config = load_config(overrides=[*settings, "seed=3"])
    found = Augmentation.from_settings(config.augment, config.seed)
    assert found == Augmentation("strong", "free", mixup=0.0, cutmix=0.5, seed=3, density="stain")
    assert found.mixes and Augmentation(mixup=0.1).mixes and not Augmentation("strong").mixes


# ----- errors -----


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"level": "mediun"}, "Did you mean 'medium'"),
        ({"orientation": "up"}, "upright, free"),
        ({"density": "stian"}, "Did you mean 'stain'"),
        ({"mixup": -0.1}, "mixup is alpha"),
        ({"cutmix": float("nan")}, "cutmix is alpha"),
        ({"seed": -1}, "seed must be a whole number >= 0"),
        ({"epoch": 0.5}, "epoch must be a whole number >= 0"),
    ],
)
def test_errors(settings, words):
    with pytest.raises(DataError, match=words):
        plan_of(4, SIZE, **({"seed": 0, "epoch": 0} | settings))
    if "level" in settings:
        with pytest.raises(DataError, match=words):
            Augmenter(Augmentation(settings["level"]))
