"""Fingerprints of pictures: a small grey copy, a mask of its content, and its local features."""

import dataclasses
import enum

import numpy as np

# The length of the longer side at which pictures are compared. Larger ones are shrunk; those below half of it are
# doubled in size, because SIFT finds too little on a thumbnail.
LONGER_SIDE = 320
NUM_FEATURES = 300
OCTAVE_LAYERS = 2  # 3 is usual, but takes 50 % longer
# SIFT's usual 0.04 leaves 80 features on a blood smear, 50 on an X-ray of 128 x 128; weak ones recur in copies too.
CONTRAST = 0.01
# Rotated and shifted copies have a black or white fill. Features this close to it belong to the frame, not the scene.
DARK, BRIGHT = 12, 253
MARGIN = 6


class Variant(enum.Enum):
    """How a copy may differ from its original beyond an affine map.

    Attributes:
      mirrored: whether it is a mirror image.
      inverted: whether it is a negative.
      columns: int64 (128,): the order in which the columns of its descriptors match those of the original.
    """

    PLAIN = (False, False)
    MIRRORED = (True, False)
    INVERTED = (False, True)
    MIRRORED_AND_INVERTED = (True, True)

    def __init__(self, mirrored: bool, inverted: bool):
        self.mirrored, self.inverted = mirrored, inverted
        columns = np.arange(128).reshape(4, 4, 8)
        if mirrored:  # the 4 columns of cells are reversed, and the 8 directions are reflected
            columns = columns[::-1][:, :, -np.arange(8) % 8]
        if inverted:  # every gradient points the other way, and so does the direction that SIFT turns upright
            columns = columns[::-1, ::-1]
        self.columns = columns.reshape(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Fingerprint:
    """What is stored for one picture.

    Attributes:
      grey: uint8 (H, W), with the longer side at most LONGER_SIDE.
      inside: uint8 (H, W), 1 where the picture shows something, 0 in a black or white fill at its edge.
      points: float32 (F, 2), x and y of each feature in pixels of `grey`.
      descriptors: uint8 (F, 128): square roots of SIFT's normalised values, scaled to a length of about 512.
        Their products are whole numbers below 2**24, so float32 sums them exactly in any order, and the same
        files give the same answer on any machine.
    """

    grey: np.ndarray
    inside: np.ndarray
    points: np.ndarray
    descriptors: np.ndarray


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Returns a picture, uint8 (H, W, 3), in grey, uint8 (H, W), its longer side LONGER_SIDE / 2 to LONGER_SIDE.

    Thumbnails are only doubled in size, so they may stay smaller.
    """
    import cv2

    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    scale = min(LONGER_SIDE / max(height, width), 2.0)
    if 1.0 <= scale < 2.0:
        return grey
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def fingerprint(grey: np.ndarray) -> Fingerprint:
    """Returns the Fingerprint of a grey picture, uint8 (H, W)."""
    import cv2

    inside = _inside(grey)
    framed = cv2.copyMakeBorder(inside, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    usable = cv2.erode(framed, np.ones((2 * MARGIN + 1, 2 * MARGIN + 1), np.uint8))[1:-1, 1:-1]
    keypoints, raw = cv2.SIFT.create(NUM_FEATURES, OCTAVE_LAYERS, CONTRAST).detectAndCompute(grey, usable)
    if raw is None:
        raw = np.zeros((0, 128), np.float32)
    points = np.array(cv2.KeyPoint.convert(keypoints), np.float32).reshape(-1, 2)
    shares = raw / np.maximum(raw.sum(axis=1, keepdims=True), 1e-6)
    descriptors = np.minimum(np.round(512 * np.sqrt(shares)), 255).astype(np.uint8)  # (F, 128)
    return Fingerprint(grey, inside, points, descriptors)


def products(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns first @ second.T, float32 (F, G), of float32 (F, D) and (G, D).

    OpenCV multiplies on the calling thread. NumPy starts threads of its own, which makes a pool of callers a
    hundred times slower for matrices of this size.
    """
    import cv2

    # OpenCV's stubs do not allow None for the matrix that would be added.
    return cv2.gemm(first, second, 1.0, None, 0.0, flags=cv2.GEMM_2_T)  # type: ignore[call-overload]


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns float32 (F, G), the squared distance from each row of `first` (F, D) to each row of `second` (G, D)."""
    first_squares, second_squares = ((part**2).sum(axis=1, keepdims=True) for part in (first, second))
    # (a, |a|^2, 1) times (-2 b, 1, |b|^2): one product takes less time than three sums of matrices.
    return products(
        np.hstack([first, first_squares, np.ones_like(first_squares)]),
        np.hstack([-2 * second, np.ones_like(second_squares), second_squares]),
    )


def _inside(grey):
    """Returns uint8 (H, W): 0 in dark or bright regions that touch the picture's edge, 1 elsewhere."""
    import cv2

    inside = np.ones(grey.shape, np.uint8)
    for fill in (grey <= DARK, grey >= BRIGHT):
        if not _edge(fill).any():
            continue
        num, regions = cv2.connectedComponents(fill.astype(np.uint8), connectivity=4)
        touching = np.zeros(num, bool)
        touching[_edge(regions)] = True
        touching[0] = False
        inside[touching[regions]] = 0
    return inside


def _edge(picture):
    return np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
