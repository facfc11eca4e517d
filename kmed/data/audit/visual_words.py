"""An index of visual words: it finds pictures that may show the same scene, before features are compared.

Each descriptor is assigned to the nearest of a few thousand words; pictures that share rare words are candidates
(Sivic & Zisserman, 2003). A query costs one sparse product instead of a comparison with the features of every picture.
"""

import numpy as np
from scipy import sparse

from kmed.data.audit.fingerprints import products

MAX_WORDS = 4096
DESCRIPTORS_PER_WORD = 12
SAMPLED_DESCRIPTORS = 64 * 1024
ITERATIONS = 4
BLOCK = 2048


class Vocabulary:
    """Visual words learned from some of the pictures.

    Args:
      descriptors: list of uint8 (F, 128) from representative pictures; at least one descriptor in total.
      seed: random seed for the initial words.
    """

    def __init__(self, descriptors: list[np.ndarray], seed: int = 0):
        rng = np.random.default_rng(seed)
        pool = np.concatenate(descriptors)
        if len(pool) > SAMPLED_DESCRIPTORS:
            pool = pool[np.sort(rng.choice(len(pool), SAMPLED_DESCRIPTORS, replace=False))]
        num_words = max(min(MAX_WORDS, len(pool) // DESCRIPTORS_PER_WORD), 1)
        self._place(pool[np.sort(rng.choice(len(pool), num_words, replace=False))])
        for _ in range(ITERATIONS):
            nearest = self._nearest(pool)
            sums = sparse.csr_array((np.ones(len(pool), np.float32), nearest, np.arange(len(pool) + 1))).T @ pool
            counts = np.bincount(nearest, minlength=len(sums))[: len(sums), None]
            means = self.words.copy()
            means[: len(sums)] = np.where(counts > 0, np.round(sums / np.maximum(counts, 1)), means[: len(sums)])
            self._place(means)
        seen = np.zeros(len(self.words))
        for one in descriptors:
            seen[np.unique(self._nearest(one))] += 1
        # Above 0 even for a word that every picture has: two copies alone share all of their words.
        self.rarity = np.log((2 + len(descriptors)) / (1 + seen)).astype(np.float32)

    def describe(self, descriptors: np.ndarray) -> sparse.csr_array:
        """Returns float32 (1, words) of length 1: how often each word occurs, rare words weighted higher."""
        counts = np.bincount(self._nearest(descriptors), minlength=len(self))
        weights = np.sqrt(counts).astype(np.float32) * self.rarity
        return sparse.csr_array(weights[None] / max(float(np.linalg.norm(weights)), 1e-6))

    def __len__(self) -> int:
        return len(self.words)

    def _place(self, words):
        # Whole numbers: see Fingerprint.descriptors.
        self.words = words.astype(np.float32)
        self._half_squares = (self.words**2).sum(axis=1) / 2

    def _nearest(self, descriptors):
        found = [np.zeros(0, np.int64)]
        for start in range(0, len(descriptors), BLOCK):
            block = descriptors[start : start + BLOCK].astype(np.float32)
            found.append((self._half_squares - products(block, self.words)).argmin(axis=1))
        return np.concatenate(found)


class Index:
    """An index of described pictures, which can be searched for similar ones; entries are numbered from 0."""

    def __init__(self):
        self._blocks, self._tail, self._sealed = [], [], 0

    def __len__(self) -> int:
        return self._sealed + len(self._tail)

    def add(self, described: sparse.csr_array) -> None:
        """Adds one picture, (1, words), as the next entry."""
        self._tail.append(described)
        if len(self._tail) == BLOCK:
            self._blocks.append(sparse.vstack(self._tail, format="csr").T.tocsr())
            self._sealed += BLOCK
            self._tail = []

    def similar(self, described: sparse.csr_array) -> np.ndarray:
        """Returns float32 (Q, entries): the similarity, 0 to 1, of each row of `described` (Q, words) to each entry."""
        blocks = [*self._blocks, *([sparse.vstack(self._tail, format="csr").T.tocsr()] if self._tail else [])]
        found = [(described @ block).toarray() for block in blocks]
        return np.concatenate(found, axis=1) if found else np.zeros((described.shape[0], 0), np.float32)
