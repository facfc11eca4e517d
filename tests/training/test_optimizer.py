"""The optimizer: like Keras' own if nothing is scaled, with clipping, and slower for the backbone."""

import keras
import numpy as np
import pytest

from kmed.config import TrainConfig
from kmed.models.build import build_model
from kmed.training.optimizer import AdamW, make_optimizer


def make_model():
    keras.utils.set_random_seed(0)
    backbone = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="inner")], name="backbone")
    images = keras.Input((4,))
    return keras.Model(images, keras.layers.Dense(2, name="head")(backbone(images)))


def moved(optimizer, steps=3, batch_size=8):
    """Returns the change of each weight after a few steps of eight rows, fixed data."""
    model = make_model()
    before = [weight.numpy() for weight in model.weights]
    model.compile(optimizer, "mse")
    rng = np.random.default_rng(0)
    model.fit(
        rng.normal(size=(8 * steps, 4)),
        50 * rng.normal(size=(8 * steps, 2)),
        batch_size=batch_size,
        shuffle=False,
        verbose=0,
    )
    return [weight.numpy() - old for weight, old in zip(model.weights, before)]


def test_it_is_keras_adamw_if_nothing_is_scaled():
    # Powers of two: the fused kernel computes 1 - beta_2 in float32, which for 0.999 differs from 0.001 by 5e-5 of it.
    settings = {
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "global_clipnorm": 0.5,
        "beta_1": 0.875,
        "beta_2": 1 - 2**-10,
    }
    for ours, theirs in zip(moved(AdamW(**settings)), moved(keras.optimizers.AdamW(**settings))):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)


def test_at_the_usual_rates_it_is_keras_adamw_except_for_that_rounding():
    for ours, theirs in zip(moved(AdamW(0.01)), moved(keras.optimizers.AdamW(0.01))):
        np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=1e-8)


def test_accumulated_steps_are_one_of_the_larger_batch():
    settings = {"learning_rate": 0.01, "weight_decay": 0.1, "global_clipnorm": 0.5}
    halves = moved(AdamW(**settings, gradient_accumulation_steps=2), batch_size=4)
    for ours, theirs in zip(halves, moved(AdamW(**settings)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_schedule_counts_updates():
    settings = TrainConfig(epochs=10, warmup_epochs=2, learning_rate=0.5, accumulate=3)
    schedule = make_optimizer(settings, steps_per_epoch=10)._learning_rate  # 33 updates in all
    rate = [float(schedule(update)) for update in range(34)]
    assert rate[0] == 0 and rate[33] == pytest.approx(0, abs=1e-7)
    assert max(rate) == rate[7] == pytest.approx(0.5)


def test_clipping_changes_the_steps():
    # Adam ignores the gradient's length if it is the same in all steps; here it is not.
    free, clipped = (moved(AdamW(0.01, global_clipnorm=norm)) for norm in (None, 0.01))
    assert max(np.abs(a - b).max() for a, b in zip(free, clipped)) > 1e-5


def test_the_backbone_moves_a_tenth_as_far():
    full, scaled = (
        moved(AdamW(0.01, weight_decay=0), steps=1),
        moved(AdamW(0.01, weight_decay=0, backbone_factor=0.1), steps=1),
    )
    for a, b, factor in zip(full, scaled, (0.1, 0.1, 1, 1)):
        np.testing.assert_allclose(b, factor * a, rtol=1e-4)


def test_warm_up_and_cosine():
    settings = TrainConfig(epochs=10, warmup_epochs=2, learning_rate=0.5)
    schedule = make_optimizer(settings, steps_per_epoch=10)._learning_rate
    rate = [float(schedule(step)) for step in range(101)]
    assert rate[0] == 0
    assert rate[10] == pytest.approx(0.25)
    assert max(rate) == rate[20] == pytest.approx(0.5)
    assert rate[60] == pytest.approx(0.25)
    assert rate[100] == pytest.approx(0, abs=1e-7)


def test_without_warm_up_it_starts_at_the_peak():
    schedule = make_optimizer(
        TrainConfig(epochs=1, warmup_epochs=0, learning_rate=0.5), steps_per_epoch=4
    )._learning_rate
    assert float(schedule(0)) == pytest.approx(0.5)


def test_a_copy_from_its_config_is_the_same():
    copy = AdamW.from_config(AdamW(0.01, backbone_factor=0.3, layer_decay=0.8).get_config())
    assert (copy.backbone_factor, copy.layer_decay) == (0.3, 0.8)


def test_in_a_real_model_all_but_the_head_is_scaled_and_kernels_alone_decay():
    model = build_model("vit", 3, image_size=(16, 16), width=8, depth=1, num_heads=2)
    optimizer = make_optimizer(TrainConfig(backbone_learning_rate=0.1), steps_per_epoch=1)
    optimizer.build(model.trainable_variables)
    unscaled = {v.path for v, factor in zip(model.trainable_variables, optimizer._factors) if factor == 1.0}
    assert unscaled == {"head/kernel", "head/bias"}
    decayed = {v.name for v in model.trainable_variables if optimizer._use_weight_decay(v)}
    assert decayed == {"kernel"}


@pytest.mark.parametrize("name", ["resnet18", "efficientnetlite0", "vit"])
def test_the_rate_falls_from_the_head_to_the_first_layer(name):
    options = {"width": 8, "depth": 2, "num_heads": 2} if name == "vit" else {}
    model = build_model(name, 3, image_size=(32, 32), **options)
    optimizer = make_optimizer(TrainConfig(layer_decay=0.5, backbone_learning_rate=0.1), steps_per_epoch=1)
    optimizer.build(model.trainable_variables)
    layers = [variable.path.rpartition("/")[0] for variable in model.trainable_variables]
    factors = dict(zip(layers, optimizer._factors))
    assert len(factors) == len(set(zip(layers, optimizer._factors)))  # one factor per layer
    inner = [factor for layer, factor in factors.items() if layer != "head"]
    assert factors["head"] == 1 and inner[-1] == pytest.approx(0.1)  # the last layer of the backbone is not slowed
    assert inner == sorted(inner) and inner[0] == pytest.approx(0.1 * 0.5 ** (12 * (1 - 1 / len(inner))))


def test_layers_move_as_far_as_their_factor_says():
    model, slowed = make_deep_model(), make_deep_model()
    for each, decay in ((model, 1.0), (slowed, 0.9)):
        each.compile(AdamW(0.01, weight_decay=0, layer_decay=decay), "mse")
    before = [weight.numpy() for weight in model.weights]
    x, y = np.random.default_rng(0).normal(size=(8, 4)), 50 * np.random.default_rng(1).normal(size=(8, 2))
    for each in (model, slowed):
        each.fit(x, y, batch_size=8, verbose=0)
    full, less = ([weight.numpy() - old for weight, old in zip(each.weights, before)] for each in (model, slowed))
    for a, b, depth in zip(full, less, (0.5, 0.5, 1, 1, 1, 1)):
        np.testing.assert_allclose(b, 0.9 ** (12 * (1 - depth)) * a, rtol=1e-3)


def make_deep_model():
    keras.utils.set_random_seed(0)
    inner = [keras.layers.Dense(5, name="first"), keras.layers.Dense(5, name="second")]
    backbone = keras.Sequential([keras.Input((4,)), *inner], name="backbone")
    images = keras.Input((4,))
    return keras.Model(images, keras.layers.Dense(2, name="head")(backbone(images)))
