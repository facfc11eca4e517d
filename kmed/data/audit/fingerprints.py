"""Fingerprints of pictures: a small grey copy, a mask of its content, and its local features."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import enum
import os
import pickle
import tempfile
import threading

import numpy as np

from kmed.data.images import read_row
from kmed.data.table import Table
from kmed.runtime import num_cores

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


class Fingerprints:
    """The fingerprints of a table's pictures by row, each computed once, when it is first needed.

    The `kept` last used ones stay in memory (0.2 MB each, 4,000 take less than 1 GB), the others go to a temporary
    file, which vanishes with the process: to compute one takes a hundred times as long as to read it back.
    """

    def __init__(self, table: Table, kept: int = 4000):
        self._table, self._kept = table, kept
        self._held: collections.OrderedDict[int, Fingerprint] = collections.OrderedDict()
        self._stored: dict[int, int] = {}  # row -> offset in the file
        self._file = tempfile.TemporaryFile(prefix="kmed-fingerprints-")  # noqa: SIM115 (it lives as long as this object)
        self._lock = threading.Lock()

    def __getitem__(self, row: int) -> Fingerprint:
        with self._lock:
            if row in self._held:
                self._held.move_to_end(row)
                return self._held[row]
            found = self._read_back(row) if row in self._stored else None
        found = fingerprint(read_grey(self._table, row)) if found is None else found
        with self._lock:
            self._held[row] = found
            while len(self._held) > self._kept:
                self._store(*self._held.popitem(last=False))
        return found

    def forget(self, row: int) -> None:
        """Frees the fingerprint of a row that is unlikely to be needed again."""
        with self._lock:
            self._held.pop(row, None)

    def _store(self, row, one):
        if row not in self._stored:
            self._stored[row] = self._file.seek(0, os.SEEK_END)
            pickle.dump(one, self._file, protocol=pickle.HIGHEST_PROTOCOL)

    def _read_back(self, row):
        self._file.seek(self._stored[row])
        return pickle.load(self._file)


@contextlib.contextmanager
def worker_pool():
    """Yields a pool with one thread per core. OpenCV releases Python's lock, and is kept from starting threads."""
    import cv2

    threads_before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = concurrent.futures.ThreadPoolExecutor(max_workers=num_cores())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C, do not finish thousands of comparisons first
        cv2.setNumThreads(threads_before)


def read_grey(table: Table, row: int) -> np.ndarray:
    """Returns a picture of the table in grey, uint8 (H, W), its longer side between LONGER_SIDE / 2 and LONGER_SIDE.

    Thumbnails are only doubled in size, so they may stay smaller. Raises DataError if the picture cannot be read.
    """
    import cv2

    grey = cv2.cvtColor(read_row(table, row), cv2.COLOR_RGB2GRAY)
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
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32).reshape(-1, 2)
    shares = raw / np.maximum(raw.sum(axis=1, keepdims=True), 1e-6)
    descriptors = np.minimum(np.round(512 * np.sqrt(shares)), 255).astype(np.uint8)  # (F, 128)
    return Fingerprint(grey, inside, points, descriptors)


def products(first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
    """Returns first @ second.T, float32 (F, G), of float32 (F, D) and (G, D); `second` defaults to `first`.

    OpenCV multiplies on the calling thread. NumPy starts threads of its own, which makes a pool of callers a
    hundred times slower for matrices of this size.
    """
    import cv2

    second = first if second is None else second
    # OpenCV's stubs do not allow None for the matrix that would be added.
    return cv2.gemm(first, second, 1.0, None, 0.0, flags=cv2.GEMM_2_T)  # type: ignore[call-overload]


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns float32 (F, G), the squared distance from each row of `first` (F, D) to each row of `second` (G, D)."""
    return (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * products(first, second)


def _inside(grey):
    """Returns uint8 (H, W): 0 in dark or bright regions that touch the picture's edge, 1 elsewhere."""
    import cv2

    inside = np.ones(grey.shape, np.uint8)
    for fill in (grey <= DARK, grey >= BRIGHT):
        num, regions = cv2.connectedComponents(fill.astype(np.uint8), connectivity=4)
        edge = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
        touching = np.zeros(num, bool)
        touching[edge] = True
        touching[0] = False
        inside[touching[regions]] = 0
    return inside
