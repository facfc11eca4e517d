"""Aligns two fingerprints: do they show the same scene, how much of it, and do the pixels agree?"""

import dataclasses
from collections.abc import Callable

import numpy as np

from kmed.data.audit.fingerprints import Fingerprint, Variant, squared_distances
from kmed.data.audit.residual import SMALL_BLUR, WIDE_BLUR, blurred, compare_tiles, smooth_and_fine, verdict

# Lowe's ratio; 0.8 is usual. The geometric check below is strict, so a looser ratio can find small overlaps.
RATIO = 0.85
MIN_INLIERS = 7
REPROJECTION = 3.0  # pixels
# Limits on how a copy may be zoomed and sheared: the area and the aspect ratio of the image of a unit square.
MAX_ZOOM = 4.0
MAX_STRETCH = 2.0
REFINEMENTS = 6
MIN_PIXELS = 300
REACH = 31  # pixels around the matched features


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """How one picture maps onto another.

    Attributes:
      inliers: number of matched features that one affine map explains.
      share: fraction of the smaller picture that the other one also shows, 0 to 1.
      spread: fraction of the smaller picture that the matched features span, 0 to 1.
      agreement: correlation of the slightly blurred pixels in the region that the matched features span, -1 to 1.
      detail: the same correlation for fine detail alone, with light and shade removed.
      tile_detail: the correlation of fine detail that three quarters of the tiles of the shared part reach, -1 to 1.
      drift: how far the tiles are from where they would agree best: the median, in pixels of the fingerprints.
      mirrored: whether one is a mirror image of the other.
      inverted: whether one is a negative of the other.
      outlines: two polygons around the matched features, float32 (P, 2): x and y as fractions of the width and
        height of the first and of the second picture.
    """

    inliers: int
    share: float
    spread: float
    agreement: float
    detail: float
    tile_detail: float
    drift: float
    mirrored: bool
    inverted: bool
    outlines: tuple[np.ndarray, np.ndarray]

    @property
    def verdict(self) -> str:
        """What the residual says: "same", "doubt" or "other", see `kmed.data.audit.residual.verdict`."""
        return verdict(self.tile_detail, self.drift)


@dataclasses.dataclass(frozen=True)
class Least:
    """What two aligned pictures must reach; a pair that will not is given up as soon as that is clear.

    Attributes:
      agreement, detail: see Alignment.
      detail_at_first: the same as `detail`, before the map has been refined.
    """

    agreement: float = -1.0
    detail: float = -1.0
    detail_at_first: float = -1.0


def align(
    first: Fingerprint,
    second: Fingerprint,
    variant: Variant,
    least: Least = Least(),
    enough: Callable[[Alignment], bool] | None = None,
) -> Alignment | None:
    """Returns how `first` maps onto `second`, or None if too few features agree on one affine map.

    Args:
      variant: whether to look for `first` in a mirror image or a negative of `second`; a call looks for one case only.
      least: None is returned too if the pixels agree by less.
      enough: if it is true of the Alignment that follows from the features, the pixels do not refine it.
    """
    import cv2

    left, right = _matches(first.descriptors, second.descriptors[:, variant.columns])
    if len(left) < MIN_INLIERS:
        return None
    source, target = first.points[left], second.points[right]
    matrix, inlying = cv2.estimateAffine2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=REPROJECTION, maxIters=1000, confidence=0.99
    )
    if matrix is None or inlying.sum() < MIN_INLIERS or not _plausible(matrix, variant.mirrored):
        return None
    overlap = _Overlap(first, second, variant, target[inlying.ravel() > 0])
    mapped = overlap.map(matrix)
    if mapped.detail < least.detail_at_first:
        return None
    if enough is not None and (found := overlap.measure(mapped, least)) is not None and enough(found):
        return found
    return overlap.measure(overlap.map(overlap.refine(matrix)), least)


def align_either(first: Fingerprint, second: Fingerprint) -> Alignment | None:
    """Returns the best alignment, plain, mirrored or as a negative, or None if there is none."""
    found = [one for variant in Variant if (one := align(first, second, variant)) is not None]
    return max(found, key=lambda one: one.inliers, default=None)


def _matches(first, second):
    """Returns two index arrays of features that are clearly each other's nearest."""
    if len(first) < 2 or len(second) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    squared = squared_distances(first.astype(np.float32), second.astype(np.float32))  # (F, G)
    nearest = squared.argmin(axis=1)
    rows = np.arange(len(first))
    best = squared[rows, nearest]
    squared[rows, nearest] = np.inf
    kept = np.flatnonzero(best < RATIO**2 * squared.min(axis=1))
    squared[rows, nearest] = best
    kept = kept[squared[:, nearest[kept]].argmin(axis=0) == kept]
    return kept, nearest[kept]


def _plausible(matrix, mirrored):
    linear = matrix[:, :2]
    area = np.linalg.det(linear)
    large, small = np.linalg.svd(linear, compute_uv=False)
    return (area < 0) == mirrored and 1 / MAX_ZOOM < abs(area) < MAX_ZOOM and large < MAX_STRETCH * small


@dataclasses.dataclass(frozen=True, eq=False)
class _Mapped:
    """The first picture as the second one should show it.

    Attributes:
      matrix: float64 (2, 3), the affine map.
      smooth, fine: float32 (H, W), what `smooth_and_fine` returns.
      shown: uint8 (H, W), 1 where both pictures show something.
      clear: the same without a margin.
      detail: see Alignment.
    """

    matrix: np.ndarray
    smooth: np.ndarray
    fine: np.ndarray
    shown: np.ndarray
    clear: np.ndarray
    detail: float


class _Overlap:
    """What two pictures share, as far as it lies around matched features.

    Args:
      points: float32 (inliers, 2), the features in the second picture.
    """

    def __init__(self, first, second, variant, points):
        import cv2

        self.first, self.second, self.variant, self.inliers = first, second, variant, len(points)
        self.grey = 255 - first.grey if variant.inverted else first.grey
        self.smooth, self.fine = smooth_and_fine(second.grey)
        self.hull = cv2.convexHull(points)  # (P, 1, 2)
        region = cv2.fillConvexPoly(np.zeros(second.grey.shape, np.uint8), np.round(self.hull).astype(np.int32), 1)
        self.region = cv2.dilate(region, np.ones((REACH, REACH), np.uint8))

    def map(self, matrix):
        """Returns the first picture under an affine map."""
        shape = self.second.grey.shape
        shown = _warp(self.first.inside, matrix, shape, nearest=True) & self.second.inside
        clear = _within(shown, WIDE_BLUR)
        smooth, fine = smooth_and_fine(_warp(self.grey, matrix, shape))
        return _Mapped(matrix, smooth, fine, shown, clear, _correlation(fine, self.fine, clear & self.region))

    def refine(self, matrix):
        """Returns a better affine map."""
        return _refine(self.grey, self.smooth, matrix, self.first.inside, self.second.inside & self.region)

    def measure(self, mapped, least):
        """Returns the Alignment, or None if the pixels agree by less than the least."""
        import cv2

        if mapped.detail < least.detail:
            return None
        agreement = _correlation(mapped.smooth, self.smooth, _within(mapped.shown, SMALL_BLUR) & self.region)
        if agreement < least.agreement:
            return None
        zoom = abs(np.linalg.det(mapped.matrix[:, :2]))
        smaller = max(min(cv2.countNonZero(self.second.inside), cv2.countNonZero(self.first.inside) * zoom), 1.0)
        areas = cv2.countNonZero(mapped.shown), cv2.contourArea(self.hull)
        share, spread = (min(area / smaller, 1.0) for area in areas)
        tile_detail, drift = compare_tiles(mapped.fine, self.fine, mapped.clear)
        back = cv2.transform(self.hull, cv2.invertAffineTransform(mapped.matrix))
        outlines = tuple(
            np.float32(points.reshape(-1, 2) / np.array(picture.grey.shape[::-1]))
            for points, picture in ((back, self.first), (self.hull, self.second))
        )
        return Alignment(
            self.inliers, share, spread, agreement, mapped.detail, tile_detail, drift,
            self.variant.mirrored, self.variant.inverted, outlines,
        )  # fmt: skip


def _warp(picture, matrix, shape, nearest=False):
    import cv2

    return cv2.warpAffine(
        picture, matrix, (shape[1], shape[0]), flags=cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    )


def _refine(moving, fixed, matrix, moving_inside, region):
    """Returns the affine map after a few Gauss-Newton steps on the pixels, or the given map if they do not help.

    Features locate a picture to within about half a pixel, which is too coarse to tell two exposures of one
    spot from two copies of one exposure. The method is inverse compositional (Baker & Matthews, 2004);
    brightness and contrast are normalised in each step.

    Args:
      moving: uint8, the pixels of the first picture.
      fixed: float32, the second picture, smooth.
    """
    import cv2

    moving = blurred(moving)
    # Every second pixel of every second row is enough.
    slopes = [cv2.Sobel(fixed, -1, *order, scale=1 / 8)[::2, ::2] for order in ((1, 0), (0, 1))]
    fixed, region = np.ascontiguousarray(fixed[::2, ::2]), region[::2, ::2]
    y, x = (2 * axis for axis in np.indices(fixed.shape, np.float32))
    descent = np.stack([slope * by for slope in slopes for by in (x, y, np.ones_like(x))])  # (6, H, W)
    start = matrix
    best, kept = -1.0, matrix
    for _ in range(REFINEMENTS):
        halved = start / 2
        inside = _warp(moving_inside, halved, fixed.shape, nearest=True) & region
        count = cv2.countNonZero(inside)
        if count < MIN_PIXELS:
            break
        mask = inside.astype(np.float32)
        (found, _), (wanted, spread) = (
            _standardized(picture, inside) for picture in (_warp(moving, halved, fixed.shape), fixed)
        )
        error = (found - wanted) * mask
        agreement = 1 - float((error**2).sum()) / count / 2
        if agreement <= best + 1e-5:
            break
        best, kept = agreement, start
        terms = np.concatenate([descent * (mask / spread), error[None]])
        curvature = cv2.mulTransposed(terms.reshape(7, -1), False)  # (7, 7)
        step = np.linalg.lstsq(curvature[:6, :6], curvature[:6, 6], rcond=None)[0]
        # `start` maps moving -> fixed. The step moves the fixed picture by (I + step), so the map follows it.
        start = _compose(np.eye(2, 3) + step.reshape(2, 3), start)
    return kept


def _standardized(picture, wanted):
    """Returns (the picture with mean 0 and deviation 1 where `wanted` is 1, its deviation before)."""
    import cv2

    mean, spread = (float(one[0, 0]) for one in cv2.meanStdDev(picture, mask=wanted))
    spread = max(spread, 1e-6)
    return (picture - mean) / spread, spread


def _compose(outer, inner):
    square = np.vstack([inner, [0, 0, 1]])
    return np.asarray(outer @ square, np.float64)


def _within(shown, blur):
    """Returns `shown` without its margin: a blur spreads the black around a rotated copy inwards."""
    import cv2

    margin = round(2 * blur)
    framed = cv2.copyMakeBorder(shown, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return cv2.erode(framed, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))[1:-1, 1:-1]


def _correlation(first, second, wanted):
    """Returns the correlation of the pixels where `wanted` is 1; 0 if there are too few."""
    import cv2

    if cv2.countNonZero(wanted) < MIN_PIXELS:
        return 0.0
    first, second = ((part - cv2.mean(part, wanted)[0]) * wanted for part in (first, second))
    scale = cv2.norm(first) * cv2.norm(second)
    return float((first * second).sum()) / scale if scale > 1e-6 else 0.0
