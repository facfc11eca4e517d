"""Predict a split once, score the joined arrays once."""

import numpy as np
import pandas as pd

from kmed.data.pipeline import Pipeline
from kmed.data.prepare import open_table
from kmed.data.splits import read_splits
from kmed.data.table import Table
from kmed.errors import DataError, RunError
from kmed.progress import say
from kmed.runs import Run, finished_run
from kmed.scores import majority_scores
from kmed.tasks import get_task


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


def score(table: Table, probs: np.ndarray, config, train_labels: np.ndarray):
    """Returns (scores, baseline scores) of one split, each a `kmed.scores.Scores`.

    Args:
      table: the split's pictures; intervals resample its `cluster` column.
      probs: float (N, K).
      config: kmed.config.Config.
      train_labels: float (N', K); the baseline is the constant predictor of their class shares.
    """
    task = get_task(config.task)
    settings = {"num_resamples": config.evaluate.num_resamples, "level": config.evaluate.level, "seed": config.seed}
    clusters = table.rows["cluster"].to_numpy()
    scores = task.score(table.labels, probs, clusters, table.class_names, **settings)
    baseline = majority_scores(task.score, train_labels, table.labels, clusters, table.class_names, **settings)
    return scores, baseline


def prediction_rows(table: Table, probs: np.ndarray, config) -> pd.DataFrame:
    """Returns one row a picture: path, split, group, cluster, label, prediction, a probability a class.

    Several classes are joined by "|", as in the NIH labels.
    """
    frame = table.rows[["path", "split", "group", "cluster"]].copy()
    frame["label"] = _joined_names(table.labels, table.class_names)
    frame["predicted"] = _joined_names(get_task(config.task).decode(probs), table.class_names)
    for column, name in enumerate(table.class_names):
        frame[f"prob_{name}"] = probs[:, column]
    return frame


def _joined_names(labels: np.ndarray, class_names) -> list[str]:
    return ["|".join(name for name, held in zip(class_names, row) if held == 1) for row in labels]


def evaluate(run_folder, split: str = "test", *, data=None):
    """Returns (scores, baseline scores) of a finished run on one of its splits, predicted afresh.

    The pictures are those that the run's splits.csv names; a split that played no part in training
    (such as `test_simple`) may be asked for too.

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
    say(f"Scoring {len(part)} pictures of split {split!r} ...")
    probs = predict(load_model(run.model), part, config)
    return score(part, probs, config, table.split("train").labels)


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
