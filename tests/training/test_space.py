"""The search space of kmed tune: what is legal, and one line for what is not."""

import pytest

from kmed.config import load_config, setting_names
from kmed.errors import ConfigError
from kmed.training.space import check_space, is_tunable, make_space, read_space, with_values

SPACE = """
train.learning_rate: {log: [1e-4, 0.01]}
train.weight_decay: {float: [0, 0.1]}
train.batch_size: {int: [8, 64]}
augment.level: {choices: [light, medium, strong]}
model.weights: {choices: [none, imagenet]}
data.image_size: {choices: [64x80, 32x40]}
model.options.depth: {choices: [1, 2]}
"""


def nothing(config):
    """Stands for the check of settings against each other."""


def write(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return path


def test_a_space_is_read_and_comes_back_from_its_dictionary(tmp_path):
    space = read_space(write(tmp_path, SPACE))
    assert space.names[0] == "train.learning_rate" and space.parameters[0].values == (1e-4, 0.01)
    assert space.first()["model.options.depth"] == 1
    assert make_space(space.as_dict(), "tune.json") == space
    config = load_config(overrides=["model.name=vit", "model.options={width: 8}"])
    check_space(space, config, "space.yaml", nothing)
    chosen = with_values(config, space.first())
    assert chosen.model.options == {"width": 8, "depth": 1} and chosen.data.image_size == (64, 80)
    assert chosen.model.weights is None and chosen.train.learning_rate == 1e-4
    assert "epochs" not in chosen.train.model_fields_set  # so that the recipe of fine-tuning knows what was given


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold settings to try, such as train.learning_rate: .*Received: nothing"),
        ("- a", "must hold settings to try"),
        ("a: [", "is not valid YAML"),
        ("train.lerning_rate: {log: [1, 2]}", "there is no setting .*Did you mean 'train.learning_rate'"),
        ("learning_rate: {log: [1, 2]}", "there is no setting .*Did you mean 'train.learning_rate'"),
        ("train: {learning_rate: {log: [1, 2]}}", "with its section before it, such as train.learning_rate: "),
        ("data.path: {choices: [a, b]}", "data.path cannot be tried: it changes what a trial's score means"),
        ("seed: {int: [1, 2]}", "seed cannot be tried"),
        ("train.monitor: {choices: [val_loss, val_accuracy]}", "train.monitor cannot be tried"),
        ("model.options: {choices: [a, b]}", "name one of its options, such as model.options.depth"),
        ("train.weight_decay: {uniform: [0, 1]}", "takes one of float, log, int, choices .*Received: {'uniform'"),
        ("train.weight_decay: 0.1", "takes one of float, log, int, choices .*Received: 0.1"),
        ("train.weight_decay: {float: 0.1}", "float takes a list. Received: 0.1"),
        ("train.weight_decay: {float: [0.1, 0]}", "float takes two numbers, the lower one first"),
        ("train.weight_decay: {float: [a, b]}", "float takes two numbers, the lower one first"),
        ("train.weight_decay: {float: [.nan, 1]}", "float takes two numbers, the lower one first"),
        ("train.weight_decay: {log: [0, 1]}", "log takes two numbers above 0"),
        ("train.batch_size: {int: [1.5, 2]}", "int takes two whole numbers"),
        ("augment.level: {choices: [light]}", "choices takes two or more values, each once"),
        ("augment.level: {choices: [light, light]}", "choices takes two or more values, each once"),
        ("data.image_size: {choices: [[32, 40], [64, 80]]}", "an image size is written 64x80"),
    ],
)
def test_a_bad_space_is_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_space(write(tmp_path, text))
    assert "\n" not in str(caught.value) and "space.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.batch_size: {float: [8, 64]}", "train.batch_size: input should be a valid integer"),
        ("train.batch_size: {log: [8, 64]}", "train.batch_size: input should be a valid integer"),
        ("train.ema: {float: [0.9, 1.5]}", "train.ema: input should be less than 1"),
        ("augment.level: {choices: [light, hard]}", "augment.level: input should be 'none'.*Received: 'hard'"),
        ("train.loss: {choices: [auto, focal]}", "train.loss changes what val_loss means"),
        ("train.label_smoothing: {float: [0, 0.2]}", "train.label_smoothing changes what val_loss means"),
    ],
)
def test_values_of_another_type_and_scores_that_cannot_be_compared_are_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=f"^space.yaml: .*{message}"):
        check_space(read_space(write(tmp_path, text)), load_config(), "space.yaml", nothing)


def test_another_score_allows_another_loss(tmp_path):
    space = read_space(write(tmp_path, "train.loss: {choices: [auto, focal]}"))
    check_space(space, load_config(overrides=["train.monitor=val_accuracy"]), "space.yaml", nothing)


def test_settings_that_contradict_each_other_are_named_with_the_file(tmp_path):
    def check(config):
        assert config.train.batch_size == 8
        raise ConfigError("No.")

    with pytest.raises(ConfigError, match="^space.yaml: No.$"):
        check_space(read_space(write(tmp_path, "train.batch_size: {int: [8, 64]}")), load_config(), "space.yaml", check)


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="There is no file .*nowhere.yaml. Write one with lines such as"):
        read_space(tmp_path / "nowhere.yaml")


def test_what_decides_the_pictures_cannot_be_tried():
    tunable = {name for name in setting_names() if is_tunable(name)}
    assert {"train.learning_rate", "augment.mixup", "model.name", "data.image_size"} <= tunable
    assert {"data.decode", "data.range", "data.fit", "data.interpolation"} <= tunable
    assert not {"seed", "task", "data.val_fraction", "data.group", "evaluate.views", "data.splits"} & tunable
