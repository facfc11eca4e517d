"""Aligns two fingerprints: do they show the same scene, how much of it, and do the pixels agree?"""

import dataclasses

import numpy as np

from kmed.data.audit.fingerprints import Fingerprint, Variant, products, squared_distances
from kmed.data.audit.residual import SMALL_BLUR, WIDE_BLUR, compare_tiles, fine_detail, verdict

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


def align(first: Fingerprint, second: Fingerprint, variant: Variant, least: Least = Least()) -> Alignment | None:
    """Returns how `first` maps onto `second`, or None if too few features agree on one affine map.

    Args:
      variant: whether to look for `first` in a mirror image or a negative of `second`; a call looks for one case only.
      least: None is returned too if the pixels agree by less.
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
    inlying = inlying.ravel() > 0
    hull = cv2.convexHull(target[inlying])  # (P, 1, 2)
    return _compare(first, second, matrix, variant, hull, int(inlying.sum()), least)


def align_either(first: Fingerprint, second: Fingerprint) -> Alignment | None:
    """Returns the best alignment, plain, mirrored or as a negative, or None if there is none."""
    found = [one for variant in Variant if (one := align(first, second, variant)) is not None]
    return max(found, key=lambda one: one.inliers, default=None)


def _matches(first, second):
    """Returns two index arrays of features that are clearly each other's nearest."""
    if len(first) < 2 or len(second) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    squared = squared_distances(first.astype(np.float32), second.astype(np.float32))  # (F, G)
    rows = np.arange(len(first))
    nearest = squared.argmin(axis=1)
    back = squared.argmin(axis=0)
    best = squared[rows, nearest].copy()
    squared[rows, nearest] = np.inf
    kept = (best < RATIO**2 * squared.min(axis=1)) & (back[nearest] == rows)
    return rows[kept], nearest[kept]


def _plausible(matrix, mirrored):
    linear = matrix[:, :2]
    area = np.linalg.det(linear)
    large, small = np.linalg.svd(linear, compute_uv=False)
    return (area < 0) == mirrored and 1 / MAX_ZOOM < abs(area) < MAX_ZOOM and large < MAX_STRETCH * small


def _compare(first, second, matrix, variant, hull, inliers, least):
    import cv2

    grey = 255 - first.grey if variant.inverted else first.grey
    height, width = second.grey.shape
    region = cv2.fillConvexPoly(np.zeros((height, width), np.uint8), np.round(hull).astype(np.int32), 1)
    region = cv2.dilate(region, np.ones((REACH, REACH), np.uint8))
    fine = fine_detail(second.grey)
    if _detail(first, second, grey, fine, matrix, region)[0] < least.detail_at_first:
        return None
    matrix = _refine(grey, second.grey, matrix, first.inside, second.inside & region)
    detail, warped_fine, warped, shown, clear = _detail(first, second, grey, fine, matrix, region)
    if detail < least.detail:
        return None
    smooth = [cv2.GaussianBlur(picture.astype(np.float32), (0, 0), SMALL_BLUR) for picture in (warped, second.grey)]
    agreement = _agreement(*smooth, _within(shown, SMALL_BLUR) & region)
    if agreement < least.agreement:
        return None
    smaller = max(min(float(second.inside.sum()), first.inside.sum() * abs(np.linalg.det(matrix[:, :2]))), 1.0)
    tile_detail, drift = compare_tiles(warped_fine, fine, clear)
    back = cv2.transform(hull, cv2.invertAffineTransform(matrix))
    outlines = tuple(
        np.float32(points.reshape(-1, 2) / np.array(picture.grey.shape[::-1]))
        for points, picture in ((back, first), (hull, second))
    )
    return Alignment(
        inliers, min(float(shown.sum()) / smaller, 1.0), min(cv2.contourArea(hull) / smaller, 1.0), agreement, detail,
        tile_detail, drift, variant.mirrored, variant.inverted, outlines,
    )  # fmt: skip


def _detail(first, second, grey, fine, matrix, region):
    """Returns how fine detail agrees under an affine map, and what was compared.

    Args:
      grey: `first.grey`, or its negative.
      fine: the fine detail of the second picture.
    Returns: (detail, fine detail of the mapped first picture, its pixels, where both show something, the same without
      a margin).
    """
    warped = _warp(grey, matrix, second.grey.shape)
    shown = _warp(first.inside, matrix, second.grey.shape, nearest=True) & second.inside
    clear, warped_fine = _within(shown, WIDE_BLUR), fine_detail(warped)
    return _agreement(warped_fine, fine, clear & region), warped_fine, warped, shown, clear


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
    """
    import cv2

    def blurred(picture):
        return cv2.GaussianBlur(picture, (0, 0), SMALL_BLUR).astype(np.float32)

    fixed, moving = blurred(fixed), blurred(moving)
    slope_x, slope_y = cv2.Sobel(fixed, -1, 1, 0, scale=1 / 8), cv2.Sobel(fixed, -1, 0, 1, scale=1 / 8)
    y, x = (axis[::4].astype(np.float32) for axis in np.nonzero(region))  # a quarter of the pixels is enough
    rows, columns = y.astype(int), x.astype(int)
    start = matrix
    best, kept = -1.0, matrix
    for _ in range(REFINEMENTS):
        inside = _warp(moving_inside, start, fixed.shape, nearest=True)[rows, columns] > 0
        if inside.sum() < MIN_PIXELS:
            break
        wanted, found = fixed[rows, columns][inside], _warp(moving, start, fixed.shape)[rows, columns][inside]
        spread = max(float(wanted.std()), 1e-6)
        error = (found - found.mean()) / max(float(found.std()), 1e-6) - (wanted - wanted.mean()) / spread
        agreement = 1 - float((error**2).mean()) / 2
        if agreement <= best + 1e-5:
            break
        best, kept = agreement, start
        gx, gy = slope_x[rows, columns][inside] / spread, slope_y[rows, columns][inside] / spread
        px, py = x[inside], y[inside]
        descent = np.stack([gx * px, gx * py, gx, gy * px, gy * py, gy], axis=1)  # (P, 6)
        curvature = products(np.concatenate([descent.T, error[None]]).astype(np.float32))  # (7, 7)
        step = np.linalg.lstsq(curvature[:6, :6], curvature[:6, 6], rcond=None)[0]
        # `start` maps moving -> fixed. The step moves the fixed picture by (I + step), so the map follows it.
        start = _compose(np.eye(2, 3) + step.reshape(2, 3), start)
    return kept


def _compose(outer, inner):
    square = np.vstack([inner, [0, 0, 1]])
    return np.asarray(outer @ square, np.float64)


def _within(shown, blur):
    """Returns `shown` without its margin: a blur spreads the black around a rotated copy inwards."""
    import cv2

    margin = round(2 * blur)
    framed = cv2.copyMakeBorder(shown, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return cv2.erode(framed, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))[1:-1, 1:-1]


def _agreement(first, second, wanted):
    """Returns the correlation of the pixels where `wanted` is 1; 0 if there are too few."""
    wanted = wanted > 0
    return _correlation(first[wanted], second[wanted]) if wanted.sum() >= MIN_PIXELS else 0.0


def _correlation(first, second):
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale > 1e-6 else 0.0
