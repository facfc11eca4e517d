"""The search space of `kmed tune`: which settings are tried, and between which values."""

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

from kmed.config import Config, load_config, setting_names
from kmed.errors import ConfigError, KmedError, shorten, suggest
from kmed.reading import parse_yaml, read_text

OPTIONS = "model.options."
# Settings outside the sections model, augment and train that may be tried: how a picture becomes the model's input.
OF_PICTURES = ("data.image_size", "data.fit", "data.interpolation", "data.decode", "data.range")
# Settings inside them that may not: they change what a trial's score means, or nothing about the model.
_FIXED = ("model.options", "train.monitor", "train.devices", "train.tensorboard", "train.trackers")
# Settings that change what the validation loss means.
_OF_LOSS = ("train.loss", "train.label_smoothing")
_EXAMPLE = "train.learning_rate: {log: [0.0001, 0.01]}"


@dataclasses.dataclass(frozen=True)
class Kind:
    """How values of a parameter are drawn.

    Attributes:
      suggest: function (optuna.Trial, name, values) that returns a value.
      check: function that returns the values as numbers or plain values, or raises ValueError with the reason.
      inner: function that returns further legal values, by which a setting of another type is found.
    """

    suggest: Callable[[Any, str, tuple], Any]
    check: Callable[[list], tuple]
    inner: Callable[[tuple], tuple] = lambda values: ()


def _numbers(values: list) -> tuple[float, float]:
    """Returns (low, high). YAML takes 1e-4, without a dot, for a text."""
    if len(values) != 2 or any(isinstance(value, bool) for value in values):
        raise ValueError("two numbers, the lower one first")
    try:
        low, high = map(float, values)
    except (TypeError, ValueError):
        raise ValueError("two numbers, the lower one first") from None
    if not -math.inf < low < high < math.inf:
        raise ValueError("two numbers, the lower one first")
    return low, high


def _positive_numbers(values: list) -> tuple[float, float]:
    low, high = _numbers(values)
    if low <= 0:
        raise ValueError("two numbers above 0, the lower one first")
    return low, high


def _whole_numbers(values: list) -> tuple[int, int]:
    low, high = _numbers(values)
    if low != int(low) or high != int(high):
        raise ValueError("two whole numbers, the lower one first")
    return int(low), int(high)


def _choices(values: list) -> tuple:
    if any(not isinstance(value, (str, int, float, bool, type(None))) for value in values):
        raise ValueError("single values (an image size is written 64x80; of model.options, one option is named)")
    if len(values) < 2 or len({repr(value) for value in values}) < len(values):
        raise ValueError("two or more values, each once")
    return tuple(values)


KINDS = {
    "float": Kind(
        lambda trial, name, ends: trial.suggest_float(name, *ends),
        _numbers,
        lambda ends: (ends[0] + 0.382 * (ends[1] - ends[0]),),
    ),
    "log": Kind(
        lambda trial, name, ends: trial.suggest_float(name, *ends, log=True),
        _positive_numbers,
        lambda ends: (ends[0] ** 0.618 * ends[1] ** 0.382,),
    ),
    "int": Kind(lambda trial, name, ends: trial.suggest_int(name, *ends), _whole_numbers),
    "choices": Kind(lambda trial, name, values: trial.suggest_categorical(name, values), _choices),
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One setting that is tried.

    Attributes:
      name: such as "train.learning_rate".
      kind: one of KINDS.
      values: (low, high), or the choices.
    """

    name: str
    kind: str
    values: tuple

    def suggest(self, trial) -> Any:
        """Returns the value of this setting in a trial: the one that it has, or a new one."""
        return KINDS[self.kind].suggest(trial, self.name, self.values)

    def probes(self) -> tuple:
        """Returns values that show whether all others are legal: the ends and one between them, or the choices."""
        return self.values + KINDS[self.kind].inner(self.values)


@dataclasses.dataclass(frozen=True)
class Space:
    """A search space, in the order in which it was written."""

    parameters: tuple[Parameter, ...]

    def suggest(self, trial) -> dict[str, Any]:
        """Returns {setting: value} for a trial of Optuna."""
        return {parameter.name: parameter.suggest(trial) for parameter in self.parameters}

    def first(self) -> dict[str, Any]:
        """Returns {setting: its first value}."""
        return {parameter.name: parameter.values[0] for parameter in self.parameters}

    def as_dict(self) -> dict[str, dict[str, list]]:
        """Returns the space as its YAML file has it."""
        return {each.name: {each.kind: list(each.values)} for each in self.parameters}

    @property
    def names(self) -> list[str]:
        """The settings that are tried."""
        return [parameter.name for parameter in self.parameters]


def read_space(path) -> Space:
    """Returns the Space of a YAML file.

    Raises: ConfigError: there is no such file, it is not YAML, it is empty, or it names a setting that does not exist
      or cannot be tried, or values that are not legal.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise ConfigError(f"There is no file {path}. Write one with lines such as: {_EXAMPLE}")
    try:
        content = parse_yaml(read_text(path, lambda message: ConfigError(f"The search space {message}")))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML{error}.") from None
    if not isinstance(content, dict) or not content:
        received = "nothing" if not content else type(content).__name__
        raise ConfigError(f"{path} must hold settings to try, such as {_EXAMPLE}. Received: {received}.")
    return make_space(content, str(path))


def make_space(content: dict, origin: str) -> Space:
    """Returns the Space of {setting: {kind: values}}. Raises ConfigError, which names `origin`, if it is not legal."""
    return Space(tuple(_make_parameter(name, given, origin) for name, given in content.items()))


def _make_parameter(name, given, origin: str) -> Parameter:
    name = str(name)
    if isinstance(given, dict) and given and any(each.startswith(f"{name}.") for each in setting_names()):
        inside = f"{name}.{next(iter(given))}"  # a section with its settings below it, as in a config file
        raise ConfigError(f"{origin}: a setting is written with its section before it, such as {inside}: ...")
    if not _is_setting(name):
        raise ConfigError(f"{origin}: there is no setting {shorten(name)}.{_hint(name)}")
    if not is_tunable(name):
        why = "name one of its options, such as model.options.depth" if name == "model.options" else _why_fixed()
        raise ConfigError(f"{origin}: {name} cannot be tried: {why}.")
    if not isinstance(given, dict) or len(given) != 1 or next(iter(given)) not in KINDS:
        raise ConfigError(
            f"{origin}: {name} takes one of {', '.join(KINDS)} with its values, such as {{float: [0, 0.1]}} or "
            f"{{choices: [light, medium]}}. Received: {shorten(given)}."
        )
    ((kind, values),) = given.items()
    try:
        if not isinstance(values, list):
            raise ValueError("a list")
        return Parameter(name, kind, KINDS[kind].check(values))
    except ValueError as error:
        raise ConfigError(f"{origin}: {name}: {kind} takes {error}. Received: {shorten(values)}.") from None


def _is_setting(name: str) -> bool:
    return name in setting_names() or (name.startswith(OPTIONS) and len(name) > len(OPTIONS))


def is_tunable(name: str) -> bool:
    """Returns whether a setting may be tried."""
    if name.startswith(OPTIONS):
        return True
    return name not in _FIXED and (name.split(".")[0] in ("model", "augment", "train") or name in OF_PICTURES)


def _why_fixed() -> str:
    return (
        "it changes what a trial's score means, or nothing about the model. Settings of model, augment and train can "
        f"be, and {', '.join(OF_PICTURES)}"
    )


def _hint(name: str) -> str:
    tunable = [each for each in setting_names() if is_tunable(each)]
    alike = [each for each in tunable if each.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    return f" Did you mean {alike[0]!r}?" if alike else suggest(name, tunable)


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """Returns the settings with other values; of those in `config`, only the given ones count as given.

    Args:
      config: the settings.
      values: {setting: value}, such as {"model.options.depth": 2}.
    Raises: ConfigError: a value is not legal.
    """
    return load_config(None, [*config.model_dump(exclude_unset=True).items(), *values.items()])


def check_space(space: Space, config: Config, origin: str, check: Callable[[Config], None]) -> None:
    """Raises ConfigError if the values cannot be those of settings, or if the trials' scores could not be compared.

    Args:
      space: the search space.
      config: the settings that the trials share.
      origin: what errors name.
      check: function that raises an error if settings contradict each other; the first values of all parameters
        together must pass.
    """
    if config.train.monitor == "val_loss" and (changed := [name for name in _OF_LOSS if name in space.names]):
        raise ConfigError(
            f"{origin}: {changed[0]} changes what val_loss means, so the trials could not be compared by it. Set "
            "train.monitor to another score, such as val_accuracy or val_auroc_macro."
        )
    try:
        for parameter in space.parameters:
            for value in parameter.probes():
                with_values(config, space.first() | {parameter.name: value})
        check(with_values(config, space.first()))
    except KmedError as error:
        raise type(error)(f"{origin}: {error}") from None
