"""`kmed.ensemble`: several finished runs become one model, which is calibrated, scored and reported as any run is."""

import pathlib
from collections.abc import Iterable, Sequence

from kmed.errors import ConfigError, suggest
from kmed.files import clear_leftovers, point_latest
from kmed.progress import say
from kmed.runs import Run
from kmed.runtime import load_backend

AVERAGES = ("auto", "probabilities", "logits")


def ensemble(
    runs: Sequence[str | pathlib.Path],
    out: str | pathlib.Path,
    *,
    average: str = "auto",
    data: str | pathlib.Path | None = None,
    settings: Iterable[str] = (),
    append: str | pathlib.Path | None = None,
) -> Run:
    """Combines finished runs into one model: a run folder like any other, with a model.keras that holds all members.

    A picture is judged only by members that have not been trained on it, or on others of its group. Test pictures must
    be new to every member. Validation pictures are those that at least one member has not been trained on, and each of
    them is judged by these members alone: the runs of a cross-validation are thus calibrated out of fold. Calibration,
    thresholds and prediction sets are fitted to the ensemble.

    The folder is written whole or not at all; after an interruption, the same call begins again. If `out` holds this
    ensemble, only its page and its row are made, where they are missing.

    Args:
      runs: the members' run folders, of the same task, classes, pictures and image size. A single one is legal: with
        other settings, such as views, it becomes a run of its own.
      out: the folder to write, which must not exist yet or be empty.
      average: what the mean of the members is taken of: "probabilities", "logits", or "auto", the one with the lower
        log loss on validation.
      data: the folder, CSV or npz to read instead of the one in the settings of the first member.
      settings: overrides of the evaluate section, such as "evaluate.views=flips"; all others are the first member's.
      append: a CSV table of results to which the ensemble's row is added.
    Returns: Run, the paths of the files that were made.
    Raises: RunError: a run is unfinished, is an ensemble, differs in task, classes or pictures, or has seen test
      pictures; or `out` is taken. DataError: the pictures cannot be read, or the members are of other pictures.
      ConfigError: an illegal setting.
    Example:
      >>> run = kmed.ensemble(["saved_models/resnet18", "saved_models/vit"], "saved_models/both")
    """
    if average not in AVERAGES:
        hint = suggest(average, AVERAGES)
        raise ConfigError(f"average must be {', '.join(AVERAGES[:-1])} or {AVERAGES[-1]}. Received: {average!r}.{hint}")
    settings = (settings,) if isinstance(settings, str) else tuple(settings)
    load_backend()  # before the imports that load Keras
    from kmed.evaluation import ensembling
    from kmed.evaluation.members import open_members
    from kmed.evaluation.result_rows import append_results, check_table
    from kmed.report.run_page import try_report

    members = open_members(runs)
    check_table(append, [members[0].read_config().task])
    plan = ensembling.make_plan(members, out, average, data, settings)
    run = ensembling.find_made(plan)
    if run is None:
        run = ensembling.write_ensemble(plan)
    else:
        clear_leftovers(run.folder)  # a call that was interrupted may have left them, and the link unset
        say(f"{run.folder} already holds this ensemble. Choose another --out to make it again.")
    point_latest(run.folder)
    if append is not None:
        append_results([run], append)
    if not run.report.exists():
        try_report(run)
    return run
