"""What remains between two aligned pictures: are they one exposure, or the same subject at another time?

A copy agrees with its original everywhere, and nothing has moved. In two X-rays of one patient the bones lie
elsewhere relative to the heart, so no affine map makes more than parts of them agree. Both pictures are therefore
compared tile by tile, by fine detail alone, which brightness, contrast and gamma hardly change; an annotation or a
border spoils a few tiles and not the quartile.
"""

import numpy as np

# Blurs, in pixels: the small one removes the effects of interpolation and JPEG, the wide one those of lighting.
SMALL_BLUR, WIDE_BLUR = 1.0, 4.0
CELL = 16  # pixels; a tile is 2 x 2 cells, and tiles overlap by half
MIN_FILLED = 0.6  # of a tile must lie within both pictures
MIN_VARIANCE = 1.0  # of fine detail, in grey levels squared: less is noise, which agrees with nothing
MIN_TILES = 4
# Verdicts, from the surest on: (verdict, minimum of `tile_detail`, maximum of `drift` in pixels). See docs/data.md for
# the pictures that they were found with and those that they were checked with.
VERDICTS = (
    ("same", 0.91, np.inf),
    ("same", 0.68, 0.4),  # a copy that JPEG has robbed of its detail, but nothing has moved
    ("doubt", 0.8, np.inf),
    ("doubt", 0.5, 0.45),
)


def verdict(tile_detail: float, drift: float) -> str:
    """Returns "same" (one exposure, or one unchanged scene), "doubt", or "other" (another exposure of the subject).

    Args:
      tile_detail, drift: as `compare_tiles` returns them.
    """
    for name, least, most in VERDICTS:
        if tile_detail >= least and drift <= most:
            return name
    return "other"


def compare_tiles(first: np.ndarray, second: np.ndarray, shown: np.ndarray) -> tuple[float, float]:
    """Returns (tile_detail, drift) of two aligned pictures; (0, inf) if fewer than MIN_TILES tiles can be compared.

    tile_detail is the correlation of fine detail, -1 to 1, that three quarters of the tiles reach. drift is the median
    distance in pixels by which the tiles would have to move to agree best.

    Args:
      first, second: float32 (H, W), the fine detail that `smooth_and_fine` returns, the first already mapped onto the
        second.
      shown: uint8 (H, W), 1 where both can be compared.
    """
    import cv2

    mask = shown.astype(np.float32)
    # The gradient of one picture, and how much it must move along it to remove the difference (Lucas & Kanade, 1981).
    slope_x, slope_y = cv2.Sobel(second, -1, 1, 0, scale=1 / 8), cv2.Sobel(second, -1, 0, 1, scale=1 / 8)
    filled = _tiles(mask)
    count = np.maximum(filled, 1e-6)
    first, second, slope_x, slope_y = (part * mask for part in (first, second, slope_x, slope_y))

    def mean(one, other=None):
        return _tiles(one if other is None else one * other) / count

    mean_first, mean_second = mean(first), mean(second)
    variance_first = mean(first, first) - mean_first**2
    variance_second = mean(second, second) - mean_second**2
    covariance = mean(first, second) - mean_first * mean_second
    usable = (filled >= MIN_FILLED) & (variance_first >= MIN_VARIANCE) & (variance_second >= MIN_VARIANCE)
    if usable.sum() < MIN_TILES:
        return 0.0, float("inf")
    correlation = covariance[usable] / np.sqrt(variance_first[usable] * variance_second[usable])
    gain = np.sqrt(variance_second[usable] / variance_first[usable])
    xx, xy, yy = (mean(*pair)[usable] for pair in ((slope_x, slope_x), (slope_x, slope_y), (slope_y, slope_y)))
    rest_x, rest_y = (gain * mean(slope, first)[usable] - mean(slope, second)[usable] for slope in (slope_x, slope_y))
    scale = np.maximum(xx * yy - xy**2, 1e-6)
    drift = np.hypot(yy * rest_x - xy * rest_y, xx * rest_y - xy * rest_x) / scale
    return float(np.percentile(correlation, 25)), float(np.median(drift))


def smooth_and_fine(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a grey picture without its noise, and its fine detail: without light and shade too; float32 (H, W)."""
    smooth = blurred(picture)
    return smooth, smooth - blurred(picture, WIDE_BLUR)


def blurred(picture: np.ndarray, sigma: float = SMALL_BLUR) -> np.ndarray:
    """Returns a grey picture, blurred by so many pixels, float32 (H, W)."""
    import cv2

    return cv2.GaussianBlur(picture.astype(np.float32), (0, 0), sigma)


def _tiles(values):
    """Returns float32 (R, C), the mean of each tile; pixels beyond the last whole cell are left out."""
    import cv2

    rows, columns = values.shape[0] // CELL, values.shape[1] // CELL
    if rows < 2 or columns < 2:
        return np.zeros((0, 0), np.float32)
    cells = cv2.resize(values[: rows * CELL, : columns * CELL], (columns, rows), interpolation=cv2.INTER_AREA)
    return (cells[1:, 1:] + cells[1:, :-1] + cells[:-1, 1:] + cells[:-1, :-1]) / 4
