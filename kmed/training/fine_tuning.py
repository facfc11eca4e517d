"""The recipe that a run takes by itself when it starts from pretrained weights.

A network that already has good features needs smaller steps, the statistics that it came with, and pictures that are
changed more. docs/training.md describes each part; results/tuning.csv has the trials on validation data that the values
come from.
"""

from typing import Any

from kmed.config import Config
from kmed.models.weight_files import is_earlier_run
from kmed.progress import say

# {setting: its value with pretrained weights, unless it is given}
FINE_TUNING: dict[str, Any] = {
    "train.learning_rate": 0.0003,
    "train.freeze_batch_norm": True,
    "augment.level": "medium",
}


def with_recipe(config: Config) -> Config:
    """Returns the settings with those of FINE_TUNING that were not given, if the run starts from pretrained weights.

    An earlier run of kmed as the source of the weights changes no setting.
    """
    changes = recipe_changes(config)
    for name, value in changes.items():
        section, key = name.split(".")
        changed = getattr(config, section).model_copy(update={key: value})
        config = config.model_copy(update={section: changed})
    return config


def recipe_changes(config: Config) -> dict[str, Any]:
    """Returns {setting: value}, what `with_recipe` changes."""
    if config.model.weights is None or is_earlier_run(config.model.weights):
        return {}
    return {name: value for name, value in FINE_TUNING.items() if not _is_given(config, name)}


def describe_recipe(config: Config) -> None:
    """Says which settings the recipe changes, if it changes any."""
    if changes := recipe_changes(config):
        parts = ", ".join(f"{name}={value}" for name, value in changes.items())
        say(f"Fine-tuning from {config.model.weights}: {parts}. Settings that are given win over these.")


def _is_given(config: Config, name: str) -> bool:
    """Returns whether a file, the command line or the caller gave the setting a value."""
    section, key = name.split(".")
    return section in config.model_fields_set and key in getattr(config, section).model_fields_set
