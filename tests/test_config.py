"""Settings: defaults, files, overrides, and errors of one line."""

import pathlib

import pytest

from kmed.config import Config, load_config, setting_names
from kmed.errors import ConfigError

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = [*(ROOT / "configs").glob("*.yaml"), *(ROOT / "kmed").rglob("demo_*.yaml")]


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


@pytest.mark.parametrize("path", sorted(CONFIGS), ids=lambda path: path.name)
def test_every_shipped_config_loads_and_opens_with_its_command(path):
    load_config(path)
    head = path.read_text().split("\n")[0]
    assert head.startswith("# kmed train")


def test_there_are_configs():
    assert {path.parent.name for path in CONFIGS} == {"configs", "demo"}


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


# ----- a file that builds on another -----

WRITTEN_OUT = {  # the settings of these files when each was written out in full
    "blood_cells_six": {
        "task": "multiclass",
        "data": {"name": "blood_cells", "image_size": "96x128", "val_fraction": 0.2},
        "augment": {"level": "medium", "orientation": "free"},
        "train": {"epochs": 5, "batch_size": 32, "learning_rate": 0.003, "warmup_epochs": 1, "weight_decay": 0.05,
                  "label_smoothing": 0.1, "ema": 0.99, "monitor": "val_accuracy"},
    },
    "blood_cells_efficientnetb0": {
        "task": "multiclass",
        "model": {"name": "efficientnetb0", "options": {"stochastic_depth_rate": 0.06}},
        "data": {"name": "blood_cells", "image_size": "120x160", "val_fraction": 0.2},
        "augment": {"level": "strong", "orientation": "free"},
        "train": {"epochs": 15, "batch_size": 32, "learning_rate": 0.001, "warmup_epochs": 1, "weight_decay": 0.05,
                  "label_smoothing": 0.1, "ema": 0.998},
    },
    "nih_cxr_six": {
        "task": "multilabel",
        "data": {
            "name": "nih_cxr_sample", "image_size": "96x96", "no_finding": "label", "group": "Patient ID",
            "val_fraction": 0.2, "test_fraction": 0.2,
            "class_names": ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema",
                            "Fibrosis", "Hernia", "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia",
                            "Pneumothorax", "No Finding"],
        },
        "augment": {"level": "medium", "orientation": "upright"},
        "train": {"epochs": 10, "batch_size": 32, "learning_rate": 0.003, "warmup_epochs": 1, "weight_decay": 0.05,
                  "ema": 0.99},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_the_six_are_what_they_were_before_they_built_on_others(name, tmp_path):
    path = ROOT / "configs" / f"{name}.yaml"
    assert "base: " in path.read_text()
    assert load_config(path) == Config.model_validate(WRITTEN_OUT[name])


def write_files(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_base_is_read_first_and_settings_of_the_file_win(tmp_path):
    (tmp_path / "deep").mkdir()
    write_files(tmp_path, root="seed: 5\ntrain: {epochs: 7, batch_size: 8, ema: 0.5}\n")
    write_files(
        tmp_path, middle="base: root.yaml\ntrain: {epochs: 6, ema: 0.9}\nmodel: {options: {width: 8, depth: 2}}\n"
    )
    write_files(tmp_path / "deep", own="base: ../middle.yaml\ntrain: {epochs: 5}\nmodel: {options: {width: 16}}\n")
    config = load_config(tmp_path / "deep" / "own.yaml", ["train.batch_size=4"])
    assert (config.seed, config.train.epochs, config.train.ema, config.train.batch_size) == (5, 5, 0.9, 4)
    assert config.model.options == {"width": 16}  # a mapping is one setting, which is replaced as a whole
    config.write(tmp_path / "config.yaml")
    assert "base" not in (tmp_path / "config.yaml").read_text() and load_config(tmp_path / "config.yaml") == config


def test_a_base_does_not_depend_on_where_kmed_is_started(tmp_path, monkeypatch):
    write_files(tmp_path, root="seed: 5\n", own="base: root.yaml\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config("../own.yaml").seed == 5


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"own": "base: none.yaml"}, "own.yaml: there is no base .*none.yaml. A base is named relative to the file"),
        ({"own": "base: own.yaml"}, "build on each other in a circle: .*own.yaml -> .*own.yaml"),
        (
            {"own": "base: a.yaml", "a": "base: b.yaml", "b": "base: ./a.yaml"},
            r"in a circle: .*own.yaml -> .*a.yaml -> .*b.yaml -> .*a.yaml\.",
        ),
        ({"own": "base: [a.yaml]"}, r"own.yaml: base names another YAML file, .* Received: \['a.yaml'\]"),
        ({"own": "base:"}, "own.yaml: base names another YAML file"),
        ({"own": "base: a.yaml", "a": "train: {epoch: 3}"}, "a.yaml: There is no setting 'train.epoch'. Did you mean"),
        ({"own": "base: a.yaml\ntrain: {epoch: 3}", "a": ""}, "own.yaml: There is no setting 'train.epoch'"),
        ({"own": "base: a.yaml", "a": "- 1"}, "a.yaml must hold settings"),
        ({"own": "base: ."}, "The config file .* cannot be read"),
        ({"own": "train: {base: a.yaml}"}, "There is no setting 'train.base'"),
    ],
)
def test_a_bad_base_is_one_line_that_names_the_file(tmp_path, texts, message):
    write_files(tmp_path, **texts)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(tmp_path / "own.yaml")
    assert "\n" not in str(error.value)


def test_base_is_not_a_setting(tmp_path):
    write_files(tmp_path, a="seed: 5\n")
    with pytest.raises(ConfigError, match="There is no setting 'base'"):
        load_config(overrides=[f"base={tmp_path / 'a.yaml'}"])
    assert "base" not in setting_names()


def test_a_string_setting_takes_what_looks_like_a_number():
    assert load_config(overrides=[("data.path", "2024"), "data.group=7"]).data.path == "2024"


def test_setting_names_are_all_of_them():
    names = setting_names()
    assert len(names) == len(set(names))
    assert {"task", "seed", "model.name", "train.ema", "evaluate.level"} <= set(names)


WORDS = [
    "no",
    "No",
    "NO",
    "yes",
    "on",
    "off",
    "true",
    "false",
    "null",
    "~",
    "1",
    "1.0",
    "007",
    "1e3",
    "2024-01-01",
    "0x1A",
]


@pytest.mark.parametrize("word", WORDS)
def test_words_of_yaml_stay_what_was_written(tmp_path, word):
    """A class may be called no, and YAML would make it False."""
    path = tmp_path / "settings.yaml"
    lines = f"  class_names: [{word}, other]\n  label_columns:\n  - {word}\n  split_folders:\n    {word}: test\n"
    path.write_text(f"data:\n{lines}  not_findings: ['{word}']\ntrain:\n  tensorboard: no\n")
    config = load_config(path)
    assert (config.data.class_names, config.data.label_columns) == ([word, "other"], [word])
    assert config.data.split_folders == {word: "test"} and config.data.not_findings == [word]
    assert config.train.tensorboard is False
    for override in (f"data.class_names=[{word}, other]", f"data={{class_names: [{word}, other]}}"):
        assert load_config(overrides=[override]).data.class_names == [word, "other"]
    config.write(tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config


def test_no_text_is_still_nothing():
    config = load_config(
        overrides=["data.label_column=null", "data.class_names=null", "data.group=no", "data.name=007"]
    )
    assert (config.data.label_column, config.data.class_names) == (None, None)
    assert (config.data.group, config.data.name) == ("no", "007")
