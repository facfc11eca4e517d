"""`kmed.train` and `kmed.sweep`: training by the words of the command line.

Importing this is light, so that a mistake is reported at once and not after the seconds TensorFlow takes to load.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence

from kmed.config import Config
from kmed.data.demo.sets import read_settings
from kmed.errors import ConfigError, KmedError
from kmed.progress import warn
from kmed.runs import Run, default_folder, open_run
from kmed.runtime import load_backend

# Argument -> the setting that it stands for; `settings` reaches every other one.
SETTINGS = {
    "task": "task",
    "data": "data.path",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "image_size": "data.image_size",
    "lr": "train.learning_rate",
    "seed": "seed",
    "weights": "model.weights",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What `kmed.train` and `kmed.sweep` share: where the settings come from, but for the model.

    Attributes: as the arguments of `train`; None leaves a setting as it is.
    """

    config: str | pathlib.Path | None = None
    task: str | None = None
    data: str | pathlib.Path | None = None
    epochs: int | str | None = None
    batch_size: int | str | None = None
    image_size: tuple[int, int] | str | None = None
    lr: float | str | None = None
    seed: int | str | None = None
    weights: str | pathlib.Path | None = None
    settings: tuple[str, ...] = ()

    def given(self) -> dict[str, object]:
        """Returns the arguments that stand for one setting and are given, as text, numbers and tuples."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {
            name: str(value) if isinstance(value, pathlib.Path) else value
            for name, value in values.items()
            if value is not None
        }

    def read(self, model: str | None = None) -> Config:
        """Returns the settings of a run. Raises ConfigError where one is not legal."""
        overrides = [*self.settings, *((SETTINGS[name], value) for name, value in self.given().items())]
        return read_settings(self.config, overrides if model is None else [*overrides, ("model.name", model)])

    def options(self) -> list[str]:
        """Returns the options that give `kmed train` this recipe."""
        given = ({} if self.config is None else {"config": str(self.config)}) | self.given()
        options = [f"--{name.replace('_', '-')}={_as_option(value)}" for name, value in given.items()]
        return options + [f"--set={setting}" for setting in self.settings]


def _as_option(value) -> str:
    return "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def train(
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
    settings: Iterable[str] = (),
    out: str | pathlib.Path | None = None,
    resume: str | pathlib.Path | None = None,
    append: str | pathlib.Path | None = None,
    finished: Callable[[Run], object] | None = None,
) -> Run:
    """Trains a model, scores it once on the test split, and leaves a run folder with its report.

    What is None stays as the YAML file says, else at its default; without `data` and `config` the built-in
    demo data are used. `kmed.fit` does the same from a whole `Config` and a table of your own.

    Args:
      model: a name of `kmed.list_models()`.
      task: "multiclass", "multilabel", or "auto": what the labels show.
      data: a folder, a CSV or an npz.
      config: a YAML file of settings, such as configs/blood_cells.yaml.
      epochs: how often the training images are seen.
      batch_size: images per step.
      image_size: (height, width) in pixels, or "HxW".
      lr: peak learning rate of AdamW.
      seed: of the split, the weights and every draw.
      weights: "imagenet", a safetensors file, or an earlier run.
      settings: "section.key=value", any setting.
      out: the run folder, which must not exist yet; None: saved_models/DATA-MODEL-TIME.
      resume: an interrupted run to go on with, by its own settings; nothing else may be given beside it.
      append: a CSV table of results that the run's row is added to.
      finished: called with the Run once it is trained and scored, before its row is added and its report drawn.
    Returns: Run, the paths of what was made.
    Raises: KmedError: bad settings or data, a full disk, a loss that is not finite; RunError: nothing to resume.
    Example:
      >>> run = kmed.train(model="resnet18", data="my_images", epochs=5)
    """
    recipe = Recipe(config, task, data, epochs, batch_size, image_size, lr, seed, weights, tuple(settings))
    if resume is not None and (model or out or recipe != Recipe()):
        raise ConfigError("--resume goes on with the run's own settings; give no others beside it.")
    chosen = recipe.read(model) if resume is None else open_run(resume).read_config()
    load_backend()  # before what imports Keras
    from kmed.evaluation.result_rows import append_result, check_table
    from kmed.report.run_page import write_report
    from kmed.training import fit

    check_table(append, [chosen.task])
    run = fit.fit(chosen, out=out) if resume is None else fit.resume(resume)
    if finished is not None:
        finished(run)
    if append is not None:
        append_result(run, append)
    write_report(run)  # last of all, so that nothing is lost where it fails
    return run


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep left.

    Attributes:
      folder: where it is stored; each model has a run folder in it.
      runs: the finished runs, in the order of training.
      failed: the models whose run failed.
      comparison: files that compare the runs; none where fewer than two are finished.
    """

    folder: pathlib.Path
    runs: tuple[Run, ...]
    failed: tuple[str, ...]
    comparison: tuple[pathlib.Path, ...]


def sweep(
    models: str | Sequence[str] | None = None,
    *,
    task: str | None = None,
    data: str | pathlib.Path | None = None,
    config: str | pathlib.Path | None = None,
    epochs: int | str | None = None,
    batch_size: int | str | None = None,
    image_size: tuple[int, int] | str | None = None,
    lr: float | str | None = None,
    seed: int | str | None = None,
    weights: str | pathlib.Path | None = None,
    settings: Iterable[str] = (),
    out: str | pathlib.Path | None = None,
    resume: str | pathlib.Path | None = None,
    append: str | pathlib.Path | None = None,
    quiet: bool = False,
) -> Sweep:
    """Trains several models with one recipe on the same split, each in a process of its own, and compares them.

    Finished runs are skipped and an interrupted one goes on, so the same call again goes on with a sweep. A run that
    fails is named in the result, and the others go on.

    Args:
      models: names, or one text in which commas separate them.
      task, data, config, epochs, batch_size, image_size, lr, seed, weights, settings: as for `train`.
      out: the folder of the sweep; None: saved_models/sweep-TIME.
      resume: the folder of an interrupted sweep, to go on with its own settings.
      append: a CSV table of results that each run's row is added to as soon as it is finished.
      quiet: whether the runs print nothing but results and errors.
    Returns: Sweep.
    Raises: KmedError: bad settings, before anything is trained. KeyboardInterrupt: Ctrl-C.
    Example:
      >>> sweep = kmed.sweep(["resnet18", "vit"], data="my_images", epochs=5)
    """
    recipe = Recipe(config, task, data, epochs, batch_size, image_size, lr, seed, weights, tuple(settings))
    names = models.split(",") if isinstance(models, str) else list(models or [])
    names = [name.strip() for name in names if name.strip()]
    if resume is not None and (names or out or recipe != Recipe()):
        raise ConfigError("--resume goes on with the sweep's own settings; give no others beside it.")
    if resume is None and not names:
        raise ConfigError("Give --models, such as --models resnet18,vit, or --resume DIR.")
    read = [recipe.read(name) for name in names]
    load_backend()  # before what imports Keras
    from kmed.evaluation.result_rows import append_results, check_table
    from kmed.models.build import check_model
    from kmed.report.comparison_page import compare
    from kmed.training import sweep as sweeping

    if resume is None:
        for name, chosen in zip(names, read, strict=True):  # a mistake is found before hours of training
            check_model(name, chosen.data.image_size, chosen.model.options)
        check_table(append, [chosen.task for chosen in read])
        plan = sweeping.make_plan(names, recipe.options(), out or default_folder("sweep"))
    else:
        plan = sweeping.read_plan(resume)
        begun = [plan.run(name) for name in plan.models if append and plan.run(name).config.exists()]
        check_table(append, [run.read_config().task for run in begun])
    failed = sweeping.train_all(plan, quiet=quiet, finished=lambda run: _add_row(run, append))
    runs = [plan.run(model) for model in plan.models if model not in failed]
    if append is not None:  # again: what could not be added before is an error now
        append_results(runs, append)
    made = compare([run.folder for run in runs], out=plan.folder / "comparison")[1] if len(runs) > 1 else ()
    return Sweep(plan.folder, tuple(runs), tuple(failed), tuple(made))


def _add_row(run: Run, path) -> None:
    """Adds the row of a sweep's run to a table, if there is to be one; where it cannot be, the sweep goes on."""
    from kmed.evaluation.result_rows import append_results

    if path is not None:
        try:
            append_results([run], path)
        except KmedError as error:
            warn(f"Error: {error} The sweep goes on, and its rows are added at its end.")
