"""`kmed.crossval`: one recipe trained on every fold in turn, and the scores of all pictures together.

Importing this module does not load Keras, so a mistake in an argument is reported at once, not seconds later.
"""

import dataclasses
import pathlib
from collections.abc import Iterable

from kmed.config import Config
from kmed.errors import ConfigError
from kmed.progress import say
from kmed.runs import Run, default_folder
from kmed.runtime import load_backend
from kmed.training.recipe import Recipe, as_settings

FOLDS, REPEATS = 5, 1


@dataclasses.dataclass(frozen=True)
class Crossval:
    """The result of a cross-validation.

    Attributes:
      folder: in which each run has a folder.
      runs: the runs, fold by fold, those of the first repeat first.
      pooled: the scores of all pictures; its files have the names of a run's, but there is no model.
      ensemble: the mean of all runs as one model, calibrated out of fold; held-out pictures are its test split.
    """

    folder: pathlib.Path
    runs: tuple[Run, ...]
    pooled: Run
    ensemble: Run


def crossval(
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
    folds: int = FOLDS,
    repeats: int = REPEATS,
    all_splits: bool = False,
    out: str | pathlib.Path | None = None,
    resume: str | pathlib.Path | None = None,
    append: str | pathlib.Path | None = None,
) -> Crossval:
    """Trains one model per fold, and scores the predictions that each of them makes for the fold it has not seen.

    The folds keep groups together and have about the same share of each class. Pictures of a test split are held out:
    no run sees them. Each run then chooses its best epoch on the fold that it judges. Without a test split, or with
    `all_splits`, it chooses the epoch on the next fold, and is trained on the others. The same call with the same
    `out` continues an interrupted cross-validation. At the end, the runs become an ensemble, which scores the held-out
    pictures once.

    Args:
      model, task, data, config, epochs, batch_size, image_size, lr, seed, weights, settings: as for `train`.
      folds: how many folds there are: at least 2, or 3 if no pictures are held out.
      repeats: how often the folds are drawn and trained on, with the seeds `seed`, `seed` + 1 and so on.
      all_splits: whether the pictures of the data's test split get a fold too; then none are held out.
      out: the folder; None: saved_models/DATA-MODEL-crossval-TIME.
      resume: the folder of an interrupted cross-validation, which is continued with its own settings. Of the other
        arguments, only `append` may be given with it.
      append: a CSV table of results to which two rows are added: that of all pictures, and that of the ensemble.
    Returns: Crossval, with the runs, the scores of all pictures, and the ensemble.
    Raises: ConfigError: bad settings, or settings given with `resume`. RunError: there is nothing to resume, or `out`
      or `append` holds something else. DataError: the data cannot be used, or have too few groups for the folds.
    Example:
      >>> result = kmed.crossval(model="resnet18", data="my_images", epochs=5, folds=5)
      >>> result.pooled.summary
    """
    recipe = Recipe(config, task, data, epochs, batch_size, image_size, lr, seed, weights, as_settings(settings))
    if resume is not None:
        changed = {
            "folds": None if folds == FOLDS else folds,
            "repeats": None if repeats == REPEATS else repeats,
            "all_splits": all_splits or None,
        }
        recipe.check_empty("a cross-validation", model=model, out=out, **changed)
    else:
        _check_counts(folds, repeats)
    chosen = None if resume is not None else recipe.read(model)
    load_backend()  # before anything imports Keras
    from kmed.evaluation.result_rows import append_results, check_table
    from kmed.training import fold_runs

    if chosen is None:
        plan = fold_runs.read_plan(resume)
    else:
        folder = default_folder(*_name(chosen), "crossval") if out is None else out
        plan = fold_runs.make_plan(folder, folds, repeats, all_splits, _check(chosen))
    check_table(append, [plan.config.task])
    pooled = Run(plan.folder)
    with fold_runs.working_on(plan):
        if not pooled.result.exists():
            fold_runs.train_all(plan)
            fold_runs.write_results(plan)
        elif fold_runs.is_combined(plan):
            say(f"{plan.folder} holds this cross-validation, which has already ended.")
        combined = fold_runs.combine(plan)
        fold_runs.draw_missing_pages(plan)
    if append is not None and not append_results([pooled, combined], append):
        say(f"{append} already holds these rows.")
    return Crossval(plan.folder, tuple(part.run for part in plan.parts), pooled, combined)


def _check_counts(folds: int, repeats: int) -> None:
    """Raises ConfigError unless there can be so many folds and repeats."""
    for name, value, least in (("folds", folds, 2), ("repeats", repeats, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name} must be a whole number of at least {least}. Received: {name}={value!r}.")


def _check(config: Config) -> Config:
    """Returns the settings of all runs, with the recipe of fine-tuning. Raises ConfigError if they cannot be used."""
    from kmed.training import fit
    from kmed.training.fine_tuning import describe_recipe, with_recipe

    if config.data.fold is not None:
        raise ConfigError(
            f"A cross-validation trains on every fold, and draws them itself. Received: data.fold={config.data.fold}."
        )
    describe_recipe(config)
    config = with_recipe(config)
    fit.check_settings(config)
    fit.with_normalization(config)  # a mistake in the weights is found before the pictures are read
    return config


def _name(config: Config) -> tuple[str, str]:
    """Returns the words for the data and the model in the name of a new folder."""
    path = config.data.path
    return config.data.name or ("demo" if path is None else pathlib.Path(path).stem), config.model.name
