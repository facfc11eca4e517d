"""`kmed.evaluate`: scores a finished run on a split or on other data, or scores it again with other settings."""

import pathlib
import typing
from collections.abc import Iterable, Mapping

from kmed.errors import ConfigError, RunError
from kmed.progress import say
from kmed.runs import finished_run, judged_run
from kmed.runtime import load_backend

if typing.TYPE_CHECKING:
    from kmed.evaluation.assessment import Assessment
    from kmed.evaluation.external import External
    from kmed.metrics.scores import Scores


def evaluate(
    run_folder: str | pathlib.Path,
    split: str | None = None,
    *,
    format: str = "keras",
    quantize: str = "none",
    data: str | pathlib.Path | None = None,
    rescore: bool = False,
    on: str | pathlib.Path | None = None,
    class_map: Mapping | str | pathlib.Path | Iterable[str] = (),
    name: str | None = None,
    copies: str = "pixels",
    settings: Iterable[str] = (),
    append: str | pathlib.Path | None = None,
) -> "Scores":
    """Scores a finished run on one of its splits, on somebody else's data, or from the stored predictions.

    The images of a split are those that the run's splits.csv names. A split that played no part in training (such as
    `test_simple`) can be scored too. Calibration and thresholds are those of the run.

    With `on`, the run is judged on other data, such as another hospital's. The results are written to
    RUN/external/NAME, and the run's own scores stay as they are. Pictures that show what the run has learnt from are
    left out and named.

    Args:
      run_folder: what `kmed train` made.
      split: a split of the run's data, or of the data in `on`; None: "test", or with `on` all of their pictures.
      format: which of the run's files predicts: "keras", or one that was exported.
      quantize: one of the format's quantizations, such as "int8".
      data: the folder, CSV or npz to read instead of the one in the run's settings; the images' names must be
        the same.
      rescore: score the stored predictions.csv again with other `settings`. No images or weights are read, and the
        run's scores, figures and page are replaced.
      on: a folder, CSV or npz with other data, to judge the run on.
      class_map: with `on`, what the data's class names stand for: {theirs: ours, or None for no class}, or texts
        "theirs=ours" and YAML files.
      name: with `on`, the name of the folder of the results; None: the name of the data.
      copies: with `on`, how pictures that the run knows are looked for: "pixels" (the same files and what shows the
        same), "bytes" (the same files) or "none".
      settings: overrides for `rescore`, such as "evaluate.thresholds=youden"; with `on`, of how the data are read, such
        as "data.group=patient".
      append: a CSV table of results to add the run's row to.
    Returns: the Scores of the split or of the other data; with `rescore`, of the test split (or of the validation split
      if there is no test split).
    Raises: RunError: no such run or export, or it is not finished. DataError: the images are gone, the classes
      differ, or the split does not exist. ConfigError: the arguments contradict each other.
    Example:
      >>> kmed.evaluate("saved_models/latest").scores["accuracy"].value
    """
    arguments = {"format": format, "quantize": quantize, "data": data, "rescore": rescore, "settings": settings}
    arguments |= {"append": append, "on": on, "class_map": class_map, "name": name, "copies": copies}
    return evaluate_run(run_folder, split, **arguments).scores


def evaluate_run(run_folder: str | pathlib.Path, split: str | None = None, **arguments) -> "Assessment":
    """Returns the Assessment of the split or of the other data; the arguments are those of `evaluate`."""
    check_arguments(split, **arguments)
    if arguments["on"] is not None:
        return evaluate_on(run_folder, split, **arguments).assessment
    return _evaluate_own(run_folder, split or "test", **arguments)


def _evaluate_own(run_folder, split, *, format, quantize, data, rescore, settings, append, **_) -> "Assessment":
    """Scores a run on its own pictures."""
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


def evaluate_on(run_folder, split, *, on, class_map, name, copies, settings, append, data, **_) -> "External":
    """Judges a run on other data, and writes RUN/external/NAME; the arguments are those of `evaluate`."""
    run = finished_run(run_folder)
    load_backend()
    from kmed.evaluation import external as judging
    from kmed.evaluation.result_rows import check_table
    from kmed.report.external_page import try_page

    if append is not None:
        check_table(append, [run.read_config().task])
    arguments = {"class_map": class_map, "name": name, "settings": settings, "split": split, "copies": copies}
    external = judging.judge_on(run_folder, on, data=data, **arguments)
    judging.write_external(run, external, lambda folder: try_page(run, external, folder))
    if append is not None:
        judging.append_external(external, append)
    return external


def check_arguments(split, *, format, quantize, data, rescore, settings, append, on, class_map, name, copies) -> None:
    """Raises ConfigError if the arguments of `evaluate` contradict each other."""
    if rescore and (data or split not in (None, "test") or (format, quantize) != ("keras", "none") or on):
        raise ConfigError(
            "--rescore scores the stored predictions of val and test: do not give --data, --split, --format, "
            "--quantize or --on with it."
        )
    if append and format != "keras":
        raise ConfigError("--append adds the run's row, which is the Keras model's: do not give --format with it.")
    if on and format != "keras":
        raise ConfigError("--on judges the Keras model: do not give --format with it.")
    if not on and (class_map or name or copies != "pixels"):
        raise ConfigError("--map, --name and --copies go with --on; a run's own data have its class names.")
    if settings and not (rescore or on):
        raise ConfigError("--set goes with --rescore and --on; without them, a run is scored with its own settings.")
