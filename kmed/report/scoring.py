"""`kmed.evaluate`: scores a finished run on a split, or scores it again with other settings and renews its page."""

import pathlib
import typing
from collections.abc import Iterable

from kmed.errors import ConfigError, RunError
from kmed.progress import say
from kmed.runs import judged_run
from kmed.runtime import load_backend

if typing.TYPE_CHECKING:
    from kmed.evaluation.assessment import Assessment
    from kmed.metrics.scores import Scores


def evaluate(
    run_folder: str | pathlib.Path,
    split: str = "test",
    *,
    format: str = "keras",
    quantize: str = "none",
    data: str | pathlib.Path | None = None,
    rescore: bool = False,
    settings: Iterable[str] = (),
    append: str | pathlib.Path | None = None,
) -> "Scores":
    """Scores a finished run on one of its splits, with new predictions or with the stored ones.

    The images are those that the run's splits.csv names. A split that played no part in training (such as
    `test_simple`) can be scored too. Calibration and thresholds are those of the run.

    Args:
      run_folder: what `kmed train` made.
      split: a split of the run's data.
      format: which of the run's files predicts: "keras", or one that was exported.
      quantize: one of the format's quantizations, such as "int8".
      data: the folder, CSV or npz to read instead of the one in the run's settings; the images' names must be
        the same.
      rescore: score the stored predictions.csv again with other `settings`. No images or weights are read, and the
        run's scores, figures and page are replaced.
      settings: overrides for `rescore`, such as "evaluate.thresholds=youden".
      append: a CSV table of results to add the run's row to.
    Returns: the Scores of the split; with `rescore`, of the test split (or of the validation split if there is no
      test split).
    Raises: RunError: no such run or export, or it is not finished. DataError: the images are gone, the classes
      differ, or the split does not exist. ConfigError: the arguments contradict each other.
    Example:
      >>> kmed.evaluate("saved_models/latest").scores["accuracy"].value
    """
    return evaluate_run(
        run_folder,
        split,
        format=format,
        quantize=quantize,
        data=data,
        rescore=rescore,
        settings=settings,
        append=append,
    ).scores


def evaluate_run(
    run_folder: str | pathlib.Path,
    split: str = "test",
    *,
    format: str = "keras",
    quantize: str = "none",
    data: str | pathlib.Path | None = None,
    rescore: bool = False,
    settings: Iterable[str] = (),
    append: str | pathlib.Path | None = None,
) -> "Assessment":
    """Returns the Assessment of the split; the arguments are those of `evaluate`."""
    check_arguments(
        split, format=format, quantize=quantize, data=data, rescore=rescore, settings=settings, append=append
    )
    load_backend()  # before the imports that load Keras
    from kmed.evaluation import run_evaluation
    from kmed.evaluation.result_rows import append_results, check_table
    from kmed.report.run_page import try_report

    if append is not None:
        check_table(append, [judged_run(run_folder).read_config().task])
    if rescore:
        assessment = run_evaluation.rescore_split(run_folder, settings)
    else:
        assessment = run_evaluation.evaluate_split(run_folder, split, data=data, format=format, quantize=quantize)
    if rescore:
        try_report(judged_run(run_folder))
    if append is not None and not append_results([judged_run(run_folder)], append):
        held = f"{append} already holds this run's row."
        if not rescore:
            raise RunError(held)
        say(held)  # no error: the same command may have been killed after it added the row
    return assessment


def check_arguments(split, *, format, quantize, data, rescore, settings, append) -> None:
    """Raises ConfigError if the arguments of `evaluate` contradict each other."""
    if rescore and (data or split != "test" or (format, quantize) != ("keras", "none")):
        raise ConfigError(
            "--rescore scores the stored predictions of val and test: do not give --data, --split, --format or "
            "--quantize with it."
        )
    if append and format != "keras":
        raise ConfigError("--append adds the run's row, which is the Keras model's: do not give --format with it.")
    if settings and not rescore:
        raise ConfigError("--set goes with --rescore; without it, a run is scored with its own settings.")
