"""Predict a split once, score the joined arrays once."""

import numpy as np

from kmed.data.pipeline import Pipeline
from kmed.data.prepare import open_table
from kmed.data.splits import read_splits
from kmed.data.table import Table
from kmed.errors import DataError, RunError
from kmed.intervals import check_clusters
from kmed.judging import Fitted, Judged, judge_split
from kmed.predictions import make_predictions
from kmed.priors import Prior, count_prior
from kmed.progress import say
from kmed.runs import Run, finished_run
from kmed.scores import Scores


def predict(model, table: Table, config, *, pipeline: Pipeline | None = None) -> np.ndarray:
    """Returns float32 (N, K), the probabilities of a table's pictures, in its order.

    Args:
      model: keras.Model that takes raw pictures of `config.data.image_size`.
      table: the pictures.
      config: kmed.config.Config; its data section says how pictures are read.
      pipeline: the same pictures already read; None reads them from disk as they are needed.
    Raises: DataError: an unreadable picture.
    """
    if pipeline is None:
        pipeline = evaluation_pipeline(table, config, cache="none")
    with pipeline.clear_errors():
        return np.asarray(model.predict(pipeline.evaluation(), verbose=0), np.float32)


def evaluation_pipeline(table: Table, config, *, cache: str, cache_dir=None) -> Pipeline:
    """Returns a split's pictures, read as `config.data` says, to be gone through in order and unaugmented."""
    return Pipeline(
        table,
        config.data.image_size,
        batch_size=config.evaluate.batch_size,
        fit=config.data.fit,
        interpolation=config.data.interpolation,
        cache=cache,
        cache_dir=cache_dir,
    )


def judge(run_folder, split: str = "test", *, data=None) -> Judged:
    """Returns all that is said of a finished run on one of its splits, predicted afresh.

    The pictures are those that the run's splits.csv names; a split that played no part in training
    (such as `test_simple`) may be asked for too. Calibration and thresholds are those of the run.

    Args:
      run_folder: what `kmed train` made.
      split: a split of the run's data.
      data: the folder, CSV or npz to read instead of the one in the run's settings; the pictures'
        names must be the same.
    Raises: RunError: no such run, or it is not finished. DataError: the pictures are gone, the
      classes are others, or the split does not exist.
    """
    run = finished_run(run_folder)
    config = run.read_config()
    if data is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"path": str(data)})})
    table = run_table(run, open_table(config))
    part = table.split(split)
    check_clusters(part.rows["cluster"])
    say(f"Scoring {len(part)} pictures of split {split!r} ...")
    predictions = make_predictions(part, predict(load_model(run.model), part, config), config.evaluate.subgroups)
    fitted = None if split == "val" else read_fitted(run)
    return judge_split(predictions, training_prior(table), config.evaluate, config.seed, fitted)


def training_prior(table: Table) -> Prior:
    """Returns what the training split of a table tells about its labels."""
    training = table.split("train")
    return count_prior(training.labels, table.class_names, training.rows["group"].nunique())


def evaluate(run_folder, split: str = "test", *, data=None) -> Scores:
    """Returns the `kmed.scores.Scores` of a finished run on one of its splits, predicted afresh; see `judge`."""
    return judge(run_folder, split, data=data).scores


def read_fitted(run: Run) -> Fitted:
    """Returns the calibration and thresholds stored in a run.

    Raises: RunError: there are none. ScoreError: they are of other labels.
    """
    return Fitted.from_dict(run.read_json(run.fitted), run.read_json(run.classes)["class_names"])


def run_table(run: Run, table: Table) -> Table:
    """Returns `table` with the splits of a run. Raises DataError where its classes are not the run's."""
    expected = run.read_json(run.classes)["class_names"]
    if list(table.class_names) != expected:
        raise DataError(f"The data's classes are {list(table.class_names)}; the run was trained on {expected}.")
    return read_splits(table, run.splits)


def load_model(path):
    """Returns the keras.Model of a `.keras` file, kmed's own layers known to it.

    Raises: RunError: the file is damaged or no Keras model.
    """
    import keras

    import kmed.models.layers  # noqa: F401 - registers the layers that the file names

    try:
        return keras.saving.load_model(path, compile=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error
