"""Batches have the same pictures, order and draws with tf.data and in memory, cached or not, whole or resumed."""

import importlib.util
import itertools
import os
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kmed.data.augment import Augmentation, plan_epoch
from kmed.data.augment_pixels import Augmenter
from kmed.data.images import Resizing, read_image
from kmed.data.pipeline import Pipeline, make_dataset, steps_per_epoch
from kmed.data.table import Table
from kmed.errors import DataError

SIZE = (8, 10)
RESIZING = Resizing(SIZE)
BACKENDS = ("tensorflow", "memory") if keras.backend.backend() == "tensorflow" else ("memory",)


def draw_table(folder, count=11, task="multiclass") -> Table:
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (12, 15, 3), np.uint8)).save(folder / f"{index}.png")
    rows = pd.DataFrame({"path": [f"{i}.png" for i in range(count)], "group": "", "cluster": "", "split": ""})
    return Table(rows, np.eye(3, dtype=np.float32)[np.arange(count) % 3], ("a", "b", "c"), task, "tiny", folder)


@pytest.fixture
def table(tmp_path) -> Table:
    return draw_table(tmp_path)


def batches(dataset, count=None) -> list[tuple[np.ndarray, ...]]:
    return [tuple(np.asarray(part) for part in batch) for batch in itertools.islice(iter(dataset), count)]


def assert_same(first, second, atol=0):
    assert len(first) == len(second)
    for one, other in zip(first, second):
        assert [(part.dtype, part.shape) for part in one] == [(part.dtype, part.shape) for part in other]
        for a, b in zip(one, other):
            np.testing.assert_allclose(a.astype(float), b.astype(float), atol=atol)


AUGMENTED = {"augment": "strong", "orientation": "free", "mixup": 0.4, "cutmix": 1.0, "density": "stain", "seed": 5}
ALL_CHANGES = {"augmentation": Augmentation("strong", "free", mixup=0.4, cutmix=1.0, seed=5, density="stain")}
STRONG = Augmentation("strong", seed=5)


# ----- evaluation -----


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_is_the_table_in_order(table, backend):
    found = batches(make_dataset(table, SIZE, batch_size=4, backend=backend, **AUGMENTED))
    assert [len(images) for images, _ in found] == [4, 4, 3]
    images, labels = (np.concatenate(parts) for parts in zip(*found))
    assert images.dtype == np.uint8 and labels.dtype == np.float32
    np.testing.assert_array_equal(images, [read_image(path, RESIZING) for path in table.files])
    np.testing.assert_array_equal(labels, table.labels)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unknown_labels_pass_through(tmp_path, backend):
    table = draw_table(tmp_path, task="multilabel")
    table.labels[2, 1] = np.nan
    labels = np.concatenate([labels for _, labels in batches(make_dataset(table, SIZE, backend=backend))])
    np.testing.assert_array_equal(labels, table.labels)


def test_make_dataset_takes_the_settings_as_words(table):
    words = {"fit": "crop", "interpolation": "box", "class_weights": [1, 2, 3], "cache": "none"}
    objects = {"class_weights": [1, 2, 3], "cache": "none", **ALL_CHANGES}
    pipeline = Pipeline(table, Resizing(SIZE, "crop", "box"), batch_size=4, **objects)
    found = make_dataset(table, SIZE, batch_size=4, training=True, epoch=1, **words, **AUGMENTED)
    assert_same(batches(found), batches(pipeline.epoch(1)))
    assert_same(batches(make_dataset(table, SIZE, batch_size=4, **words)), batches(pipeline.evaluation()))


# ----- training -----


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_epoch_is_its_plan(table, backend):
    pipeline = Pipeline(table, RESIZING, batch_size=4, augmentation=STRONG, backend=backend)
    plan = plan_epoch(11, SIZE, STRONG, epoch=3)
    found = batches(pipeline.epoch(3))
    assert [images.shape for images, _ in found] == [(4, *SIZE, 3)] * 2 and pipeline.steps_per_epoch == 2
    for step, (images, labels) in enumerate(found):
        chosen = slice(4 * step, 4 * step + 4)
        decoded = np.stack([read_image(table.files[row], RESIZING) for row in plan.order[chosen]])
        expected = Augmenter(STRONG)(decoded, plan.draws[chosen])[0]
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, table.labels[plan.order[chosen]])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_an_epoch_can_draw_clusters_instead_of_rows(backend, task):
    # Classes of 10 rows: ten copies of one photograph; nine of one and one of another; two of five.
    clusters = ["p"] * 10 + ["q"] * 9 + ["r"] + ["s"] * 5 + ["t"] * 5
    rows = pd.DataFrame({"path": map(str, range(30)), "group": clusters, "cluster": clusters, "split": ""})
    images = np.repeat(np.arange(30, dtype=np.uint8), 8 * 10 * 3).reshape(30, 8, 10, 3)
    labels = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    table = Table(rows, labels, ("a", "b", "c"), task, "tiny", images=images)
    dataset = make_dataset(table, SIZE, batch_size=5, training=True, epoch=0, sample="cluster", backend=backend)
    drawn = np.concatenate([images[:, 0, 0, 0] for images, _ in batches(dataset)]).astype(int)
    counts = pd.Series(np.array(clusters)[drawn]).value_counts()
    if task == "multiclass":
        assert counts.to_dict() == {"p": 10, "q": 5, "r": 5, "s": 5, "t": 5}
    else:
        assert counts.to_dict() == dict.fromkeys("pqrst", 6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_builds_are_equal_bit_for_bit(table, backend):
    one, two = (
        batches(make_dataset(table, SIZE, batch_size=2, training=True, epoch=1, backend=backend, **AUGMENTED))
        for _ in range(2)
    )
    assert_same(one, two)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stream_is_its_epochs_and_can_be_resumed(table, backend):
    pipeline = Pipeline(table, RESIZING, batch_size=4, backend=backend, **ALL_CHANGES)
    whole = [batch for epoch in range(4) for batch in batches(pipeline.epoch(epoch))]
    assert_same(batches(pipeline.stream(), 8), whole)
    resumed = make_dataset(table, SIZE, batch_size=4, training=True, first_epoch=2, backend=backend, **AUGMENTED)
    assert_same(batches(resumed, 4), whole[4:])
    assert (whole[0][0] != whole[2][0]).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_size_of_a_batch_does_not_change_a_picture(table, backend):
    def images(batch_size):
        pipeline = Pipeline(
            table, RESIZING, batch_size=batch_size, augmentation=Augmentation("strong"), backend=backend
        )
        found = batches(pipeline.epoch(0))
        return np.concatenate([batch[0] for batch in found])[:9]

    np.testing.assert_array_equal(images(3), images(10)[:9])


@pytest.mark.parametrize("backend", BACKENDS)
def test_cached_or_not_the_batches_are_the_same(table, backend):
    found = [
        batches(Pipeline(table, RESIZING, batch_size=4, cache=cache, backend=backend, **ALL_CHANGES).epoch(0))
        for cache in ("none", "memory", "disk")
    ]
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


@pytest.mark.skipif(len(BACKENDS) < 2, reason="needs TensorFlow as Keras' backend")
@pytest.mark.parametrize("settings", [{}, {"class_weights": [1, 2, 3]}, ALL_CHANGES])
def test_both_backends_give_the_same_batches(table, settings):
    one, two = (Pipeline(table, RESIZING, batch_size=4, backend=backend, **settings) for backend in BACKENDS)
    assert_same(batches(one.epoch(1)), batches(two.epoch(1)))
    assert_same(batches(one.evaluation()), batches(two.evaluation()))


@pytest.mark.skipif(
    len(BACKENDS) < 2 or importlib.util.find_spec("jax") is None, reason="needs TensorFlow and JAX side by side"
)
def test_jax_gives_the_same_batches(table, tmp_path):
    script = (
        "import sys, pathlib, numpy; sys.path.insert(0, sys.argv[1]); import test_pipeline as t\n"
        "table = t.draw_table(pathlib.Path(sys.argv[2]))\n"
        "found = t.batches(t.Pipeline(table, t.RESIZING, batch_size=4, **t.ALL_CHANGES).epoch(1))\n"
        "numpy.savez(sys.argv[3], *[part for batch in found for part in batch])\n"
    )
    saved = tmp_path / "jax.npz"
    command = [sys.executable, "-c", script, os.path.dirname(__file__), str(tmp_path), str(saved)]  # noqa: PTH120
    subprocess.run(command, check=True, env={**os.environ, "KERAS_BACKEND": "jax"}, timeout=120)
    pipeline = Pipeline(table, RESIZING, batch_size=4, **ALL_CHANGES)
    expected = [part for batch in batches(pipeline.epoch(1)) for part in batch]
    with np.load(saved) as found:
        for name, part in zip(found.files, expected):
            np.testing.assert_array_equal(found[name], part)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fewer_pictures_than_a_batch_make_one_smaller_batch(table, backend):
    found = batches(make_dataset(table.take(np.arange(3)), SIZE, batch_size=8, training=True, epoch=0, backend=backend))
    assert [images.shape[0] for images, _ in found] == [3]
    assert found[0][0].dtype == np.uint8  # no change was asked for that needs fractions
    assert [steps_per_epoch(*numbers) for numbers in ((3, 8), (8, 8), (17, 8))] == [1, 1, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_class_weights_become_weights_of_rows(table, backend):
    pipeline = Pipeline(table, RESIZING, batch_size=4, class_weights=[1, 2, 4], backend=backend)
    for _, labels, weights in batches(pipeline.epoch(0)) + batches(pipeline.evaluation()):
        assert weights.dtype == np.float32
        np.testing.assert_array_equal(weights, labels @ [1, 2, 4])
    mixup = Augmentation(mixup=0.5)
    mixed = Pipeline(table, RESIZING, batch_size=4, class_weights=[1, 2, 4], augmentation=mixup, backend=backend)
    for _, labels, weights in batches(mixed.epoch(0)):
        np.testing.assert_allclose(weights, labels @ [1, 2, 4], atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fit_takes_an_epoch_and_a_stream(table, backend):
    model = keras.Sequential([keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    pipeline = Pipeline(table, RESIZING, batch_size=4, backend=backend, **ALL_CHANGES)
    model.fit(pipeline.stream(), epochs=2, steps_per_epoch=pipeline.steps_per_epoch, shuffle=False, verbose=0)
    history = model.fit(
        pipeline.epoch(2), epochs=3, initial_epoch=2, validation_data=pipeline.evaluation(), shuffle=False, verbose=0
    )
    assert np.isfinite(history.history["val_loss"]).all()
    assert model.predict(pipeline.evaluation(), verbose=0).shape == (11, 3)


@pytest.mark.skipif("tensorflow" not in BACKENDS, reason="tf.data is TensorFlow's")
def test_nothing_waits_for_the_tuning_thread(table):
    pipeline = Pipeline(table, RESIZING, batch_size=4)
    for dataset in (pipeline.epoch(0), pipeline.stream(), pipeline.evaluation()):
        assert dataset.options().autotune.enabled is False


# ----- errors -----


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unreadable_picture_is_reported_clearly_while_training(table, backend):
    table.files[4].write_bytes(b"broken")
    pipeline = Pipeline(table, RESIZING, batch_size=4, cache="none", backend=backend)
    with pytest.raises(DataError, match=r"4\.png cannot be read"), pipeline.clear_errors():
        batches(pipeline.evaluation())
    with pytest.raises(ZeroDivisionError), pipeline.clear_errors():  # an unrelated error, after an earlier failure
        _ = 1 / 0


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"augment": "lihgt"}, "Did you mean 'light'"),
        ({"orientation": "up"}, "upright, free"),
        ({"mixup": -1}, "mixup is alpha"),
        ({"density": "xposure"}, "Did you mean 'exposure'"),
        ({"sample": "clusters"}, "Did you mean 'cluster'"),
        ({"fit": "padd"}, "Did you mean 'pad'"),
        ({"interpolation": "bicubik"}, "Did you mean 'bicubic'"),
        ({"backend": "tensorflo"}, "Did you mean 'tensorflow'"),
        ({"class_weights": [1, 2]}, "must be 3 numbers"),
        ({"class_weights": [1, 2, -1]}, "must be 3 numbers"),
        ({"seed": -2}, "seed must be a whole number"),
        ({"training": True, "epoch": -1}, "epoch must be a whole number"),
        ({"training": True, "first_epoch": -1}, "epoch must be a whole number"),
    ],
)
def test_settings_outside_their_range(table, settings, words):
    with pytest.raises(DataError, match=words):
        make_dataset(table, SIZE, **settings)


def test_what_cannot_be_weighed_or_batched(tmp_path):
    table = draw_table(tmp_path, task="multilabel")
    with pytest.raises(DataError, match="one class per picture"):
        Pipeline(table, RESIZING, class_weights=[1, 1, 1])
    with pytest.raises(DataError, match="has no pictures"):
        Pipeline(table.take(np.arange(0)), RESIZING)


def test_a_stream_in_memory_has_no_length(table):
    pipeline = Pipeline(table, RESIZING, batch_size=4, backend="memory")
    assert len(pipeline.epoch(0)) == 2 and len(pipeline.evaluation()) == 3
    assert pipeline.stream().num_batches is None
    with pytest.raises(TypeError, match="steps_per_epoch"):
        len(pipeline.stream())
