"""Finds pictures that are copies of one photograph, and photographs that show one spot, from the pixels alone.

Pictures are taken one after the other. Each is compared with the photographs found so far that share
rare visual words, and joins one of them or starts a new one. Then representatives of the photographs are
compared with each other. Every link is a geometric match with agreeing pixels; labels, names and
folders play no part.
"""

import collections
import dataclasses
import itertools

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from kmed.data.audit.alignment import Alignment, align
from kmed.data.audit.fingerprints import Fingerprint, Fingerprints, Variant, worker_pool
from kmed.data.audit.visual_words import Index, Vocabulary
from kmed.data.table import Table
from kmed.progress import bar, track

# Copies of one exposure agree by 0.9962 or more (1st percentile, blood cells), two exposures of one spot by 0.9935
# or less (99th). Two crops of one exposure that share less than SAME_SHARE count as two photographs of one spot.
SAME_AGREEMENT = 0.995
SAME_DETAIL = 0.9
SAME_SHARE = 0.6
SAME_INLIERS = 20
# Shared spots. X-rays of different patients align with up to 20 inliers or a detail of 0.74, never with both that
# high. A strong link is enough; a weak one, which might be chance, needs a second one between other pictures.
SPOT_AGREEMENT = 0.85
SPOT_DETAIL = 0.65
STRONG_LINKS = ((16, 0.8), (30, 0.65))  # minimum (inliers, detail)
STRONG_SPREAD = 0.03
WEAK_DETAIL = 0.75
MIN_FEATURES = 20
MAX_REPRESENTATIVES = 6
FIRST_CANDIDATES = 3
NEGATIVE_CANDIDATES = 1  # a negative is looked for in the first pass alone: it is a copy, not an overlap
SECOND_CANDIDATES = 40
# If thousands of pictures all differ, each gets fewer candidates, so that the work stays within bounds.
ALL_CANDIDATES, FEWEST_CANDIDATES = 100_000, 10
BATCH = 64
SAMPLE = 300


@dataclasses.dataclass(frozen=True, eq=False)
class Link:
    """Two pictures, given as rows of the table, that show the same scene; `first` < `second`."""

    first: int
    second: int
    alignment: Alignment
    same_exposure: bool


@dataclasses.dataclass(frozen=True, eq=False)
class NearDuplicates:
    """The result of a search.

    Attributes:
      photograph: int64 (N,): pictures with the same number are copies of one exposure.
      group: int64 (N,): pictures with the same number are linked by photographs that share a spot.
      links: the verified Links, best first, at most a few per pair of photographs.
      featureless: rows with too few local features to be compared.
    """

    photograph: np.ndarray
    group: np.ndarray
    links: list[Link]
    featureless: np.ndarray


def find_near_duplicates(table: Table, fingerprints: Fingerprints | None = None, seed: int = 0) -> NearDuplicates:
    """Returns which pictures of the table are copies of one photograph, and which photographs share a spot.

    Args:
      table: readable pictures, N >= 1.
      fingerprints: the fingerprints of `table`, if the caller needs them afterwards; None: new ones.
      seed: random seed for the visual words; the same files and seed give the same answer.
    Raises: DataError: a picture cannot be read.
    """
    fingerprints = Fingerprints(table) if fingerprints is None else fingerprints
    with worker_pool() as pool:
        sampled = np.unique(np.linspace(0, len(table) - 1, SAMPLE).astype(int))
        found = track(pool.map(fingerprints.__getitem__, sampled), "Learning visual words", len(sampled))
        descriptors = [one.descriptors for one in found]
        if not sum(map(len, descriptors)):
            alone = np.arange(len(table))
            return NearDuplicates(alone, alone, [], alone)
        search = _Search(fingerprints, Vocabulary(descriptors, seed), pool, len(table))
        search.find_photographs()
        search.compare_photographs()
    return search.result()


class _Search:
    """The state of one search; `find_photographs`, `compare_photographs` and `result` are called in this order."""

    def __init__(self, fingerprints, vocabulary, pool, num_rows):
        self.fingerprints, self.vocabulary, self.pool = fingerprints, vocabulary, pool
        self.photograph = np.full(num_rows, -1)  # as found in the first pass
        self.representatives = []  # rows of each photograph
        self.index, self.entries = Index(), []  # entry -> (row, Variant)
        self.links = {}  # (first, second) -> Alignment
        self.refused = set()  # (first, second, Variant) compared without a match
        self.featureless = []

    def find_photographs(self):
        """Assigns each row to a photograph."""
        rows = range(len(self.photograph))
        batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        with bar("Finding copies", len(rows)) as advance:
            for batch in batches:
                described = list(self.pool.map(self._describe, batch))
                similarity = self.index.similar(sparse.vstack(described, format="csr"))
                known = self.pool.map(self._recognise, batch, similarity, itertools.repeat(self.entries))
                fresh, entries = Index(), []
                for row, words, (photograph, links) in zip(batch, described, list(known)):
                    if photograph is None and entries:  # this batch may hold a copy too
                        photograph, more = self._recognise(row, fresh.similar(words)[0], entries)
                        links = [*links, *more]
                    self.links.update(links)
                    self._place(row, words, photograph, fresh, entries)
                    advance()
                self.entries += entries

    def compare_photographs(self):
        """Compares representatives of different photographs, which finds shared spots and missed copies."""
        rows = [row for rows in self.representatives for row in rows]
        num_wanted = min(SECOND_CANDIDATES, max(FEWEST_CANDIDATES, ALL_CANDIDATES // max(1, len(rows))))
        pairs = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            described = list(self.pool.map(self._describe, batch))
            for row, similarity in zip(batch, self.index.similar(sparse.vstack(described, format="csr"))):
                near = self._candidates(row, similarity, self.entries, num_wanted)
                pairs += [(row, other, variant) for other, _ in near for variant in (Variant.PLAIN, Variant.MIRRORED)]
        self._compare(pairs, "Comparing photographs")
        # Few pairs show a small overlap, and visual words find even fewer of them: compare all where one was linked.
        linked = {(*sorted(self.photograph[list(pair)]), alignment.inverted) for pair, alignment in self.links.items()}
        self._compare(
            [
                (row, other, variant)
                for first, second, inverted in sorted(linked)
                if first != second
                for row in self.representatives[first]
                for other in self.representatives[second]
                for variant in Variant
                if variant.inverted == inverted
            ],
            "Following links",
        )

    def result(self) -> NearDuplicates:
        """Returns what follows from all links."""
        between = collections.defaultdict(list)
        for pair, alignment in self.links.items():
            between[tuple(sorted(self.photograph[list(pair)]))].append((pair, alignment))
        same = [key for key, links in between.items() if key[0] != key[1] and _is_one_exposure(links)]
        spot = [key for key, links in between.items() if key[0] != key[1] and _is_one_spot(links)]
        photograph = components(len(self.representatives), same)[self.photograph]
        group = components(len(self.representatives), same + spot)[self.photograph]
        links = [
            Link(first, second, alignment, bool(photograph[first] == photograph[second]))
            for (first, second), alignment in self.links.items()
            if group[first] == group[second]
        ]
        links.sort(key=lambda link: (-link.alignment.inliers, link.first, link.second))
        return NearDuplicates(photograph, group, links, np.array(self.featureless, int))

    def _describe(self, row):
        return self.vocabulary.describe(self.fingerprints[row].descriptors)

    def _recognise(self, row, similarity, entries):
        """Returns (photograph or None, [((first, second), Alignment)]), found among the most similar entries."""
        links = []
        for other, variant in [
            *self._candidates(row, similarity, entries, FIRST_CANDIDATES),
            *self._candidates(row, similarity, entries, NEGATIVE_CANDIDATES, inverted=True),
        ]:
            first, second = sorted((row, other))
            alignment = self._link(first, second, variant)
            if alignment is not None:
                links.append(((first, second), alignment))
                if is_same_exposure(alignment):
                    return self.photograph[other], links
        return None, links

    def _candidates(self, row, similarity, entries, num_wanted, inverted=False):
        """Returns the most similar (row, Variant) of each of the photographs most similar to a row, except its own.

        They are either all negatives, or none is.
        """
        negatives = np.array([variant.inverted for variant in Variant])
        similarity = np.where(negatives == inverted, similarity.reshape(-1, len(Variant)), 0).ravel()
        wanted = min(len(similarity), 2 * MAX_REPRESENTATIVES * (num_wanted + 1))
        nearest = np.argpartition(-similarity, wanted - 1)[:wanted]
        nearest = nearest[np.lexsort((nearest, -similarity[nearest]))]
        found = {}
        for entry in nearest:
            photograph = self.photograph[entries[entry][0]]
            if similarity[entry] > 0 and photograph != self.photograph[row]:
                found.setdefault(photograph, entries[entry])
                if len(found) == num_wanted:
                    break
        return list(found.values())

    def _compare(self, pairs, label):
        """Adds the links among the pairs (row, other, Variant), except for those that are already linked."""
        ordered = ((min(row, other), max(row, other), variant) for row, other, variant in pairs)
        pairs = [one for one in dict.fromkeys(ordered) if one[:2] not in self.links and one not in self.refused]
        found = track(self.pool.map(self._link, *zip(*pairs)), label, len(pairs)) if pairs else ()
        for one, alignment in zip(pairs, found):
            known = self.links.get(one[:2])  # linked in two variants: one of them is chance
            if alignment is None:
                self.refused.add(one)
            elif known is None or known.inliers < alignment.inliers:
                self.links[one[:2]] = alignment

    def _link(self, first, second, variant):
        return link(self.fingerprints[first], self.fingerprints[second], variant)

    def _place(self, row, words, photograph, fresh, entries):
        """Assigns the row to a photograph or starts a new one; its first few rows become representatives."""
        descriptors = self.fingerprints[row].descriptors
        if photograph is None:
            photograph = len(self.representatives)
            self.representatives.append([])
        self.photograph[row] = photograph
        if len(descriptors) < MIN_FEATURES:
            self.featureless.append(row)
        if len(self.representatives[photograph]) >= MAX_REPRESENTATIVES or len(descriptors) < MIN_FEATURES:
            self.fingerprints.forget(row)
            return
        self.representatives[photograph].append(row)
        for variant in Variant:
            described = words if variant is Variant.PLAIN else self.vocabulary.describe(descriptors[:, variant.columns])
            fresh.add(described)
            self.index.add(described)
            entries.append((row, variant))


def link(first: Fingerprint, second: Fingerprint, variant: Variant) -> Alignment | None:
    """Returns how `first` maps onto `second`, or None unless their pixels agree in what both show."""
    alignment = align(first, second, variant)
    shared = alignment is not None and alignment.agreement >= SPOT_AGREEMENT and alignment.detail >= SPOT_DETAIL
    return alignment if shared else None


def is_strong(alignment: Alignment) -> bool:
    """Returns whether one link is enough to say that two pictures show one spot."""
    enough = any(alignment.inliers >= inliers and alignment.detail >= detail for inliers, detail in STRONG_LINKS)
    return enough and alignment.spread >= STRONG_SPREAD


def is_same_exposure(alignment: Alignment) -> bool:
    """Returns whether one link shows two copies of one exposure."""
    return (
        alignment.agreement >= SAME_AGREEMENT
        and alignment.detail >= SAME_DETAIL
        and alignment.share >= SAME_SHARE
        and alignment.inliers >= SAME_INLIERS
        and alignment.verdict == "same"
    )


def _is_one_exposure(links):
    """Returns whether at least half of the links between two photographs show one exposure."""
    return 2 * sum(is_same_exposure(alignment) for _, alignment in links) >= len(links)


def _is_one_spot(links):
    """Returns whether a strong link, or two weak ones between four different pictures, join two photographs."""
    if any(is_strong(alignment) for _, alignment in links):
        return True
    pairs = [pair for pair, alignment in links if alignment.detail >= WEAK_DETAIL]
    return any(not set(one) & set(other) for one, other in itertools.combinations(pairs, 2))


def components(num_nodes, edges):
    """Returns int64 (num_nodes,): the number of each node's connected component, numbered by first node."""
    first, second = np.array(edges, int).reshape(-1, 2).T
    graph = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(num_nodes, num_nodes))
    return csgraph.connected_components(graph, directed=False)[1].astype(np.int64)
