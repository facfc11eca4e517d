"""Pictures of one data set that another one also holds: the same files, copies, and other pictures of the same spot.

The audit compares all pictures of one data set with each other. Here only pictures of two sets are compared, which for
a few new pictures is much quicker: the pictures of the first set are described once, and each new one is aligned with
those that share rare visual words with it.
"""

import collections
import contextlib
import dataclasses

import numpy as np

from kmed.config import FULL
from kmed.data.audit.fingerprints import Variant
from kmed.data.audit.near_duplicates import (
    BATCH,
    LINKING,
    MIN_FEATURES,
    NEAREST,
    SECOND_CANDIDATES,
    is_same_exposure,
    is_strong,
    learn_words,
    nearest_entries,
)
from kmed.data.audit.pictures import Pictures, compare, in_parts, size_of_source, source_of
from kmed.data.audit.store import Store
from kmed.data.audit.visual_words import Index
from kmed.data.audit.workers import Workers
from kmed.data.readable import digest
from kmed.data.table import Table
from kmed.errors import DataError
from kmed.files import temporary_folder

IDENTICAL, COPY, SPOT = "identical files", "one photograph", "one spot"  # the surest first
PER_CLUSTER = 3  # candidates from one cluster, such as augmented copies of one photograph
MOST_COPIES = 20  # so many times the usual number of entries is looked through, since a cluster may have many


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
    sizes = [[size_of_source(source_of(table, row)) for row in range(len(table))] for table in (new, known)]
    both = set(sizes[0]) & set(sizes[1])
    digests = [
        {row: digest(source_of(table, row)) for row, size in enumerate(found) if size in both}
        for table, found in zip((new, known), sizes, strict=True)
    ]
    first = {value: row for row, value in reversed(digests[1].items())}
    return [Shared(row, first[value], IDENTICAL) for row, value in digests[0].items() if value in first]


def find_alike(new: Table, known: Table, seed: int = 0, *, jobs: int | None = None) -> tuple[list[Shared], list[int]]:
    """Returns (found, featureless): the new pictures that show what known ones show, and those without enough detail.

    `found` has the surest Shared of each copy of a known picture, and of each picture that shows the same spot.
    `featureless` are rows of new pictures that cannot be compared, such as thumbnails. What counts as a copy or as one
    spot is what `kmed.data.audit.near_duplicates` says of a single pair.

    Args:
      new, known: readable pictures.
      seed: random seed for the visual words.
      jobs: how many processes share the work, as for `kmed.data.audit.leaks.audit`.
    Raises: DataError: a picture cannot be read.
    """
    with contextlib.ExitStack() as held:
        workers = held.enter_context(Workers(jobs, len(new) + len(known)))
        folder = held.enter_context(temporary_folder())
        mine, theirs = (
            Pictures(table, held.enter_context(contextlib.closing(Store(folder / name, ""))), workers)
            for name, table in (("new", new), ("known", known))
        )
        for pictures, label in ((theirs, "Reading known pictures"), (mine, "Reading pictures")):
            _look(pictures, label)
        featureless = [row for row in range(len(new)) if mine.num_features(row) < MIN_FEATURES]
        rarity = learn_words([(theirs, np.arange(len(known))), (mine, np.arange(len(new)))], seed)
        if rarity is None:
            return [], featureless
        pairs = _candidates(mine, theirs, rarity, featureless)

        def work(some):
            placed = [[(mine.location(row), theirs.location(other), variant)] for row, other, variant in some]
            return workers.run(compare, (placed, LINKING, None))

        aligned = [one for part in in_parts(workers, work, pairs, "Aligning pictures") for (one,) in part]
        return _surest(zip(pairs, aligned, strict=True)), featureless


def _look(pictures: Pictures, label: str) -> None:
    """Reads all pictures of a table. Raises DataError if one cannot be read."""
    table = pictures.table
    pictures.look(range(len(table)), table.range or FULL, label)
    for row in range(len(table)):
        if reason := pictures.facts[row][0]:
            raise DataError(f"{table.rows['path'].iloc[row]} cannot be used: {reason}")


def _candidates(mine: Pictures, theirs: Pictures, rarity: np.ndarray, left_out) -> list[tuple[int, int, Variant]]:
    """Returns the pairs (new row, known row, Variant) that share the rarest words, at most a few from one cluster."""
    index, variants = Index(rarity), list(Variant)
    clusters = theirs.table.rows["cluster"].to_numpy()
    for start in range(0, len(clusters), BATCH):
        index.add([theirs.words[row] for row in range(start, min(start + BATCH, len(clusters)))])
    rows = [row for row in range(len(mine.table)) if row not in set(left_out)]
    pairs = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        near = nearest_entries(index, [mine.words[row] for row in batch], variants, MOST_COPIES * NEAREST)
        for row, (entries, kinds) in zip(batch, near, strict=True):
            taken: collections.Counter = collections.Counter()
            for entry, kind in zip(entries.tolist(), kinds, strict=True):
                if taken[clusters[entry]] < PER_CLUSTER:
                    taken[clusters[entry]] += 1
                    pairs.append((row, entry, variants[kind]))
                    if sum(taken.values()) == SECOND_CANDIDATES:
                        break
    return pairs


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
