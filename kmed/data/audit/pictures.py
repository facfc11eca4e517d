"""The pictures of an audit: each is decoded once, and what is made of it is stored for all processes."""

import concurrent.futures
import contextlib
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from kmed.config import FULL
from kmed.data.audit.alignment import Alignment, Least, align
from kmed.data.audit.fingerprints import Fingerprint, Variant, fingerprint, shrink
from kmed.data.audit.store import Place, Store, pack_arrays, read_bytes, unpack_arrays
from kmed.data.audit.visual_words import Vocabulary, nearest_words
from kmed.data.audit.workers import Workers
from kmed.data.images import as_array
from kmed.data.readable import digest, inspect
from kmed.data.table import Table
from kmed.errors import RunError
from kmed.progress import bar

AT_ONCE = 16  # pictures or comparisons that a process takes at a time
FIELDS = ("inliers", "share", "spread", "agreement", "detail", "tile_detail", "drift", "mirrored", "inverted")
_VARIANTS = list(Variant)
Pair = tuple[int, int, Variant]


@functools.lru_cache(maxsize=4 * AT_ONCE)
def load_fingerprint(arrays: str, place: Place, shape: tuple[int, int, int]) -> Fingerprint:
    """Returns the Fingerprint at a Place of a store; its shape is (height, width, number of features)."""
    height, width, count = shape
    grey, inside, points, descriptors = unpack_arrays(
        read_bytes(arrays, place),
        (np.uint8, (height, width)),
        (np.uint8, (-(-height * width // 8),)),
        (np.float32, (count, 2)),
        (np.uint8, (count, 128)),
    )
    inside = np.unpackbits(inside, count=height * width).reshape(height, width)
    return Fingerprint(grey, inside, points, descriptors)


def look(task: tuple) -> list[tuple]:
    """Returns (facts, shape, content) of each picture of a task (sources, limits): see `Pictures.look`.

    If the limits are not known yet, a picture that needs them gets no shape and no content.
    """
    sources, limits = task
    found: list[tuple] = []
    for source in sources:
        facts, made = inspect(source, limits or FULL, functools.partial(_fingerprint, only_plain=limits is None))
        if made is None:
            found.append((facts, None, None))
            continue
        content = pack_arrays(made.grey, np.packbits(made.inside), made.points, made.descriptors)
        found.append((facts, (*made.grey.shape, len(made.points)), content))
    return found


def _fingerprint(picture, only_plain):
    if only_plain and picture.peak is not None:
        return None
    return fingerprint(shrink(as_array(picture.image)))


def assign_words(task: tuple) -> list[np.ndarray]:
    """Returns the words of pictures, of a task (locations, path of the graph of words)."""
    locations, path = task
    return [nearest_words(path, load_fingerprint(*location).descriptors) for location in locations]


def compare(task: tuple) -> list[list[Alignment | None]]:
    """Returns how pairs align, of a task (lists of (location, location, Variant), Least, stop).

    A list is worked through from its start until `stop(alignment)`, a function of a module, is true of one.
    """
    lists, least, stop = task
    found: list[list[Alignment | None]] = []
    for pairs in lists:
        found.append([])
        for first, second, variant in pairs:
            alignment = align(load_fingerprint(*first), load_fingerprint(*second), variant, least, stop)
            found[-1].append(alignment)
            if stop is not None and alignment is not None and stop(alignment):
                break
    return found


def in_parts(workers: Workers, work: Callable[[list], object], items: list, label: str) -> list:
    """Returns what work(part) returns for each part of a list; it is called in threads, and a bar shows the progress.

    Args:
      work: a function, which lets `workers.run` do the work.
      items: what there is to do.
      label: what the bar says; "": there is no bar.
    """
    size = max(1, min(AT_ONCE, len(items) // (4 * workers.count)))
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    found = []
    with bar(label, len(items)) if label and items else contextlib.nullcontext(lambda: None) as advance:
        for part, answer in zip(parts, workers.map(work, parts), strict=True):
            found.append(answer)
            for _ in part:
                advance()
    return found


class Pictures:
    """The pictures of a table, what has been computed of them, and the processes that compute it.

    Attributes:
      facts: {row: what `kmed.data.readable.inspect` says of it}.
      words: {row: int32 (F,), the visual word of each feature}, once they are assigned.
      compared: {(first, second, Variant): Alignment or None}, first < second.
    """

    def __init__(self, table: Table, store: Store, workers: Workers):
        self.table, self.store, self.workers = table, store, workers
        self.facts: dict[int, tuple] = {}
        self.words: dict[int, np.ndarray] = {}
        self.compared: dict[Pair, Alignment | None] = {}
        self._locations: dict[int, tuple] = {}  # the arguments of load_fingerprint
        try:
            for record in store.records[1:]:
                self._take(record)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            raise RunError(f"{store.folder} is damaged. Remove it and start again.") from None

    def __getitem__(self, row: int) -> Fingerprint:
        return load_fingerprint(*self._locations[row])

    def location(self, row: int) -> tuple:
        """Returns where the fingerprint of a picture is, as the arguments of `load_fingerprint`."""
        return self._locations[row]

    def num_features(self, row: int) -> int:
        """Returns how many features a picture has."""
        return self._locations[row][2][2]

    def look(self, rows: Iterable[int], limits: tuple[int, int] | None, label: str) -> None:
        """Reads pictures, of which the facts and the fingerprints are stored.

        Args:
          rows: those that have been read already are left out.
          limits: (low, high), see `kmed.data.readable.inspect`; None: they follow from the facts, and until then a
            picture that needs them gets no fingerprint.
          label: what the progress says.
        """
        missing = [row for row in rows if row not in self.facts or (limits is not None and self._waits(row))]

        def work(some):
            for row, (facts, shape, content) in zip(
                some, self.workers.run(look, ([source_of(self.table, row) for row in some], limits)), strict=True
            ):
                record = {"row": int(row), "facts": facts, "shape": shape}
                place = self.store.add(record, content)
                self._take_picture(record, place)

        in_parts(self.workers, work, missing, label)

    def _waits(self, row):
        """Returns whether a picture that can be read has no fingerprint yet."""
        return self.facts[row][0] == "" and row not in self._locations

    def assign_words(self, rows: list[int], vocabulary: Vocabulary) -> None:
        """Stores the visual words of pictures."""
        path = vocabulary.save(self.store.folder)
        missing = [row for row in rows if row not in self.words]

        def work(some):
            found = self.workers.run(assign_words, ([self._locations[row] for row in some], path))
            self.store.add({"words": [int(row) for row in some]}, pack_arrays(*found))
            self.words.update(zip(some, found))

        in_parts(self.workers, work, missing, "Assigning visual words")

    def compare(self, lists: list[list[Pair]], least: Least, stop=None, label: str = "") -> None:
        """Aligns pairs, and stores what is found in `compared`.

        Args:
          lists: lists of pairs; each is worked through until `stop` is true of an Alignment.
          least: what an alignment must reach.
          stop: a function of a module; None: no list is stopped.
          label: what the progress says; "": nothing.
        """
        todo = [rest for pairs in lists if (rest := self._not_compared(pairs, stop))]

        def work(some):
            placed = [
                [(self._locations[one], self._locations[two], kind) for one, two, kind in pairs] for pairs in some
            ]
            answers = self.workers.run(compare, (placed, least, stop))
            found = {
                pair: answer
                for pairs, several in zip(some, answers, strict=True)
                for pair, answer in zip(pairs, several)  # a list that was stopped has fewer answers
            }
            self.store.add({"pairs": [_to_record(pair, answer) for pair, answer in found.items()]})
            self.compared.update(found)

        in_parts(self.workers, work, todo, label)

    def _not_compared(self, pairs, stop):
        """Returns the pairs of a list that are still to be compared."""
        rest = []
        for pair in pairs:
            if pair not in self.compared:
                rest.append(pair)
            elif stop is not None and self.compared[pair] is not None and stop(self.compared[pair]):
                break
        return rest

    def _take(self, record: dict) -> None:
        """Takes over a record of an earlier process."""
        place = Place(*record["place"]) if "place" in record else None
        if "row" in record:
            self._take_picture(record, place)
        elif "words" in record:
            lengths = [self.num_features(row) for row in record["words"]]
            kinds = [(np.int32, (length,)) for length in lengths]
            content = read_bytes(self.store.arrays, Place(*record["place"]))
            self.words.update(zip(record["words"], unpack_arrays(content, *kinds)))
        else:
            self.compared.update(_from_record(each) for each in record["pairs"])

    def _take_picture(self, record, place):
        self.facts[record["row"]] = tuple(record["facts"])
        if place is not None:
            self._locations[record["row"]] = (self.store.arrays, place, tuple(record["shape"]))


def _to_record(pair: Pair, found: Alignment | None) -> list:
    first, second, variant = pair
    start = [int(first), int(second), _VARIANTS.index(variant)]
    if found is None:
        return start
    return [*start, [getattr(found, name) for name in FIELDS], [outline.tolist() for outline in found.outlines]]


def _from_record(record: list) -> tuple[Pair, Alignment | None]:
    first, second, variant, *found = record
    pair = (first, second, _VARIANTS[variant])
    if not found:
        return pair, None
    values, outlines = found
    first_outline, second_outline = (np.array(outline, np.float32) for outline in outlines)
    return pair, Alignment(**dict(zip(FIELDS, values, strict=True)), outlines=(first_outline, second_outline))


def source_of(table: Table, row: int) -> pathlib.Path | np.ndarray:
    """Returns the file or the pixels of a picture."""
    return table.file(row) if table.images is None else table.images[row]


def find_repeats(table: Table) -> dict[int, int]:
    """Returns {row: the first row with the same bytes}, of the rows that repeat another one.

    Only files of the same size are read for this.
    """
    sizes: dict = {}
    for row in range(len(table)):
        sizes.setdefault(size_of_source(source_of(table, row)), []).append(row)
    alike = [row for size, rows in sizes.items() if size is not None and len(rows) > 1 for row in rows]
    first: dict[str, int] = {}
    repeats = {}
    with concurrent.futures.ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        for row, found in zip(alike, pool.map(lambda row: _digest(source_of(table, row)), alike), strict=True):
            if found and first.setdefault(found, row) != row:
                repeats[row] = first[found]
    return dict(sorted(repeats.items()))


def size_of_source(source):
    """Returns what two pictures with the same bytes have in common: a file's size, or the shape and type of pixels.

    None for a file that is not there.
    """
    if isinstance(source, np.ndarray):
        return source.shape, str(source.dtype)
    try:
        return source.stat().st_size
    except OSError:
        return None


def _digest(source):
    try:
        return digest(source)
    except OSError:
        return ""


def describe_sources(table: Table) -> str:
    """Returns a text that changes when a picture does: a file's path, size and time, or the digest of its pixels."""
    found = hashlib.sha256()
    for row in range(len(table)):
        source = source_of(table, row)
        if isinstance(source, np.ndarray):
            text = digest(source)
        else:
            try:
                status = source.stat()
                text = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:
                text = "missing"
        found.update(f"{table.rows['path'].iloc[row]}\0{text}\n".encode())
    return found.hexdigest()
