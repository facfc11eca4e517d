"""Pictures of one data set that another one also holds: the same files, copies, and other pictures of the same spot.

The audit compares all pictures of one data set with each other. Here only pictures of two sets are compared, which for
a few new pictures is much quicker: the pictures of the first set are described once, and each new one is aligned with
those that share rare visual words with it.
"""

import collections
import dataclasses
import hashlib
import itertools

import numpy as np
from scipy import sparse

from kmed.data.audit.fingerprints import Fingerprints, Variant, worker_pool
from kmed.data.audit.near_duplicates import (
    ALL_CANDIDATES,
    BATCH,
    FEWEST_CANDIDATES,
    MIN_FEATURES,
    SAMPLE,
    SECOND_CANDIDATES,
    is_same_exposure,
    is_strong,
    link,
)
from kmed.data.audit.visual_words import Index, Vocabulary
from kmed.data.table import Table
from kmed.progress import track

IDENTICAL, COPY, SPOT = "identical files", "one photograph", "one spot"  # the surest first
PER_CLUSTER = 3  # candidates from one cluster, such as augmented copies of one photograph


@dataclasses.dataclass(frozen=True)
class Shared:
    """A new picture that shows what a known one shows.

    Attributes:
      row: that of the new picture.
      known: the row of the known picture.
      kind: "identical files", "one photograph" (a copy) or "one spot" (another picture of the same).
    """

    row: int
    known: int
    kind: str


def find_identical(new: Table, known: Table) -> list[Shared]:
    """Returns a Shared for each new picture whose bytes (or pixels, if they are in memory) are those of a known one."""
    sizes, sources = [_sizes(table) for table in (new, known)], [_sources(table) for table in (new, known)]
    both = set(sizes[0]) & set(sizes[1])
    digests = [
        {row: _digest(sources[side][row]) for row, size in enumerate(sizes[side]) if size in both} for side in (0, 1)
    ]
    first = {digest: row for row, digest in reversed(digests[1].items())}
    return [Shared(row, first[digest], IDENTICAL) for row, digest in digests[0].items() if digest in first]


def _sources(table: Table) -> list:
    return table.files if table.images is None else list(table.images)


def _sizes(table: Table) -> list[tuple]:
    if table.images is not None:
        return [(image.shape, str(image.dtype)) for image in table.images]
    return [(file.stat().st_size,) for file in table.files]


def _digest(source) -> bytes:
    if isinstance(source, np.ndarray):
        return hashlib.sha256(source.tobytes()).digest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def find_alike(new: Table, known: Table, seed: int = 0) -> tuple[list[Shared], list[int]]:
    """Returns (found, featureless): the new pictures that show what known ones show, and those without enough detail.

    `found` has the surest Shared of each copy of a known picture, and of each picture that shows the same spot.
    `featureless` are rows of new pictures that cannot be compared, such as thumbnails. What counts as a copy or as one
    spot is what `kmed.data.audit.near_duplicates` says of a single pair.

    Args:
      new, known: readable pictures.
      seed: random seed for the visual words.
    Raises: DataError: a picture cannot be read.
    """
    mine, theirs = Fingerprints(new), Fingerprints(known)
    with worker_pool() as pool:
        sampled = [np.unique(np.linspace(0, len(table) - 1, SAMPLE).astype(int)) for table in (known, new)]
        both = itertools.chain(pool.map(theirs.__getitem__, sampled[0]), pool.map(mine.__getitem__, sampled[1]))
        descriptors = [one.descriptors for one in both]
        if not sum(map(len, descriptors)):
            return [], list(range(len(new)))
        vocabulary = Vocabulary(descriptors, seed)
        index = Index()
        described = pool.map(lambda row: _describe(theirs, vocabulary, row), range(len(known)))
        for words in track(described, "Reading known pictures", len(known)):
            index.add(words)
        clusters = known.rows["cluster"].to_numpy()
        pairs = _candidates(mine, vocabulary, index, clusters, len(new), pool)
        aligned = pool.map(lambda pair: link(mine[pair[0]], theirs[pair[1]], pair[2]), pairs)
        found = _surest(zip(pairs, track(aligned, "Aligning pictures", len(pairs)), strict=True))
        return found, [row for row in range(len(new)) if len(mine[row].descriptors) < MIN_FEATURES]


def _describe(fingerprints: Fingerprints, vocabulary: Vocabulary, row: int) -> sparse.csr_array:
    """Returns the words of a known picture, of which nothing else is kept."""
    described = vocabulary.describe(fingerprints[row].descriptors)
    fingerprints.forget(row)
    return described


def _candidates(mine, vocabulary, index, clusters, num_new, pool) -> list[tuple[int, int, Variant]]:
    """Returns the pairs (new row, known row, Variant) that share the rarest words."""
    wanted = min(SECOND_CANDIDATES, max(FEWEST_CANDIDATES, ALL_CANDIDATES // max(1, num_new)))

    def of_row(row):
        descriptors = mine[row].descriptors
        if len(descriptors) < MIN_FEATURES:
            return []
        return [vocabulary.describe(descriptors[:, variant.columns]) for variant in Variant]

    pairs = []
    for start in range(0, num_new, BATCH):
        rows = range(start, min(start + BATCH, num_new))
        for row, described in zip(rows, pool.map(of_row, rows), strict=True):
            if described:
                similarity = index.similar(sparse.vstack(described, format="csr"))  # (variants, known)
                pairs += [(row, *pair) for pair in _nearest(similarity, clusters, wanted)]
    return pairs


def _nearest(similarity: np.ndarray, clusters, wanted: int) -> list[tuple[int, Variant]]:
    """Returns (known row, Variant) of the most similar pictures, at most a few from one cluster."""
    variants = list(Variant)
    found: list[tuple[int, Variant]] = []
    taken: collections.Counter = collections.Counter()
    for entry in np.argsort(-similarity, axis=None, kind="stable"):
        variant, row = divmod(int(entry), similarity.shape[1])
        if similarity[variant, row] <= 0 or len(found) == wanted:
            break
        if taken[clusters[row]] < PER_CLUSTER:
            taken[clusters[row]] += 1
            found.append((row, variants[variant]))
    return found


def _surest(links) -> list[Shared]:
    """Returns the surest Shared of each new row: copies before spots, then the most inliers."""
    best: dict[int, tuple] = {}
    for (row, known, _), alignment in links:
        if alignment is None or not (is_same_exposure(alignment) or is_strong(alignment)):
            continue
        kind = COPY if is_same_exposure(alignment) else SPOT
        rank = (kind == COPY, alignment.inliers, -known)
        if row not in best or rank > best[row][0]:
            best[row] = (rank, Shared(row, known, kind))
    return [shared for _, (_, shared) in sorted(best.items())]
