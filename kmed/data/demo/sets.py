"""The built-in demo data, one set a task: drawn when first needed, with nothing downloaded."""

import collections.abc
import dataclasses
import importlib.resources
import os
import pathlib

from kmed.config import Config, load_config
from kmed.data.demo.folder import is_drawn
from kmed.data.demo.smears import draw_demo_smears, smears_marker
from kmed.data.demo.xrays import draw_demo_xrays, xrays_marker
from kmed.errors import ConfigError, suggest
from kmed.progress import say


@dataclasses.dataclass(frozen=True)
class Demo:
    """One set of demo data.

    Attributes:
      folder: its name in data/, and what results call it.
      about: what is drawn, and how much, in a few words.
      draw: (folder, *, seed=0) -> the folder, drawn.
      marker: (seed=0) -> what the marker of such a folder says.
    """

    folder: str
    about: str
    draw: collections.abc.Callable
    marker: collections.abc.Callable


DEMOS = {
    "multiclass": Demo("demo", "800 blood smears", draw_demo_smears, smears_marker),
    "multilabel": Demo("demo_xrays", "some 1,100 chest X-rays of 400 patients", draw_demo_xrays, xrays_marker),
}


def get_demo(task: str) -> Demo:
    """Returns the demo data of a task. Raises ConfigError, naming the nearest, where there are none."""
    if task not in DEMOS:
        raise ConfigError(f"task must be one of {', '.join(DEMOS)}. Received: task={task!r}." + suggest(task, DEMOS))
    return DEMOS[task]


def ensure_demo(seed: int = 0, task: str = "multiclass") -> pathlib.Path:
    """Returns the folder of a task's demo data, in data/ here or in the user's cache; draws it where missing.

    Raises: DataError: the folder holds something else; ConfigError: an unknown task.
    """
    demo = get_demo(task)
    here = pathlib.Path("data")
    writable = os.access(here if here.is_dir() else pathlib.Path(), os.W_OK)
    folder = (here if writable else pathlib.Path.home() / ".cache" / "kmed") / demo.folder
    if is_drawn(folder, demo.marker(seed)):
        return folder
    say(f"Drawing the demo data into {folder} ({demo.about}, some seconds) ...")
    return demo.draw(folder, seed=seed)


def draw_demo(folder, *, seed: int = 0, task: str = "multiclass", **settings) -> pathlib.Path:
    """Draws a task's demo data into any folder, and returns it.

    Args:
      folder: what to write; whole or not at all. Demo data drawn before are replaced.
      seed: decides every file.
      task: "multiclass" (smears) or "multilabel" (X-rays).
      settings: those of draw_demo_smears or draw_demo_xrays, such as image_size.
    Raises: DataError: the folder holds something else, or sizes that cannot be drawn; ConfigError: an unknown task.
    """
    return get_demo(task).draw(folder, seed=seed, **settings)


def demo_task(task: str) -> str:
    """Returns the task of the demo data that stand in where no data are given: "auto" is multiclass."""
    return "multiclass" if task == "auto" else task


def read_settings(config=None, overrides=()) -> Config:
    """Returns the settings of a YAML file and overrides; those of the demo data where neither names data.

    Args:
      config: a YAML file; None: the defaults.
      overrides: as for `kmed.load_config`.
    """
    settings = load_config(config, overrides)
    if config is None and settings.data.path is None:
        # The demo images are small and few, and need a longer training on a smaller size than the defaults.
        demo_config = importlib.resources.files("kmed.data.demo").joinpath(f"demo_{demo_task(settings.task)}.yaml")
        settings = load_config(demo_config, overrides)
    return settings
