"""Changes the pixels of a batch as the draws of kmed/data/augment.py say, with OpenCV and NumPy.

Every backend of Keras gets these arrays, so all train on the same pictures.
"""

from collections.abc import Callable

import cv2
import numpy as np

from kmed.data.augment import COLOUR, DENSITY, ERASE, LEVELS, MID_GREY, MIX, TRANSFORM, Augmentation

_WHITE = 256.0  # the optical density of a pixel is -log((pixel + 1) / 256)


class Augmenter:
    """The changes that an augmentation makes, applied in order.

    Example:
      >>> augmentation = Augmentation("medium")
      >>> plan = plan_epoch(len(images), (120, 160), augmentation, epoch=3, shuffle=False)
      >>> changed, labels = Augmenter(augmentation)(images, plan.draws, labels)
    """

    def __init__(self, augmentation: Augmentation, run: Callable = map):
        """
        Args:
          augmentation: what is changed.
          run: calls a function for each of a list of rows, as `map` or the `map` of a pool of threads does.
        """
        level = augmentation.level
        self._run = run
        self._steps = [move, colour] if level != "none" else []
        self._steps += [change_densities] if augmentation.density != "none" and level != "none" else []
        self._steps += [erase] if LEVELS[level].erase else []
        self._mixes = augmentation.mixes

    def __call__(self, images: np.ndarray, draws: np.ndarray, *rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns the images and each of `rows`, changed.

        Args:
          images: uint8 or float32 (B, H, W, 3) in 0..255.
          draws: float32 (B, 40), the draws of a plan.
          *rows: labels (B, K) and weights (B,); only mixing changes them.
        Returns: a tuple (images, *rows); the images are float32 in 0..255, or as given if nothing is changed.
        """
        if self._steps:
            changed = np.empty(images.shape, np.float32)

            def change(row):
                image = images[row].astype(np.float32)
                for step in self._steps:
                    image = step(image, draws[row])
                changed[row] = image

            for _ in self._run(change, range(len(images))):
                pass  # which raises an error of a thread
            images = changed
        if self._mixes:
            images = mix(images, draws)
            rows = tuple(mix_rows(values, draws) for values in rows)
        return images, *rows


# ----- one picture: float32 (H, W, 3) in 0..255, and its row of draws -----


def move(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Flips, rotates, zooms, stretches and shifts in one bilinear interpolation; images are mirrored at the border."""
    matrix = draws[TRANSFORM].reshape(2, 3).astype(np.float64)
    size, flags = (image.shape[1], image.shape[0]), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, size, flags=flags, borderMode=cv2.BORDER_REFLECT)


def colour(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue with one matrix, and clips to 0..255."""
    change = draws[COLOUR]
    image = cv2.transform(image, np.column_stack([change[:9].reshape(3, 3), change[9:]]))
    return np.clip(image, 0.0, 255.0, out=image)


def change_densities(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Changes optical densities with one matrix and an offset; white stays nearly white."""
    change = draws[DENSITY]
    matrix = change[:9].reshape(3, 3).T  # of a row of densities, from the right
    logs = cv2.log(image + 1.0)  # log(256) - density
    offset = np.log(_WHITE) * (1 - matrix.sum(axis=1)) - change[9:]
    image = cv2.exp(cv2.transform(logs, np.column_stack([matrix, offset])))
    np.subtract(image, 1.0, out=image)
    return np.clip(image, 0.0, 255.0, out=image)


def erase(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Paints a box mid-grey."""
    image[_box(draws[ERASE])] = MID_GREY
    return image


def _box(edges: np.ndarray) -> tuple[slice, slice]:
    top, bottom, left, right = edges.astype(int)
    return slice(top, bottom), slice(left, right)


# ----- a batch -----


def mix(images: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Returns float32 (B, H, W, 3): MixUp and CutMix of each row with the next one, and of the last with the first."""
    mixed, partners = images.astype(np.float32), np.roll(images, -1, axis=0)
    for row, drawn in enumerate(draws[:, MIX]):
        if drawn[0] != 1:
            mixed[row] = drawn[0] * mixed[row] + (1 - drawn[0]) * partners[row]
        box = _box(drawn[1:5])
        mixed[row][box] = partners[row][box]
    return mixed


def mix_rows(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Returns labels (B, K) or weights (B,), mixed in the same proportions as the pictures."""
    share = draws[:, MIX][:, 5].reshape(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * np.roll(values, -1, axis=0)
