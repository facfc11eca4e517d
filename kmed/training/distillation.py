"""Training with a teacher: a finished run answers for each training image, and the student learns these answers too.

The teacher sees the very images that the student sees, after their augmentation and mixing, in every epoch anew: a
"consistent" teacher, which taught better than one whose answers for other views were stored (Beyer et al., 2022,
"Knowledge distillation: A good teacher is patient and consistent"). Its answers cannot be stored, since no augmented
image comes twice. Without augmentation they are the same in each epoch, and are computed once.
"""

import dataclasses
import pathlib
import time

import keras
import numpy as np

from kmed import runtime
from kmed.config import Config, TrainConfig, parse_range
from kmed.data.augment import Augmentation
from kmed.data.pipeline import Pipeline
from kmed.data.table import Table
from kmed.errors import ConfigError, RunError
from kmed.evaluation import inference
from kmed.evaluation.lineage import are_known, describe_leak, trained_pictures
from kmed.files import digest_of, write_json
from kmed.labels import describe_difference
from kmed.models.keras_file import load_run_model
from kmed.progress import format_time, say, warn
from kmed.runs import Run, finished_run
from kmed.schemas.records import stamped
from kmed.training.memory import estimate_inference_memory

# ---- Checks: before the images are read, and once they are --------------------------------------------


def check_teacher(config: Config) -> None:
    """Raises an error if the settings name no teacher that can teach this run, as far as its files tell.

    Raises: RunError: there is no finished run. ConfigError: it has another task, or its images are prepared in another
      way; or there is no teacher to which the other settings of distillation could apply.
    """
    settings = config.train
    if settings.teacher is None:
        for name in ("teacher_temperature", "teacher_weight"):
            if (value := getattr(settings, name)) != TrainConfig.model_fields[name].default:
                raise ConfigError(
                    f"train.{name} needs a teacher. Received: {value} without one. Give train.teacher, a finished run."
                )
        return
    classes = _teacher_run(config).read_classes()
    if config.task not in ("auto", classes.task):
        raise ConfigError(
            f"The teacher {settings.teacher} is {classes.task}, but this run is {config.task}. A teacher must have the "
            "same task."
        )
    for name in ("fit", "interpolation", "decode"):
        if getattr(config.data, name) != getattr(classes, name):
            raise ConfigError(
                f"The teacher {settings.teacher} was trained with data.{name}={getattr(classes, name)} and would see "
                f"unfamiliar images. Received: {getattr(config.data, name)}. Set data.{name}={getattr(classes, name)}."
            )
    (height, width), (own_height, own_width) = classes.image_size, config.data.image_size
    if abs(height * own_width - width * own_height) > max(height, width):  # more than a pixel of rounding
        raise ConfigError(
            f"The teacher {settings.teacher} takes images of {height}x{width}, which have another shape than "
            f"{own_height}x{own_width}. Set data.image_size to a size of its shape, such as {height}x{width}."
        )


def _teacher_run(config: Config) -> Run:
    return finished_run(pathlib.Path(config.train.teacher or "").expanduser())


def check_lessons(config: Config, table: Table) -> None:
    """Raises an error if the teacher does not fit the data, or has trained on images that are to judge the student.

    Args:
      config: the settings, with the range that was found.
      table: the images with their splits.
    Raises: RunError: other classes, or the same ones in another order; another range of values; images outside the
      training split that the teacher has trained on, itself or through what it learnt from.
    """
    if config.train.teacher is None:
        return
    run = _teacher_run(config)
    classes = run.read_classes()
    if table.task != classes.task:
        raise RunError(f"The teacher {run.folder} is {classes.task}, but the data are {table.task}.")
    if list(table.class_names) != classes.class_names:
        difference = describe_difference(table.class_names, classes.class_names)
        raise RunError(
            f"The teacher's classes are {', '.join(classes.class_names)}, but the data's are "
            f"{', '.join(table.class_names)} ({difference}). A student learns the same classes in the same order: set "
            "data.class_names to the teacher's, or take another teacher."
        )
    limits = parse_range(config.data.range)
    if classes.range is not None and limits is not None and list(limits) != classes.range:
        low, high = classes.range
        raise RunError(
            f"The teacher {run.folder} was trained with data.range={low}-{high} and would see images of another "
            f"brightness. Received: {config.data.range}. Set data.range={low}-{high}."
        )
    _check_unseen(run, table, config)


def _check_unseen(run: Run, table: Table, config: Config) -> None:
    """Raises RunError if a teacher has trained on images, or on other images of groups, that judge the student."""
    known = trained_pictures(run)
    if not are_known(table.rows, known).any():
        warn(
            f"Warning: none of the {len(known)} images that the teacher has trained on is in these data by its name. "
            "If they are the same images under other names, the scores may be too good."
        )
    if not (leak := describe_leak(known, table)):
        return
    own = run.read_splits()
    clean = not own["path"][own["split"] != "train"].isin(known["path"]).any()  # not so if folds were put together
    hint = "Take"
    if clean and config.data.fold is None:
        hint = f"Split the data as the teacher did, with --set data.splits={run.splits}, or take"
    raise RunError(
        f"The teacher {run.folder} has trained on {leak}: the scores would be too good. {hint} a teacher that has not "
        "seen them."
    )


# ---- The teacher ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A finished run's model that answers for images of the student's size.

    It is no Keras object, so that a model that holds it does not count the teacher's weights among its own.

    Attributes:
      run: the finished run.
      model: raw pixels (N, H, W, 3) -> probabilities (N, K), in float32.
      once: whether its answers are the same in each epoch, so that they are computed once.
    """

    run: Run
    model: keras.Model
    once: bool

    def answer(self, images):
        """Returns the probabilities (N, K) for a batch of images, through which no gradient flows."""
        return keras.ops.stop_gradient(self.model(images, training=False))

    def answer_all(self, training: Table, config: Config) -> np.ndarray | None:
        """Returns the probabilities (N, K) of the training images, or None if they differ from epoch to epoch."""
        if not self.once:
            return None
        say("The training images are not augmented, so the teacher answers once for each of them.")
        return inference.predict(self.model, training, config)


def open_teacher(config: Config, strategy) -> Teacher | None:
    """Returns the teacher that the settings name, or None.

    Args:
      config: the settings of the student.
      strategy: what `kmed.runtime.distribution` returned.
    Raises: RunError: its model is missing or damaged.
    """
    if config.train.teacher is None:
        return None
    run = _teacher_run(config)
    with runtime.scope(strategy):
        model = _resized(load_run_model(run), config.data.image_size)
    model.trainable = False
    return Teacher(run, model, once=not Augmentation.from_settings(config.augment, config.seed).changes)


def _resized(model: keras.Model, image_size: tuple[int, int]) -> keras.Model:
    """Returns a model that takes images of `image_size`, which are resized to those of `model` if they differ."""
    size = tuple(model.input_shape[1:3])
    if size == tuple(image_size):
        return model
    images = keras.Input((*image_size, 3), dtype="float32", name="images")
    return keras.Model(images, model(keras.ops.image.resize(images, size, antialias=True)), name=model.name)


def record_teacher(run: Run, config: Config) -> None:
    """Writes teacher.json: which model the run learns from. Writes nothing without a teacher."""
    if config.train.teacher is not None:
        write_json(run.teacher, stamped(_describe_file(_teacher_run(config))))


def check_same_teacher(run: Run, config: Config) -> None:
    """Raises RunError if the teacher of a run that continues is no longer the model that the run was started with."""
    if config.train.teacher is None:
        return
    if run.read_json(run.teacher)["sha256"] != _describe_file(_teacher_run(config))["sha256"]:
        raise RunError(
            f"The teacher {config.train.teacher} is another model than when this run was started. Restore it, or start "
            "a new run."
        )


def _describe_file(teacher: Run) -> dict:
    name = teacher.read_config().model.name
    return {"folder": str(teacher.folder), "model": name, "sha256": digest_of(teacher.model)}


# ---- The student ---------------------------------------------------------------------------------------


class Student(keras.Model):
    """A model that trains with the answers of a teacher, and has no weights but its own.

    It has the layers of the model that it is made of, and predicts the same. Compile it with a loss whose labels are
    the true ones and the teacher's probabilities side by side, such as `kmed.losses.DistillationLoss`.

    Args:
      model: functional keras.Model, images -> probabilities (N, K).
      teacher: who answers in each step. Labels (N, 2 K) hold the answers already.
    """

    def __init__(self, model: keras.Model, teacher: Teacher):
        super().__init__(inputs=model.input, outputs=model.output, name=model.name)
        self._teacher = teacher

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Returns the loss against the labels and the answers. `x` are the augmented images that the student saw."""
        if not self._teacher.once:
            y = keras.ops.concatenate([y, self._teacher.answer(x)], axis=-1)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates and returns the metrics, which compare with the labels alone."""
        return super().compute_metrics(x, y[:, : y_pred.shape[-1]], y_pred, sample_weight)


def with_teacher(model: keras.Model, teacher: Teacher | None) -> keras.Model:
    """Returns the model as a Student, or the model itself without a teacher."""
    return model if teacher is None else Student(model, teacher)


def describe_teacher(teacher: Teacher, config: Config, batches: Pipeline, *, epochs: int) -> None:
    """Says who teaches, how it sees the images, how much memory that takes and, measured on one batch, how much time.

    Args:
      teacher: from `open_teacher`.
      config: the settings of the student.
      batches: the training batches.
      epochs: the number of epochs that remain.
    """
    memory = estimate_inference_memory(teacher.model, batches.batch_size)
    size = f"{teacher.model.count_params():,} parameters, about {memory / 1e6:.0f} MB more memory"
    say(f"Teacher: {teacher.run.folder} ({teacher.run.read_config().model.name}, {size}).")
    own, given = teacher.run.read_classes().image_size, list(config.data.image_size)
    if own != given:
        say(
            f"The teacher's images are resized from {given[0]}x{given[1]} to {own[0]}x{own[1]}; it may know less than "
            "its own scores say."
        )
    if not teacher.once:
        seconds = _time_batch(teacher, batches.batch_size)
        whole = format_time(seconds * batches.steps_per_epoch * epochs)
        say(f"The teacher answers in each step, which adds about {seconds:.2f} s to it: {whole} in all.")


def _time_batch(teacher: Teacher, batch_size: int) -> float:
    """Returns the seconds in which the teacher answers for one batch, after a first one that includes compilation."""
    images = np.zeros((batch_size, *teacher.model.input_shape[1:]), np.float32)
    teacher.model.predict_on_batch(images)
    start = time.monotonic()
    teacher.model.predict_on_batch(images)
    return time.monotonic() - start
