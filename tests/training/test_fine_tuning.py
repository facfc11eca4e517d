"""What a run changes by itself when it starts from pretrained weights, and what it leaves alone."""

import pathlib

import keras
import numpy as np
import pytest

from kmed.config import Config, TrainConfig, load_config, setting_names
from kmed.models.build import build_model
from kmed.training import fine_tuning, fit, loop
from kmed.training.fine_tuning import FINE_TUNING, recipe_changes, with_recipe

DOCS = pathlib.Path(__file__).parent.parent.parent / "docs"


def values(config: Config) -> dict:
    """Returns the settings that the recipe may change."""
    return {name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in FINE_TUNING}


def test_every_part_is_a_setting_that_the_recipe_changes_from_its_default():
    assert set(FINE_TUNING) <= set(setting_names())
    defaults = values(Config())
    assert all(defaults[name] != value for name, value in FINE_TUNING.items())


@pytest.mark.parametrize("name", FINE_TUNING)
def test_the_reference_and_the_page_on_training_name_its_values(name):
    value = str(FINE_TUNING[name]).lower()
    lines = (DOCS / "cli-reference.md").read_text().splitlines()
    assert any(line.startswith(f"| `{name}`") and f"with pretrained weights: {value}" in line for line in lines)
    default = str(values(Config())[name]).lower()
    assert f"| `{name}` | {default} | {value} |" in (DOCS / "training.md").read_text()


@pytest.mark.parametrize("weights", ["imagenet", "w.safetensors", "state.pth", "hf://timm/resnet18.a1_in1k", "folder"])
def test_pretrained_weights_bring_the_recipe(weights):
    config = load_config(overrides=[f"model.weights={weights}"])
    assert values(with_recipe(config)) == FINE_TUNING
    assert with_recipe(with_recipe(config)) == with_recipe(config)
    assert load_config(overrides=[("model.weights", weights)]) == config  # the given one is not changed


def test_random_weights_change_nothing():
    for config in (Config(), load_config(overrides=["model.weights=none"])):
        assert with_recipe(config) == config and config.model.weights is None


def test_an_earlier_run_changes_nothing(tmp_path):
    (tmp_path / "model.keras").write_bytes(b"")
    for weights in (tmp_path, tmp_path / "model.keras"):
        config = load_config(overrides=[("model.weights", str(weights))])
        assert with_recipe(config) == config


def test_imagenet_is_no_folder(tmp_path, monkeypatch):
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet" / "model.keras").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert values(with_recipe(load_config(overrides=["model.weights=imagenet"]))) == FINE_TUNING


@pytest.mark.parametrize("name", FINE_TUNING)
def test_a_setting_that_is_given_wins_even_if_it_is_the_default(name, tmp_path):
    default = values(Config())[name]
    on_the_line = load_config(overrides=["model.weights=imagenet", (name, default)])
    section, key = name.split(".")
    (tmp_path / "base.yaml").write_text(f"{section}:\n  {key}: {str(default).lower()}\n")
    (tmp_path / "c.yaml").write_text("base: base.yaml\nmodel: {weights: imagenet}\n")
    for config in (on_the_line, load_config(tmp_path / "c.yaml")):
        assert name not in recipe_changes(config)
        assert values(with_recipe(config)) == FINE_TUNING | {name: default}


def test_a_stored_run_is_not_changed(tmp_path):
    stored = load_config(overrides=["model.weights=imagenet"])
    stored.write(tmp_path / "config.yaml")  # every setting is written, so every one is given
    assert with_recipe(load_config(tmp_path / "config.yaml")) == stored


def test_what_is_changed_is_said_in_one_line(caplog):
    with caplog.at_level("INFO", logger="kmed"):
        fine_tuning.describe_recipe(Config())
        assert not caplog.messages
        fine_tuning.describe_recipe(load_config(overrides=["model.weights=imagenet"]))
    assert len(caplog.messages) == 1
    assert all(f"{name}={value}" in caplog.messages[0] for name, value in FINE_TUNING.items())


@pytest.mark.parametrize(
    "name, options",
    [
        ("resnet18", {}),
        ("densenet121", {}),
        ("efficientnetb0", {}),
        ("efficientnetlite0", {}),
        ("efficientnetlite0", {"batch_norm": "keras"}),
    ],
)
def test_a_frozen_normalisation_keeps_its_weights_in_every_family(name, options):
    model = build_model(name, 2, image_size=(32, 32), **options)
    backbone = model.get_layer("backbone")
    norms = [layer for layer in backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    kept = {weight.path for layer in norms for weight in layer.weights}
    assert kept and kept == {
        weight.path for weight in backbone.weights if weight.path.rpartition("/")[2] not in ("kernel", "bias")
    }
    loop.freeze_layers(model, TrainConfig(freeze_batch_norm=True), epoch=0)
    assert not kept & {weight.path for weight in model.trainable_weights}
    learnt = {weight.path for weight in model.weights} - kept
    assert {weight.path for weight in model.trainable_weights} == learnt


def test_frozen_statistics_do_not_move_in_training():
    model = build_model("efficientnetlite0", 2, image_size=(32, 32))
    loop.freeze_layers(model, TrainConfig(freeze_batch_norm=True), epoch=0)
    model.compile(keras.optimizers.SGD(0.01), "categorical_crossentropy")
    before = {weight.path: weight.numpy() for weight in model.weights}
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype("float32")
    model.fit(images, np.eye(2, dtype="float32")[[0, 1, 0, 1]], verbose=0)
    moved = {weight.path for weight in model.weights if (weight.numpy() != before[weight.path]).any()}
    assert moved == {weight.path for weight in model.trainable_weights}


def test_layers_are_thawed_again_after_the_first_epochs():
    model, settings = build_model("resnet18", 2, image_size=(32, 32)), TrainConfig(freeze_epochs=2)
    for epoch, names in ((1, {"head/kernel", "head/bias"}), (2, None)):
        loop.freeze_layers(model, settings, epoch=epoch)
        found = {weight.path for weight in model.trainable_weights}
        assert found == names if names else len(found) > 50


def test_without_pretrained_weights_nothing_can_be_frozen():
    for setting, off in (("train.freeze_epochs=1", "0"), ("train.freeze_batch_norm=true", "False")):
        with pytest.raises(fit.ConfigError, match=f"needs a pretrained backbone.*set it to {off}"):
            fit.check_settings(load_config(overrides=[setting]))
