"""The options of Slurm's jobs that `kmed sweep --slurm KEY=VALUE` takes."""

import dataclasses
import importlib.util
import re
from collections.abc import Callable, Iterable
from typing import Any

from kmed.errors import ConfigError, suggest

_EXAMPLE = "--slurm time=240 --slurm partition=gpu --slurm gpus=1"


def _text(value: str) -> str:
    if not value or re.search(r"\s", value):
        raise ValueError("a word")
    return value


def _count(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise ValueError("a whole number of at least 1")
    return int(value)


def _minutes(value: str) -> int:
    """Returns the minutes of 90, 1:30:00 or 1-12:00:00."""
    match = re.fullmatch(r"(?:(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>\d\d):\d\d|(?P<plain>\d+))", value)
    found = {name: int(number or 0) for name, number in match.groupdict().items()} if match else {}
    total = sum(
        found.get(name, 0) * unit for name, unit in (("days", 1440), ("hours", 60), ("minutes", 1), ("plain", 1))
    )
    if total < 1:
        raise ValueError("minutes, HH:MM:SS or D-HH:MM:SS")
    return total


def _size(value: str) -> str:
    """Returns a size as Slurm takes it, in gigabytes if no unit is given."""
    match = re.fullmatch(r"(\d+)(G|GB|M|MB)?", value, re.IGNORECASE)
    if match is None or int(match[1]) < 1:
        raise ValueError("a size such as 16GB or 4000MB")
    return f"{int(match[1])}{(match[2] or 'G')[0].upper()}"


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of --slurm.

    Attributes:
      parameter: the name that submitit gives it.
      parse: function that turns its text into a value, or raises ValueError with what is legal.
    """

    parameter: str
    parse: Callable[[str], Any]


OPTIONS = {
    "partition": Option("partition", _text),
    "time": Option("time", _minutes),
    "gpus": Option("gpus_per_node", _count),
    "cpus": Option("cpus_per_task", _count),
    "mem": Option("mem", _size),
    "account": Option("account", _text),
    "qos": Option("qos", _text),
    "constraint": Option("constraint", _text),
    "exclude": Option("exclude", _text),
    "setup": Option("setup", lambda value: [value]),
}


def parse_options(options: Iterable[str]) -> dict[str, Any]:
    """Returns the parameters of submitit for texts KEY=VALUE.

    Raises: ConfigError: an unknown or doubled key, a value that is not legal, or no time limit.
    """
    found: dict[str, Any] = {}
    for text in options:
        key, _, value = str(text).partition("=")
        key, value = key.strip(), value.strip()
        if key not in OPTIONS:
            raise ConfigError(
                f"--slurm takes {', '.join(OPTIONS)} as KEY=VALUE. Received: {text!r}.{suggest(key, OPTIONS)}"
            )
        option = OPTIONS[key]
        try:
            parsed = option.parse(value)
        except ValueError as error:
            raise ConfigError(f"--slurm {key} takes {error}. Received: {value!r}.") from None
        if option.parameter in found and key != "setup":
            raise ConfigError(f"--slurm {key} is given twice.")
        found[option.parameter] = [*found.get("setup", []), *parsed] if key == "setup" else parsed
    if "time" not in found:
        raise ConfigError(f"Slurm needs a time limit: give --slurm time=MINUTES, such as {_EXAMPLE}.")
    return found


def check_installed() -> None:
    """Raises ConfigError if submitit is missing."""
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError("--executor slurm needs submitit. Install it with: pip install kmed[slurm]")
