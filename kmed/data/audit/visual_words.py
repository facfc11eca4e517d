"""An index of visual words: it finds pictures that may show the same scene, before features are compared.

Each descriptor is assigned to the nearest of many words; pictures that share rare words are candidates (Sivic &
Zisserman, 2003). There are the more words, the more pictures there are, so that a word stays in about as many of them
and a search takes as long among a million pictures as among a thousand (Philbin et al., 2007). The nearest word is
looked up in a graph (HNSW, Malkov & Yashunin, 2016), whose time grows with the logarithm of the number of words.
"""

import functools
import importlib.util
import pathlib
import zlib

import numpy as np
from scipy import sparse

from kmed.data.audit.fingerprints import Variant, products

WORDS_PER_PICTURE = 12
FEWEST_WORDS = 4096
DESCRIPTORS_PER_WORD = 12  # of the sampled pictures, which makes the words fewer where there are few pictures
# The graph of words: neighbours of each, and how many are looked at to add one and to find one.
NEIGHBOURS, LOOKED_AT_TO_ADD, LOOKED_AT_TO_FIND = 16, 64, 16
BLOCK = 2048
_VARIANTS = list(Variant)


class Vocabulary:
    """Visual words, of which there are four for each that is drawn: it, its mirror image, and the negatives of both.

    So the words of a mirrored picture or a negative follow from those of the picture: see `turned`.

    Args:
      descriptors: list of uint8 (F, 128) from representative pictures; at least one descriptor in total.
      num_pictures: how many pictures there are in all.
      seed: random seed for the choice of the words.
    """

    def __init__(self, descriptors: list[np.ndarray], num_pictures: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        pool = np.concatenate(descriptors)
        wanted = min(max(FEWEST_WORDS, WORDS_PER_PICTURE * num_pictures), len(pool) // DESCRIPTORS_PER_WORD)
        num_drawn = min(max(wanted // len(_VARIANTS), 1), len(pool))
        drawn = pool[np.sort(rng.choice(len(pool), num_drawn, replace=False))]
        several = np.stack([drawn[:, variant.columns] for variant in _VARIANTS], axis=1)  # (W, 4, 128)
        self.words = np.ascontiguousarray(several.reshape(-1, 128))

    def __len__(self) -> int:
        return len(self.words)

    def save(self, folder: pathlib.Path) -> str:
        """Writes the graph of the words for `nearest_words`, or the words alone without usearch; returns the path."""
        path = folder / f"words-{zlib.crc32(self.words.tobytes()):08x}"  # the path of others stays theirs
        if has_graphs():
            graph = _graph()
            graph.add(np.arange(len(self.words)), _signed(self.words), threads=1)  # in one order, for one graph
            graph.save(str(path))
        else:
            with path.open("wb") as file:
                np.save(file, self.words)
        return str(path)


def has_graphs() -> bool:
    """Returns whether usearch is installed, without which every descriptor is compared with every word."""
    return importlib.util.find_spec("usearch") is not None


def _graph():
    from usearch.index import Index as Graph

    # Squared distances of whole numbers are exact, so the graph is the same on every machine.
    return Graph(
        ndim=128, metric="l2sq", dtype="i8", connectivity=NEIGHBOURS,
        expansion_add=LOOKED_AT_TO_ADD, expansion_search=LOOKED_AT_TO_FIND,
    )  # fmt: skip


def _signed(values: np.ndarray) -> np.ndarray:
    """Returns int8 for uint8, with the same differences."""
    return (values ^ 128).view(np.int8)


def nearest_words(path: str, descriptors: np.ndarray) -> np.ndarray:
    """Returns int32 (F,): the words that the graph in a file finds for descriptors, uint8 (F, 128)."""
    if not len(descriptors):
        return np.zeros(0, np.int32)
    if not has_graphs():
        return exact_words(_load(path), descriptors)
    return _load(path).search(_signed(descriptors), 1, threads=1).keys.reshape(-1).astype(np.int32)


def exact_words(words: np.ndarray, descriptors: np.ndarray) -> np.ndarray:
    """Returns int32 (F,): the nearest of `words`, uint8 (V, 128), to each descriptor, by comparing it with all."""
    others = words.astype(np.float32)
    half_squares = (others**2).sum(axis=1) / 2
    found = [np.zeros(0, np.int32)]
    for start in range(0, len(descriptors), BLOCK):
        block = descriptors[start : start + BLOCK].astype(np.float32)
        found.append((half_squares - products(block, others)).argmin(axis=1).astype(np.int32))
    return np.concatenate(found)


@functools.lru_cache(maxsize=2)
def _load(path: str):
    if not has_graphs():
        return np.load(path)
    graph = _graph()
    graph.load(path)
    return graph


def turned(words: np.ndarray, variant: Variant) -> np.ndarray:
    """Returns the words that a picture has as a mirror image or a negative, from its words."""
    return words ^ _VARIANTS.index(variant)


def rarities(words: list[np.ndarray], num_words: int) -> np.ndarray:
    """Returns float32 (num_words,): how much a word says, the more, the fewer pictures have it.

    Above 0 even for a word that every picture has: two copies alone share all of their words.
    """
    seen = np.zeros(num_words)
    for one in words:
        seen[np.unique(one)] += 1
    return np.log((2 + len(words)) / (1 + seen)).astype(np.float32)


class Index:
    """An index of pictures by their words, which can be searched for similar ones; entries are numbered from 0.

    Args:
      rarity: float32 (V,), the weight of each word.
    """

    def __init__(self, rarity: np.ndarray):
        self.rarity = rarity
        self._blocks: list[sparse.csr_array] = []  # (V, entries)

    def __len__(self) -> int:
        return sum(block.shape[1] for block in self._blocks)

    def add(self, words: list[np.ndarray]) -> None:
        """Adds pictures, each given by the words of its features, as the next entries."""
        if not words:
            return
        self._blocks.append(self._describe(words).T.tocsr())
        # A block joins the one before it when it is as large, so there are few: about the logarithm of the entries.
        while len(self._blocks) > 1 and self._blocks[-1].shape[1] >= self._blocks[-2].shape[1]:
            self._blocks[-2:] = [sparse.hstack(self._blocks[-2:], format="csr")]

    def similar(self, words: list[np.ndarray]) -> sparse.csr_array:
        """Returns float32 (Q, entries): the similarity, 0 to 1, of each picture to the entries that share its words."""
        if not self._blocks:
            return sparse.csr_array((len(words), 0), dtype=np.float32)
        described = self._describe(words)
        return sparse.hstack([described @ block for block in self._blocks], format="csr")

    def _describe(self, words):
        """Returns float32 (Q, V), rows of length 1: how often each word occurs, rare words weighted higher."""
        lengths = [len(one) for one in words]
        keys = np.repeat(np.arange(len(words)), lengths) * len(self.rarity) + np.concatenate(words)
        keys, counts = np.unique(keys, return_counts=True)
        rows, columns = np.divmod(keys, len(self.rarity))
        weights = np.sqrt(counts).astype(np.float32) * self.rarity[columns]
        norms = np.sqrt(np.bincount(rows, weights**2, minlength=len(words))).astype(np.float32)
        weights /= np.maximum(norms, 1e-6)[rows]
        starts = np.searchsorted(rows, np.arange(len(words) + 1))
        return sparse.csr_array((weights, columns, starts), shape=(len(words), len(self.rarity)))
