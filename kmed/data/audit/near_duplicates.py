"""Finds pictures that are copies of one photograph, and photographs that show one spot, from the pixels alone.

Pictures are taken in batches. Each is compared with the photographs found so far that share rare visual words, then
with those of its own batch, and joins one of them or starts a new one. Then representatives of the photographs are
compared with each other. Every link is a geometric match with agreeing pixels; labels, names and folders play no part.

A picture is compared with a fixed number of others, however many there are, so the work grows with their number. What
is compared depends on the pictures alone, not on the number of processes.
"""

import collections
import dataclasses
import itertools

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from kmed.data.audit.alignment import Alignment, Least
from kmed.data.audit.fingerprints import Variant
from kmed.data.audit.pictures import Pictures
from kmed.data.audit.visual_words import Index, Vocabulary, has_graphs, rarities, turned
from kmed.progress import bar, say

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
SECOND_CANDIDATES = 24
NEAREST = 2 * MAX_REPRESENTATIVES * (SECOND_CANDIDATES + 1)  # entries, among which are so many photographs
BATCH = 256
SAMPLE, SAMPLED_SHARE = 300, 50  # the words come from so many pictures, or from one in so many
# Fine detail agrees by 0.43 or more before the map is refined where it agrees by SPOT_DETAIL afterwards (297 pairs of
# X-rays); of the pairs that do not, four in ten are below 0.3.
DETAIL_AT_FIRST = 0.3
LINKING = Least(SPOT_AGREEMENT, SPOT_DETAIL, DETAIL_AT_FIRST)
UPRIGHT = (Variant.PLAIN, Variant.MIRRORED)
NEGATIVES = (Variant.INVERTED, Variant.MIRRORED_AND_INVERTED)
FIRST_ROUND = ((UPRIGHT, FIRST_CANDIDATES), (NEGATIVES, NEGATIVE_CANDIDATES))
EXACT_UP_TO = 5000  # pictures, for which it takes no longer to compare each descriptor with every word


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


def find_near_duplicates(pictures: Pictures, rows: np.ndarray, seed: int = 0) -> NearDuplicates:
    """Returns which pictures are copies of one photograph, and which photographs share a spot.

    Args:
      pictures: those of a table, N >= 1.
      rows: which of them to compare, int64 (R,), R >= 1; they have been looked at. In the answer, the others are -1.
      seed: random seed for the visual words; the same pictures and seed give the same answer.
    """
    rarity = learn_words([(pictures, rows)], seed)
    if rarity is None:
        alone = np.full(len(pictures.table), -1)
        alone[rows] = np.arange(len(rows))
        return NearDuplicates(alone, alone, [], rows)
    search = _Search(pictures, rows, rarity)
    search.find_photographs()
    search.compare_photographs()
    return search.result()


def learn_words(several: list[tuple[Pictures, np.ndarray]], seed: int) -> np.ndarray | None:
    """Assigns visual words to the given rows of pictures.

    Returns: float32 (V,), the rarity of each word; None if no picture has any feature.
    """
    num_pictures, descriptors = sum(len(rows) for _, rows in several), []
    for pictures, rows in several:
        wanted = max(SAMPLE, len(rows) // SAMPLED_SHARE)
        sampled = rows[np.unique(np.linspace(0, len(rows) - 1, wanted).astype(int))]
        descriptors += [pictures[row].descriptors for row in sampled]
    if not sum(map(len, descriptors)):
        return None
    if num_pictures > EXACT_UP_TO and not has_graphs():
        say("usearch is not installed, so all visual words are compared, which takes longer: pip install usearch")
    vocabulary = Vocabulary(descriptors, num_pictures, seed)
    for pictures, rows in several:
        pictures.assign_words(rows.tolist(), vocabulary)
    return rarities([pictures.words[row] for pictures, rows in several for row in rows.tolist()], len(vocabulary))


def nearest_entries(
    index: Index, words: list[np.ndarray], variants, wanted: int = NEAREST
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (entries, numbers of their variants) of those most similar to each picture, the most similar first.

    Args:
      words: those of each feature of each picture.
      variants: the Variants in which a picture may resemble an entry.
      wanted: how many are enough.
    """
    found = [index.similar([turned(one, variant) for one in words]) for variant in variants]
    answers = []
    for number in range(len(words)):
        parts = [(one.indptr[number], one.indptr[number + 1]) for one in found]
        kinds = np.repeat(np.arange(len(variants)), [end - start for start, end in parts])
        entries = np.concatenate([one.indices[start:end] for one, (start, end) in zip(found, parts)])
        similarity = np.concatenate([one.data[start:end] for one, (start, end) in zip(found, parts)])
        if len(similarity) > 4 * wanted:  # to sort all of them would take longer than to find them
            kept = np.flatnonzero(similarity >= -np.partition(-similarity, wanted)[wanted])
            entries, kinds, similarity = entries[kept], kinds[kept], similarity[kept]
        order = np.lexsort((kinds, entries, -similarity))
        answers.append((entries[order], kinds[order]))
    return answers


class _Search:
    """The state of one search; `find_photographs`, `compare_photographs` and `result` are called in this order."""

    def __init__(self, pictures, rows, rarity):
        self.pictures, self.rows, self.rarity = pictures, rows, rarity
        self.photograph = np.full(len(pictures.table), -1)  # as found in the first pass
        self.representatives = []  # rows of each photograph
        self.index, self.entries = Index(rarity), []  # entry -> row
        self.links = {}  # (first, second) -> Alignment
        self.featureless = []

    def find_photographs(self):
        """Assigns each row to a photograph."""
        with bar("Finding copies", len(self.rows)) as advance:
            for start in range(0, len(self.rows), BATCH):
                batch = self.rows[start : start + BATCH].tolist()
                known = self._compare(self._known_candidates(batch), is_same_exposure)
                fresh = [row for row, copy in zip(batch, known) if copy is None]
                among = dict(zip(fresh, self._compare(self._candidates_among(fresh), is_same_exposure)))
                for row, copy in zip(batch, known, strict=True):
                    copy = among[row] if copy is None else copy
                    self._place(row, None if copy is None else self.photograph[sum(copy[:2]) - row])
                    advance()
                self._add_entries(batch)

    def compare_photographs(self):
        """Compares representatives of different photographs, which finds shared spots and missed copies."""
        rows = [row for rows in self.representatives for row in rows]
        pairs = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            words = [self.pictures.words[row] for row in batch]
            for row, near in zip(batch, nearest_entries(self.index, words, UPRIGHT), strict=True):
                pairs += self._candidates(row, near, UPRIGHT, SECOND_CANDIDATES, each_variant=True)
        self._compare_new(pairs, "Comparing photographs")
        # Few pairs show a small overlap, and visual words find even fewer of them: compare all where one was linked.
        linked = {(*sorted(self.photograph[list(pair)]), link.inverted) for pair, link in self.links.items()}
        self._compare_new(
            [
                (*sorted((row, other)), variant)
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
        joined = [components(len(self.representatives), edges) for edges in (same, same + spot)]
        photograph, group = (np.where(self.photograph < 0, -1, numbers[self.photograph]) for numbers in joined)
        links = [
            Link(first, second, alignment, bool(photograph[first] == photograph[second]))
            for (first, second), alignment in self.links.items()
            if group[first] == group[second]
        ]
        links.sort(key=lambda link: (-link.alignment.inliers, link.first, link.second))
        return NearDuplicates(photograph, group, links, np.array(self.featureless, int))

    def _known_candidates(self, batch):
        """Returns, for each row, its pairs with the known photographs that are most similar to it."""
        lists = [[] for _ in batch]
        words = [self.pictures.words[row] for row in batch]
        for variants, wanted in FIRST_ROUND if len(self.index) else ():
            entries = nearest_entries(self.index, words, variants, 2 * MAX_REPRESENTATIVES * wanted)
            for row, pairs, near in zip(batch, lists, entries, strict=True):
                pairs += self._candidates(row, near, variants, wanted)
        return lists

    def _candidates_among(self, rows):
        """Returns, for each of some rows, its pairs with the earlier ones that are most similar to it."""
        lists = [[] for _ in rows]
        words, index = [self.pictures.words[row] for row in rows], Index(self.rarity)
        index.add(words)
        for variants, wanted in FIRST_ROUND if rows else ():
            for number, (entries, kinds) in enumerate(nearest_entries(index, words, variants)):
                earlier = np.flatnonzero(entries < number)[:wanted]
                lists[number] += [(rows[entries[one]], rows[number], variants[kinds[one]]) for one in earlier]
        return lists

    def _candidates(self, row, near, variants, num_wanted, each_variant=False):
        """Returns the pairs of a row with the most similar entry of each of the photographs most similar to it.

        Args:
          near: what `nearest_entries` returns for the row.
          variants: those that were looked for.
          num_wanted: how many photographs.
          each_variant: whether a photograph may be taken once in each variant.
        """
        found = {}
        for entry, kind in zip(*near, strict=True):
            other, variant = self.entries[entry], variants[kind]
            photograph = self.photograph[other]
            key = (photograph, variant) if each_variant else photograph
            if photograph != self.photograph[row] and key not in found:
                found[key] = (min(row, other), max(row, other), variant)
                if len(found) == num_wanted:
                    break
        return list(found.values())

    def _compare(self, lists, stop=None, label=""):
        """Compares lists of pairs, and keeps the links; returns the pair that stopped each list, or None."""
        self.pictures.compare(lists, LINKING, stop, label)
        stopped = []
        for pairs in lists:
            stopped.append(None)
            for pair in pairs:
                alignment = self.pictures.compared[pair]
                if alignment is None:
                    continue
                known = self.links.get(pair[:2])  # linked in two variants: one of them is chance
                if known is None or known.inliers < alignment.inliers:
                    self.links[pair[:2]] = alignment
                if stop is not None and stop(alignment):
                    stopped[-1] = pair
                    break
        return stopped

    def _compare_new(self, pairs, label):
        """Compares pairs, except for those that are linked already."""
        self._compare([[pair] for pair in dict.fromkeys(pairs) if pair[:2] not in self.links], label=label)

    def _place(self, row, photograph):
        """Assigns the row to a photograph or starts a new one; its first few rows become representatives."""
        if photograph is None:
            photograph = len(self.representatives)
            self.representatives.append([])
        self.photograph[row] = photograph
        if self.pictures.num_features(row) < MIN_FEATURES:
            self.featureless.append(row)
        elif len(self.representatives[photograph]) < MAX_REPRESENTATIVES:
            self.representatives[photograph].append(row)

    def _add_entries(self, batch):
        """Adds those rows of a batch that have become representatives to the index."""
        chosen = [row for row in batch if row in self.representatives[self.photograph[row]]]
        self.index.add([self.pictures.words[row] for row in chosen])
        self.entries += chosen


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
