"""The built-in demo data, one set per task, drawn when first needed; nothing is downloaded."""

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
from kmed.files import clear_leftovers
from kmed.progress import say


@dataclasses.dataclass(frozen=True)
class Demo:
    """One set of demo data.

    Attributes:
      folder: the name of its folder in data/, and its name in results.
      about: what is drawn, and how much, in a few words.
      draw: function (folder, *, seed=0) that draws the data and returns the folder.
      marker: function (seed=0) that returns the folder's marker.
    """

    folder: str
    about: str
    draw: collections.abc.Callable
    marker: collections.abc.Callable


DEMOS = {
    "multiclass": Demo("demo", "800 blood smears", draw_demo_smears, smears_marker),
    "multilabel": Demo("demo_xrays", "about 1,100 chest X-rays of 400 patients", draw_demo_xrays, xrays_marker),
}


def get_demo(task: str) -> Demo:
    """Returns the demo data of a task. Raises ConfigError, which suggests the nearest task, if there are none."""
    if task not in DEMOS:
        raise ConfigError(f"task must be one of {', '.join(DEMOS)}. Received: task={task!r}." + suggest(task, DEMOS))
    return DEMOS[task]


def ensure_demo(seed: int = 0, task: str = "multiclass") -> pathlib.Path:
    """Returns the folder of a task's demo data, in ./data or in the user's cache; draws them if missing.

    Raises: DataError: the folder holds other files; ConfigError: the task is unknown.
    """
    demo = get_demo(task)
    here = pathlib.Path("data")
    writable = os.access(here if here.is_dir() else pathlib.Path(), os.W_OK)
    folder = (here if writable else pathlib.Path.home() / ".cache" / "kmed") / demo.folder
    clear_leftovers(folder.parent)
    if is_drawn(folder, demo.marker(seed)):
        return folder
    say(f"Drawing the demo data into {folder} ({demo.about}; takes a few seconds) ...")
    return demo.draw(folder, seed=seed)


def draw_demo(folder, *, seed: int = 0, task: str = "multiclass", **settings) -> pathlib.Path:
    """Draws a task's demo data into any folder, and returns it.

    Args:
      folder: the folder to write, whole or not at all. Earlier demo data in it are replaced.
      seed: random seed, which determines every file.
      task: "multiclass" (smears) or "multilabel" (X-rays).
      settings: further arguments of draw_demo_smears or draw_demo_xrays, such as image_size.
    Raises: DataError: the folder holds other files, or the sizes cannot be drawn; ConfigError: the task is unknown.
    """
    return get_demo(task).draw(folder, seed=seed, **settings)


def demo_task(task: str) -> str:
    """Returns the task of the demo data used when no data are given; "auto" means multiclass."""
    return "multiclass" if task == "auto" else task


def read_settings(config=None, overrides=()) -> Config:
    """Returns the settings of a YAML file and overrides, or those of the demo data if neither is given any data.

    Args:
      config: a YAML file; None: the defaults.
      overrides: as for `kmed.load_config`.
    """
    settings = load_config(config, overrides)
    if config is None and settings.data.path is None:
        # The demo images are small and few: they need more epochs and a smaller size than the defaults.
        demo_config = importlib.resources.files("kmed.data.demo").joinpath(f"demo_{demo_task(settings.task)}.yaml")
        settings = load_config(demo_config, overrides)
    return settings
