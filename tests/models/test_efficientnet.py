import keras
import pytest

from kmed.errors import ModelError
from kmed.models.build import build_model
from kmed.models.efficientnet import compound_scaling
from kmed.models.layers import StochasticDepth
from kmed.models.mobile_blocks import STAGES

SIZE = (32, 32)


def drop_rates(model):
    """Returns the rates of the residual branches in order, 0 if a branch is never dropped."""
    layers = model.get_layer("backbone").layers
    rates = {layer.name.removesuffix("drop"): layer.rate for layer in layers if isinstance(layer, StochasticDepth)}
    blocks = [layer.name.removesuffix("project") for layer in layers if layer.name.endswith("project")]
    skips = {layer.name.removesuffix("add") for layer in layers if isinstance(layer, keras.layers.Add)}
    return [(rates.get(block, 0.0) if block in skips else None) for block in blocks]


@pytest.mark.parametrize(("name", "rate", "default"), [("efficientnetb0", None, 0.06), ("efficientnetb1", 0.5, 0.5)])
def test_drop_rates_grow_linearly_to_the_requested_one(name, rate, default):
    options = {} if rate is None else {"stochastic_depth_rate": rate}
    rates = drop_rates(build_model(name, 3, SIZE, **options))
    for number, found in enumerate(rates):
        if found is not None:
            assert found == pytest.approx(default * number / len(rates))
    assert max(filter(None, rates)) < default


def test_no_stochastic_depth_and_no_keras_dropout():
    layers = build_model("efficientnetb0", 3, SIZE, stochastic_depth_rate=0).get_layer("backbone").layers
    assert not any(isinstance(layer, (StochasticDepth, keras.layers.Dropout)) for layer in layers)


def test_compound_scaling_gives_b0_and_b2_and_doubles_the_cost():
    assert compound_scaling(0) == (1.0, 1.0, 224)
    depth, width, side = compound_scaling(1)
    assert (round(depth, 2), round(width, 2), side) == (1.2, 1.1, 258)
    assert depth * width**2 * (side / 224) ** 2 == pytest.approx(2, abs=0.1)
    assert compound_scaling(1, alpha=1, beta=1, gamma=1) == (1, 1, 224)


def test_custom_sizes_change_depth_and_width():
    depth, width, side = compound_scaling(-2)
    small = build_model("efficientnetb0", 3, (side, side), width=width, depth=depth)
    usual = build_model("efficientnetb0", 3, SIZE)
    assert small.count_params() < 0.75 * usual.count_params()
    deep = build_model("efficientnetb0", 3, SIZE, depth=1.5)
    assert len(drop_rates(usual)) == sum(stage.num_blocks for stage in STAGES)
    assert len(drop_rates(deep)) == 2 + 3 + 3 + 5 + 5 + 6 + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stochastic_depth_rate": 1}, "stochastic_depth_rate=1"),
        ({"width": 0}, "width=0"),
        ({"depth": "deep"}, "depth='deep'"),
        ({"depth": 9.0}, "more than 26 blocks"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ModelError, match=message):
        build_model("efficientnetb0", 3, SIZE, **options)


@pytest.mark.parametrize(
    ("arguments", "message"), [((1, 0.9), "alpha=0.9"), ((40,), "phi=40"), ((float("nan"),), "phi=nan")]
)
def test_bad_scaling_is_named(arguments, message):
    with pytest.raises(ModelError, match=message):
        compound_scaling(*arguments)
