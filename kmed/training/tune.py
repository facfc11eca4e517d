"""`kmed.tune`: many trials of one recipe, each with other settings, compared on validation data alone.

Importing this module does not load Keras, so a mistake in an argument is reported at once, not seconds later.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Iterable

import pandas as pd

from kmed.errors import ConfigError, RunError
from kmed.progress import say
from kmed.runs import Run, default_folder
from kmed.runtime import load_backend
from kmed.training.recipe import Recipe, as_settings
from kmed.training.space import check_space, read_space

TRIALS = 20


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The result of a study.

    Attributes:
      folder: in which each trial has a run folder.
      trials: one row per trial: its state, score, epochs and settings.
      best: the run of the best trial, which has seen no test picture.
      config: a YAML file with the settings of the best trial, for `kmed.train`.
      page: the history of the trials and the importance of the settings.
    """

    folder: pathlib.Path
    trials: pd.DataFrame
    best: Run
    config: pathlib.Path
    page: pathlib.Path


def tune(
    space: str | pathlib.Path | None = None,
    *,
    model: str | None = None,
    task: str | None = None,
    data: str | pathlib.Path | None = None,
    config: str | pathlib.Path | None = None,
    epochs: int | str | None = None,
    batch_size: int | str | None = None,
    image_size: tuple[int, int] | str | None = None,
    lr: float | str | None = None,
    seed: int | str | None = None,
    weights: str | pathlib.Path | None = None,
    settings: str | Iterable[str] = (),
    trials: int | None = None,
    prune: bool = True,
    out: str | pathlib.Path | None = None,
    resume: str | pathlib.Path | None = None,
) -> Tuning:
    """Trains with settings drawn from a search space, and returns those that are best on the validation split.

    No picture outside the training and the validation split is opened. Optuna's TPE sampler draws the settings, at
    random for the first ten trials. Several processes work on one study if they are started with the same `space` and
    `out`, or with `resume`, on one machine or on several that share the folder. A trial whose process was killed is
    continued after its last epoch by the next process that needs a trial.

    Args:
      space: a YAML file of settings to try, such as `train.learning_rate: {log: [0.0001, 0.01]}`.
      model, task, data, config, epochs, batch_size, image_size, lr, weights, settings: as for `train`; what the search
        space names replaces them.
      seed: as for `train`, and of the draws of settings.
      trials: how many trials there are in all, over all processes and resumed calls; None: 20, or as many as the
        study was begun with. More of them extend a study.
      prune: whether trials are stopped that are worse than the median of the others after as many epochs. It begins
        once five trials are finished.
      out: the folder of the study; None: saved_models/tune-TIME.
      resume: the folder of a study that is continued with its own settings. Of the other arguments, only `trials` may
        be given with it.
    Returns: Tuning, with the trials and the settings of the best one.
    Raises: ConfigError: Optuna is not installed, bad settings, a bad search space, or settings given with `resume`.
      RunError: there is no study to resume, `out` holds something else, or no trial has finished. DataError: the data
      cannot be used.
    Example:
      >>> tuning = kmed.tune("space.yaml", model="resnet18", data="my_images", trials=30)
      >>> run = kmed.train(config=tuning.config)
    """
    recipe = Recipe(config, task, data, epochs, batch_size, image_size, lr, seed, weights, as_settings(settings))
    if trials is not None and (not isinstance(trials, int) or isinstance(trials, bool) or trials < 1):
        raise ConfigError(f"trials must be a whole number of at least 1. Received: {trials!r}.")
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("kmed tune needs optuna. Install it with: pip install kmed[tune]")
    if resume is not None:
        recipe.check_empty("a study", space=space, model=model, out=out, prune=None if prune else False)
        chosen = searched = None
    elif space is None:
        raise ConfigError("A study needs a search space: give --space FILE, or --resume DIR.")
    else:
        chosen, searched = recipe.read(model), read_space(space)
    load_backend()  # before anything imports Keras
    from kmed.training import fit
    from kmed.training import trials as running

    if chosen is None or searched is None:
        plan = running.read_plan(resume)
    else:
        check_space(searched, chosen, str(space), running.check_settings)
        folder = pathlib.Path(out) if out is not None else default_folder("tune")
        plan = running.Plan(folder, searched, fit.with_absolute_paths(chosen), trials or TRIALS, prune)
        plan = running.find_plan(plan)
    plan = dataclasses.replace(plan, trials=trials or plan.trials)
    running.train_all(plan)
    return _result(plan, running.write_results(plan), running.best_trial)


def _result(plan, trials: pd.DataFrame, best_trial) -> Tuning:
    """Returns the Tuning, and says which trials are still in training. Raises RunError if none has finished."""
    others = (trials["state"] == "running").sum()
    if others:
        say(f"{others} trials are still in training by other processes, which will write the results anew.")
    best = best_trial(plan, trials)
    if best is None:
        counts = ", ".join(f"{count} {state}" for state, count in trials["state"].value_counts().items())
        raise RunError(f"No trial has finished ({counts}). Run the command again with a higher --trials.")
    folder = plan.folder
    return Tuning(folder, trials, plan.run(best), folder / "best.yaml", folder / "report.html")
