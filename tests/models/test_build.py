"""Contracts that every model of `list_models()` fulfils."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from kmed.errors import ModelError
from kmed.models.build import build_model, list_models, model_facts, model_options
from kmed.models.registry import MODELS, resolve_name
from kmed.runtime import dtype_policy

# one per family and block type
SMALLEST = ["resnet18", "resnet50", "densenet121", "efficientnetb0", "efficientnetlite0", "vit"]
SIZE = (32, 40)


def smallest_first(names):
    """Returns the names; those not in SMALLEST are marked slow."""
    return [name if name in SMALLEST else pytest.param(name, marks=pytest.mark.slow) for name in names]


def pixels(count=4, size=SIZE):
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3)).astype("uint8")


@pytest.fixture(scope="module")
def models():
    """One small model of each kind; all scales of normalisations are 1, so that every branch takes part."""
    keras.utils.set_random_seed(0)
    built = {name: build_model(name, 3, SIZE) for name in SMALLEST}
    for model in built.values():
        for weight in model.weights:
            if weight.name == "gamma":
                weight.assign(np.ones(weight.shape))
    return built


@pytest.mark.parametrize("name", smallest_first(list_models()))
def test_builds_with_the_agreed_layers(name):
    model = build_model(name, 5, SIZE, task="multilabel")
    assert model.name == name
    assert [layer.name for layer in model.layers] == [
        "images",
        "normalize",
        "backbone",
        "pool",
        "dropout",
        "head",
        "probs",
    ]
    assert model.input_shape == (None, *SIZE, 3)
    assert model.output_shape == (None, 5)
    assert model.get_layer("probs").activation is keras.activations.sigmoid
    paths = [weight.path for weight in model.weights]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize("name", SMALLEST)
def test_probabilities_are_finite_and_sum_to_one(name, models):
    probs = np.asarray(models[name](pixels()))
    assert probs.dtype == np.float32 and probs.shape == (4, 3)
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", SMALLEST)
def test_bytes_and_floats_and_batches_give_the_same(name, models):
    images = pixels()
    whole = np.asarray(models[name](images))
    np.testing.assert_array_equal(models[name](images.astype("float32")), whole)
    parts = np.concatenate([models[name].predict(images[i : i + 2], verbose=0) for i in (0, 2)])
    np.testing.assert_allclose(parts, whole, atol=1e-5)


@pytest.mark.parametrize("name", SMALLEST)
def test_saving_changes_nothing(name, models, tmp_path):
    models[name].save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.name == name
    np.testing.assert_array_equal(loaded(pixels()), models[name](pixels()))


@pytest.mark.parametrize("name", SMALLEST)
def test_one_step_moves_every_weight(name, models):
    model = keras.models.clone_model(models[name])
    model.set_weights(models[name].get_weights())
    before = [np.array(weight) for weight in model.weights]
    model.compile(keras.optimizers.SGD(1.0), "categorical_crossentropy")
    loss = model.train_on_batch(pixels(), np.eye(3, dtype="float32")[[0, 1, 2, 0]])
    assert np.isfinite(loss)
    still = [weight.path for weight, old in zip(model.weights, before, strict=True) if np.array_equal(weight, old)]
    assert not still
    assert all(np.isfinite(np.asarray(weight)).all() for weight in model.weights)


@pytest.mark.parametrize("name", SMALLEST)
def test_mixed_precision_gives_float32_probabilities(name, models):
    with dtype_policy("mixed_bfloat16"):
        model = build_model(name, 3, SIZE)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert keras.backend.standardize_dtype(model.get_layer("backbone").output.dtype) == "bfloat16"
    model.set_weights(models[name].get_weights())
    probs = model(pixels())
    assert keras.backend.standardize_dtype(probs.dtype) == "float32"
    np.testing.assert_allclose(probs, models[name](pixels()), atol=0.15)
    np.testing.assert_allclose(np.asarray(probs).sum(axis=1), 1, atol=1e-5)


def test_the_stock_batch_normalisation_computes_the_same(models):
    stock = build_model("resnet18", 3, SIZE, batch_norm="keras")
    assert type(stock.get_layer("backbone").get_layer("conv1_bn")) is keras.layers.BatchNormalization
    stock.set_weights(models["resnet18"].get_weights())
    np.testing.assert_allclose(stock(pixels()), models["resnet18"](pixels()), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "efficientnetb0"])
def test_every_batch_normalisation_is_torch_like(name, models):
    layers = models[name].get_layer("backbone").layers
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) > 10
    assert {(layer.momentum, layer.epsilon) for layer in norms} == {(0.9, 1e-5)}


def test_residual_blocks_begin_as_the_identity():
    backbone = build_model("resnet18", 3, SIZE).get_layer("backbone")
    assert np.asarray(backbone.get_layer("stack3_block1_2_bn").gamma).max() == 0
    assert np.asarray(backbone.get_layer("stack3_block1_1_bn").gamma).min() == 1


def test_the_same_seed_builds_the_same_weights():
    def weights():
        keras.utils.set_random_seed(5)
        return build_model("resnet18", 3, SIZE).get_weights()

    for one, two in zip(weights(), weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_logits_softmax_and_sigmoid(models):
    options = {"width": 8, "depth": 1, "num_heads": 2}
    logits = build_model("vit", 3, SIZE, activation=None, **options)
    for task, function in (("multiclass", keras.ops.softmax), ("multilabel", keras.ops.sigmoid)):
        model = build_model("vit", 3, SIZE, task=task, **options)
        model.set_weights(logits.get_weights())
        np.testing.assert_allclose(model(pixels()), function(logits(pixels())), atol=1e-6)


def test_normalization_by_name_and_by_number():
    options = {"width": 8, "depth": 1, "num_heads": 2}
    unit = build_model("vit", 3, SIZE, normalization="unit", **options).get_layer("normalize")
    assert (unit.mean, unit.std) == ((0, 0, 0), (1, 1, 1))
    own = build_model("vit", 3, SIZE, normalization=([0.5] * 3, [0.25] * 3), **options).get_layer("normalize")
    assert (own.mean, own.std) == ((0.5,) * 3, (0.25,) * 3)


def test_dropout_goes_before_the_head_and_as_published():
    assert build_model("efficientnetb0", 3, SIZE).get_layer("dropout").rate == MODELS["efficientnetb0"].dropout == 0.2
    assert build_model("resnet18", 3, SIZE, dropout=0.4).get_layer("dropout").rate == 0.4


@pytest.mark.parametrize("alias", ["efficientnet_b0", "EfficientNet-B0", "efficientnetb0"])
def test_aliases(alias):
    assert resolve_name(alias) == "efficientnetb0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet19", 3), "Did you mean 'resnet18'"),
        (("resnet18", 0), "num_classes=0"),
        (("resnet18", True), "num_classes=True"),
        (("resnet18", 2.0), "num_classes=2.0"),
        (("resnet18", 3, (4, 64)), r"at least 8 each for resnet18. Received: image_size=\(4, 64\)"),
        (("densenet121", 3, (16, 64)), "at least 32"),
        (("resnet18", 3, 224), "image_size=224"),
        (("resnet18", 3, (64.5, 64)), "image_size="),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ModelError, match=message):
        build_model(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "multilable"}, "Did you mean 'multilabel'"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"normalization": "imagnet"}, "Did you mean 'imagenet'"),
        ({"normalization": ([0, 0, 0], [1, 1, 0])}, "std above 0"),
        ({"normalization": 3}, "normalization=3"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"batchnorm": "keras"}, "Did you mean 'batch_norm'"),
        ({"batch_norm": "fusedd"}, "Did you mean 'fused'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ModelError, match=message):
        build_model("resnet18", 3, SIZE, **options)


def test_options_are_listed_with_their_defaults():
    assert model_options("resnet18") == {"batch_norm": "fused"}
    assert model_options("vit")["attention_dropout"] == 0.3
    assert "stochastic_depth_rate" in model_options("efficientnet_b3")


def test_names_are_known_without_keras():
    calls = "m.resolve_name('vit'), m.model_facts(), print(len(m.list_models()), 'keras' in sys.modules)"
    code = f"import sys, kmed.models.build as m; {calls}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(len(model_facts())), "False"]
