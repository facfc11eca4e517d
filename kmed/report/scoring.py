"""`kmed.evaluate`: a finished run scored on a split, or scored again by other settings, its page drawn anew."""

import typing
from collections.abc import Iterable

from kmed.errors import ConfigError
from kmed.runs import judged_run
from kmed.runtime import load_backend

if typing.TYPE_CHECKING:
    from kmed.evaluation.assessment import Assessment
    from kmed.metrics.scores import Scores


def evaluate(
    run_folder,
    split: str = "test",
    *,
    format: str = "keras",
    quantize: str = "none",
    data=None,
    rescore: bool = False,
    settings: Iterable[str] = (),
    append=None,
) -> "Scores":
    """Scores a finished run on one of its splits: predicted afresh, or again from the stored predictions.

    The images are those that the run's splits.csv names; a split that played no part in training (such as
    `test_simple`) may be asked for too. Calibration and thresholds are those of the run.

    Args:
      run_folder: what `kmed train` made.
      split: a split of the run's data.
      format: which of the run's files predicts: "keras", or one that was exported.
      quantize: one of the format's quantizations, such as "int8".
      data: the folder, CSV or npz to read instead of the one in the run's settings; the images' names must be
        the same.
      rescore: score predictions.csv again by other `settings`; no image and no weight is read, and the run's
        scores, figures and page are replaced.
      settings: with `rescore`: overrides such as "evaluate.thresholds=youden".
      append: a CSV table of results that the run's row is added to.
    Returns: Scores of the split; with `rescore` those of the test split (else of the validation split).
    Raises: RunError: no such run or export, or it is not finished. DataError: the images are gone, the classes
      are others, or the split does not exist. ConfigError: arguments that contradict each other.
    Example:
      >>> kmed.evaluate("saved_models/latest").scores["accuracy"].value
    """
    arguments = {"format": format, "quantize": quantize, "data": data, "settings": settings, "append": append}
    return evaluate_run(run_folder, split, rescore=rescore, **arguments).scores


def evaluate_run(
    run_folder,
    split: str = "test",
    *,
    format: str = "keras",
    quantize: str = "none",
    data=None,
    rescore: bool = False,
    settings: Iterable[str] = (),
    append=None,
) -> "Assessment":
    """Returns the Assessment of the split; the arguments are those of `evaluate`."""
    arguments = {"format": format, "quantize": quantize, "data": data}
    check_arguments(split, **arguments, rescore=rescore, settings=settings, append=append)
    load_backend()  # before what imports Keras
    from kmed.evaluation import run_evaluation
    from kmed.evaluation.result_rows import append_result, check_table
    from kmed.report.run_page import write_report

    if append is not None:
        check_table(append, [judged_run(run_folder).read_config().task])
    if rescore:
        assessment = run_evaluation.rescore_split(run_folder, settings)
    else:
        assessment = run_evaluation.evaluate_split(run_folder, split, **arguments)
    if append is not None:
        append_result(judged_run(run_folder), append)
    if rescore:
        write_report(run_folder)
    return assessment


def check_arguments(split, *, format, quantize, data, rescore, settings, append) -> None:
    """Raises ConfigError where the arguments of `evaluate` contradict each other."""
    if rescore and (data or split != "test" or (format, quantize) != ("keras", "none")):
        raise ConfigError(
            "--rescore judges the stored predictions of val and test: give no --data, --split, --format or --quantize."
        )
    if append and format != "keras":
        raise ConfigError("--append adds the run's row, which is the Keras model's: give no --format beside it.")
    if settings and not rescore:
        raise ConfigError("--set goes with --rescore; a run is else judged by its own settings.")
