"""Heat maps: they equal independent gradients, lie in [0, 1], show the deciding sign, and belong to one class."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from kmed.errors import DataError, ModelError
from kmed.models.build import build_model
from kmed.models.heatmaps import explain, explain_and_overlay, overlay
from kmed.models.keras_file import load_model
from kmed.models.layers import Attention
from kmed.models.registry import family_of
from kmed.runtime import dtype_policy

only_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the oracle is TensorFlow's tape")
CONVOLUTIONAL = ("resnet18", "densenet121", "efficientnetb0", "efficientnetlite0")
SIZE = (64, 96)
SMALL_VIT = {"width": 32, "depth": 2, "num_heads": 4}
OPTIONS = {"resnet18": {}, "vit": SMALL_VIT}


def pixels(count=3, size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3)).astype("uint8")


def build(name, num_classes=3, size=SIZE, **options):
    """Returns a model whose branches all take part, with positive and negative weights in the head."""
    keras.utils.set_random_seed(0)
    model = build_model(name, num_classes, size, **options)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if weight.name == "gamma":
            weight.assign(np.ones(weight.shape))
    for weight in model.get_layer("head").weights:
        weight.assign(rng.normal(size=weight.shape))
    return model


@pytest.fixture(scope="module")
def models():
    return {name: build(name) for name in CONVOLUTIONAL} | {"vit": build("vit", **SMALL_VIT)}


NAMES = [*CONVOLUTIONAL, "vit"]


# ----- against independent gradients -----


@only_tensorflow
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_maps_equal_grad_cam_by_automatic_differentiation(name, models):
    import tensorflow as tf

    model, images, classes = models[name], pixels(), np.array([2, 0, 1])
    maps = model.get_layer("backbone")(model.get_layer("normalize")(images), training=False)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        logits = model.get_layer("head")(model.get_layer("dropout")(model.get_layer("pool")(maps), training=False))
        chosen = tf.gather(logits, classes, batch_dims=1)
    weights = tf.reduce_mean(tape.gradient(chosen, maps), axis=(1, 2), keepdims=True)  # (N, 1, 1, C)
    cells = tf.nn.relu(tf.reduce_sum(maps * weights, axis=-1)).numpy()
    family = family_of(name)
    coordinates = np.mgrid[: SIZE[0], : SIZE[1]].astype(float)
    places = [(coordinate - family.offset(side)) / family.cell_step for coordinate, side in zip(coordinates, SIZE)]
    expected = np.stack([map_coordinates(cell, places, order=1, mode="nearest") for cell in cells])
    heat = explain(model, images, classes)
    assert expected.any()
    for mine, theirs in zip(heat, expected, strict=True):
        np.testing.assert_allclose(mine, theirs / max(theirs.max(), 1e-12), atol=2e-5)


@only_tensorflow
def test_vit_maps_equal_gradients_with_respect_to_recorded_attention(models, monkeypatch):
    import tensorflow as tf

    model, images, classes = models["vit"], pixels(), np.array([2, 0, 1])
    recorded = []
    for layer in model.get_layer("backbone").layers:
        if isinstance(layer, Attention):
            monkeypatch.setattr(layer.drop, "call", lambda x, training=False: recorded.append(x) or x)
    with tf.GradientTape() as tape:
        tokens = model.get_layer("backbone")(model.get_layer("normalize")(images), training=False)
        logits = model.get_layer("head")(tokens[:, 0])
        chosen = tf.gather(logits, classes, batch_dims=1)
    gradients = [gradient.numpy() for gradient in tape.gradient(chosen, recorded)]
    assert len(gradients) == SMALL_VIT["depth"]
    monkeypatch.undo()
    heat = explain(model, images, classes)
    for index in range(len(images)):
        total = np.eye(1 + 8 * 12)
        for weights, gradient in zip(recorded, gradients, strict=True):
            total = total + np.clip(weights.numpy()[index] * gradient[index], 0, None).mean(axis=0) @ total
        patches = total[0, 1:].reshape(8, 12)
        places = [(coordinate - 3.5) / 8 for coordinate in np.mgrid[: SIZE[0], : SIZE[1]].astype(float)]
        expected = map_coordinates(patches, places, order=1, mode="nearest")
        np.testing.assert_allclose(heat[index], expected / expected.max(), atol=1e-4)


def test_attention_with_gates_of_one_is_the_same_bit_for_bit():
    x = np.random.default_rng(0).normal(size=(2, 7, 12)).astype("float32")
    layer = Attention(3)
    plain = np.asarray(layer(x))
    np.testing.assert_array_equal(layer(x, gates=np.ones((2, 3, 7, 7), "float32")), plain)
    assert not np.allclose(layer(x, gates=np.zeros((2, 3, 7, 7), "float32")), plain)


@only_tensorflow
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_cells_are_centred_where_they_look(name):
    """The pixels that change a cell of the last map, weighted by their effect, lie around its centre.

    All kernels are averages, so that no path cancels another and none is favoured.
    """
    import tensorflow as tf

    backbone = build(name, size=(32, 448)).get_layer("backbone")
    for layer in backbone.layers:
        if hasattr(layer, "kernel"):
            kernel = np.abs(np.array(layer.kernel))  # (h, w, in, out); of a depthwise one (h, w, channels, 1)
            axes = (0, 1) if isinstance(layer, keras.layers.DepthwiseConv2D) else (0, 1, 2)
            layer.kernel.assign(kernel / kernel.sum(axes, keepdims=True))
    x = tf.constant(np.random.default_rng(0).random((4, 32, 448, 3), dtype=np.float32))
    with tf.GradientTape() as tape:
        tape.watch(x)
        cell = tf.reduce_sum(backbone(x, training=False)[:, :, 7])
    share = np.abs(tape.gradient(cell, x).numpy()).sum(axis=(0, 1, 3))
    place = (share * np.arange(448)).sum() / share.sum()
    assert place == pytest.approx(7 * family_of(name).cell_step + family_of(name).offset(448), abs=1)


# ----- contracts -----


@pytest.mark.parametrize("name", NAMES)
def test_shape_range_and_repetition(name, models):
    heat = explain(models[name], pixels())
    assert heat.dtype == np.float32 and heat.shape == (3, *SIZE)
    assert np.isfinite(heat).all() and heat.min() >= 0
    assert set(heat.max(axis=(1, 2))) <= {0.0, 1.0} and heat.any()
    np.testing.assert_array_equal(explain(models[name], pixels()), heat)
    np.testing.assert_array_equal(explain(models[name], pixels().astype("float64")), heat)


@pytest.mark.parametrize("name", NAMES)
def test_the_most_probable_class_is_the_default(name, models):
    best = np.argmax(models[name].predict(pixels(), verbose=0), axis=1)
    heat = explain(models[name], pixels())
    np.testing.assert_allclose(explain(models[name], pixels(), best), heat, atol=1e-6)
    one_for_all = explain(models[name], pixels(), 1)
    np.testing.assert_array_equal(explain(models[name], pixels(), [1, 1, 1]), one_for_all)
    other = (best + 1) % 3
    assert np.abs(explain(models[name], pixels(), other) - heat).max() > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_batches_do_not_matter(name, models, monkeypatch):
    whole = explain(models[name], pixels())
    monkeypatch.setattr("kmed.models.heatmaps.BATCH_PIXELS", 1)
    monkeypatch.setattr("kmed.models.heatmaps.BATCH_BYTES", 1)
    np.testing.assert_allclose(explain(models[name], pixels()), whole, atol=1e-4)
    assert explain(models[name], pixels(0)).shape == (0, *SIZE)


@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_saving_and_loading_changes_nothing(name, models, tmp_path):
    models[name].save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(explain(loaded, pixels()), explain(models[name], pixels()))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("resnet18", {"task": "multilabel"}), ("vit", {"task": "multilabel"}), ("vit", {"activation": None})],
)
def test_the_activation_after_the_logits_does_not_matter(name, settings, models):
    other = build_model(name, 3, SIZE, **settings, **OPTIONS[name])
    other.set_weights(models[name].get_weights())
    np.testing.assert_array_equal(explain(other, pixels()), explain(models[name], pixels()))


@pytest.mark.parametrize(
    ("name", "dtype"), [("resnet18", "mixed_bfloat16"), ("vit", "mixed_bfloat16"), ("vit", "mixed_float16")]
)
def test_mixed_precision_gives_nearly_the_same(name, dtype, models):
    with dtype_policy(dtype):
        other = build_model(name, 3, SIZE, **OPTIONS[name])
    other.set_weights(models[name].get_weights())
    heat = explain(other, pixels(), [0, 1, 2])
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat, explain(models[name], pixels(), [0, 1, 2]), atol=0.1)


@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_a_uniform_map_is_zero(name):
    model = build(name, **OPTIONS[name])
    kernel = model.get_layer("head").kernel
    kernel.assign(np.zeros(kernel.shape))
    np.testing.assert_array_equal(explain(model, pixels()), np.zeros((3, *SIZE)))
    if name == "resnet18":  # its last map is at least 0
        kernel.assign(-np.ones(kernel.shape))
        np.testing.assert_array_equal(explain(model, pixels()), np.zeros((3, *SIZE)))
        single_cell = build(name, size=(32, 32))
        assert not explain(single_cell, pixels(size=(32, 32))).any()


# ----- do maps find what decides? -----

SIDE = 64
HALF = SIDE // 2


def draw_signs(count, seed, both=False):
    """Returns (images, labels, quadrants): a red and a green square, each present or not, in different quadrants."""
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 140, (count, SIDE, SIDE, 3))
    labels = np.ones((count, 2), bool) if both else rng.random((count, 2)) < 0.5
    quadrants = np.stack([rng.permutation(4)[:2] for _ in range(count)])  # row-major: 0 1 / 2 3
    for image, row, corners in zip(images, labels, quadrants, strict=True):
        for sign in np.flatnonzero(row):
            top, left = HALF * np.array(divmod(corners[sign], 2)) + rng.integers(4, 13, 2)
            image[top : top + 16, left : left + 16] = np.eye(3)[sign] * 255
    return images.astype("uint8"), labels.astype("float32"), quadrants


def hottest_quadrant(heat):
    """Returns (N,), the quadrant with the largest part of each map."""
    return heat.reshape(-1, 2, HALF, 2, HALF).sum(axis=(2, 4)).reshape(-1, 4).argmax(axis=1)


@pytest.fixture(scope="module", params=["resnet18", "vit"])
def trained(request):
    """A model that has learned which of two coloured signs are in a picture."""
    keras.utils.set_random_seed(0)
    steps, options = {
        "resnet18": (40, {}),
        "vit": (250, {"dropout": 0.0, "attention_dropout": 0.0, **SMALL_VIT}),
    }[request.param]
    model = build_model(request.param, 2, (SIDE, SIDE), task="multilabel", **options)
    model.compile(keras.optimizers.Adam(2e-3), "binary_crossentropy")
    images, labels, _ = draw_signs(16 * steps, seed=1)
    model.fit(images, labels, batch_size=16, epochs=1, verbose=0)
    images, labels, _ = draw_signs(64, seed=2)
    right = (model.predict(images, verbose=0) > 0.5) == labels
    assert right.mean() > 0.95, "the model has not learned the signs, so its maps mean nothing"
    return model


def test_maps_of_two_classes_find_their_own_signs_in_one_picture(trained):
    images, _, quadrants = draw_signs(60, seed=3, both=True)
    hits = np.stack([hottest_quadrant(explain(trained, images, sign)) == quadrants[:, sign] for sign in (0, 1)])
    assert hits.mean() > 0.8  # by chance 0.25
    swapped = np.stack([hottest_quadrant(explain(trained, images, sign)) == quadrants[:, 1 - sign] for sign in (0, 1)])
    assert swapped.mean() < 0.15


def test_the_map_depends_on_what_was_learned(trained):
    """A method that only finds edges would also find the sign with random weights (Adebayo et al., 2018)."""
    images, _, quadrants = draw_signs(60, seed=3, both=True)
    heat, other = explain(trained, images, 0), explain(keras.models.clone_model(trained), images, 0)  # new weights
    assert (hottest_quadrant(other) == quadrants[:, 0]).mean() < 0.55
    alike = [np.corrcoef(one.ravel(), two.ravel())[0, 1] for one, two in zip(heat, other) if two.any()]
    assert not alike or np.mean(alike) < 0.5


# ----- mistakes -----


@pytest.mark.parametrize(
    ("images", "classes", "error", "message"),
    [
        (pixels(size=(32, 96)), None, DataError, r"\(N, 64, 96, 3\) here. Received: shape=\(3, 32, 96, 3\)"),
        (pixels()[0], None, DataError, r"Received: shape=\(64, 96, 3\)"),
        (pixels().astype("float32") + 1, None, DataError, "from 1.0 to 256.0"),
        (np.full((1, *SIZE, 3), np.nan), None, DataError, "nan"),
        (pixels() > 7, None, DataError, "dtype=bool"),
        (pixels(), [0, 1, 3], ModelError, "between 0 and 2 here. Received: 3"),
        (pixels(), -1, ModelError, "Received: -1"),
        (pixels(), [0, 1], ModelError, r"3 here, or one integer for all. Received: shape=\(2,\)"),
        (pixels(), [0.0, 1.0, 2.0], ModelError, "dtype=float64"),
    ],
)
def test_bad_arguments_are_named(images, classes, error, message, models):
    with pytest.raises(error, match=message) as caught:
        explain(models["vit"], images, classes)
    assert "\n" not in str(caught.value)


def test_foreign_models_are_refused(models):
    other = keras.Sequential([keras.Input((*SIZE, 3)), keras.layers.Flatten(name="flat"), keras.layers.Dense(3)])
    with pytest.raises(ModelError, match="no layer 'normalize'. Its layers: flat"):
        explain(other, pixels())
    with pytest.raises(ModelError, match="Its layers: none"):
        explain(lambda images: images, pixels())


def test_a_backend_without_gradients_is_named(models, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "openvino")
    with pytest.raises(ModelError, match="Keras runs on openvino"):
        explain(models["vit"], pixels(), 0)


# ----- overlays -----


def test_overlay_is_grey_where_cold_and_brighter_where_hot():
    picture = np.full((4, 256, 3), [200, 20, 60], "uint8")
    ramp = np.tile(np.linspace(0, 1, 256, dtype="float32"), (4, 1))
    laid = overlay(picture, ramp, opacity=1.0)
    assert laid.dtype == np.uint8 and laid.shape == picture.shape
    np.testing.assert_array_equal(laid[:, 0], round(0.6 * (0.299 * 200 + 0.587 * 20 + 0.114 * 60)))
    np.testing.assert_array_equal(laid[:, -1], [[252, 255, 164]] * 4)  # the last colour of inferno
    np.testing.assert_array_equal(overlay(picture, ramp, opacity=0.0), np.repeat(laid[:, :1], 256, axis=1))
    np.testing.assert_array_equal(overlay(picture.astype("float64"), ramp, opacity=1.0), laid)
    brightness = overlay(np.full((1, 256, 3), 255), ramp[:1]).astype(float)[0, [0, -1]] @ [0.299, 0.587, 0.114]
    assert brightness[1] > brightness[0] + 30  # the hottest pixel is brighter than white without heat


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((4, 4)), np.zeros((4, 4))), r"\(N, H, W, 3\)"),
        ((np.zeros((4, 4, 3)), np.zeros((4, 5))), r"\(4, 4\). Received: shape=\(4, 5\)"),
        ((np.zeros((4, 4, 3)), np.full((4, 4), 1.5)), "heatmap must be in"),
        ((np.zeros((4, 4, 3)), np.full((4, 4), np.nan)), "nan"),
        ((np.zeros((4, 4, 3)), np.zeros((4, 4)), 1.2), "opacity=1.2"),
    ],
)
def test_overlay_names_bad_arguments(arguments, message):
    with pytest.raises(DataError, match=message):
        overlay(*arguments)


@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_overlays_are_the_maps_laid_over_their_pictures(name, models):
    images = pixels()
    heat, overlays = explain_and_overlay(models[name], images, [2, 0, 1])
    np.testing.assert_array_equal(heat, explain(models[name], images, [2, 0, 1]))
    np.testing.assert_array_equal(overlays, [overlay(image, of_it) for image, of_it in zip(images, heat)])
    assert overlays.dtype == np.uint8
    heat, overlays = explain_and_overlay(models[name], pixels(0), [])
    assert heat.shape == (0, *SIZE) and overlays.shape == (0, *SIZE, 3)
    with pytest.raises(ModelError, match="class_indices"):
        explain_and_overlay(models[name], images, [0])


# ----- JAX -----

ON_JAX = """
import sys
import keras, numpy as np
from kmed.models.keras_file import load_model
from kmed.models.heatmaps import explain
assert keras.backend.backend() == "jax"
np.save(sys.argv[3], explain(load_model(sys.argv[2]), np.load(sys.argv[1]), [2, 0, 1]))
"""


@only_tensorflow
def test_jax_gives_the_same_maps(tmp_path):
    pytest.importorskip("jax", reason="JAX is not installed: pip install jax")
    images, model = pixels(size=(24, 32)), build("vit", size=(24, 32), **SMALL_VIT)
    files = [str(tmp_path / name) for name in ("images.npy", "model.keras", "heat.npy")]
    np.save(files[0], images)
    model.save(files[1])
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    subprocess.run([sys.executable, "-c", ON_JAX, *files], check=True, env=environment, timeout=300)
    np.testing.assert_allclose(np.load(files[2]), explain(model, images, [2, 0, 1]), atol=1e-3)
