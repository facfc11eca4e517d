"""Settings: defaults, files, overrides, and the one line that a mistake gets."""

import pathlib

import pytest

from kmed.config import Config, load_config, setting_names
from kmed.errors import ConfigError

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = [*sorted((ROOT / "configs").glob("*.yaml")), *sorted((ROOT / "kmed").glob("demo_*.yaml"))]


def test_defaults_file_and_overrides_win_in_that_order(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {epochs: 7, batch_size: 8}\n")
    config = load_config(path, ["train.epochs=3", ("model.name", "vit")])
    assert (config.train.epochs, config.train.batch_size, config.model.name) == (3, 8, "vit")
    assert config.train.learning_rate == Config().train.learning_rate


def test_nothing_is_lost_in_a_round_trip(tmp_path):
    config = load_config(
        overrides=[
            "data.image_size=60x80",
            "model.normalization=[[0.5, 0.5, 0.5], [0.2, 0.2, 0.2]]",
            "model.options={patch_size: 4}",
            "data.split_folders={Fold1: train}",
            "data.label_columns=[a, b]",
            "train.devices=[CPU:0, CPU:1]",
            "augment.mixup=0.2",
        ]
    )
    config.write(tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config
    assert config.data.image_size == (60, 80)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_opens_with_its_command(path):
    load_config(path)
    head = path.read_text().split("\n")[0]
    assert head.startswith("# kmed train")


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "Did you mean 'train.epochs'?"),
        ("trian.epochs=3", "Did you mean 'train'?"),
        ("epochs=3", "Did you mean 'train.epochs'?"),
        ("train.epochs=many", "train.epochs: input should be a valid integer"),
        ("train.epochs=0", "train.epochs: input should be greater than or equal to 1. Received: 0."),
        ("train.learning_rate=.inf", "train.learning_rate: input should be a finite number"),
        ("data.fit=padd", "input should be 'pad', 'crop' or 'stretch'. Received: 'padd'."),
        ("data.image_size=120", "data.image_size"),
        ("data.image_size=12by16", "must be HEIGHTxWIDTH"),
        ("train.epochs", "written section.key=value"),
        ("seed.x=1", "seed"),
        ("train={", "not valid YAML"),
    ],
)
def test_a_bad_override_is_one_line_that_helps(override, message):
    with pytest.raises(ConfigError) as error:
        load_config(overrides=[override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", "Did you mean 'train.epochs'?"),
        ("train: [1, 2", "not valid YAML"),
        ("- a\n- b\n", "must hold settings"),
        ("a: b: c", "not valid YAML"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="c.yaml") as error:
        load_config(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_an_empty_one(tmp_path):
    with pytest.raises(ConfigError, match="There is no config file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == Config()


def test_a_string_setting_takes_what_looks_like_a_number():
    assert load_config(overrides=[("data.path", "2024"), "data.group=7"]).data.path == "2024"


def test_setting_names_are_all_of_them():
    names = setting_names()
    assert len(names) == len(set(names))
    assert {"task", "seed", "model.name", "train.ema", "evaluate.level"} <= set(names)
