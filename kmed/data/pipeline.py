"""Turns a table into batches of (images, labels[, weights]), with tf.data, or in memory without TensorFlow.

Both ways read from the same `Pictures` and follow the same `Plan`, so they return the same batches.
"""

import contextlib
import functools
import os

import keras
import numpy as np

from kmed.data.augment import NUM_DRAWS, Augmentation, Plan, check_epoch, plan_epoch
from kmed.data.augment_pixels import Augmenter
from kmed.data.images import Resizing
from kmed.data.pictures import Pictures
from kmed.data.table import Table
from kmed.errors import DataError, KmedError, suggest
from kmed.runtime import num_cores

BACKENDS = ("tensorflow", "memory")
SAMPLES = ("image", "cluster")
PREFETCHED = 4  # batches prepared in advance, to even out slow reads


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Returns the number of batches in a training epoch: the full ones, or one smaller batch if none is full."""
    return max(num_images // batch_size, 1)


def make_dataset(
    table: Table,
    image_size: tuple[int, int],
    *,
    batch_size: int = 32,
    training: bool = False,
    epoch: int | None = None,
    first_epoch: int = 0,
    augment: str = "none",
    orientation: str = "upright",
    mixup: float = 0.0,
    cutmix: float = 0.0,
    density: str = "none",
    sample: str = "image",
    seed: int = 0,
    fit: str = "pad",
    interpolation: str = "bilinear",
    decode: str = "full",
    cache: str = "auto",
    cache_dir: str | os.PathLike | None = None,
    class_weights=None,
    backend: str | None = None,
):
    """Returns the batches of a table, for `model.fit`, `evaluate` and `predict`.

    Args:
      table: the rows, usually of one split.
      image_size: (height, width) in pixels.
      batch_size: images per batch.
      training: False returns each row once, in the table's order, as uint8; the last batch may be
        smaller. True shuffles, augments, and drops the rows that do not fill a batch.
      epoch: the only epoch to return in training; None returns an endless stream of epochs, for
        `model.fit(dataset, epochs=..., steps_per_epoch=steps_per_epoch(len(table), batch_size))`.
      first_epoch: the epoch at which the stream starts, as for a resumed run.
      augment: how much training images are changed: "none", "light", "medium" or "strong".
      orientation, mixup, cutmix, density, seed: as for `kmed.data.augment.Augmentation`.
      fit, interpolation, decode: as for `kmed.data.images.Resizing`.
      cache, cache_dir: as for `kmed.data.pictures.Pictures`.
      sample, class_weights, backend: as for `Pipeline`.
    Returns: a tf.data.Dataset, or a keras.utils.PyDataset without TensorFlow.
    Raises: DataError: an argument outside its range, or an unreadable picture.
    """
    augmentation = Augmentation(augment, orientation, mixup, cutmix, seed, density)
    pipeline = Pipeline(
        table,
        Resizing(image_size, fit, interpolation, decode=decode),
        augmentation=augmentation,
        batch_size=batch_size,
        cache=cache,
        cache_dir=cache_dir,
        class_weights=class_weights,
        sample=sample,
        backend=backend,
    )
    if not training:
        return pipeline.evaluation()
    return pipeline.stream(first_epoch) if epoch is None else pipeline.epoch(epoch)


class Pipeline:
    """The pictures of a table and the ways to iterate over them, which share the decoded pictures.

    Attributes:
      steps_per_epoch: batches per training epoch.
      pictures: the decoded pictures.
    """

    def __init__(
        self,
        table: Table,
        resizing: Resizing,
        *,
        augmentation: Augmentation | None = None,
        batch_size: int = 32,
        cache: str = "auto",
        cache_dir: str | os.PathLike | None = None,
        class_weights=None,
        sample: str = "image",
        backend: str | None = None,
        targets: np.ndarray | None = None,
        part: tuple[int, int] = (0, 1),
    ):
        """
        Args:
          table: the rows, usually of one split.
          resizing: the size of the images, and how they are resized.
          augmentation: what is changed in training; None shuffles with seed 0 and changes nothing.
          batch_size: images per batch.
          cache, cache_dir: as for `Pictures`.
          class_weights: (K,) weights of the classes; each batch then also holds its rows' weights. Multiclass only.
          sample: "image" shows each row once per training epoch; "cluster" draws as many rows of each class, all of
            its clusters equally often, so that many images of one photograph or patient do not outweigh the others.
          backend: "tensorflow" or "memory"; None uses tf.data if Keras runs on TensorFlow.
          targets: (N, J) numbers that are put behind the labels of each row, such as a teacher's answers.
          part: (index, number) of the processes that train together: of each training batch, only this one's equal
            part is read and returned. Only with the backend "memory".
        Raises: DataError: an argument outside its range, or an unreadable picture.
        """
        if batch_size < 1:
            raise DataError(f"batch_size must be >= 1. Received: batch_size={batch_size}.")
        if not len(table):
            raise DataError(f"The table {table.name!r} has no pictures to make batches from.")
        if backend not in (None, *BACKENDS):
            hint = suggest(backend, BACKENDS)
            raise DataError(f"backend must be one of {', '.join(BACKENDS)}. Received: backend={backend!r}.{hint}")
        self.backend = backend or ("tensorflow" if keras.backend.backend() == "tensorflow" else "memory")
        self.batch_size = min(batch_size, len(table))
        self.steps_per_epoch = steps_per_epoch(len(table), batch_size)
        self._augmentation = augmentation or Augmentation()
        self._part, self._num_parts = part
        if self.batch_size % self._num_parts:
            raise DataError(
                f"A batch of {self.batch_size} cannot be shared equally by {self._num_parts} processes. Set "
                f"train.batch_size to a multiple of {self._num_parts}, no larger than the {len(table)} images."
            )
        self._clusters, self._classes = _choose_clusters(table, sample)
        labels = table.labels if targets is None else np.concatenate([table.labels, targets], axis=1)
        self._rows = [np.asarray(labels, np.float32)]
        if class_weights is not None:
            self._rows.append(_row_weights(table, class_weights))
        # Keeps the plan of the current epoch, and of the next one, which a prefetching reader may have started.
        self.plan = functools.lru_cache(maxsize=2)(self._make_plan)
        self.pictures = Pictures(table, resizing, cache, cache_dir, as_needed=self._num_parts > 1)
        # tf.data changes several batches at once; in memory there is one at a time, which is shared out.
        self._augment = Augmenter(self._augmentation, map if self.backend == "tensorflow" else self.pictures.in_threads)
        self._failure = None

    def epoch(self, epoch: int):
        """Returns the batches of one training epoch: shuffled, augmented, all of the same size.

        Pass `shuffle=False` to `model.fit`, because Keras would change the order of a `PyDataset`.
        """
        return self._training(epoch, 1)

    def stream(self, first_epoch: int = 0):
        """Returns an endless stream of batches: all epochs from `first_epoch` on, one after another."""
        return self._training(first_epoch, None)

    def evaluation(self):
        """Returns batches that hold each row once, in the table's order, as uint8; the last batch may be smaller."""
        num_rows = len(self._rows[0])
        steps = -(-num_rows // self.batch_size)
        if self.backend == "memory":
            return _Batches(steps, lambda step: self._load(np.arange(num_rows)[self._slice(step)]))
        import tensorflow as tf

        dataset = tf.data.Dataset.range(num_rows).batch(self.batch_size)
        dataset = dataset.map(self._load_graph, num_cores(), deterministic=True)
        return self._finish(dataset, steps)

    @contextlib.contextmanager
    def clear_errors(self):
        """Raises the DataError of an unreadable picture instead of the TensorFlow error that wraps it.

        Example:
          >>> with pipeline.clear_errors():
          ...     model.fit(pipeline.epoch(0))
        """
        self._failure = None
        try:
            yield
        except Exception as error:
            if self._failure is None or isinstance(error, KmedError):
                raise
            raise self._failure from error

    def _training(self, first_epoch: int, num_epochs: int | None):
        check_epoch(first_epoch)
        if self.backend == "tensorflow":
            return self._training_graph(first_epoch, num_epochs)
        steps = None if num_epochs is None else self.steps_per_epoch
        return _Batches(steps, functools.partial(self._training_batch, first_epoch))

    def _make_plan(self, epoch: int) -> Plan:
        """Returns the epoch's plan, without the rows that do not fill a batch."""
        whole = plan_epoch(
            self.pictures.shape[0],
            self.pictures.shape[1:3],
            self._augmentation,
            epoch=int(epoch),
            clusters=self._clusters,
            classes=self._classes,
        )
        num_rows = self.steps_per_epoch * self.batch_size
        return Plan(whole.order[:num_rows], whole.draws[:num_rows])

    def _load(self, rows: np.ndarray, draws: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Returns the images, labels and, if there are any, weights of these rows, changed as the draws say, if any."""
        loaded = self.pictures.gather(rows), *(values[rows] for values in self._rows)
        return loaded if draws is None else self._augment(loaded[0], draws, *loaded[1:])

    def _slice(self, step: int) -> slice:
        return slice(step * self.batch_size, (step + 1) * self.batch_size)

    # ----- in memory -----

    def _training_batch(self, first_epoch: int, step: int):
        epochs, step = divmod(step, self.steps_per_epoch)
        plan = self.plan(first_epoch + epochs)
        own, size = self._own_rows(step)
        return tuple(values[:size] for values in self._load(plan.order[own], plan.draws[own]))

    def _own_rows(self, step: int) -> tuple[np.ndarray, int]:
        """Returns (the rows of the plan that this process's part of a batch is made of, the number of rows in it).

        Mixing takes the next row of the batch too, so one more is read than the part has.
        """
        batch = np.arange(self.batch_size) + step * self.batch_size
        size = self.batch_size // self._num_parts
        more = int(self._augmentation.mixes and self._num_parts > 1)
        return np.take(batch, np.arange(size + more) + self._part * size, mode="wrap"), size

    # ----- with tf.data -----

    def _training_graph(self, first_epoch: int, num_epochs: int | None):
        import tensorflow as tf

        def batches_of(epoch):
            # One call per epoch. If it were stateful, op determinism would run everything after it in one thread.
            order, draws = tf.numpy_function(self._plan_arrays, [epoch], [tf.int64, tf.float32], stateful=False)
            order = tf.ensure_shape(order, (self.steps_per_epoch * self.batch_size,))
            draws = tf.ensure_shape(draws, (self.steps_per_epoch * self.batch_size, NUM_DRAWS))
            return tf.data.Dataset.from_tensor_slices((order, draws)).batch(self.batch_size, drop_remainder=True)

        end = tf.int64.max if num_epochs is None else first_epoch + num_epochs
        dataset = tf.data.Dataset.range(first_epoch, end).flat_map(batches_of)
        dataset = dataset.map(self._load_graph, num_cores(), deterministic=True)
        steps = tf.data.INFINITE_CARDINALITY if num_epochs is None else num_epochs * self.steps_per_epoch
        return self._finish(dataset, steps)

    def _plan_arrays(self, epoch):
        plan = self.plan(int(epoch))
        return plan.order, plan.draws

    def _load_graph(self, rows, draws=None):
        """Returns (images, labels[, weights]) as tensors of known shape."""
        import tensorflow as tf

        changes = draws is not None and self._augmentation.changes
        types = [tf.float32 if changes else tf.uint8] + [tf.float32] * len(self._rows)
        inputs = [rows] if draws is None else [rows, draws]
        images, *values = tf.numpy_function(self._load_or_note, inputs, types, stateful=False)
        images = tf.ensure_shape(images, (rows.shape[0], *self.pictures.shape[1:]))
        values = [tf.ensure_shape(value, (rows.shape[0], *known.shape[1:])) for value, known in zip(values, self._rows)]
        return images, *values

    def _load_or_note(self, rows, draws=None):
        try:
            return self._load(rows, draws)
        except KmedError as error:
            self._failure = error
            raise

    def _finish(self, dataset, steps: int):
        import tensorflow as tf

        options = tf.data.Options()
        # A private pool: reading must not occupy the threads that the model's operations wait for.
        options.threading.private_threadpool_size = max(num_cores(), 2)
        # The autotuning thread wakes up 10 ms, 30 ms, 70 ms, ... 41 s, 82 s after the start. Releasing the iterator, at
        # the end of each epoch, waits until it wakes up again: an epoch of 45 s took 82 s.
        options.autotune.enabled = False
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(steps))
        return dataset.prefetch(PREFETCHED).with_options(options)


class _Batches(keras.utils.PyDataset):
    """Batches by number; each batch depends on its number alone."""

    def __init__(self, num_batches: int | None, batch):
        super().__init__()
        self._num_batches = num_batches
        self._batch = batch

    @property
    def num_batches(self) -> int | None:
        return self._num_batches

    def __len__(self) -> int:
        if self._num_batches is None:
            raise TypeError("A stream of epochs has no length. Pass steps_per_epoch to fit.")
        return self._num_batches

    def __getitem__(self, step: int):
        return self._batch(step)


def _choose_clusters(table: Table, sample: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns (cluster of each row, class of each row) for `plan_epoch`; None for what it need not know."""
    if sample not in SAMPLES:
        hint = suggest(sample, SAMPLES)
        raise DataError(f"sample must be one of {', '.join(SAMPLES)}. Received: sample={sample!r}.{hint}")
    if sample == "image":
        return None, None
    classes = table.class_indices if table.exclusive else None
    return table.rows["cluster"].to_numpy(), classes


def _row_weights(table: Table, class_weights) -> np.ndarray:
    """Returns float32 (N,), the weight of each row's class."""
    weights = np.asarray(class_weights, np.float32)
    if not table.exclusive:
        raise DataError("class_weights apply to whole pictures, so they need one class per picture (task multiclass).")
    if weights.shape != (len(table.class_names),) or not (weights >= 0).all():
        raise DataError(
            f"class_weights must be {len(table.class_names)} numbers >= 0. Received: class_weights={class_weights!r}."
        )
    return weights[table.class_indices]
