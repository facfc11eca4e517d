"""Images unlike the training data, found by their distance to the training images in the network's features."""

import dataclasses
import functools
import math
import pathlib

import cv2
import keras
import numpy as np
import threadpoolctl

from kmed.errors import RunError, shorten
from kmed.files import replacing
from kmed.metrics.intervals import Bootstrap, Score, draw_resamples, mean_score
from kmed.models.combined import MEMBERS
from kmed.reading import damaged, read_arrays
from kmed.runs import Run

NUM_REFERENCE = 1000  # training pictures that are kept for comparison
NEIGHBOUR = 10  # the distance is measured to the tenth nearest of them
NUM_STATISTICS = 9  # of the pixels, see `picture_statistics`
LAYER = "pool"
_LEAST_SCALE = 0.1  # of the mean scale: a feature that hardly varied must not decide alone


@dataclasses.dataclass(frozen=True)
class Novelty:
    """Measures how far a picture is from the training pictures, and flags it above a threshold.

    The distance is that to the k-th nearest training picture (Sun et al., "Out-of-distribution detection with deep
    nearest neighbors", 2022), in two groups of numbers with equal weight: the network's features before its head,
    and nine statistics of the pixels. The statistics are needed because a network trained on one kind of pictures
    may see little of what sets another kind apart.

    Attributes:
      center, scale: float32 (D + 9,), those of the training pictures; `scale` includes the weight of each group.
      reference: float32 (R, D + 9), scaled training pictures.
      threshold: the distance above which a picture is flagged.
      wanted: share of validation pictures that the threshold is meant to flag, in (0, 1).
    """

    center: np.ndarray
    scale: np.ndarray
    reference: np.ndarray
    threshold: float
    wanted: float

    def distances(self, images: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Returns float64 (N,), the distance of each picture.

        Args:
          images: uint8 or float (N, H, W, 3) in [0, 255].
          features: float (N, D), their features from `feature_model`.
        """
        joined = np.concatenate([features, picture_statistics(images)], axis=1).astype(np.float32)
        points = (joined - self.center) / self.scale
        with _blas().limit(limits=1):  # its threads would go on spinning, and slow down the model's
            products = points @ self.reference.T
        squares = (points**2).sum(axis=1)[:, None] + (self.reference**2).sum(axis=1) - 2 * products
        nearest = min(NEIGHBOUR, len(self.reference)) - 1
        return np.sqrt(np.maximum(np.partition(squares, nearest, axis=1)[:, nearest], 0)).astype(np.float64)

    def flags(self, distances: np.ndarray) -> np.ndarray:
        """Returns bool (N,), whether each picture is unlike the training pictures."""
        return np.asarray(distances) > self.threshold

    def with_threshold(self, distances: np.ndarray, wanted: float) -> "Novelty":
        """Returns a copy whose threshold flags the share `wanted` of validation pictures with these distances."""
        return dataclasses.replace(self, threshold=float(np.quantile(distances, 1 - wanted)), wanted=float(wanted))

    def save(self, path: pathlib.Path) -> None:
        """Writes an npz file, with the reference in half precision."""
        with replacing(path) as temporary:
            np.savez_compressed(
                temporary,
                center=self.center,
                scale=self.scale,
                reference=self.reference.astype(np.float16),
                threshold=self.threshold,
                wanted=self.wanted,
            )


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


def load_novelty(path: pathlib.Path) -> Novelty:
    """Returns the Novelty that `Novelty.save` wrote.

    Raises: RunError: the file is damaged, or holds arrays or numbers that `Novelty.save` does not write.
    """
    stored = read_arrays(path)
    dimensions = {"center": 1, "scale": 1, "reference": 2, "threshold": 0, "wanted": 0}
    if set(stored) != set(dimensions):
        raise damaged(f"{path} must hold {', '.join(dimensions)}. Received: {shorten(sorted(stored))}.")
    for name, array in stored.items():
        if array.ndim != dimensions[name] or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise damaged(
                f"{path}: {name} must hold finite numbers in {dimensions[name]} dimensions. Received: {array.dtype} of "
                f"shape {array.shape}."
            )
    size, reference = stored["center"].shape, stored["reference"]
    if not len(reference) > 0 or stored["scale"].shape != size or reference.shape[1:] != size:
        shapes = ", ".join(f"{name} {stored[name].shape}" for name in ("center", "scale", "reference"))
        raise damaged(f"{path}: the shapes must be (D,), (D,) and (R, D). Received: {shapes}.")
    if not (stored["scale"] > 0).all() or stored["threshold"] < 0 or not 0 < stored["wanted"] < 1:
        raise damaged(
            f"{path}: scale must be above 0, threshold at least 0 and wanted between 0 and 1. Received: scale from "
            f"{stored['scale'].min():g}, threshold={stored['threshold']:g}, wanted={stored['wanted']:g}."
        )
    arrays = {name: stored[name].astype(np.float32) for name in ("center", "scale", "reference")}
    return Novelty(**arrays, threshold=float(stored["threshold"]), wanted=float(stored["wanted"]))


def run_novelty(run: Run, both: keras.Model) -> tuple[Novelty, dict]:
    """Returns a run's Novelty, and its record in metrics.json ({} in a run that has none).

    Args:
      run: a run with a novelty.npz.
      both: the run's model, from `feature_model`.
    Raises: RunError: the file is damaged, is of another model, or contradicts metrics.json.
    """
    novelty, record = load_novelty(run.novelty), run.read_json(run.metrics).get("novelty") or {}
    expected = both.outputs[0].shape[-1] + NUM_STATISTICS
    again = f"Fit it again in Python: kmed.fit_novelty({str(run.folder)!r})"
    if len(novelty.center) != expected:
        raise RunError(f"{run.novelty} holds {len(novelty.center)} numbers per picture, not {expected}. {again}")
    for name in ("threshold", "wanted"):
        own = getattr(novelty, name)
        if not math.isclose(own, record.get(name, own), rel_tol=1e-6):
            raise RunError(f"{run.novelty}: {name} is {own:g}, but {run.metrics} says {record[name]:g}. {again}")
    return novelty, record


def feature_model(model: keras.Model) -> keras.Model:
    """Returns a model with several outputs from one pass: features float32 (N, D) before the head, and probabilities.

    A third output of an ensemble are the logits (N, M, K) of its members.

    Args:
      model: a keras.Model from `kmed.build_model` or `kmed.models.combined.combine`.
    """
    outputs = [model.get_layer(LAYER).output, model.output]
    outputs += [layer.output for layer in model.layers if layer.name == MEMBERS]
    return keras.Model(model.inputs, outputs)


def look(both: keras.Model, images: np.ndarray, batch_size: int) -> tuple[np.ndarray, ...]:
    """Returns (features float32 (N, D), probs float32 (N, K)) of N <= batch_size pictures.

    Of an ensemble, the logits float32 (N, M, K) of its members come third.

    A smaller batch is filled up with black pictures, since the model would be compiled again for every new size.

    Args:
      both: the model from `feature_model`.
      images: uint8 or float (N, H, W, 3) in [0, 255].
      batch_size: pictures in a full batch.
    """
    images = np.asarray(images)
    missing = batch_size - len(images)
    filled = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing > 0 else images
    return tuple(np.asarray(output, np.float32)[: len(images)] for output in both.predict_on_batch(filled))


def fit_reference(features: np.ndarray, statistics: np.ndarray) -> Novelty:
    """Returns the Novelty of training pictures, without a threshold yet.

    Args:
      features: float (R, D), from `feature_model`.
      statistics: float (R, 9), from `picture_statistics`.
    """
    joined = np.concatenate([features, statistics], axis=1).astype(np.float32)
    center, spread = joined.mean(axis=0), joined.std(axis=0)
    scale = np.empty_like(spread)
    for group in (slice(0, features.shape[1]), slice(features.shape[1], None)):
        least = max(_LEAST_SCALE * spread[group].mean(), 1e-6)
        scale[group] = np.maximum(spread[group], least) * np.sqrt(len(spread[group]))
    # Rounded as it will be stored, so that distances are the same before and after.
    reference = ((joined - center) / scale).astype(np.float16).astype(np.float32)
    return Novelty(center, scale, reference, threshold=float("inf"), wanted=float("nan"))


def false_alarms(flagged: np.ndarray, clusters: np.ndarray, bootstrap: Bootstrap) -> Score:
    """Returns the share of a split's images that are flagged, with an interval from resampling its clusters.

    Args:
      flagged: bool (N,).
      clusters: (N,).
      bootstrap: the settings of the interval.
    """
    return mean_score(draw_resamples(clusters, bootstrap), flagged.mean(), flagged)


def picture_statistics(images: np.ndarray) -> np.ndarray:
    """Returns float32 (N, 9): mean and spread of each colour, mean step down and across in grey, mean colourfulness.

    All are those of pixels scaled to [0, 1].

    Args:
      images: uint8 or float (N, H, W, 3) in [0, 255].
    """
    return np.array([_statistics(image) for image in images], np.float32).reshape(-1, NUM_STATISTICS)


def _statistics(image: np.ndarray) -> np.ndarray:
    """Returns float64 (9,) of a picture (H, W, 3); OpenCV sums exactly, and in a tenth of NumPy's time."""
    image = np.ascontiguousarray(image if image.dtype == np.uint8 else image.astype(np.float32))
    mean, spread = cv2.meanStdDev(image)
    red, green, blue = cv2.split(image)
    wider = cv2.CV_16S if image.dtype == np.uint8 else cv2.CV_32F
    grey = cv2.add(cv2.add(red, green, dtype=wider), blue, dtype=wider)  # three times as bright
    down, across = _mean_step(grey[1:], grey[:-1]) / 3, _mean_step(grey[:, 1:], grey[:, :-1]) / 3
    brightest, darkest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    return np.array([*mean[:, 0], *spread[:, 0], down, across, _mean_step(brightest, darkest)]) / 255


def _mean_step(first: np.ndarray, second: np.ndarray) -> float:
    return cv2.norm(first, second, cv2.NORM_L1) / first.size
