"""From the stored values of a DICOM file to the grey or colour picture that a viewer shows."""

import contextlib
import math
from collections.abc import Callable, Iterator

import numpy as np

from kmed.errors import DataError

_GREY = ("MONOCHROME1", "MONOCHROME2")
_PIXELS_AT_ONCE = 2**20  # in which values are scaled, to save memory
# Elements that anonymisers leave empty; pydicom expects every element that exists to have a value.
_MAY_BE_EMPTY = (
    "RescaleSlope", "RescaleIntercept", "PixelPaddingValue", "PixelPaddingRangeLimit", "PhotometricInterpretation",
    "SamplesPerPixel", "PixelRepresentation", "PlanarConfiguration", "BitsStored", "HighBit", "NumberOfFrames",
    "ModalityLUTSequence", "VOILUTSequence",
)  # fmt: skip
# Where enhanced multi-frame objects store rescale and window, for all frames or for each.
_FRAME_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_FRAME_VALUES = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
# How values become brightness, black 0 to white 1: {VOI LUT Function: (least width, function of (values, centre,
# width))}, see PS3.3 C.11.2.1.
_WINDOWS: dict[str, tuple[float, Callable]] = {
    "LINEAR": (1, lambda values, center, width: _linear(values, center - 0.5, width - 1)),
    "LINEAR_EXACT": (1e-9, lambda values, center, width: _linear(values, center, width)),
    "SIGMOID": (1e-9, lambda values, center, width: 1 / (1 + np.exp(-4 * (values - center) / width))),
}


def tidy(dataset) -> None:
    """Removes what is empty or impossible, adds what is missing, and copies the first frame's rescale and window."""
    for keyword in _MAY_BE_EMPTY:
        if keyword in dataset and (dataset[keyword].is_empty or dataset[keyword].value is None):
            delattr(dataset, keyword)
    for groups in (dataset.get(keyword) or [] for keyword in _FRAME_GROUPS):
        for values in (groups[0].get(keyword) or [] for keyword in _FRAME_VALUES if groups):
            if values:
                dataset.update(values[0])
    if "PhotometricInterpretation" not in dataset:
        dataset.PhotometricInterpretation = "RGB" if dataset.get("SamplesPerPixel", 1) == 3 else "MONOCHROME2"
    for keyword, value in (
        ("SamplesPerPixel", 1 if dataset.PhotometricInterpretation in (*_GREY, "PALETTE COLOR") else 3),
        ("PixelRepresentation", 0),
        ("PlanarConfiguration", 0),
        ("BitsStored", dataset.BitsAllocated),
    ):
        if keyword not in dataset:
            setattr(dataset, keyword, value)
    if not 0 < dataset.BitsStored <= dataset.BitsAllocated:
        dataset.BitsStored = dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    _tidy_rescale(dataset)


def _tidy_rescale(dataset) -> None:
    """Removes a rescale that makes all values equal, or that is no number."""
    slope, intercept = (_number(dataset, keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        if keyword in dataset:
            delattr(dataset, keyword)
    # Values have at most 32 bits; a slope so steep that they overflow is damage.
    if slope and intercept is not None and math.isfinite(2.0**33 * slope + intercept):
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept


def shown(dataset, stored: np.ndarray, name: str) -> np.ndarray:
    """Returns uint8 (H, W) or (H, W, 3) of the stored values of one frame. Raises DataError for an unknown kind."""
    from pydicom.pixels import apply_color_lut

    kind = dataset.PhotometricInterpretation
    if kind in _GREY:
        return _grey(dataset, stored)
    if kind == "PALETTE COLOR":
        white = 2 ** int(dataset.RedPaletteColorLookupTableDescriptor[2]) - 1
        return _by_strips(stored, lambda part: _to_bytes(apply_color_lut(part, dataset), 0, white), channels=(3,))
    if kind == "RGB" or str(kind).startswith("YBR"):  # pydicom turns YBR into RGB
        white = 2 ** int(dataset.BitsStored) - 1
        return _by_strips(stored, lambda part: _to_bytes(part, 0, white), channels=stored.shape[2:])
    raise DataError(f"{name} has the photometric interpretation {kind}; only grey, RGB, YBR and palettes can be read.")


def _grey(dataset, stored: np.ndarray) -> np.ndarray:
    """Returns uint8 (H, W); values outside the window are black or white."""
    is_padding = _padding(dataset, stored.dtype)
    to_values = _rescale(dataset, stored)
    to_brightness = _voi_lut(dataset) or _window(dataset) or _own_range(stored, is_padding, to_values)
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"

    def show(part: np.ndarray) -> np.ndarray:
        pixels = np.clip(np.rint(255 * to_brightness(to_values(part))), 0, 255).astype(np.uint8)
        pixels = 255 - pixels if inverted else pixels
        pixels[is_padding(part)] = 0
        return pixels

    with np.errstate(over="ignore"):  # exp, far below a sigmoid window
        return _by_strips(stored, show)


def _rescale(dataset, stored: np.ndarray) -> Callable:
    """Returns the function from stored values to modality values; that of a damaged LUT leaves them as they are."""
    from pydicom.pixels import apply_modality_lut

    if dataset.get("ModalityLUTSequence"):
        try:
            apply_modality_lut(stored[:1], dataset)
        except Exception:  # pydicom raises whatever error the damage leads to
            return lambda part: part
    return lambda part: apply_modality_lut(part, dataset)


def _voi_lut(dataset) -> Callable | None:
    """Returns the function from modality values to brightness of the first VOI LUT; None if it cannot be used."""
    from pydicom.pixels import apply_voi_lut

    try:
        white = 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        apply_voi_lut(np.zeros((1, 1), np.int32), dataset, index=0)
    except Exception:  # pydicom raises whatever error the damage leads to
        return None
    return lambda values: apply_voi_lut(np.rint(values).astype(np.int64), dataset, index=0) / white


def _window(dataset) -> Callable | None:
    """Returns the function from modality values to brightness of the first usable window; None if there is none."""
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()  # PS3.3 C.11.2.1.2: linear if not given
    least, apply = _WINDOWS.get(function, (math.inf, None))
    for center, width in zip(_numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")):
        if apply is not None and center is not None and width is not None and width >= least:
            return lambda values, center=center, width=width: apply(values.astype(np.float64), center, width)
    return None


def _own_range(stored: np.ndarray, is_padding: Callable, to_values: Callable) -> Callable:
    """Returns the function from modality values to brightness that shows the range of the pixels without padding."""
    ends = []
    for top, bottom in _strips(stored):
        part = stored[top:bottom]
        kept = part[~is_padding(part)]
        if kept.size:
            values = to_values(kept.reshape(1, -1))
            ends += [values.min(), values.max()]
    if not ends:  # nothing but padding
        return lambda values: np.zeros(values.shape)
    low, high = float(min(ends)), float(max(ends))
    return lambda values: (values.astype(np.float64) - low) / (high - low or math.inf)


def _linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """Returns 0 up to center - width / 2, 1 above center + width / 2, and a ramp between."""
    if width == 0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _padding(dataset, dtype) -> Callable:
    """Returns the function that finds pixels outside the picture, by Pixel Padding Value and Range Limit."""
    value = _number(dataset, "PixelPaddingValue")
    if value is None:
        return lambda part: np.zeros(part.shape, bool)
    limit = _number(dataset, "PixelPaddingRangeLimit")
    # Some programs store it as unsigned although the pixels are signed: the bits are the same.
    ends = np.array([int(value), int(value if limit is None else limit)], np.int64).astype(dtype)
    return lambda part: (part >= ends.min()) & (part <= ends.max())


def _number(dataset, keyword: str) -> float | None:
    """Returns the first of an element's numbers; None if there is none, or it is not finite."""
    return next(_numbers(dataset, keyword), None)


def _numbers(dataset, keyword: str) -> Iterator[float | None]:
    """Yields the numbers of an element, None for what is no finite number."""
    try:
        value = dataset.get(keyword)
    except Exception:  # text that is no number
        return
    values = value if hasattr(value, "__len__") and not isinstance(value, (str, bytes)) else [value]
    for each in values:
        number = math.nan
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(each)
        yield number if math.isfinite(number) else None


def _by_strips(stored: np.ndarray, show: Callable, channels: tuple[int, ...] = ()) -> np.ndarray:
    """Returns uint8 (H, W, *channels), what `show` makes of strips of the stored values."""
    pixels = np.empty((*stored.shape[:2], *channels), np.uint8)
    for top, bottom in _strips(stored):
        pixels[top:bottom] = show(stored[top:bottom])
    return pixels


def _strips(stored: np.ndarray) -> Iterator[tuple[int, int]]:
    rows = max(_PIXELS_AT_ONCE // stored.shape[1], 1)
    for top in range(0, len(stored), rows):
        yield top, min(top + rows, len(stored))


def _to_bytes(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns uint8: low -> 0, high -> 255, rounded."""
    scaled = (values.astype(np.float64) - low) * (255.0 / (float(high) - float(low)))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
