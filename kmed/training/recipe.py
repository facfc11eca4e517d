"""`kmed.train` and `kmed.sweep`: training with the options of the command line.

Importing this module does not load Keras, so a mistake in an argument is reported at once, not seconds later.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence

from kmed.config import Config
from kmed.data.demo.sets import read_settings
from kmed.errors import ConfigError, KmedError, suggest
from kmed.progress import configure, say, warn
from kmed.runs import Run, clear_run, default_folder, has_ended, held, open_run
from kmed.runtime import load_backend
from kmed.training import processes
from kmed.training.slurm_options import check_installed, parse_options

# Argument -> the setting that it stands for; `settings` can change every other one.
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
    """The arguments that `kmed.train` and `kmed.sweep` share: all settings except the model.

    Attributes: see the arguments of `train`.
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
        """Returns {argument: value} of those in SETTINGS that were given, with paths as text."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {
            name: str(value) if isinstance(value, pathlib.Path) else value
            for name, value in values.items()
            if value is not None
        }

    def read(self, model: str | None = None) -> Config:
        """Returns the settings of a run. Raises ConfigError if one of them is not legal."""
        overrides = [*self.settings, *((SETTINGS[name], value) for name, value in self.given().items())]
        return read_settings(self.config, overrides if model is None else [*overrides, ("model.name", model)])

    def options(self) -> list[str]:
        """Returns the recipe as options of `kmed train`."""
        given = ({} if self.config is None else {"config": str(self.config)}) | self.given()
        options = [f"--{name.replace('_', '-')}={_as_option(value)}" for name, value in given.items()]
        return options + [f"--set={setting}" for setting in self.settings]

    def check_empty(self, resumed: str, **others) -> None:
        """Raises ConfigError if the recipe or one of the `others` gives a setting.

        Args:
          resumed: what keeps its own settings, such as "a run".
          others: further arguments by name; None: not given.
        """
        values = {**others, **dataclasses.asdict(self)}
        if given := [name for name, value in values.items() if value not in (None, ())]:
            raise ConfigError(
                f"--resume continues {resumed} with its own settings, so it takes no others. "
                f"Received: {', '.join(given)}."
            )


def _as_option(value) -> str:
    return "x".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def as_settings(settings: str | Iterable[str]) -> tuple[str, ...]:
    """Returns settings as a tuple; a text is one setting."""
    settings = (settings,) if isinstance(settings, str) else tuple(settings)
    if wrong := [setting for setting in settings if not isinstance(setting, str)]:
        raise ConfigError(f"settings must be texts section.key=value, such as train.epochs=3. Received: {wrong[0]!r}.")
    return settings


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
    settings: str | Iterable[str] = (),
    out: str | pathlib.Path | None = None,
    resume: str | pathlib.Path | None = None,
    append: str | pathlib.Path | None = None,
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    finished: Callable[[Run], object] | None = None,
) -> Run:
    """Trains a model, scores it once on the test split, and leaves a run folder with its report.

    An argument that is None leaves its setting as it is in the YAML file, or at its default. Without `data` and
    `config`, the built-in demo data are used. `kmed.fit` takes a `Config` and a table instead.

    Args:
      model: one of `kmed.list_models()`.
      task: "multiclass", "multilabel", or "auto": what the labels show.
      data: a folder, a CSV or an npz.
      config: a YAML file of settings, such as configs/blood_cells.yaml.
      epochs: how often the training images are seen.
      batch_size: images per step.
      image_size: (height, width) in pixels, or "HxW".
      lr: peak learning rate of AdamW.
      seed: of the split, the weights and every draw.
      weights: "imagenet", a safetensors or PyTorch file, or the folder of an earlier run.
      settings: one or several texts "section.key=value", for any setting; the arguments above win over them.
      out: the run folder, which must not exist yet, or hold an interrupted run with the same settings, which is then
        continued; None: saved_models/DATA-MODEL-TIME.
      resume: the folder of an interrupted run, which is continued with its own settings; if it has its scores, what is
        missing (figures, row, page) is made. Of the other arguments, only
        `append` and `finished` may be given with it.
      append: a CSV table of results to which the run's row is added.
      distributed: whether several processes train this model together, each with the same arguments; Slurm or Open MPI
        must have started them. Keras must run on JAX, and all must see the run folder, which the first one writes.
      coordinator, num_processes, process_id: the same without Slurm or Open MPI: HOST:PORT of the first process, which
        must be free there, how many there are, and which of them this is, from 0.
      finished: called with the Run after it is scored, before its row is added and its report is drawn; of several
        processes, in the first one.
    Returns: Run, the paths of the files that were made. Of several processes, only the first one makes them.
    Raises: ConfigError: bad settings, or settings given with `resume`. RunError: there is no run to resume, or `out`
      is taken. Other KmedErrors: bad data, a full disk, a loss that is not finite.
    Example:
      >>> run = kmed.train(model="resnet18", data="my_images", epochs=5)
    """
    recipe = Recipe(config, task, data, epochs, batch_size, image_size, lr, seed, weights, as_settings(settings))
    if resume is not None:
        recipe.check_empty("a run", model=model, out=out)
    chosen = recipe.read(model) if resume is None else open_run(resume).read_config()
    if distributed or (coordinator, num_processes, process_id) != (None, None, None):
        processes.join(coordinator, num_processes, process_id)
    load_backend()  # before anything imports Keras
    from kmed.evaluation.result_rows import append_result, check_table
    from kmed.training import fit
    from kmed.training.trackers import report_run

    if not processes.leads():
        configure(quiet=True)  # the first process reports for all
        with processes.reporting_lost_ones("kmed train --resume RUN"):
            return fit.fit(chosen, out=out) if resume is None else fit.resume(resume)
    check_table(append, [chosen.task])
    begun = fit.find_begun(chosen, out) if resume is None else open_run(resume)
    if begun is not None and has_ended(begun) and _complete(begun, append, must=resume is not None):
        if resume is None:
            processes.agree(fit.ENDED)
        if finished is not None:
            finished(begun)
        return begun
    with processes.reporting_lost_ones("kmed train --resume RUN"):
        run = fit.fit(chosen, out=out) if resume is None else fit.resume(resume)
    try:
        if finished is not None:
            finished(run)
    finally:  # the row and the page are made even if nobody reads what `finished` prints
        try:
            if append is not None:
                append_result(run, append)
        finally:
            report_run(run)
    return run


def _complete(run: Run, append, *, must: bool) -> bool:
    """Makes what a killed process left out after a run had its figures: its row in a table, and its page.

    Returns: whether anything was missing; True also if it need not be (`must`), which is said.
    """
    from kmed.evaluation.result_rows import append_results
    from kmed.training.trackers import report_run

    with held(run):
        clear_run(run)
        missing = ["row"] if append is not None and append_results([run], append) else []
        if not run.report.exists():
            report_run(run)
            missing.append("page")
    if missing:
        say(f"{run.folder} has already ended; its {' and its '.join(missing)} had not been written, and are there now.")
    elif not must:
        say(f"{run.folder} holds this run, which has already ended. Choose another --out to train it again.")
    return bool(missing) or not must


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Attributes:
      folder: the sweep's folder, in which each model has a run folder.
      runs: the finished runs, in the order of training.
      failed: names of the models whose run failed.
      comparison: the files of the comparison of the runs; empty if fewer than two are finished.
      script: with `dry_run`, the batch script that Slurm would get; "": the sweep was run.
    """

    folder: pathlib.Path
    runs: tuple[Run, ...]
    failed: tuple[str, ...]
    comparison: tuple[pathlib.Path, ...]
    script: str = ""


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
    settings: str | Iterable[str] = (),
    out: str | pathlib.Path | None = None,
    resume: str | pathlib.Path | None = None,
    append: str | pathlib.Path | None = None,
    jobs: int | None = None,
    executor: str = "local",
    slurm: str | Iterable[str] = (),
    dry_run: bool = False,
    quiet: bool = False,
) -> Sweep:
    """Trains several models with one recipe on the same split, each in a process of its own, and compares them.

    A run that fails is named in the result, and the other models are still trained. The same call with the same `out`
    continues an interrupted sweep: finished runs are skipped, and an interrupted run is resumed.

    Args:
      models: names of `kmed.list_models()`, or one text with commas between them.
      task, data, config, epochs, batch_size, image_size, lr, seed, weights, settings: as for `train`.
      out: the folder of the sweep; None: saved_models/sweep-TIME.
      resume: the folder of an interrupted sweep, which is continued with its own models and settings. Of the other
        arguments, only `append` and those after it may be given with it.
      append: a CSV table of results to which the row of each run is added as soon as the run is finished.
      jobs: how many models are trained at once. None: one here, with all processor cores, which several share out
        between them; on Slurm all for which there is room.
      executor: "local", or "slurm" for an array of jobs, which is waited for. A job that is preempted or reaches its
        time limit is put into the queue again, and continues after its last finished epoch.
      slurm: one or several texts "KEY=VALUE" for Slurm: time (needed), partition, gpus, cpus, mem and others.
      dry_run: whether only the batch script for Slurm is made, and nothing is written or submitted.
      quiet: whether the runs print only results and errors.
    Returns: Sweep, with the finished runs, the models that failed, and the files of the comparison.
    Raises: ConfigError, ModelError: bad settings, or settings given with `resume`. RunError: there is no sweep to
      resume, or `out` or `append` holds something else. All of these before anything is trained.
    Example:
      >>> sweep = kmed.sweep(["resnet18", "vit"], data="my_images", epochs=5)
    """
    recipe = Recipe(config, task, data, epochs, batch_size, image_size, lr, seed, weights, as_settings(settings))
    if jobs is not None and (not isinstance(jobs, int) or jobs < 1):
        raise ConfigError(f"jobs must be a whole number of at least 1. Received: {jobs!r}.")
    cluster = _read_executor(executor, slurm, dry_run)
    names = models.split(",") if isinstance(models, str) else list(models or [])
    names = [name.strip() for name in names if name.strip()]
    if resume is not None:
        recipe.check_empty("a sweep", models=names or None, out=out)
    elif not names:
        raise ConfigError("A sweep needs models: give --models, such as --models resnet18,vit, or --resume DIR.")
    configs = [recipe.read(name) for name in names]
    load_backend()  # before anything imports Keras
    from kmed.evaluation.result_rows import append_results, check_table
    from kmed.models.build import check_model
    from kmed.report.comparison_page import compare
    from kmed.training import slurm as on_slurm
    from kmed.training import sweep as sweeping
    from kmed.training.trackers import report_run

    if resume is None:
        for name, chosen in zip(names, configs, strict=True):  # a mistake is found before hours of training
            check_model(name, chosen.data.image_size, chosen.model.options)
        check_table(append, [chosen.task for chosen in configs])
        begin = sweeping.find_plan if dry_run else sweeping.make_plan
        plan = begin(names, recipe.options(), out or default_folder("sweep"))
    else:
        plan = sweeping.read_plan(resume)
        started = [plan.run(name) for name in plan.models if append and plan.run(name).config.exists()]
        check_table(append, [run.read_config().task for run in started])
    if dry_run:
        return Sweep(plan.folder, (), (), (), on_slurm.batch_script(plan, cluster or {}, jobs=jobs))
    add_row = functools.partial(_add_row, path=append)
    if cluster is None:
        failed = sweeping.train_all(plan, jobs=jobs or 1, quiet=quiet, finished=add_row)
    else:
        failed = on_slurm.train_all(plan, cluster, jobs=jobs, quiet=quiet, finished=add_row)
    runs = [plan.run(model) for model in plan.models if model not in failed]
    for run in runs:
        if not run.report.exists():  # its process was killed
            report_run(run)
    if append is not None:  # once more: a row that could not be added before is now an error
        append_results(runs, append)
    made = compare([run.folder for run in runs], out=plan.folder / "comparison")[1] if len(runs) > 1 else ()
    return Sweep(plan.folder, tuple(runs), tuple(failed), tuple(made))


def _read_executor(executor: str, options: str | Iterable[str], dry_run: bool) -> dict | None:
    """Returns the options for Slurm, or None if the models are trained here. Raises ConfigError if they do not fit."""
    given = (options,) if isinstance(options, str) else tuple(options)
    if executor not in ("local", "slurm"):
        raise ConfigError(
            f"executor must be local or slurm. Received: {executor!r}.{suggest(executor, ['local', 'slurm'])}"
        )
    if executor == "local":
        if given or dry_run:
            raise ConfigError(f"{'--slurm' if given else '--dry-run'} needs --executor slurm.")
        return None
    check_installed()
    return parse_options(given)


def _add_row(run: Run, path) -> None:
    """Adds the row of a sweep's run to a table, if there is to be one; if that fails, the sweep continues."""
    from kmed.evaluation.result_rows import append_results

    if path is not None:
        try:
            append_results([run], path)
        except KmedError as error:
            warn(f"Error: {error} The sweep continues; its rows will be added at its end.")
