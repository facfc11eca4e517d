"""The leak audit: what a data set's pictures show about its splits, groups and labels."""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import time

import numpy as np
import pandas as pd

from kmed.data.audit import alignment as aligning
from kmed.data.audit import fingerprints, near_duplicates, visual_words
from kmed.data.audit.alignment import Alignment, align_either
from kmed.data.audit.near_duplicates import Link, find_near_duplicates
from kmed.data.audit.pictures import Pictures, describe_sources, find_repeats
from kmed.data.audit.store import Store
from kmed.data.audit.visual_words import has_graphs
from kmed.data.audit.workers import Workers
from kmed.data.pixel_range import with_range
from kmed.data.readable import facts_table, peaks
from kmed.data.table import Table
from kmed.errors import DataError, suggest
from kmed.files import temporary_folder
from kmed.progress import say
from kmed.version import __version__

# Two photographs that show the same and share half of their frame contradict each other if their labels differ. If
# they share less, each may well show what its label says.
CONTRADICTING_SHARE = 0.5
EVIDENCE_TRIES = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Two pictures, given as rows of the table, that are evidence of a problem.

    Attributes:
      first, second: rows.
      kind: "identical files", "one photograph" or "one spot".
      verdict: "same" (one exposure, or one unchanged scene), "doubt", or "other": another exposure of one subject,
        such as a follow-up, whose labels may rightly differ.
      alignment: how the first maps onto the second; None for identical files, or if only others link the two.
      sides: whether the two lie in splits that must not share pictures.
      labels: whether their labels differ.
      groups: whether the data put them in two groups, such as two patients.
      share: median fraction of the frame that their photographs have in common, 0 to 1; NaN if not measured.
    """

    first: int
    second: int
    kind: str
    verdict: str
    alignment: Alignment | None
    sides: bool
    labels: bool
    groups: bool
    share: float


@dataclasses.dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found; rows are those of `table`.

    Attributes:
      table: the table that was audited.
      files: one row per picture, as returned by inspect_files.
      photograph, group: (N,) names. Pictures of one photograph are copies of one exposure; those of one group are
        linked by photographs that share a spot. An unreadable picture forms a photograph and a group by itself.
      identical: lists of two or more rows whose files have the same bytes.
      on_two_sides: {group: Pair that crosses the sides}, for the found groups that lie on two sides.
      contradictions: Pairs with different labels, one per pair of photographs: identical files, copies, or photographs
        that show the same and share half of their frame. If groups are given, both are in one group.
      doubts: the same, but the pictures do not settle whether the two show the same.
      overlaps: Pairs of photographs with different labels that share less than half.
      across_groups: the surest Pair for every two given groups that have near-duplicates; the two may be one patient.
      num_followups: how many pairs of photographs differ in their labels, but are other exposures of one subject.
      links: the verified Links.
      featureless: rows with too little detail to compare; only their bytes were compared.
      num_compared: how many pairs of pictures were aligned.
      seconds: how long it took.
    """

    table: Table
    files: pd.DataFrame
    photograph: np.ndarray
    group: np.ndarray
    identical: list[list[int]]
    on_two_sides: dict[str, Pair]
    contradictions: list[Pair]
    doubts: list[Pair]
    overlaps: list[Pair]
    across_groups: list[Pair]
    num_followups: int
    links: list[Link]
    featureless: np.ndarray
    num_compared: int
    seconds: float


def audit(table: Table, splits=None, seed: int = 0, *, jobs: int | None = None, folder=None) -> Audit:
    """Returns what the pictures of a table show about its splits, groups and labels.

    Photographs and groups are found from the pixels alone. Given groups decide what a pair means: inside one group
    the same picture with two labels is a contradiction; in two groups it says that the two may be one patient.

    Args:
      table: any table; its splits are the sides, and no new split is drawn.
      splits: names of the splits to audit; None: all.
      seed: random seed for the visual words.
      jobs: how many processes share the work; None: one for each core, but one alone for a few hundred pictures.
      folder: where what has been computed is kept. If it holds what an interrupted audit of the same pictures has
        left, this one goes on from there. None: a temporary folder.
    Raises: DataError: there is no such split, or no picture can be read. RunError: the folder cannot be written.
      ConfigError: `jobs` is not a number of processes.
    """
    start = time.monotonic()
    table = choose_splits(table, splits)
    with contextlib.ExitStack() as held:
        workers = held.enter_context(Workers(jobs, len(table)))
        folder = held.enter_context(temporary_folder()) / "store" if folder is None else folder
        store = held.enter_context(contextlib.closing(Store(folder, plan_of(table, seed))))
        return _audit(Pictures(table, store, workers), seed, start)


def plan_of(table: Table, seed: int) -> str:
    """Returns a text about all that an audit's findings follow from: pictures, settings and versions."""
    import cv2

    constants = [
        f"{name}={value}"
        for module in (fingerprints, aligning, near_duplicates, visual_words)
        for name, value in sorted(vars(module).items())
        if name.isupper()
    ]
    texts = [describe_sources(table), table.range, seed, __version__, cv2.__version__, has_graphs(), *constants]
    return hashlib.sha256(repr(texts).encode()).hexdigest()


def _audit(pictures: Pictures, seed: int, start: float) -> Audit:
    table = pictures.table
    if pictures.facts:
        done = f"{len(pictures.facts):,} pictures and {len(pictures.compared):,} pairs are done"
        say(f"Going on with an audit that was interrupted: {done}.")
    repeated = find_repeats(table)
    first = np.array([row for row in range(len(table)) if row not in repeated])
    pictures.look(first, table.range, "Reading pictures")
    files = facts_table(table, [pictures.facts[repeated.get(row, row)] for row in range(len(table))])
    ranged = with_range(table, peaks(files))
    for note in ranged.notes[len(table.notes) :]:
        say(note)
    readable = (files["reason"] == "").to_numpy()
    if not readable.any():
        raise DataError(f"None of the {len(table)} pictures can be read; the first is {files['path'].iloc[0]}.")
    unique = first[readable[first]]
    pictures.look(unique, ranged.range, "Reading pictures of more than 8 bits")
    say(
        f"{len(unique):,} pictures to compare; {len(repeated):,} repeat another file, {(~readable).sum():,} are broken."
    )
    near = find_near_duplicates(pictures, unique, seed)
    photograph, group = (
        _names(ids, prefix, repeated) for ids, prefix in ((near.photograph, "photograph"), (near.group, "group"))
    )
    identical = [rows for rows in _by_value(files["digest"].where(readable, "")).values() if len(rows) > 1]
    evidence = _Evidence(ranged, photograph, group, near.links, repeated, pictures)
    on_two_sides = evidence.on_two_sides()
    differing = evidence.different_labels()
    return Audit(
        ranged, files, photograph, group, identical, on_two_sides, differing["contradiction"], differing["doubt"],
        differing["overlap"], evidence.across_groups(), len(differing["follow-up"]), near.links,
        near.featureless, len(pictures.compared), time.monotonic() - start,
    )  # fmt: skip


def choose_splits(table: Table, splits=None) -> Table:
    """Returns the rows of the named splits, or the whole table for None. Raises DataError if there is no such split."""
    if splits is None:
        return table
    present = sorted(set(table.rows["split"]) - {""})
    for name in splits:
        if name not in present:
            raise DataError(
                f"There is no split {name!r}; the data have {', '.join(present) or 'none'}." + suggest(name, present)
            )
    return table.take(table.rows["split"].isin(list(splits)).to_numpy())


def must_differ(first: str, second: str) -> bool:
    """Returns whether two splits must not share a group: train and val share none, two test splits may share some."""
    return first != second and "" not in (first, second) and bool({first, second} & {"train", "val"})


def groups_on_two_sides(table: Table, group) -> list[str]:
    """Returns the sorted names of the groups (N,) whose pictures lie in splits that must differ."""
    splits = table.rows["split"].groupby(np.asarray(group)).unique()
    return sorted(name for name, found in splits.items() if any(must_differ(a, b) for a in found for b in found))


class _Evidence:
    """Derives evidence about sides and labels from the links."""

    def __init__(self, table, photograph, group, links, repeated, pictures):
        self.table, self.photograph, self.group, self.links = table, photograph, group, links
        self.repeated, self.pictures = repeated, pictures
        self.splits = table.rows["split"].to_numpy()
        self.given = table.rows["group"].to_numpy() if table.grouped else np.zeros(len(table), int)
        self.shares = collections.defaultdict(list)  # two photographs -> shared fractions
        for link in links:
            self.shares[self._key(link.first, link.second)].append(link.alignment.share)

    def on_two_sides(self):
        """Returns {group: Pair} for the groups on two sides."""
        crossing = {}
        for link in self.links:  # best first
            if must_differ(self.splits[link.first], self.splits[link.second]):
                crossing.setdefault(self.group[link.first], (link.first, link.second, link.alignment))
        members = _by_value(self.group)
        found = {}
        for name in groups_on_two_sides(self.table, self.group):
            if name not in crossing:
                rows = members[name]
                crossing[name] = self._search(
                    (a, b) for a in rows for b in rows if a < b and must_differ(self.splits[a], self.splits[b])
                )
            found[name] = self._pair(*crossing[name])
        return found

    def different_labels(self):
        """Returns {"contradiction", "doubt", "overlap" or "follow-up": Pairs of one given group with two labels}."""
        found = {name: [] for name in ("contradiction", "doubt", "overlap", "follow-up")}
        for rows in _by_value(self.photograph).values():
            labels = self.table.labels[rows]
            if len(rows) > 1 and (np.nanmax(labels, axis=0, initial=-1) > np.nanmin(labels, axis=0, initial=2)).any():
                pairs = ((a, b) for a in rows for b in rows if a < b and self._contradict(a, b))
                evidence = self._search(pairs)
                if evidence is not None:
                    found["contradiction"].append(self._pair(*evidence))
        seen = set()
        for link in self.links:  # best first
            key = self._key(link.first, link.second)
            if key[0] != key[1] and key not in seen and self._contradict(link.first, link.second):
                seen.add(key)
                pair = self._pair(link.first, link.second, link.alignment)
                found[_meaning(pair)].append(pair)
        return found

    def across_groups(self):
        """Returns the surest Pair for every two given groups that are joined by identical files, copies or a link."""
        found = {}
        copies = (rows for rows in _by_value(self.photograph).values() if len(set(self.given[rows])) > 1)
        firsts = ({self.given[row]: row for row in reversed(rows)}.values() for rows in copies)
        joined = [(a, b, None) for rows in firsts for a, b in itertools.combinations(sorted(rows), 2)]
        links = [(link.first, link.second, link.alignment) for link in self.links]
        for first, second, alignment in joined + links:  # the surest first
            key = tuple(sorted((self.given[first], self.given[second])))
            if key[0] != key[1] and key not in found:
                evidence = (first, second, alignment) if alignment else self._search([(first, second)])
                found[key] = self._pair(*evidence)
        return list(found.values())

    def _search(self, pairs):
        """Returns (first, second, alignment) of the first pair that is identical or aligns, else of the first pair.

        None if there is no pair.
        """
        fallback = None
        for tried, (first, second) in enumerate(pairs):
            rows = [self.repeated.get(row, row) for row in (first, second)]
            fallback = fallback or (first, second, None)
            if tried == EVIDENCE_TRIES:
                break
            if rows[0] == rows[1]:
                return first, second, None
            alignment = align_either(*(self.pictures[row] for row in rows))
            if alignment is not None:
                return first, second, alignment
        return fallback

    def _pair(self, first, second, alignment):
        same = self.repeated.get(first, first) == self.repeated.get(second, second)
        copies = self.photograph[first] == self.photograph[second]
        shares = self.shares.get(self._key(first, second)) or ([alignment.share] if alignment else [np.nan])
        return Pair(
            first,
            second,
            "identical files" if same else "one photograph" if copies else "one spot",
            "same" if same or copies else "doubt" if alignment is None else alignment.verdict,
            alignment,
            must_differ(self.splits[first], self.splits[second]),
            bool(self._differ(first, second)),
            bool(self.given[first] != self.given[second]),
            1.0 if same else float(np.median(shares)),
        )

    def _key(self, first, second):
        return tuple(sorted((self.photograph[first], self.photograph[second])))

    def _contradict(self, first, second):
        return self.given[first] == self.given[second] and self._differ(first, second)

    def _differ(self, first, second):
        one, other = self.table.labels[[first, second]]
        return (np.abs(one - other) > 0).any()  # comparing with NaN, an unknown label, gives False


def _meaning(pair):
    """Returns what a pair of two photographs with different labels is."""
    if pair.verdict == "other":
        return "follow-up"
    if pair.share < CONTRADICTING_SHARE:
        return "overlap"
    return "contradiction" if pair.verdict == "same" else "doubt"


def _by_value(values):
    """Returns {value: rows}, ordered by the first row; rows with the value "" are left out."""
    found = collections.defaultdict(list)
    for row, value in enumerate(values):
        if value != "":
            found[value].append(row)
    return dict(found)


def _names(ids, prefix, repeated):
    """Returns object (N,): a name for each row, numbered in the order of the rows."""
    numbers = ids.copy()
    for row, other in repeated.items():
        numbers[row] = numbers[other]
    alone = np.flatnonzero(numbers < 0)
    numbers[alone] = numbers.max() + 1 + np.arange(len(alone))
    codes, _ = pd.factorize(numbers)
    return np.array([f"{prefix}_{code:05d}" for code in codes], dtype=object)
