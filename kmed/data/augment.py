"""Augmentation at named levels: NumPy draws the changes from (seed, epoch, row), and augment_pixels.py applies them.

All random numbers and the matrices of each row are drawn in advance, so TensorFlow and JAX get the
same order and the same pictures, with any batch size, with any number of parallel calls, and in a
resumed run too. Flip, rotation, zoom, stretch and shift form one affine map, so there is only one
interpolation, which blurs once. Likewise, brightness, contrast, saturation and hue form one 3x3 matrix
and an offset, and so do changes of stain or exposure, on a logarithmic scale.
"""

import dataclasses

import numpy as np

from kmed.config import AugmentConfig
from kmed.errors import DataError, suggest

ORIENTATIONS = ("upright", "free")
DENSITIES = ("none", "stain", "exposure")


@dataclasses.dataclass(frozen=True)
class Level:
    """How much a picture may be changed; each number is the largest change in either direction.

    Attributes:
      rotation: degrees; only used if the orientation is "upright" ("free" rotates by any angle).
      zoom: log of the scale: 0.1 zooms by 0.90 to 1.11.
      stretch: log of the ratio of the horizontal and vertical scales.
      shift: fraction of the picture's height and width.
      brightness: grey levels of 0..255 that are added.
      contrast: relative change, about mid-grey.
      saturation: relative change.
      hue: degrees about the grey axis.
      stain: relative change of the amounts of haematoxylin and eosin, and half of it as a shift of each.
      exposure: log of gamma, and half of it as a shift of the optical density.
      erase: probability that a box of 2 to 20 % of the picture becomes mid-grey (Zhong et al., 2020).
    """

    rotation: float = 0.0
    zoom: float = 0.0
    stretch: float = 0.0
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    stain: float = 0.0
    exposure: float = 0.0
    erase: float = 0.0


LEVELS = {
    "none": Level(),
    "light": Level(rotation=5, zoom=0.05, shift=0.04, brightness=8, contrast=0.05, stain=0.1, exposure=0.1),
    "medium": Level(
        rotation=10,
        zoom=0.15,
        stretch=0.05,
        shift=0.08,
        brightness=20,
        contrast=0.15,
        saturation=0.15,
        hue=6,
        stain=0.25,
        exposure=0.25,
    ),  # fmt: skip
    "strong": Level(
        rotation=15,
        zoom=0.3,
        stretch=0.1,
        shift=0.12,
        brightness=35,
        contrast=0.3,
        saturation=0.35,
        hue=15,
        stain=0.5,
        exposure=0.4,
        erase=0.5,
    ),  # fmt: skip
}

# The columns of a plan's draws.
TRANSFORM = slice(0, 6)  # output (x, y) -> input: (a0 x + a1 y + a2, b0 x + b1 y + b2), in pixels
COLOUR = slice(6, 18)  # 3x3 matrix, row by row, then the offset of each channel
ERASE = slice(18, 22)  # box: top, bottom, left, right, in whole pixels; empty where nothing is erased
MIX = slice(22, 28)  # the picture's own share outside the box, the partner's box, the own share in the label
DENSITY = slice(28, 40)  # of optical densities: 3x3 matrix, row by row, then the offset of each channel
NUM_DRAWS = 40

# Independent streams of random numbers: drawing from one does not affect the others.
_ORDER, _UNIFORM, _MIX, _DENSITY = range(4)
_LUMA = np.array([0.299, 0.587, 0.114])
MID_GREY = 127.5
# Optical densities of haematoxylin, eosin and what is left (Ruifrok & Johnston, 2001), red, green, blue.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is changed in training images, and the seed of all random draws, including that of their order.

    Attributes:
      level: a key of LEVELS.
      orientation: "upright" flips left and right and rotates a little; "free" is for pictures that
        have no top, such as smears: it flips both ways and rotates by any angle.
      density: "stain" changes the amounts of two stains, as haematoxylin and eosin (or Giemsa's azure and eosin) vary
        from slide to slide (Tellez et al., 2018); "exposure" changes gamma and density, as exposures of X-rays vary.
        Both act on optical densities, in the strength of the level; "none" leaves them out.
      mixup: alpha of Beta(alpha, alpha) for the share of the other picture (Zhang et al., 2018); 0 turns it off.
      cutmix: the same for the area that is pasted from the other picture (Yun et al., 2019). If both
        are on, each row gets one of them, with equal probability.
      seed: a whole number >= 0.
    Raises: DataError: a value outside its range.
    """

    level: str = "none"
    orientation: str = "upright"
    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0
    density: str = "none"

    def __post_init__(self):
        legal = {
            "augment": (self.level, tuple(LEVELS)),
            "orientation": (self.orientation, ORIENTATIONS),
            "density": (self.density, DENSITIES),
        }
        for name, (value, words) in legal.items():
            if value not in words:
                hint = suggest(value, words)
                raise DataError(f"{name} must be one of {', '.join(words)}. Received: {name}={value!r}.{hint}")
        for name, value in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= value < np.inf:
                raise DataError(
                    f"{name} is alpha of Beta(alpha, alpha) and must be >= 0; 0 turns it off. Received: {name}={value}."
                )
        _check_whole("seed", self.seed)

    @classmethod
    def from_settings(cls, augment_config: AugmentConfig, seed: int) -> "Augmentation":
        """Returns the augmentation that the augment section and the seed of the settings describe."""
        chosen = augment_config
        return cls(chosen.level, chosen.orientation, chosen.mixup, chosen.cutmix, seed, chosen.density)

    @property
    def changes(self) -> bool:
        """Whether images are changed, and so differ from epoch to epoch."""
        return self.level != "none" or self.mixes

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed with those of another row."""
        return bool(self.mixup or self.cutmix)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The order and the random changes of one epoch, drawn in advance.

    Attributes:
      order: int64 (N,), the rows in the order of training.
      draws: float32 (N, 40); draws[i] is the transformation of row order[i].
    """

    order: np.ndarray
    draws: np.ndarray


def plan_epoch(
    num_images: int,
    image_size: tuple[int, int],
    augmentation: Augmentation,
    *,
    epoch: int,
    shuffle: bool = True,
    clusters: np.ndarray | None = None,
    classes: np.ndarray | None = None,
) -> Plan:
    """Returns the order and all random choices of one epoch, which depend on (seed, epoch, row) alone.

    Args:
      num_images: N >= 1.
      image_size: (height, width) in pixels.
      augmentation: what is changed, and the seed.
      epoch: a whole number >= 0.
      shuffle: False keeps the table's order.
      clusters: (N,) the cluster of each row, to draw all clusters equally often, with one of their rows each time.
        Then some rows come more than once and others not at all. None: each row once.
      classes: (N,) the class of each row, whose share in the epoch is kept when clusters are drawn. None: all one.
    Raises: DataError: an epoch that is not a whole number >= 0.
    """
    check_epoch(epoch)
    seed, level, flip = augmentation.seed, LEVELS[augmentation.level], augmentation.level != "none"
    order = np.arange(num_images)
    if shuffle:
        generator = np.random.default_rng([seed, epoch, _ORDER])
        if clusters is None:
            order = generator.permutation(num_images)
        else:
            order = _draw_clusters(generator, clusters, np.zeros(num_images) if classes is None else classes)
    # One column of uniform numbers per choice, used or not: all levels see the same numbers, and row i stays the same
    # however many rows follow it.
    uniform = np.random.default_rng([seed, epoch, _UNIFORM]).random((num_images, 16))
    draws = np.empty((num_images, NUM_DRAWS), np.float32)
    draws[:, TRANSFORM] = _transforms(uniform[:, 0:7], level, augmentation.orientation, image_size, flip)
    draws[:, COLOUR] = _colours(uniform[:, 7:11], level)
    draws[:, ERASE] = _erasures(uniform[:, 11:16], level, image_size)
    draws[:, DENSITY] = _densities(np.random.default_rng([seed, epoch, _DENSITY]), num_images, augmentation)
    draws[:, MIX] = _mixtures(np.random.default_rng([seed, epoch, _MIX]), num_images, augmentation, image_size)
    # A row that is drawn twice is changed in two ways.
    return Plan(order.astype(np.int64), draws[order] if clusters is None or not shuffle else draws)


def _draw_clusters(generator, clusters: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns int64 (N,): as many rows of each class as there are, from all clusters of the class equally often."""
    drawn = [_draw_evenly(generator, rows, clusters[rows]) for rows in _grouped(classes)]
    return generator.permutation(np.concatenate(drawn))


def _draw_evenly(generator, rows: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Returns len(rows) of the rows: round by round one of each cluster, and in the last round of some of them."""
    members = _grouped(clusters)
    rounds = -(-len(rows) // len(members))
    turns = np.concatenate([generator.permutation(len(members)) for _ in range(rounds)])[: len(rows)]
    return rows[[generator.choice(members[turn]) for turn in turns]]


def _grouped(values: np.ndarray) -> list[np.ndarray]:
    """Returns the indices of each distinct value."""
    _, numbers = np.unique(values, return_inverse=True)
    return np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])


def check_epoch(epoch: int) -> None:
    """Raises DataError unless `epoch` is a whole number >= 0."""
    _check_whole("epoch", epoch)


def _check_whole(name: str, value) -> None:
    if value != int(value) or value < 0:
        raise DataError(f"{name} must be a whole number >= 0. Received: {name}={value}.")


def _transforms(uniform, level: Level, orientation: str, image_size, flip: bool) -> np.ndarray:
    """Returns (N, 6): the affine maps from output to input pixels, about the picture's centre."""
    height, width = image_size
    signed = 2 * uniform - 1
    free = orientation == "free"
    flip_x = np.where(flip & (uniform[:, 0] < 0.5), -1.0, 1.0)
    flip_y = np.where(flip & free & (uniform[:, 1] < 0.5), -1.0, 1.0)
    angle = np.deg2rad(signed[:, 2] * (180.0 if free and flip else level.rotation))
    scale_x = np.exp(-signed[:, 3] * level.zoom - signed[:, 4] * level.stretch / 2)
    scale_y = np.exp(-signed[:, 3] * level.zoom + signed[:, 4] * level.stretch / 2)
    a0, a1 = flip_x * scale_x * np.cos(angle), -flip_x * scale_x * np.sin(angle)
    b0, b1 = flip_y * scale_y * np.sin(angle), flip_y * scale_y * np.cos(angle)
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    a2 = centre_x - a0 * centre_x - a1 * centre_y + signed[:, 5] * level.shift * width
    b2 = centre_y - b0 * centre_x - b1 * centre_y + signed[:, 6] * level.shift * height
    return np.stack([a0, a1, a2, b0, b1, b2], axis=1)


def _colours(uniform, level: Level) -> np.ndarray:
    """Returns (N, 12): contrast x saturation x hue as one matrix, and the offset.

    Each row of the matrix sums to the contrast, so grey pictures stay grey. The hue is rotated about
    the grey axis (Rodrigues' formula), which is close to a rotation in HSV and needs no conversion.
    """
    signed = 2 * uniform - 1
    brightness = signed[:, 0] * level.brightness
    contrast = 1 + signed[:, 1] * level.contrast
    saturation = (1 + signed[:, 2] * level.saturation)[:, None, None]
    hue = np.deg2rad(signed[:, 3] * level.hue)[:, None, None]
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    rotate = np.cos(hue) * np.eye(3) + np.sin(hue) * cross + (1 - np.cos(hue)) * np.full((3, 3), 1 / 3)
    saturate = saturation * np.eye(3) + (1 - saturation) * _LUMA
    matrix = contrast[:, None, None] * (saturate @ rotate)
    offset = MID_GREY * (1 - contrast) + brightness
    return np.concatenate([matrix.reshape(-1, 9), np.repeat(offset[:, None], 3, axis=1)], axis=1)


def _densities(generator, num_images: int, augmentation: Augmentation) -> np.ndarray:
    """Returns (N, 12): the matrix and the offset that change a row of optical densities (red, green, blue)."""
    signed, level = 2 * generator.random((num_images, 4)) - 1, LEVELS[augmentation.level]
    matrix, offset = np.tile(np.eye(3), (num_images, 1, 1)), np.zeros((num_images, 3))
    if augmentation.density == "stain":
        # densities = amounts @ stains, so a factor on each amount is inverse(stains) @ diagonal @ stains.
        factors = np.column_stack([1 + level.stain * signed[:, :2], np.ones(num_images)])
        matrix = np.linalg.inv(_STAINS) @ (factors[:, :, None] * _STAINS)
        offset = level.stain / 2 * signed[:, 2:] @ _STAINS[:2]
    elif augmentation.density == "exposure":
        matrix = matrix * np.exp(level.exposure * signed[:, 0])[:, None, None]
        offset = offset + level.exposure / 2 * signed[:, 1:2]
    return np.concatenate([matrix.reshape(-1, 9), offset], axis=1)


def _erasures(uniform, level: Level, image_size) -> np.ndarray:
    """Returns (N, 4): boxes with 2 to 20 % of the area and an aspect ratio of 1:2 to 2:1, or empty boxes."""
    area = np.where(uniform[:, 0] < level.erase, 0.02 + 0.18 * uniform[:, 1], 0.0)
    ratio = np.exp((2 * uniform[:, 2] - 1) * np.log(2) / 2)
    return _boxes(np.sqrt(area) * ratio, np.sqrt(area) / ratio, uniform[:, 3], uniform[:, 4], image_size)


def _mixtures(generator, num_images: int, augmentation: Augmentation, image_size) -> np.ndarray:
    """Returns (N, 6): each row's own share outside the box, the box of its partner, its own share in the label."""
    mixup, cutmix = augmentation.mixup, augmentation.cutmix
    uniform = generator.random((num_images, 3))
    shares = np.ones((num_images, 2))
    for column, (alpha, stream) in enumerate(zip((mixup, cutmix), generator.spawn(2))):
        if alpha:
            shares[:, column] = stream.beta(alpha, alpha, num_images)
    pasted = (uniform[:, 0] < 0.5) if mixup and cutmix else np.full(num_images, bool(cutmix))
    share = np.where(pasted, 1.0, shares[:, 0])
    side = np.where(pasted, np.sqrt(1 - shares[:, 1]), 0.0)
    boxes = _boxes(side, side, uniform[:, 1], uniform[:, 2], image_size)
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (image_size[0] * image_size[1])
    return np.column_stack([share, boxes, share * (1 - area)])


def _boxes(down, across, y, x, image_size) -> np.ndarray:
    """Returns (N, 4): top, bottom, left, right in whole pixels, inside the picture.

    Args:
      down, across: (N,), the box's sides as fractions of the picture's height and width.
      y, x: (N,) in [0, 1), the position of the box within the room that it leaves.
    """
    height, width = image_size
    rows, columns = np.round(np.clip(down, 0, 1) * height), np.round(np.clip(across, 0, 1) * width)
    top, left = np.floor(y * (height - rows + 1)), np.floor(x * (width - columns + 1))
    return np.stack([top, top + rows, left, left + columns], axis=1)
