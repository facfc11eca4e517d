"""`kmed.recalibrate`: a run whose calibration and thresholds are fitted to a local sample."""

import pathlib
from collections.abc import Iterable, Mapping

from kmed.files import point_latest
from kmed.progress import say
from kmed.runs import Run, check_vacant, finished_run
from kmed.runtime import load_backend


def recalibrate(
    run_folder: str | pathlib.Path,
    *,
    on: str | pathlib.Path,
    out: str | pathlib.Path,
    method: str = "labels",
    fit_fraction: float | None = None,
    class_map: Mapping | str | pathlib.Path | Iterable[str] = (),
    copies: str = "pixels",
    data: str | pathlib.Path | None = None,
    settings: Iterable[str] = (),
    seed: int = 0,
) -> Run:
    """Fits the calibration and thresholds of a finished run to a local sample, as a run folder of its own.

    The model stays as it is. The sample is split by group: one part is fitted to and becomes the validation split of
    the new run, the other is its test split, by which it is judged. Pictures that the run has learnt from are left out.

    Args:
      run_folder: what `kmed train` made; it stays as it is.
      on: a folder, CSV or npz with local pictures and labels. With method "prior" the pictures may have no labels: a
        folder of them, a CSV with a column of paths, or a text file with one path per line.
      out: the folder to write, which must not exist yet or be empty.
      method: "labels" fits calibration and thresholds to labels. "prior" finds the shares of the classes without
        labels (Saerens et al., 2002) and corrects the probabilities, which assumes that only the shares differ.
      fit_fraction: the share of the groups that is fitted to, in (0, 1); None: half of them. Without labels all are
        fitted to, nothing is checked, and the new run has no scores.
      class_map: what the data's class names stand for, as for `kmed.evaluate`.
      copies: how pictures that the run knows are looked for: "pixels", "bytes" or "none".
      data: where the run's own pictures are now, if they have moved.
      settings: overrides of how the local data are read (data.KEY=VALUE), and of what is fitted, such as
        "evaluate.thresholds=sensitivity".
      seed: random seed of the split and of the learning curve.
    Returns: Run, the paths of the new run.
    Raises: RunError: no such run, or `out` is taken. DataError: the data cannot be used, their classes do not fit, or
      there are too few groups. ConfigError: an argument is not legal.
    Example:
      >>> run = kmed.recalibrate("saved_models/xrays", on="our_xrays.csv", out="saved_models/xrays_here")
    """
    finished_run(run_folder)
    check_vacant(pathlib.Path(out))
    settings = (settings,) if isinstance(settings, str) else tuple(settings)
    load_backend()  # before the imports that load Keras
    from kmed.evaluation import recalibration
    from kmed.report.run_page import try_report

    fitted = recalibration.fit_to_sample(
        run_folder,
        on,
        method=method,
        fit_fraction=fit_fraction,
        class_map=class_map,
        copies=copies,
        data=data,
        settings=settings,
        seed=seed,
    )
    run = recalibration.write_run(fitted, out)
    for sentence in fitted.sentences():
        say(sentence)
    point_latest(run.folder)
    try_report(run)
    return run
