"""Pictures unlike the training data: the distance, its threshold, and what a run records of it."""

import json
import shutil
import tracemalloc

import keras
import numpy as np
import pytest
import threadpoolctl
from sklearn.neighbors import NearestNeighbors

import kmed
from kmed.errors import ConfigError, RunError
from kmed.evaluation.novelty import NEIGHBOUR, feature_model, fit_reference, load_novelty, picture_statistics
from kmed.models.build import build_model
from kmed.runs import Run

RNG = np.random.default_rng(0)


def made_up(count, features=20):
    images = RNG.integers(60, 120, (count, 8, 10, 3)).astype(np.uint8)
    return images, RNG.normal(0, RNG.uniform(0.5, 3, features), (count, features))


def test_the_distance_is_that_to_the_tenth_nearest_training_picture():
    images, features = made_up(60)
    novelty = fit_reference(features, picture_statistics(images))
    others, seen = made_up(15)
    points = (np.concatenate([seen, picture_statistics(others)], axis=1) - novelty.center) / novelty.scale
    oracle = NearestNeighbors(n_neighbors=NEIGHBOUR).fit(novelty.reference).kneighbors(points)[0][:, -1]
    np.testing.assert_allclose(novelty.distances(others, seen), oracle, atol=1e-4)
    # A batch gives the same as its pictures one by one.
    one_by_one = [novelty.distances(others[row : row + 1], seen[row : row + 1])[0] for row in range(15)]
    np.testing.assert_allclose(one_by_one, oracle, atol=1e-4)


def test_both_groups_weigh_alike_whatever_their_units():
    images, features = made_up(60)
    novelty = fit_reference(features, picture_statistics(images))
    same = fit_reference(1000 * features + 5, picture_statistics(images))
    others, seen = made_up(15)
    np.testing.assert_allclose(novelty.distances(others, seen), same.distances(others, 1000 * seen + 5), rtol=1e-2)
    spread = novelty.reference.astype(float).std(axis=0) ** 2
    np.testing.assert_allclose(spread[:20].sum(), spread[20:].sum(), rtol=0.3)


def test_a_feature_that_never_moved_does_not_decide_alone():
    images, features = made_up(60)
    features[:, 3] = 0
    novelty = fit_reference(features, picture_statistics(images))
    others, seen = made_up(15)
    seen[:, 3] = 0
    before = novelty.distances(others, seen)
    seen[:, 3] = 1e-3
    assert np.abs(novelty.distances(others, seen) / before - 1).max() < 0.01


def test_the_threshold_flags_the_wanted_share_of_validation():
    images, features = made_up(60)
    distances = fit_reference(features, picture_statistics(images)).distances(*made_up(1000))
    for wanted in (0.01, 0.1):
        novelty = fit_reference(features, picture_statistics(images)).with_threshold(distances, wanted)
        assert novelty.flags(distances).mean() == pytest.approx(wanted, abs=0.001)


def test_statistics_by_hand():
    images = np.zeros((1, 2, 4, 3), np.uint8)
    images[0, :, 2:, 0] = 255  # the right half red
    statistics = picture_statistics(images)[0]
    # mean and spread of red, green, blue; steps down and across in grey; colourfulness
    np.testing.assert_allclose(statistics, [0.5, 0, 0, 0.5, 0, 0, 0, 1 / 9, 0.5], atol=1e-6)


def test_what_is_read_back_gives_the_same_distances(tmp_path):
    images, features = made_up(30)
    novelty = fit_reference(features, picture_statistics(images)).with_threshold(np.arange(100.0), 0.05)
    novelty.save(tmp_path / "novelty.npz")
    read = load_novelty(tmp_path / "novelty.npz")
    others = made_up(10)
    np.testing.assert_array_equal(read.distances(*others), novelty.distances(*others))
    assert (read.threshold, read.wanted) == (novelty.threshold, 0.05)


@pytest.mark.parametrize("damage", ["text", "cut", "flipped", "absent"])
def test_a_damaged_file_is_one_line(tmp_path, damage):
    path = tmp_path / "novelty.npz"
    images, features = made_up(30)
    fit_reference(features, picture_statistics(images)).with_threshold(np.arange(100.0), 0.05).save(path)
    content = path.read_bytes()
    flipped = content[:60] + bytes(255 ^ byte for byte in content[60:200]) + content[200:]
    made = {"text": b"PK damaged", "cut": content[: len(content) // 2], "flipped": flipped}
    path.unlink()
    if damage in made:
        path.write_bytes(made[damage])
    with pytest.raises(RunError, match="The run folder is damaged") as caught:
        load_novelty(path)
    assert "\n" not in str(caught.value)


def test_statistics_take_little_memory_beside_the_pictures():
    images = RNG.integers(0, 256, (400, 48, 64, 3)).astype(np.uint8)
    tracemalloc.start()
    statistics = picture_statistics(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * images.nbytes  # all at once they took ten times as much
    np.testing.assert_array_equal(statistics[70:75], picture_statistics(images[70:75]))


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "efficientnetb0", "vit"])
def test_features_and_probabilities_come_from_one_pass(name):
    keras.utils.set_random_seed(0)
    model = build_model(name, 3, image_size=(32, 40))
    images = RNG.integers(0, 256, (4, 32, 40, 3)).astype(np.uint8)
    features, probs = feature_model(model).predict(images, verbose=0)
    assert features.ndim == 2 and features.dtype == np.float32
    np.testing.assert_allclose(probs, model.predict(images, verbose=0), atol=1e-6)


# ----- in a run -----


def test_a_run_records_its_false_alarms(short_run):
    record = json.loads(short_run.metrics.read_text())["novelty"]
    assert record["wanted"] == 0.01 and record["num_reference"] == 72
    assert record["val"]["value"] == pytest.approx(1 / 36)  # the least that a threshold between pictures can flag
    assert (
        record["test"]["low"] <= record["test"]["value"] <= record["test"]["high"]
        and record["test"]["num_clusters"] == 9
    )
    assert "Flagged as unlike the training pictures: " in short_run.summary.read_text()


def test_other_kinds_of_pictures_are_flagged(short_run):
    model = feature_model(kmed.load_model(short_run.model))
    novelty = load_novelty(short_run.novelty)
    strange = np.stack([np.zeros((32, 40, 3)), np.full((32, 40, 3), 255), RNG.integers(0, 256, (32, 40, 3))])
    features, _ = model.predict(strange.astype(np.uint8), verbose=0)
    assert novelty.flags(novelty.distances(strange, features)).all()


def test_a_run_without_it_can_be_given_it(short_run, tmp_path):
    run = Run(shutil.copytree(short_run.folder, tmp_path / "run"))
    before = run.novelty.read_bytes(), run.metrics.read_text(), run.summary.read_text()
    run.novelty.unlink()
    metrics = json.loads(before[1])
    del metrics["novelty"]
    run.metrics.write_text(json.dumps(metrics))
    run.summary.write_text("".join(line for line in before[2].splitlines(True) if not line.startswith("Flagged")))
    kmed.fit_novelty(run.folder)
    assert json.loads(run.metrics.read_text()) == json.loads(before[1])
    assert run.summary.read_text() == before[2]
    assert load_novelty(run.novelty).threshold == load_novelty(short_run.novelty).threshold
    kmed.fit_novelty(run.folder)  # once more: what was there is replaced
    assert run.summary.read_text() == before[2]


def test_scoring_again_keeps_it(short_run, tmp_path):
    run = Run(shutil.copytree(short_run.folder, tmp_path / "run"))
    before = json.loads(run.metrics.read_text())["novelty"]
    kmed.rescore(run.folder, ["evaluate.coverage=0.8"])
    assert json.loads(run.metrics.read_text())["novelty"] == before
    assert "Flagged as unlike" in run.summary.read_text()
    with pytest.raises(ConfigError, match="Distances are not stored"):
        kmed.rescore(run.folder, ["evaluate.novelty_false_alarms=0.1"])


def test_statistics_are_exact_for_bytes_and_for_floats():
    """Of pictures with many pixels too, where sums in single precision are off."""
    images = np.random.default_rng(0).integers(0, 256, (3, 240, 320, 3), dtype=np.uint8)
    scaled = images / 255
    grey, spread = scaled.mean(axis=3), scaled.max(axis=3) - scaled.min(axis=3)
    expected = [scaled.mean(axis=(1, 2)), scaled.std(axis=(1, 2))]
    expected += [np.abs(np.diff(grey, axis=axis)).mean(axis=(1, 2))[:, None] for axis in (1, 2)]
    expected = np.concatenate([*expected, spread.mean(axis=(1, 2))[:, None]], axis=1)
    for pictures in (images, images.astype(np.float32), images[:, ::-1]):
        np.testing.assert_allclose(picture_statistics(pictures), expected, rtol=1e-6)


def test_distances_leave_the_number_of_threads_as_it_was():
    images, features = made_up(20)
    novelty = fit_reference(features, picture_statistics(images))
    before = threadpoolctl.threadpool_info()
    novelty.distances(images, features)
    assert threadpoolctl.threadpool_info() == before
