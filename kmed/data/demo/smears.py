"""Draws the demo smears: blood cells of four types, with the same pixels for the same seed.

The four types differ only in the shape of the nucleus and in the grain of the cytoplasm. Nuclei and cells
have the same sizes and colours in all types, so mean colours tell nothing about the type. Stain, background
and sharpness belong to the slide, and each slide shows all types. Pictures of one slide look alike, so a
split must keep each slide whole.
"""

import dataclasses
import pathlib

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from kmed.data.demo.folder import drawing
from kmed.errors import DataError
from kmed.progress import track

CLASS_NAMES = ("EOSINOPHIL", "LYMPHOCYTE", "MONOCYTE", "NEUTROPHIL")
PICTURES_PER_SLIDE = 8
MIN_SLIDES = 24  # intervals resample slides, and need about twenty of them
NUM_TRAIN, NUM_TEST, IMAGE_SIZE = 600, 200, (120, 160)
DRAWING_VERSION = 1  # part of the marker: increase it whenever the same seed would give other pixels
GRAIN = {"EOSINOPHIL": 3.4, "LYMPHOCYTE": 9.0, "MONOCYTE": 6.0, "NEUTROPHIL": 1.1}  # in pixels, for a height of 120


@dataclasses.dataclass(frozen=True)
class Stain:
    """What all pictures of a slide share: RGB colours (0..255), density of red cells, blur in pixels."""

    plasma: np.ndarray
    red: np.ndarray
    cytoplasm: np.ndarray
    nucleus: np.ndarray
    num_red: float
    blur: float
    noise: float


def smears_marker(
    seed: int = 0, num_train: int = NUM_TRAIN, num_test: int = NUM_TEST, image_size: tuple[int, int] = IMAGE_SIZE
) -> dict:
    """Returns the folder's marker for smears drawn with these settings."""
    return {
        "drawn_by": "kmed", "version": DRAWING_VERSION, "seed": seed,
        "num_train": num_train, "num_test": num_test, "image_size": list(image_size),
    }  # fmt: skip


def draw_demo_smears(
    folder,
    *,
    num_train: int = NUM_TRAIN,
    num_test: int = NUM_TEST,
    seed: int = 0,
    image_size: tuple[int, int] = IMAGE_SIZE,
) -> pathlib.Path:
    """Draws images/{TRAIN,TEST}/CLASS/slide000_00.jpeg and groups.csv, and returns the folder.

    Args:
      folder: the folder to write, whole or not at all. Earlier demo data in it are replaced.
      num_train, num_test: numbers of pictures, divided equally among the types.
      seed: random seed, which determines every pixel.
      image_size: (height, width) in pixels, at least 32.
    Raises: DataError: the folder holds other files, or the sizes cannot be drawn.
    """
    if min(num_train, num_test) < len(CLASS_NAMES) or min(image_size) < 32:
        raise DataError(
            "The demo needs at least 4 pictures per split and 32 pixels per side. "
            f"Received: num_train={num_train}, num_test={num_test}, image_size={tuple(image_size)}."
        )
    plan = _plan(num_train, num_test, seed)
    with drawing(folder, smears_marker(seed, num_train, num_test, image_size)) as temporary:
        for row in track(plan, "Drawing pictures"):
            path = temporary / "images" / row["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            stain = _draw_stain(np.random.default_rng([seed, row["slide"]]))
            rng = np.random.default_rng([seed, row["slide"], row["number"] + 1])
            draw_picture(rng, stain, row["class"], image_size).save(path, quality=92)
        groups = pd.DataFrame(plan)[["path", "group"]].sort_values("path")
        groups.to_csv(temporary / "groups.csv", index=False, lineterminator="\n")
    return pathlib.Path(folder)


def draw_picture(rng: np.random.Generator, stain: Stain, kind: str, image_size: tuple[int, int]) -> Image.Image:
    """Returns an RGB picture with red cells and one white cell of type `kind`."""
    height, width = image_size
    scale = min(height / 120, width / 160)
    canvas = np.broadcast_to(stain.plasma, (height, width, 3)).astype(np.float32)
    slope = rng.uniform(-10, 10, 2)
    canvas = canvas + (np.linspace(-1, 1, height)[:, None] * slope[0] + np.linspace(-1, 1, width) * slope[1])[..., None]
    for _ in range(rng.poisson(stain.num_red)):
        _draw_red_cell(canvas, rng, stain, scale)
    for _ in range(rng.poisson(1.5)):  # platelets: specks in the colour of the nucleus
        _blend(canvas, rng.uniform(0, (height, width)), rng.uniform(1.5, 3.5) * scale, stain.nucleus, 0.7)
    _draw_white_cell(canvas, rng, stain, kind, scale)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(stain.blur * scale)), np.float32)
    pixels = blurred + rng.normal(0, stain.noise, blurred.shape)
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def _plan(num_train, num_test, seed):
    """Returns one dict per picture; the types are distributed evenly, and mixed on each slide."""
    plan, first = [], 0
    for split, count in (("TRAIN", num_train), ("TEST", num_test)):
        num_slides = max(min(MIN_SLIDES, count), count // PICTURES_PER_SLIDE)
        types = np.random.default_rng([seed, count, first]).permutation(np.arange(count) % len(CLASS_NAMES))
        for index, kind in enumerate(types):
            slide, number = first + index % num_slides, index // num_slides
            name = CLASS_NAMES[kind]
            path = f"{split}/{name}/slide{slide:03d}_{number:02d}.jpeg"
            plan.append({"path": path, "group": f"slide{slide:03d}", "slide": slide, "number": number, "class": name})
        first += num_slides
    return plan


def _draw_stain(rng):
    tint = rng.uniform(-1, 1, 3)
    return Stain(
        plasma=np.array([218, 208, 196]) + 18 * tint + rng.uniform(-8, 8, 3),
        red=np.array([196, 146, 150]) + 16 * tint + rng.uniform(-14, 14, 3),
        cytoplasm=np.array([186, 160, 186]) + 14 * tint + rng.uniform(-12, 12, 3),
        nucleus=np.array([112, 72, 142]) + 16 * tint + rng.uniform(-18, 18, 3),
        num_red=rng.uniform(6, 22),
        blur=rng.uniform(0.4, 1.1),
        noise=rng.uniform(2, 6),
    )


def _draw_red_cell(canvas, rng, stain, scale):
    center = rng.uniform(0, canvas.shape[:2])
    radius = rng.uniform(11, 15) * scale
    _blend(canvas, center, radius, stain.red, rng.uniform(0.7, 0.95), aspect=rng.uniform(0.8, 1.25), hollow=0.45)


def _blend(canvas, center, radius, colour, opacity, aspect=1.0, hollow=0.0):
    """Draws a soft disc on the canvas; `hollow` makes its middle paler, like that of a red cell."""
    window, rows, columns = _window(canvas, center, radius * 1.4 + 2)
    if rows.size == 0 or columns.size == 0:
        return
    distance = np.hypot(rows * aspect, columns / aspect)
    mask = np.clip(radius - distance + 0.5, 0, 1) * (1 - hollow * np.exp(-((distance / (0.5 * radius)) ** 2)))
    canvas[window] += (mask * opacity)[..., None] * (colour - canvas[window])


def _window(canvas, center, reach):
    """Returns (slices, rows, columns) around `center`; rows (h, 1) and columns (1, w) are offsets in pixels."""
    low = np.maximum(np.floor(np.asarray(center) - reach).astype(int), 0)
    high = np.minimum(np.ceil(np.asarray(center) + reach).astype(int), canvas.shape[:2])
    rows = np.arange(low[0], high[0])[:, None] - center[0]
    columns = np.arange(low[1], high[1])[None, :] - center[1]
    return (slice(low[0], high[0]), slice(low[1], high[1])), rows, columns


def _draw_white_cell(canvas, rng, stain, kind, scale):
    """Draws a white cell and its nucleus; sizes and colours come from the same distribution for all types."""
    height, width = canvas.shape[:2]
    radius = rng.uniform(25, 34) * scale
    center = np.array([height / 2, width / 2]) + rng.uniform(-1, 1, 2) * (0.16 * height, 0.24 * width)
    window, rows, columns = _window(canvas, center, radius * 1.3)
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.cos(angle) * columns + np.sin(angle) * rows, np.cos(angle) * rows - np.sin(angle) * columns
    outline = radius * (1 + 0.05 * np.sin(rng.integers(2, 5) * np.arctan2(y, x) + rng.uniform(0, 6)))
    cell = np.clip(outline - np.hypot(x, y) + 0.5, 0, 1)
    area = rng.uniform(0.30, 0.46) * np.pi * radius**2
    nucleus = _nucleus(rng, kind, area, x, y) * cell
    grain = _texture(rng, cell.shape, GRAIN[kind] * scale, cell * (1 - nucleus))
    # Granules are redder, and the space between them is bluer by as much, so the mean stays the same.
    cytoplasm = stain.cytoplasm + grain[..., None] * np.array([12.0, -9.0, -3.0])
    canvas[window] += cell[..., None] * 0.92 * (cytoplasm - canvas[window])
    chromatin = _texture(rng, cell.shape, 2.5 * scale, nucleus)
    canvas[window] += nucleus[..., None] * (stain.nucleus + 9 * chromatin[..., None] - canvas[window])


def _nucleus(rng, kind, area, x, y):
    """Returns the soft mask of a nucleus of `area` square pixels, in the rotated frame (x, y)."""
    shape = _shape(rng, kind)
    grid = np.linspace(-6, 6, 97)
    inside = _distance(shape, grid[None, :], grid[:, None]) < 0
    unit_area = inside.sum() * (grid[1] - grid[0]) ** 2
    middle = np.array([np.mean(grid[np.nonzero(inside)[1]]), np.mean(grid[np.nonzero(inside)[0]])])
    size = np.sqrt(area / unit_area)
    shift = rng.uniform(-0.12, 0.12, 2) * np.sqrt(area)
    distance = _distance(shape, (x - shift[0]) / size + middle[0], (y - shift[1]) / size + middle[1])
    return np.clip(0.5 - distance * size, 0, 1)


def _shape(rng, kind):
    """Returns (lobes, bridge, bite): circles (x, y, r), half a bridge's width, and a circle to cut out or None."""
    if kind == "LYMPHOCYTE":  # round, with hardly a dent
        return np.array([[0, 0, 1.0], [rng.uniform(0, 0.25), rng.uniform(0, 0.25), 0.95]]), 0.0, None
    if kind == "MONOCYTE":  # a kidney
        depth = rng.uniform(0.75, 0.95)
        return np.array([[0, 0.2, 1.0], [0, -0.2, 1.0]]), 0.9, np.array([depth, 0, rng.uniform(0.5, 0.62)])
    num_lobes = 2 if kind == "EOSINOPHIL" else int(rng.integers(3, 6))
    reach = max(rng.uniform(1.5, 1.8), rng.uniform(0.42, 0.5) * num_lobes)  # a wide arc, so that the ring stays open
    step = 2 * np.arcsin(min(rng.uniform(1.8, 2.05) / (2 * reach), 0.95))
    angles = (np.arange(num_lobes) - (num_lobes - 1) / 2) * step + rng.normal(0, 0.06, num_lobes)
    radii = rng.uniform(0.85, 1.1, num_lobes)
    return np.stack([reach * np.cos(angles), reach * np.sin(angles), radii], axis=1), rng.uniform(0.2, 0.35), None


def _distance(shape, x, y):
    """Returns the signed distance to the nucleus, negative inside."""
    lobes, bridge, bite = shape
    distance = np.min([np.hypot(x - cx, y - cy) - r for cx, cy, r in lobes], axis=0)
    for (ax, ay, _), (bx, by, _) in zip(lobes[:-1], lobes[1:]):
        dx, dy = bx - ax, by - ay
        along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        distance = np.minimum(distance, np.hypot(x - ax - along * dx, y - ay - along * dy) - bridge)
    if bite is not None:
        distance = np.maximum(distance, bite[2] - np.hypot(x - bite[0], y - bite[1]))
    return distance


def _texture(rng, shape, size, mask):
    """Returns grains about `size` pixels wide with mean 0 and standard deviation 1 where `mask` is 1."""
    noise = Image.fromarray(rng.normal(0, 1, shape).astype(np.float32) * 80 + 128).convert("L")
    grain = np.asarray(noise.filter(ImageFilter.GaussianBlur(size / 2)), np.float32)
    weight = mask / max(mask.sum(), 1e-6)
    grain = grain - (grain * weight).sum()
    return grain / max(np.sqrt((grain**2 * weight).sum()), 1e-6)
