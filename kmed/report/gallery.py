"""The pictures that say most of a run: its most confident errors, and where the model looked."""

import dataclasses

import numpy as np

from kmed.data.images import Pictures
from kmed.data.prepare import open_table
from kmed.data.table import Table
from kmed.evaluation import inference
from kmed.evaluation.predictions import Predictions
from kmed.labels import join_names
from kmed.runs import Run
from kmed.tasks import get_task

NUM_ERRORS = 12

NUM_EXPLAINED = 4  # right answers, and as many wrong ones


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was said of one class in one picture.

    Attributes:
      row: of the predictions it was chosen from.
      path, cluster: of the picture.
      truth: its classes, joined by "|"; "" where it has none.
      class_index: the class that is spoken of.
      class_name: its name.
      found: whether the model decided for it.
      right: whether that is so.
      prob: its probability.
    """

    row: int
    path: str
    cluster: str
    truth: str
    class_index: int
    class_name: str
    found: bool
    right: bool
    prob: float


def confident_errors(predictions: Predictions, number: int = NUM_ERRORS) -> list[Answer]:
    """Returns the wrong answers the model was surest of, the surest first, one a cluster.

    Copies and neighbours of one picture are mistaken alike; a dozen of them would show one mistake. With
    exclusive classes the class that was wrongly named counts; otherwise a label that was missed does too.

    Args:
      predictions: of one split.
      number: at most so many.
    """
    found = predictions.decided() == 1
    wrong = ~np.isnan(predictions.labels) & (found != (predictions.labels == 1))
    if get_task(predictions.task).exclusive:
        wrong &= found
    sureness = np.where(found, predictions.probs, 1 - predictions.probs)
    return _surest(predictions, wrong, sureness, number, "cluster")


def confident_answers(predictions: Predictions, number: int = NUM_EXPLAINED) -> list[Answer]:
    """Returns the rightly found classes the model was surest of, one a class, the surest first."""
    right = (predictions.decided() == 1) & (predictions.labels == 1)
    return _surest(predictions, right, predictions.probs, number, "class_name")


def _surest(predictions, chosen, sureness, number, once) -> list[Answer]:
    """Returns the answers marked in `chosen` (N, K), by sureness; of those alike in the attribute `once` the first."""
    truths = join_names(predictions.labels, predictions.class_names)
    found = predictions.decided()
    places = np.argwhere(chosen)  # (M, 2), in the order of rows, which breaks ties
    answers = {}
    for row, k in places[np.argsort(-sureness[chosen], kind="stable")]:
        answer = Answer(
            row=int(row),
            path=predictions.rows["path"].iloc[row],
            cluster=predictions.rows["cluster"].iloc[row],
            truth=truths[row],
            class_index=int(k),
            class_name=predictions.class_names[k],
            found=bool(found[row, k]),
            right=bool(found[row, k]) == bool(predictions.labels[row, k] == 1),
            prob=float(predictions.probs[row, k]),
        )
        answers.setdefault(getattr(answer, once), answer)
        if len(answers) == number:
            break
    return list(answers.values())


def read_pictures(run: Run, answers: list[Answer], table: Table | None = None, data=None) -> np.ndarray:
    """Returns uint8 (len(answers), H, W, 3), the answers' pictures as the model saw them.

    Args:
      run: whose data are read.
      answers: what is to be shown.
      table: the run's data, where they are open already.
      data: the folder, CSV or npz to read instead of the one in the run's settings.
    Raises: DataError: the data or a picture are no longer there, or are others.
    """
    config = run.read_config(data)
    table = inference.run_table(run, open_table(config) if table is None else table)
    row_of = {path: row for row, path in enumerate(table.rows["path"])}
    part = table.take(np.array([row_of[answer.path] for answer in answers], np.int64))
    reading = config.data
    pictures = Pictures(part, reading.image_size, "none", fit=reading.fit, interpolation=reading.interpolation)
    return pictures.gather(np.arange(len(answers)))


def draw_attention(run: Run, answers: list[Answer], pictures: np.ndarray, model=None) -> np.ndarray:
    """Returns uint8 (N, H, W, 3), the pictures overlaid with what spoke for each answer's class.

    Args:
      run: whose model is asked.
      answers: N of them.
      pictures: uint8 (N, H, W, 3), of the same answers.
      model: the run's keras.Model, where it is loaded already.
    Raises: ModelError: a network that cannot be explained. RunError: the model cannot be loaded.
    """
    from kmed.models.heatmaps import explain, overlay  # here, since it loads Keras
    from kmed.models.keras_file import load_model

    model = load_model(run.model) if model is None else model
    heatmaps = explain(model, pictures, np.array([answer.class_index for answer in answers]))  # (N, H, W)
    return np.stack([overlay(image, heatmap) for image, heatmap in zip(pictures, heatmaps, strict=True)])
