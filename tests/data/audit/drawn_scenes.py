"""Drawn scenes for the tests of the audit: blobs of all sizes on a soft background, and rotated copies of them."""

import contextlib
import tempfile

import numpy as np
import pandas as pd
from PIL import Image

from kmed.data.audit.near_duplicates import NearDuplicates, find_near_duplicates
from kmed.data.audit.pictures import Pictures
from kmed.data.audit.store import Store
from kmed.data.audit.workers import Workers
from kmed.data.table import Table


def draw_scene(seed: int, height: int = 480, width: int = 640) -> np.ndarray:
    """Returns uint8 (height, width, 3): a scene that depends on the seed."""
    import cv2

    rng = np.random.default_rng(seed)
    scene = np.full((height, width, 3), (225, 215, 220), np.uint8)
    for _ in range(height * width // 1200):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = tuple(int(size) for size in rng.integers(4, 26, 2))
        color = tuple(int(value) for value in rng.integers(60, 230, 3))
        cv2.ellipse(scene, centre, axes, float(rng.uniform(0, 180)), 0, 360, color, -1, cv2.LINE_AA)
    return cv2.GaussianBlur(scene, (0, 0), 1.0)


def turn(picture: np.ndarray, angle: float = 0, shift=(0, 0), shear: float = 0, flip: bool = False) -> np.ndarray:
    """Returns a rotated (degrees), shifted (pixels), sheared and perhaps mirrored copy with black corners."""
    import cv2

    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
    matrix[0, 1] += shear
    matrix[:, 2] += shift
    turned = cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return np.ascontiguousarray(turned[:, ::-1]) if flip else turned


def retake(picture: np.ndarray, seed: int, pixels: float) -> np.ndarray:
    """Returns another exposure of the subject: its parts lie elsewhere, by `pixels` on average, with other noise."""
    import cv2

    rng = np.random.default_rng(seed)
    height, width = picture.shape[:2]
    moves = [cv2.GaussianBlur(rng.normal(size=(height, width)).astype(np.float32), (0, 0), 20) for _ in range(2)]
    scale = pixels / np.hypot(*moves).mean()
    y, x = np.mgrid[:height, :width].astype(np.float32)
    moved = cv2.remap(
        picture, x + scale * moves[0], y + scale * moves[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    return np.clip(moved + rng.normal(0, 2, moved.shape), 0, 255).astype(np.uint8)


def save(picture: np.ndarray, path, quality: int = 92) -> None:
    """Writes a JPEG and creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=quality)


def memory_table(pictures, labels=None, splits=None) -> Table:
    """Returns a Table of pictures in memory, all of one size, with classes a and b."""
    names = [str(number) for number in range(len(pictures))]
    labels = [0] * len(pictures) if labels is None else labels
    splits = [""] * len(pictures) if splits is None else splits
    rows = pd.DataFrame({"path": names, "group": names, "cluster": names, "split": splits})
    return Table(
        rows, np.eye(2, dtype=np.float32)[labels], ("a", "b"), "multiclass", "drawn", images=np.stack(pictures)
    )


@contextlib.contextmanager
def looked_at(table: Table, folder, jobs: int = 1):
    """Yields the Pictures of a table, all of them looked at, with their store in a folder."""
    with Workers(jobs, len(table)) as workers, contextlib.closing(Store(folder, "plan")) as store:
        pictures = Pictures(table, store, workers)
        pictures.look(range(len(table)), (0, 255), "Reading pictures")
        yield pictures


def find_in(pictures) -> NearDuplicates:
    """Returns what `find_near_duplicates` says of pictures in memory, all of one size."""
    table = memory_table(pictures)
    with tempfile.TemporaryDirectory() as folder, looked_at(table, folder) as looked:
        return find_near_duplicates(looked, np.arange(len(table)))
