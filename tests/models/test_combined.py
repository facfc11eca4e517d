"""Combined models: NumPy's mean of their members, one member to the bit, and views that a symmetric picture ignores."""

import keras
import numpy as np
import pytest
import scipy.special
from small_vit import small

from kmed.config import load_config
from kmed.errors import ConfigError
from kmed.models import combined
from kmed.models.build import build_model
from kmed.models.heatmaps import explain
from kmed.models.keras_file import load_model, save_model

ACTIVATIONS = {"multiclass": "softmax", "multilabel": "sigmoid"}
LINKS = {"softmax": lambda logits: scipy.special.softmax(logits, axis=-1), "sigmoid": scipy.special.expit}
SIZE = (16, 16)


def spread(model, seed):
    """Returns the model with a head that tells pictures apart."""
    rng = np.random.default_rng(seed)
    model.get_layer("head").set_weights([rng.normal(0, 2, (8, 3)), rng.normal(0, 1, 3)])
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, *SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module", params=ACTIVATIONS)
def members(request):
    """(activation, two members of one task)."""
    return ACTIVATIONS[request.param], [spread(small(size=SIZE, task=request.param), seed) for seed in (1, 2)]


def logits_of(model, images):
    return keras.Model(model.inputs, model.get_layer("head").output).predict_on_batch(images)


@pytest.mark.parametrize("average", combined.AVERAGES)
def test_the_mean_is_numpys(members, images, average):
    activation, models = members
    logits = np.stack([logits_of(model, images) for model in models]).astype(float)
    link = LINKS[activation]
    expected = link(logits).mean(axis=0) if average == "probabilities" else link(logits.mean(axis=0))
    assert np.abs(link(logits[0]) - link(logits[1])).max() > 0.1  # or equality would mean little
    model = combined.combine(models, activation, average=average)
    np.testing.assert_allclose(model.predict_on_batch(images), expected, atol=1e-6)
    np.testing.assert_allclose(link(logits_of(model, images).astype(float)), expected, atol=1e-6)


def test_the_mean_of_probabilities_stays_exact_near_0_and_1():
    logits = np.array([[[30.0, -30.0, 0.0], [60.0, -50.0, 1.0]]], np.float32)
    softmax = combined.MeanOfMembers("probabilities", "softmax")(logits)
    sigmoid = combined.MeanOfMembers("probabilities", "sigmoid")(logits)
    expected = np.log(scipy.special.softmax(logits.astype(float), axis=-1).mean(axis=1))
    np.testing.assert_allclose(np.asarray(softmax), expected, rtol=1e-5, atol=1e-6)
    mean = scipy.special.expit(logits.astype(float)).mean(axis=1)
    rest = scipy.special.expit(-logits.astype(float)).mean(axis=1)
    np.testing.assert_allclose(np.asarray(sigmoid), np.log(mean) - np.log(rest), atol=1e-4)


def test_one_member_is_the_ensemble(members, images):
    activation, models = members
    assert combined.combine(models[:1], activation) is models[0]
    assert combined.members_of(models[0]) == [models[0]]
    assert combined.with_views(models[0], activation, "none") is models[0]


def test_a_file_holds_all_members(members, images, tmp_path):
    activation, models = members
    model = combined.combine(models, activation, average="probabilities")
    save_model(model, tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict_on_batch(images), model.predict_on_batch(images))
    assert combined.is_combined(loaded) and not combined.is_combined(models[0])
    for member, original in zip(combined.members_of(loaded), models, strict=True):
        assert member.name == "vit"
        np.testing.assert_allclose(member.predict_on_batch(images), logits_of(original, images), atol=1e-6)
    own = keras.Model(loaded.inputs, loaded.get_layer(combined.MEMBERS).output).predict_on_batch(images)
    expected = np.stack([logits_of(original, images) for original in models], axis=1)
    np.testing.assert_allclose(own, expected, atol=1e-6)


def test_members_of_several_families_share_a_graph(images):
    models = [spread(small(size=SIZE), 1), build_model("resnet18", 3, SIZE)]
    model = combined.combine(models, "softmax", average="probabilities")
    expected = np.mean([member.predict_on_batch(images) for member in models], axis=0)
    np.testing.assert_allclose(model.predict_on_batch(images), expected, atol=1e-6)
    heat = explain(model, images)
    assert heat.shape == images.shape[:3] and 0 <= heat.min() <= heat.max() == 1
    chosen = model.predict_on_batch(images).argmax(axis=1)
    both = np.mean([explain(member, images, chosen) for member in models], axis=0)
    np.testing.assert_allclose(heat, both / both.max(axis=(1, 2), keepdims=True), atol=1e-5)


def test_the_views_are_all_that_keep_the_size():
    square, wide = np.arange(9).reshape(1, 3, 3, 1), np.arange(6).reshape(1, 2, 3, 1)
    for name, picture, count in (("flips", wide, 2), ("dihedral", wide, 4), ("dihedral", square, 8)):
        views = np.asarray(combined.Views(name)(picture))
        assert views.shape == (count, *picture.shape[1:])
        np.testing.assert_array_equal(views[0], picture[0])
        assert len({view.tobytes() for view in views}) == count
    turned = {view.tobytes() for view in np.asarray(combined.Views("dihedral")(square))}
    assert {np.rot90(square[0], quarters).tobytes() for quarters in range(4)} <= turned
    np.testing.assert_array_equal(combined.Views("flips")(wide)[1], wide[0, :, ::-1])


@pytest.mark.parametrize("views", ["flips", "dihedral"])
@pytest.mark.parametrize("count", [1, 2])
def test_views_of_a_symmetric_picture_change_nothing(members, images, views, count):
    activation, models = members
    model = combined.combine(models[:count], activation)
    viewed = combined.with_views(model, activation, views)
    turns = np.asarray(combined.Views(views)(images)).reshape(-1, *images.shape)
    same = turns.mean(axis=0).astype(np.float32)  # the same from every side
    np.testing.assert_allclose(viewed.predict_on_batch(same), model.predict_on_batch(same), atol=1e-6)
    assert np.abs(viewed.predict_on_batch(images) - model.predict_on_batch(images)).max() > 1e-3
    expected = viewed.predict_on_batch(images)
    np.testing.assert_allclose(viewed.predict_on_batch(turns[-1]), expected, atol=1e-5)  # whichever side is up


def test_views_average_logits(members, images):
    activation, models = members
    viewed = combined.with_views(models[0], activation, "flips")
    both = logits_of(models[0], images), logits_of(models[0], images[:, :, ::-1])
    np.testing.assert_allclose(logits_of(viewed, images), (both[0] + both[1]) / 2, atol=1e-5)


def test_pictures_with_a_top_are_not_turned():
    for orientation, views in (("upright", "flips"), ("free", "dihedral"), ("upright", "none")):
        combined.check_views(load_config(overrides=[f"augment.orientation={orientation}", f"evaluate.views={views}"]))
    with pytest.raises(ConfigError, match="they have a top: augment.orientation is upright. Set evaluate.views to"):
        combined.check_views(load_config(overrides=["evaluate.views=dihedral"]))
