"""The tables of models: every row is complete, and a module and rows are enough to add a family."""

import sys
import types

import keras
import numpy as np
import pytest

from kmed import runtime
from kmed.errors import ModelError
from kmed.models.build import build_model, check_model, list_models, model_facts, model_options
from kmed.models.heatmaps import explain
from kmed.models.registry import FAMILIES, MODELS, Entry, Family, choose_dtype, family_of


def test_the_tables_name_the_same_families_and_no_model_twice():
    assert {MODELS[name].family for name in list_models()} == set(FAMILIES)
    variants = {(MODELS[name].family, MODELS[name].variant) for name in list_models()}
    assert len(variants) == len(list_models()) == len(model_facts())


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_has_what_its_row_promises(family):
    module = family.load()
    assert callable(module.build) and callable(module.torch_name) and isinstance(module.HEAD, str)
    assert family.cpu_dtype in ("float32", "mixed_bfloat16")
    name = next(name for name in MODELS if family_of(name) is family)
    assert ("dropout" in module.build.__kwdefaults__) == family.dropout_throughout
    check_model(name, (2 * family.min_side, 2 * family.min_side), {})
    with pytest.raises(ModelError, match=f"at least {family.min_side} each"):
        check_model(name, (family.min_side - 1, 64), {})


@pytest.mark.parametrize("name", MODELS)
def test_the_dtype_is_what_was_measured_for_the_family(name, monkeypatch):
    monkeypatch.setattr(runtime, "num_gpus", lambda: 0)
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: True)
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    assert choose_dtype(name) == ("float32" if name.startswith("efficientnet") else "mixed_bfloat16")
    assert choose_dtype(name, "mixed_float16") == "mixed_float16"
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert choose_dtype(name) == "float32"
    monkeypatch.setattr(runtime, "cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    assert choose_dtype(name) == "float32"
    monkeypatch.setattr(runtime, "num_gpus", lambda: 2)
    assert choose_dtype(name) == "mixed_bfloat16"


# ----- a new family -----


@pytest.fixture
def plain(monkeypatch):
    """A family of one convolution, added as a module and two rows."""

    def build(name, image_size, *, kernel_size: int = 3):
        images = keras.Input((*image_size, 3), name="images")
        (num_channels,) = MODELS[name].variant
        x = keras.layers.Conv2D(num_channels, kernel_size, 4, "same", activation="relu", name="conv")(images)
        return keras.Model(images, x, name="backbone")

    def check_size(image_size, **options):
        if image_size[0] % 4:
            raise ModelError("plain needs a height that is a multiple of 4.")

    module = types.ModuleType("plain_family")
    module.build, module.check_size, module.torch_name, module.HEAD = build, check_size, str, "fc"
    monkeypatch.setitem(sys.modules, "plain_family", module)
    row = Family("plain_family", cpu_dtype="float32", min_side=16, cell_step=4, cell_offset=1.5)
    monkeypatch.setitem(FAMILIES, "plain", row)
    monkeypatch.setitem(MODELS, "plain8", Entry("plain", (8,), dropout=0.25))
    return "plain8"


def test_a_family_is_a_module_and_its_rows(plain, monkeypatch):
    monkeypatch.setattr(runtime, "num_gpus", lambda: 0)
    assert plain in list_models() and model_options("Plain-8") == {"kernel_size": 3}
    assert choose_dtype(plain) == "float32"
    with pytest.raises(ModelError, match="at least 16 each for plain8"):
        check_model(plain, (8, 32), {})
    with pytest.raises(ModelError, match="a multiple of 4"):
        check_model(plain, (18, 32), {})
    with pytest.raises(ModelError, match="Did you mean 'kernel_size'"):
        build_model(plain, 3, (16, 32), kernel_sise=5)

    model = build_model(plain, 3, (16, 32), kernel_size=5)
    assert model.get_layer("dropout").rate == 0.25
    assert model.get_layer("backbone").get_layer("conv").kernel.shape == (5, 5, 3, 8)
    heat = explain(model, np.random.default_rng(0).integers(0, 256, (2, 16, 32, 3)))
    assert heat.shape == (2, 16, 32) and heat.max() == 1
