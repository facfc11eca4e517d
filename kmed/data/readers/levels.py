"""Reads what the folders above the pictures mean: splits, classes, and groups such as patients. No file is opened."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from kmed.data.readers.folder_names import (
    EXAMINATIONS,
    PATIENT_WORDS,
    PATIENTS,
    VIEWS,
    all_match,
    are_long_numbers,
    are_parts,
    are_patients,
    is_number,
    split_of,
)
from kmed.data.readers.masks import is_picture_folder
from kmed.data.readers.text import spelling_key
from kmed.errors import DataError

MAX_DEPTH = 5  # levels of folders above those of the splits or classes
_ENOUGH = 3  # groups that each class must have, at least, if their names do not look like those of patients
_MANY = 10  # folders in each class that must be groups, whatever their names


@dataclasses.dataclass(frozen=True)
class Found:
    """What the folders of one picture mean.

    Attributes:
      path: the picture, relative to the folder that was read.
      split: the name of its split, "" if there are no split folders.
      label: the name of its class folder.
      group: the name of its group's folder; None if it has none.
    """

    path: str
    split: str
    label: str
    group: str | None = None


@dataclasses.dataclass(frozen=True)
class Levels:
    """How a folder of class folders is read. Folders are relative to the one that was read, "" is that one.

    Attributes:
      root: the folder that holds the class or split folders.
      shape: the meaning of each level, such as "SPLIT/CLASS/GROUP/picture".
      found: the pictures that have a class.
      other_folders: {folder beside the split folders that is no split: number of pictures in it}.
      without_class: pictures that lie in no class folder.
      class_parents: the folders that hold class folders, unless these are inside the groups.
      inner: names of folders inside the classes that are no groups.
    """

    root: str
    shape: str
    found: list[Found]
    other_folders: dict[str, int]
    without_class: list[str]
    class_parents: set[str]
    inner: list[str]


def read_levels(
    pictures: Sequence[str],
    where: str,
    *,
    split_folders: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Levels | None:
    """Returns what the folders above the pictures mean, or None if there are no class folders.

    The outer folders are the classes, and a level inside them may be the groups, except where many folders that are
    named like patients each hold the same few folders: then these are the classes, and the outer folders the groups.
    If both can be meant, `class_names` decides, else the folders are refused.

    Args:
      pictures: POSIX paths.
      where: the folder that they are relative to, for messages.
      split_folders: {folder: split}, for folders whose name does not show their split.
      class_names: the legal classes; None: those that are found.
    Raises: DataError: the folders can be read in several ways, or look like patients without classes.
    """
    legal = None if class_names is None else {spelling_key(name) for name in class_names}
    tree = _Tree(pictures)
    root = _split_root(tree, where, split_folders or {}, legal)
    has_splits = root is not None
    if root is None:
        root = _class_root(tree, where, legal)
    if root is None:
        return None
    rows: list[_Row] = []
    other_folders: Counter[str] = Counter()
    without_class: list[str] = []
    for path in pictures:
        row = _row(path, root, (split_folders or {}) if has_splits else None)
        if row is None:
            without_class.append(path)
        elif row.split is None:
            other_folders[row.levels[0][1]] += 1
        elif row.levels:
            rows.append(row)
        else:
            without_class.append(path)
    turned = [] if has_splits else _turned(rows)
    rows = turned or rows
    splits = "CLASS/SPLIT" if turned else "SPLIT/CLASS" if has_splits else "CLASS"
    depth = _class_depth(rows, where, legal)
    if legal is None:
        _refuse_patients(rows, depth, root, where)
        _refuse_parts({row.levels[depth][1] for row in rows if len(row.levels) > depth}, _at(where, root))
    return _build(root, rows, depth, splits, dict(other_folders), without_class)


def splits_above(pictures: Sequence[str]) -> list[str] | None:
    """Returns the split of each path by its outermost folder, or None unless all are in two or more split folders."""
    splits = [split_of(path.split("/")[0]) if "/" in path else None for path in pictures]
    return [split for split in splits if split] if None not in splits and len(set(splits)) > 1 else None


class _Tree:
    """The folders above the pictures: `below` are the folders in each, `direct` those with pictures of their own."""

    def __init__(self, pictures):
        self.below: dict[str, set[str]] = defaultdict(set)
        self.direct: set[str] = set()
        for folder in {path.rpartition("/")[0] for path in pictures}:
            self.direct.add(folder)
            while folder:
                parent, _, name = folder.rpartition("/")
                self.below[parent].add(name)
                folder = parent

    def inside(self, folder: str) -> list[str]:
        """Returns the folders in `folder`, with it before their names."""
        return [_join(folder, name) for name in sorted(self.below.get(folder, ()))]


@dataclasses.dataclass(frozen=True)
class _Row:
    """A picture, its split (None: its first folder is no split) and [(folder, its name)] from the outermost on."""

    path: str
    split: str | None
    levels: list[tuple[str, str]]


# ---- The folder that holds splits or classes ------------------------------------------------------------


def _split_root(tree, where, split_folders, legal):
    """Returns the nearest folder with split folders of class folders, or None."""

    def splits(folder):
        names = [name for name in tree.below.get(folder, ()) if name in split_folders or split_of(name)]
        names = [name for name in names if legal is None or spelling_key(name) not in legal]
        return [name for name in names if tree.below.get(_join(folder, name))]

    level = [""]
    for _ in range(MAX_DEPTH + 1):
        fitting = [folder for folder in level if splits(folder)]
        if len(fitting) > 1:
            if _are_classes(fitting, tree, legal):
                return None  # the split folders are inside the classes
            raise DataError(
                f"Several folders in {where} hold class folders: {_few(fitting)}. Name the one to use; if they are the "
                "classes, list them in class_names."
            )
        if fitting:
            _refuse_lonely_split(tree, where, fitting[0], split_folders)
            return fitting[0]
        level = [child for folder in level for child in tree.inside(folder)]
    return None


def _are_classes(folders, tree, legal):
    """Returns whether folders that hold split folders are classes: by their names, or by the patients in the splits."""
    if legal is not None:
        return {spelling_key(folder.rpartition("/")[2]) for folder in folders} <= legal
    inside = [tree.below[split] for folder in folders for split in tree.inside(folder)]
    return all_match(PATIENTS, set().union(*inside))


def _refuse_lonely_split(tree, where, folder, split_folders):
    """Raises DataError if the only split is val or test, and other folders beside it hold pictures."""
    names = sorted(tree.below[folder])
    others = [name for name in names if name not in split_folders and not split_of(name)]
    found = {split_folders.get(name) or split_of(name) for name in names} - {None}
    if others and not split_folders and "train" not in found and len(found) == 1:
        split = next(name for name in names if split_of(name))
        raise DataError(
            f"{_at(where, folder)} holds {_few(names)}, of which only {split!r} is the name of a split. If they are "
            f"classes, list them in class_names; if they are splits, say which: split_folders={{{others[0]}: train}}."
        )


def _class_root(tree, where, legal):
    """Returns the first folder with two or more folders of pictures, from the top, or None."""
    folder = ""
    for _ in range(MAX_DEPTH + 1):
        names = sorted(tree.below.get(folder, ()))
        if len(names) > 1 or (legal and legal & set(map(spelling_key, names))):
            if legal is None and all(map(split_of, names)):
                return None  # splits without class folders
            if legal is None:
                _refuse_uneven(tree, where, folder, names)
            return folder
        if not names:
            break
        folder = _join(folder, names[0])
    classes = [name for name in folder.split("/") if name and not is_picture_folder(name) and not split_of(name)]
    if classes:
        raise DataError(
            f"{where} holds one class folder with pictures ({classes[-1]}); at least two classes are needed. Give the "
            "folder that holds all class folders."
        )
    return None


def _refuse_uneven(tree, where, folder, names):
    """Raises DataError if one folder holds pictures, and the others hold what may be class folders."""
    flat = [name for name in names if _join(folder, name) in tree.direct]
    inner = {child for name in names if name not in flat for child in tree.below[_join(folder, name)]}
    plain = [name for name in inner if not (is_picture_folder(name) or VIEWS.fullmatch(name) or is_number(name))]
    if len(flat) == 1 and len(plain) > 1:
        raise DataError(
            f"It is not clear which folders in {_at(where, folder)} are the classes: {_few(names)}, or the folders in "
            f"them: {_few(sorted(inner))}. List the classes in class_names, or give the folder that holds only them."
        )


# ---- Splits above and inside the classes ----------------------------------------------------------------


def _row(path, root, split_folders):
    """Returns the _Row of a picture below `root`, or None if it lies elsewhere; split_folders None: there are none."""
    if root and not path.startswith(f"{root}/"):
        return None
    folders, at = [], root
    for name in path[len(root) :].strip("/").split("/")[:-1]:
        at = _join(at, name)
        folders.append((at, name))
    if split_folders is None:
        return _Row(path, "", _without_plain(folders))
    if not folders:
        return None
    split = split_folders.get(folders[0][1]) or split_of(folders[0][1])
    if split is None:
        return _Row(path, None, folders)
    rest = folders[1:]
    while len(rest) > 1 and (split_of(rest[0][1]) == split or is_picture_folder(rest[0][1])):  # train/train/CLASS
        rest = rest[1:]
    return _Row(path, split, _without_plain(rest))


def _without_plain(folders):
    """Returns the folders without those that are only called "images", unless it is the outermost."""
    return [folder for index, folder in enumerate(folders) if index == 0 or not is_picture_folder(folder[1])]


def _turned(rows):
    """Returns the rows with their splits if these are the folders inside the classes, else nothing."""
    splits = [split_of(row.levels[1][1]) if len(row.levels) > 1 else None for row in rows]
    if None in splits or len(set(splits)) < 2:
        return []
    return [_Row(row.path, split, [row.levels[0], *row.levels[2:]]) for row, split in zip(rows, splits)]


# ---- Classes ---------------------------------------------------------------------------------------------


def _class_depth(rows, where, legal):
    """Returns the index of the classes among the levels. Raises DataError if two levels may be meant."""
    if legal is not None:
        depths = range(max((len(row.levels) for row in rows), default=1))
        named = (d for d in depths if all(len(r.levels) > d and spelling_key(r.levels[d][1]) in legal for r in rows))
        return next(named, 0)
    inner: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        inner[row.levels[0][1]].update(row.levels[1][1] for row in [row] if len(row.levels) > 1)
    outer, names = list(inner), sorted(set().union(*inner.values()))
    if not _is_grid(inner, names) or any(all_match(pattern, names) for pattern in (VIEWS, PATIENTS, EXAMINATIONS)):
        return 0
    if all_match(PATIENT_WORDS, outer) or (are_patients(outer) and len(outer) > len(names)):
        return 1
    if any(len(row.levels) == 1 for row in rows):
        return 0  # the outer folders hold pictures of their own
    if not any(map(is_number, outer)) and all(map(is_number, names)) and len(names) >= len(outer):
        return 0  # words outside, numbers inside that start anew in each class
    raise DataError(
        f"Several folders in {where} hold class folders: {_few(sorted(outer))} each hold {_few(names)}. Say what they "
        f"are: class_names=[{_few(names)}] if the inner folders are the classes (the outer ones are then groups, such "
        f"as patients), class_names=[{_few(sorted(outer))}] if the outer ones are; or split_folders={{{outer[0]}: "
        "train, ...} if the outer ones are splits."
    )


def _is_grid(inner, names):
    """Returns whether the outer folders hold the same two or more folders, most of them in each."""
    count = Counter(name for found in inner.values() for name in found)
    several = sum(number > 1 for number in count.values())
    return len(names) > 1 and several >= 0.8 * len(names) and sum(count.values()) >= 0.5 * len(names) * len(inner)


def _refuse_patients(rows, depth, root, where):
    """Raises DataError if the classes look like patients: one class folder was taken for the data, or there is none."""
    names = sorted({row.levels[depth][1] for row in rows}) if depth == 0 else []
    above = root.rpartition("/")[2]
    numbered = are_long_numbers(names) and above and not is_picture_folder(above)
    if all_match(PATIENT_WORDS, names) or (numbered and not split_of(above)):
        lone = f" and {above!r} may be the only class" if above and not is_picture_folder(above) else ""
        raise DataError(
            f"The folders in {_at(where, root)} look like patients ({_few(names)}), not like classes{lone}. Give the "
            "folder that holds all class folders, or a CSV of labels; if they are classes, list them in class_names."
        )


def _refuse_parts(names, where):
    """Raises DataError if the classes are splits, or parts of a set that was cut for its download."""
    if len(names) > 1 and are_parts(names):
        raise DataError(
            f"The folders in {where} look like parts of a data set ({_few(sorted(names))}), not like classes. Give a "
            "CSV of labels, or the folder that holds the classes; if these are classes, list them in class_names."
        )


# ---- Groups ----------------------------------------------------------------------------------------------


def _build(root, rows, depth, splits, other_folders, without_class):
    labels = [row.levels[depth][1] for row in rows if len(row.levels) > depth]
    without_class = [*without_class, *(row.path for row in rows if len(row.levels) <= depth)]
    rows = [row for row in rows if len(row.levels) > depth]
    inside = [[name for _, name in row.levels[depth + 1 :] if not VIEWS.fullmatch(name)] for row in rows]
    level = _group_level(inside, labels) if depth == 0 else None
    above = {(row.levels[0][1], label) for row, label in zip(rows, labels)}
    separate = depth > 0 and len(above) == len(set(labels))  # the outer folders sort the classes: they are no groups
    groups = (
        [row.levels[0][1] for row in rows] if depth and not separate else [_at_level(names, level) for names in inside]
    )
    found = [Found(row.path, row.split, label, group) for row, label, group in zip(rows, labels, groups)]
    deeper = max((len(row.levels) for row in rows), default=1) - depth - 1
    parts = [
        splits.replace(
            "CLASS", "/".join(["..." if separate else "GROUP"] * bool(depth) + ["..."] * (depth > 1) + ["CLASS"])
        )
    ]
    if level is None:
        parts += ["..."] * (deeper > 0)
    else:
        parts += ["..."] * (level > 0) + ["GROUP"] + ["..."] * (deeper > level + 1)
    parents = {row.levels[0][0].rpartition("/")[0] for row in rows} if depth == 0 else set()
    inner = sorted({name for names in inside for name in names[:1]}) if depth == 0 and level is None else []
    return Levels(root, "/".join([*parts, "picture"]), found, other_folders, without_class, parents, inner)


def _group_level(inside, labels):
    """Returns which level inside the classes is the groups: the outermost that may be patients, or None."""
    for level in range(max(map(len, inside), default=0)):
        names, parents = defaultdict(set), defaultdict(set)
        for folders, label in zip(inside, labels):
            if len(folders) > level:
                names[label].add(folders[level])
                parents[folders[level]].add(tuple(folders[:level]))
        everything = list(parents)
        unique = level == 0 or all(len(above) == 1 for above in parents.values())
        many = sorted(map(len, names.values()))[len(names) // 2] >= _MANY
        if len(everything) > 1 and unique and (many or sum(map(is_number, everything)) >= 0.8 * len(everything)):
            return level
    counts = defaultdict(set)
    for folders, label in zip(inside, labels):
        counts[label].add(folders[0] if folders else None)
    enough = all(None not in names and len(names) >= _ENOUGH for names in counts.values())
    return 0 if counts and enough else None


def _at_level(names, level):
    return names[level] if level is not None and len(names) > level else None


# ---- Names -----------------------------------------------------------------------------------------------


def _join(folder, name):
    return f"{folder}/{name}" if folder else name


def _at(where, folder):
    return _join(str(where), folder) if folder else str(where)


def _few(names):
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
