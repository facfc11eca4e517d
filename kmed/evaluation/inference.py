"""Predictions and distances for the images of a run, made in one pass over them."""

import numpy as np

from kmed.data.images import Resizing
from kmed.data.pictures import Pictures
from kmed.data.pipeline import Pipeline
from kmed.data.prepare import open_table
from kmed.data.splits import JUDGED_BY, read_splits
from kmed.data.table import Table
from kmed.errors import DataError
from kmed.evaluation.novelty import NUM_REFERENCE, Novelty, fit_reference, look, picture_statistics
from kmed.evaluation.predictor import Predictor
from kmed.labels import describe_difference
from kmed.metrics.baselines import Prior, count_prior
from kmed.progress import track
from kmed.runs import Run


def predict(model, table: Table, config, *, pipeline: Pipeline | None = None) -> np.ndarray:
    """Returns float32 (N, K), the probabilities of a table's pictures, in its order.

    Args:
      model: keras.Model that takes raw pictures of `config.data.image_size`.
      table: the pictures.
      config: kmed.config.Config; its data section says how pictures are read.
      pipeline: a Pipeline of the same pictures; None reads them from disk as needed.
    Raises: DataError: an unreadable picture.
    """
    if pipeline is None:
        pipeline = evaluation_pipeline(table, config, cache="none")
    with pipeline.clear_errors():
        return np.asarray(model.predict(pipeline.evaluation(), verbose=0), np.float32)


def predict_calibrated(predictor: Predictor, table: Table, config) -> np.ndarray:
    """Returns float32 (N, K), the calibrated probabilities of a table's pictures, in its order.

    Args:
      predictor: a model in any format, from `kmed.evaluation.predictor.open_model`.
      table, config: as for `predict`.
    """
    pipeline = evaluation_pipeline(table, config, cache="none")
    steps = -(-len(table) // pipeline.batch_size)
    with pipeline.clear_errors():
        batches = track(pipeline.evaluation(), "Predicting", steps)
        return np.concatenate([predictor.predict(np.asarray(images)) for images, *_ in batches])


def predict_with_distances(both, table: Table, config, novelty: Novelty) -> tuple[np.ndarray, ...]:
    """Returns (probs float32 (N, K), distances float64 (N,)) from one pass over the pictures.

    Of an ensemble, the logits float32 (N, M, K) of its members come third.

    Args:
      both: what `kmed.evaluation.novelty.feature_model` returned.
      table, config: as for `predict`.
      novelty: the Novelty of the training images.
    """
    pipeline = evaluation_pipeline(table, config, cache="none")
    batches = []
    with pipeline.clear_errors():
        for images, *_ in track(pipeline.evaluation(), "Predicting", -(-len(table) // pipeline.batch_size)):
            features, probs, *logits = look(both, images, pipeline.batch_size)
            batches.append((probs, novelty.distances(np.asarray(images), features), *logits))
    return tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))


def predict_members(both, table: Table, config) -> np.ndarray:
    """Returns float32 (N, M, K), the logits of an ensemble's members for a table's pictures, in its order.

    Args:
      both: what `kmed.evaluation.novelty.feature_model` returned for an ensemble of several members.
      table, config: as for `predict`.
    """
    pipeline = evaluation_pipeline(table, config, cache="none")
    with pipeline.clear_errors():
        return np.concatenate([look(both, images, pipeline.batch_size)[2] for images, *_ in pipeline.evaluation()])


def novelty_reference(both, table: Table, config) -> Novelty:
    """Returns the Novelty of at most 1,000 training pictures of a run, drawn at random; it has no threshold yet."""
    pipeline = evaluation_pipeline(_drawn(table, config, NUM_REFERENCE), config, cache="none")
    features, statistics = [], []
    with pipeline.clear_errors():
        for images, *_ in pipeline.evaluation():
            features.append(look(both, images, pipeline.batch_size)[0])
            statistics.append(picture_statistics(np.asarray(images)))
    return fit_reference(np.concatenate(features), np.concatenate(statistics))


def draw_training_pictures(table: Table, config, num_pictures: int) -> np.ndarray:
    """Returns uint8 (N, H, W, 3), training pictures drawn without replacement with the run's seed.

    Args:
      table: a run's pictures, with their splits.
      config: its settings.
      num_pictures: N; fewer are returned if there are fewer.
    """
    part = _drawn(table, config, num_pictures)
    return Pictures(part, Resizing.from_settings(config.data), cache="none").gather(np.arange(len(part)))


def training_rows(table: Table) -> np.ndarray:
    """Returns bool (N,), the training split, or the validation split of an ensemble of folds or a recalibrated run.

    These have no training split: some members of the ensemble trained on its validation pictures, and the recalibrated
    run, which has no other splits than val and test, was fitted to them.
    """
    splits = table.rows["split"]
    training = (splits == "train").to_numpy()
    without = JUDGED_BY in table.rows.columns or set(splits) <= {"val", "test", ""}
    return (splits == "val").to_numpy() if without and not training.any() else training


def _drawn(table: Table, config, num_pictures: int) -> Table:
    training = table.take(training_rows(table))
    count = min(num_pictures, len(training))
    rows = np.random.default_rng(config.seed).choice(len(training), count, replace=False)
    return training.take(np.sort(rows))


def evaluation_pipeline(table: Table, config, *, cache: str, cache_dir=None) -> Pipeline:
    """Returns a Pipeline that reads pictures as `config.data` says, to go through them in order, not augmented."""
    return Pipeline(
        table,
        Resizing.from_settings(config.data),
        batch_size=config.evaluate.batch_size,
        cache=cache,
        cache_dir=cache_dir,
    )


def training_prior(table: Table) -> Prior:
    """Returns the Prior of a table's training split."""
    training = table.split("train")
    return count_prior(training.labels, table.class_names, training.rows["group"].nunique())


def open_run_table(run: Run, data=None):
    """Returns (config, table): a run's settings, and its pictures with the splits of the run.

    Args:
      run: a finished run.
      data: the folder, CSV or npz to read; None reads the one in the run's settings.
    Raises: DataError: the pictures are gone, or the classes differ from the run's.
    """
    config = run.read_config(data)
    return config, run_table(run, open_table(config))


def run_table(run: Run, table: Table) -> Table:
    """Returns `table` with the splits of a run. Raises DataError if its classes differ from the run's."""
    expected = run.read_classes().class_names
    run.read_splits()  # which names the file and the cell that are not legal
    if list(table.class_names) != expected:
        raise DataError(
            f"The data's classes are {', '.join(table.class_names)}, but the run's are {', '.join(expected)} "
            f"({describe_difference(table.class_names, expected)}). Use the data that the run was started with."
        )
    return read_splits(table, run.splits)
