"""The run folder: what is stored where, and how a folder is claimed, opened and cleaned up."""

import contextlib
import dataclasses
import pathlib
import shlex
import shutil
import time
from collections.abc import Iterable

import pandas as pd

from kmed.config import FULL, Config, load_config, parse_range
from kmed.errors import RunError, shorten
from kmed.files import clear_leftovers, exclusive, is_vacant, made, replacing, unlink_latest, write_json
from kmed.reading import damaged, read_csv, read_json
from kmed.schemas import records
from kmed.schemas.metrics import MetricsFile
from kmed.schemas.recalibration import RecalibrationFile
from kmed.schemas.records import Classes, File, check, stamped
from kmed.schemas.tables import check_result, read_history, read_splits

DEFAULT_FOLDER = pathlib.Path("saved_models")
SWEEP = "sweep.json"  # marks the folder of a sweep
CROSSVAL = "crossval.json"  # marks the folder of a cross-validation
TUNE = "tune.json"  # marks the folder of a study
COMBINED = "ensemble"  # in that folder: the ensemble of its runs
SCHEMAS: dict[str, type[File]] = {
    "classes.json": Classes,
    "calibration.json": records.FittedFile,
    "metrics.json": MetricsFile,
    "environment.json": records.Environment,
    "ensemble.json": records.EnsembleFile,
    "teacher.json": records.TeacherFile,
    "recalibration.json": RecalibrationFile,
    "trackers.json": records.TrackersFile,
}


@dataclasses.dataclass(frozen=True)
class Run:
    """The paths inside one run folder."""

    folder: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        """The resolved settings."""
        return self.folder / "config.yaml"

    @property
    def splits(self) -> pathlib.Path:
        """The split of each picture."""
        return self.folder / "splits.csv"

    @property
    def classes(self) -> pathlib.Path:
        """Task, class names and preprocessing, for programs that use the model."""
        return self.folder / "classes.json"

    @property
    def checkpoints(self) -> pathlib.Path:
        """The state after the last finished epoch; removed at the end of the run."""
        return self.folder / "checkpoints"

    @property
    def cache(self) -> pathlib.Path:
        """Decoded pictures, if they are cached on disk; removed at the end of the run."""
        return self.folder / "cache"

    @property
    def history(self) -> pathlib.Path:
        """Losses and scores of each epoch."""
        return self.folder / "history.csv"

    @property
    def model(self) -> pathlib.Path:
        """The trained Keras model; its presence means that training has ended."""
        return self.folder / "model.keras"

    @property
    def ensemble(self) -> pathlib.Path:
        """The members of an ensemble and how they are averaged; a run of one model has none."""
        return self.folder / "ensemble.json"

    @property
    def fitted(self) -> pathlib.Path:
        """Calibration, thresholds and prediction sets, fitted on the validation split."""
        return self.folder / "calibration.json"

    @property
    def novelty(self) -> pathlib.Path:
        """The detector of images unlike the training data; fitted at the end of training."""
        return self.folder / "novelty.npz"

    @property
    def metrics(self) -> pathlib.Path:
        """Final scores with intervals."""
        return self.folder / "metrics.json"

    @property
    def summary(self) -> pathlib.Path:
        """The final scores as a readable table."""
        return self.folder / "summary.txt"

    @property
    def predictions(self) -> pathlib.Path:
        """One row per image of the validation and test splits."""
        return self.folder / "predictions.csv"

    @property
    def exports(self) -> pathlib.Path:
        """The model in other formats, each with a JSON file of its checks."""
        return self.folder / "export"

    @property
    def report(self) -> pathlib.Path:
        """All results on one page."""
        return self.folder / "report.html"

    @property
    def checklist(self) -> pathlib.Path:
        """The items of reporting check-lists, with the run's answers and the authors'; exists only if asked for."""
        return self.folder / "checklist.md"

    @property
    def result(self) -> pathlib.Path:
        """The run as one row of a results table."""
        return self.folder / "result.csv"

    @property
    def environment(self) -> pathlib.Path:
        """Device, versions and the command that was run."""
        return self.folder / "environment.json"

    @property
    def teacher(self) -> pathlib.Path:
        """Which trained model the run learns from; exists only with `train.teacher`."""
        return self.folder / "teacher.json"

    @property
    def trackers(self) -> pathlib.Path:
        """Under which ids trackers such as MLflow know the run; exists only with `train.trackers`."""
        return self.folder / "trackers.json"

    @property
    def recalibration(self) -> pathlib.Path:
        """Of which run this one was made, and how; exists only in recalibrated runs."""
        return self.folder / "recalibration.json"

    @property
    def unreadable(self) -> pathlib.Path:
        """The files that were left out because they cannot be read; exists only if there are any."""
        return self.folder / "unreadable.csv"

    @property
    def figures(self) -> pathlib.Path:
        """PNG figures."""
        return self.folder / "figures"

    @property
    def logs(self) -> pathlib.Path:
        """TensorBoard's event files."""
        return self.folder / "logs"

    def read_config(self, data=None) -> Config:
        """Returns the run's settings; a path `data` replaces that of its pictures."""
        return load_config(self.config, [] if data is None else [("data.path", str(data))])

    def read_classes(self) -> Classes:
        """Returns the content of classes.json. Raises RunError if it is damaged, or contradicts config.yaml."""
        classes = check(Classes, read_json(self.classes), self.classes)
        config = self.read_config()
        settings = {
            "task": config.task,
            "image_size": list(config.data.image_size),
            **{name: getattr(config.data, name) for name in ("fit", "interpolation", "decode")},
            "range": None if classes.range is None else list(parse_range(config.data.range) or FULL),
        }
        for name, value in settings.items():
            if getattr(classes, name) != value:
                raise damaged(
                    f"{self.classes}: {name} is {getattr(classes, name)!r}, but {self.config} says {value!r}."
                )
        return classes

    def read_json(self, path: pathlib.Path) -> dict:
        """Returns the content of one of the run's JSON files that have a schema in SCHEMAS.

        Raises: RunError: it is damaged, or belongs to other classes than classes.json.
        """
        content = read_json(path)
        stored, classes = check(SCHEMAS[path.name], content, path), self.read_classes()
        for name in ("task", "class_names"):
            own, expected = getattr(stored, name, None), getattr(classes, name)
            if own not in (None, expected):
                raise damaged(f"{path}: {name} is {shorten(own)}, but {self.classes} says {shorten(expected)}.")
        return content

    def read_result(self, needed: Iterable[str] = ()) -> dict[str, str]:
        """Returns the row of result.csv as text, so that every digit is kept.

        Args:
          needed: columns that the row must have.
        Raises: RunError: it is damaged, or lacks a column.
        """
        table = read_csv(self.result)
        if len(table) != 1:
            raise damaged(f"{self.result} is not one row of results.")
        row = table.iloc[0].to_dict()
        check_result(self.result, row, needed)
        return row

    def read_history(self) -> pd.DataFrame:
        """Returns history.csv, one row per epoch; none for an ensemble. Raises RunError if it is damaged."""
        if self.ensemble.exists():
            return pd.DataFrame({"epoch": [], "loss": [], "val_loss": []})
        return read_history(self.history)

    def read_splits(self) -> pd.DataFrame:
        """Returns splits.csv as text. Raises RunError if it is damaged."""
        return read_splits(self.splits)


def default_folder(*words: str) -> pathlib.Path:
    """Returns the path of a new folder in saved_models/, named after `words` (data and model, say) and the time."""
    name = "-".join([*words, time.strftime("%Y%m%d-%H%M%S")])
    folder, count = DEFAULT_FOLDER / name, 2
    while folder.exists():
        folder, count = DEFAULT_FOLDER / f"{name}-{count}", count + 1
    return folder


def check_vacant(folder: pathlib.Path, wanted: str = "") -> None:
    """Raises RunError unless `folder` is empty or does not exist yet; `wanted` is what else it might have held."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"--out {folder} is a file. Give a folder that does not exist yet.")
    if Run(folder).ensemble.exists():
        raise RunError(f"{folder} holds another run, an ensemble. Choose another --out.")
    if (folder / "config.yaml").exists():
        raise RunError(f"{folder} holds another run. Continue it with --resume {folder}, or choose another --out.")
    if not is_vacant(folder):
        but = f" and does not hold {wanted}" if wanted else ""
        raise RunError(f"{folder} is not empty{but}. Choose another --out.")


def held(run: Run):
    """Keeps other processes from training the run for the duration of a block. Raises RunError if one does."""
    return exclusive(run.folder, taken=f"Another process is training {run.folder}. Wait for it, or stop it first.")


@contextlib.contextmanager
def claimed(folder: pathlib.Path):
    """Yields the new Run in `folder`; an error before the end of its first epoch removes the folder again."""
    check_vacant(folder)
    run = Run(folder)
    with made(folder), held(run):
        if run.config.exists():  # of a process that was faster
            check_vacant(folder)
        with _emptied_on_error(run):
            yield run


@contextlib.contextmanager
def _emptied_on_error(run: Run):
    """Removes the files of the run if the block raises an error before the first epoch's end."""
    try:
        yield
    except BaseException:
        if not any(run.checkpoints.glob("epoch-*")) and not run.model.exists():
            for path in run.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            unlink_latest(run.folder)
        raise


@contextlib.contextmanager
def written_whole(out: pathlib.Path):
    """Yields a Run in a temporary folder, which becomes `out` at the end of the block, and nothing after an error.

    Raises: RunError: the folder is taken, or another process is writing it.
    """
    check_vacant(out)
    with exclusive(out, taken=f"Another process is writing {out}. Wait for it, or stop it first."):
        if Run(out).config.exists():  # of a process that was faster
            check_vacant(out)
        with replacing(out) as temporary:
            temporary.mkdir()
            yield Run(temporary)


def has_ended(run: Run) -> bool:
    """Returns whether a run has its scores and figures; only its row in a table or its page may be missing."""
    return (run.result.exists() or run.recalibration.exists()) and not run.checkpoints.exists()


def clear_run(run: Run) -> None:
    """Removes the temporary files that dead processes left in a run folder, below it and beside it."""
    for folder in (run.folder.parent, run.folder, *(path for path in run.folder.rglob("*") if path.is_dir())):
        clear_leftovers(folder)


def open_run(folder) -> Run:
    """Returns the Run in `folder`. Raises RunError if there is none."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        known = sorted(path.parent.name for path in DEFAULT_FOLDER.glob("*/config.yaml"))
        hint = f" Runs in {DEFAULT_FOLDER}: {', '.join(known[-3:])}." if known else ""
        raise RunError(f"The run folder {folder} does not exist.{hint}")
    if is_crossval(folder):
        first = next(iter(sorted(folder.glob("*fold0"))), folder / "fold0")
        raise RunError(
            f"{folder} is a cross-validation, not a run. Give one of its runs, such as {first}, or its ensemble, "
            f"{folder / COMBINED}."
        )
    if not (folder / "config.yaml").exists():
        if is_vacant(folder):
            raise RunError(f"{folder} is empty: no training has begun in it. Begin one with: kmed train --out {folder}")
        raise RunError(f"{folder} is not a run folder: it has no config.yaml. Give a folder that `kmed train` made.")
    return Run(folder)


def finished_run(folder) -> Run:
    """Returns the Run in `folder`, which must hold a trained model."""
    run = open_run(folder)
    if not run.model.exists():
        if run.result.exists():
            raise RunError(
                f"{folder} holds no weights ({run.model.name}). Train it again: its result.csv has the command."
            )
        raise RunError(f"{folder} holds no trained model yet. Finish it with: kmed train --resume {folder}")
    return run


def judged_run(folder, *, unlabelled: bool = False) -> Run:
    """Returns the Run in `folder`, which must have final scores or, with `unlabelled`, be recalibrated without labels.

    Its weights may be missing.
    """
    run = open_run(folder)
    if not run.result.exists() and not (unlabelled and without_labels(run)):
        raise unscored(run)
    return run


def without_labels(run: Run) -> bool:
    """Returns whether a run was recalibrated with pictures without labels, so that it has no scores."""
    return run.recalibration.exists() and run.read_json(run.metrics).get("without_labels", False)


def unscored(run: Run) -> RunError:
    """Returns the error for what needs the scores of a run that has none."""
    if not without_labels(run):
        hint = f"Finish it with: kmed train --resume {run.folder}"
        return RunError(f"{run.folder} has no result.csv: it is not finished. {hint}")
    hint = f"Judge it on pictures with labels: kmed evaluate {shlex.quote(str(run.folder))} --on DATA"
    return RunError(f"{run.folder} was recalibrated with pictures without labels, so it has no scores. {hint}")


def is_crossval(folder) -> bool:
    """Returns whether `folder` is that of a cross-validation, finished or not."""
    return (pathlib.Path(folder) / CROSSVAL).exists()


def judged_crossval(folder) -> Run:
    """Returns the pooled results of a finished cross-validation, which have the names of a run's files."""
    run = Run(pathlib.Path(folder))
    if not run.result.exists():
        hint = f"Finish it with: kmed crossval --resume {folder}"
        raise RunError(f"{folder} has no result.csv: it is not finished. {hint}")
    return run


def judged(folder) -> Run:
    """Returns what `judged_run` or `judged_crossval` returns, whichever `folder` holds."""
    return judged_crossval(folder) if is_crossval(folder) else judged_run(folder)


def judged_split(splits) -> str:
    """Returns the split by which a run is judged: "test" if it is among `splits`, else "val"."""
    return "test" if "test" in splits else "val"


def write_classes(run: Run, config: Config, class_names) -> None:
    """Writes classes.json: what a program needs to prepare the model's input and to read its output.

    `range` is of images with more than 8 bits per value: these values become 0 and 255, those between are in
    proportion, and those outside are clipped.
    """
    fields = {
        "task": config.task,
        "class_names": list(class_names),
        "image_size": list(config.data.image_size),
        "fit": config.data.fit,
        "interpolation": config.data.interpolation,
        **config.data.decoding,
        "range": list(parse_range(config.data.range) or FULL),
        "input": "RGB, 0-255; scaling and normalisation are inside the model",
    }
    write_json(run.classes, stamped(fields))
