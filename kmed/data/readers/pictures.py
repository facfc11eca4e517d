"""Finds the pictures that a CSV names: a path is matched as a path, a name without a folder by name, never by guess."""

import dataclasses
import filecmp
import os
import pathlib
import posixpath
import re
import urllib.parse
from collections import defaultdict
from collections.abc import Iterable, Sequence

from kmed.data.readers.text import INVISIBLE, plain
from kmed.data.readers.walk import IMAGE_SUFFIXES, few, walk
from kmed.errors import DataError

IMAGES = "images"  # the folder beside a CSV in which its pictures mostly lie


class Pictures:
    """The pictures below one folder, which can be looked up by path and by name.

    Blanks, the form of accented letters and the case of suffixes do not count; the suffix may be left out.
    """

    def __init__(self, paths: Iterable[str], root: pathlib.Path | None):
        """Args: paths: POSIX paths relative to `root`, the folder (None if the pictures are not files)."""
        self.root = root
        self.paths = list(paths)
        self._exact = set(self.paths)
        self._by_path: dict[str, list[str]] = defaultdict(list)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            for key in _keys(path):
                self._by_path[key].append(path)
                self._by_name[key.rpartition("/")[2]].append(path)
        self._folders: dict[str, str | None] = {}
        self._real_folders: dict[str, str] | None = None

    def at(self, path: str) -> list[str]:
        """Returns the pictures at a path relative to the root: none, one, or several that differ in the suffix."""
        if path in self._exact:
            return [path]
        found = _nearest(self._by_path.get(_key(path), []), path)
        suffix = posixpath.splitext(path)[1].lower()
        if found or suffix in IMAGE_SUFFIXES or not suffix or self.root is None:
            return found
        return [path] if (self.root / path).is_file() else []  # of a kind that is not known by its name

    def named(self, name: str) -> list[str]:
        """Returns the pictures of this name, with or without the suffix, in all folders."""
        return _nearest(self._by_name.get(_key(name), []), name)

    def below(self, path: str) -> list[str]:
        """Returns the pictures whose own path ends with the folders and the name of `path`."""
        end = f"/{_key(path)}"
        return [p for p in self.named(posixpath.basename(path)) if any(f"/{key}".endswith(end) for key in _keys(p))]

    def behind_own_folders(self, path: str) -> list[str]:
        """Returns the pictures at `path` if its first folders are the last ones of the root's own path."""
        if self.root is None:
            return []
        parts, found = path.split("/"), []
        for own in {self.root.absolute().parts, self.root.resolve().parts}:
            own = tuple(map(_key, own))
            for depth in range(1, min(len(parts), len(own))):
                if tuple(map(_key, parts[:depth])) == own[-depth:]:
                    found += self.at("/".join(parts[depth:]))
        return list(dict.fromkeys(found))

    def inside(self, path: str) -> str | None:
        """Returns an absolute path as one relative to the root, or None if it leads elsewhere, links followed."""
        folder, name = posixpath.split(posixpath.normpath(path))
        if folder not in self._folders:
            self._folders[folder] = self._relative(folder)
        start = self._folders[folder]
        return None if start is None else posixpath.normpath(posixpath.join(start, name))

    def _relative(self, folder):
        if self.root is None:
            return None
        real = os.path.realpath(folder)
        for path, root in ((folder, self.root.absolute()), (folder, self.root.resolve()), (real, self.root.resolve())):
            if pathlib.PurePath(path).is_relative_to(root):
                return pathlib.PurePath(path).relative_to(root).as_posix()
        if self._real_folders is None:
            folders = {posixpath.dirname(path) for path in self.paths}
            self._real_folders = {os.path.realpath(self.root / folder): folder for folder in sorted(folders)}
        return self._real_folders.get(real)


@dataclasses.dataclass(frozen=True)
class Found:
    """What `find_pictures` finds.

    Attributes:
      paths: {text: path of its picture relative to the root}.
      several: {text: the paths that it fits, two or more}.
      missing: the texts that fit nothing.
      notes: lines to show to the user.
    """

    paths: dict[str, str]
    several: dict[str, list[str]]
    missing: list[str]
    notes: list[str]


def locate(values: Sequence[str], root: pathlib.Path, csv_path: pathlib.Path) -> tuple[list[str], list[str]]:
    """Returns (paths relative to `root`, notes): the picture of each text, and how many pictures no text names.

    Args:
      values: (N,) paths or names, with or without the suffix, as `find_pictures` explains; one may occur several times.
      root: the folder of the pictures.
      csv_path: the file that names them.
    Raises: DataError: a path is empty or leaves `root`, a picture is missing, or a text fits several pictures.
    """
    where = csv_path.name
    empty = sum(not plain(value) for value in values)
    if empty:
        raise DataError(f"{empty} rows of {where} name no picture. Fill or remove them.")
    folder = walk(root)
    pictures = Pictures(folder.pictures, root)
    found = find_pictures(dict.fromkeys(values), pictures, _folder_of(csv_path, root))
    if found.missing:
        raise DataError(_missing(found.missing, values, pictures))
    if found.several:
        value, paths = next(iter(found.several.items()))
        raise DataError(
            f"{len(found.several)} pictures named in {where} fit several files, such as {value!r}: {few(paths)}. "
            f"Write their paths relative to {root}."
        )
    same = folder.repeated(folder.pictures)
    paths = [same.get(path, path) for path in map(found.paths.__getitem__, values)]
    return paths, [
        *folder.notes(),
        *found.notes,
        *_unlisted([p for p in pictures.paths if p not in same], paths, root, where),
    ]


def find_pictures(values: Iterable[str], pictures: Pictures, csv_folder: str = "") -> Found:
    """Returns which picture each text names.

    A text with a folder in it is a path: relative to the root or to the CSV, to images/ in them, or with the root's
    own folders before it, such as `set/train/1.png` for train/1.png in the folder set. If no path is found in these
    ways, a path may also be the end of one picture's path. A text without a folder is a name, and the picture may be
    in any folder; but if all texts are found at one of the places above, they are taken from there. Files of one
    content count as one picture.

    Args:
      values: the texts, which differ from each other.
      pictures: where they are looked up.
      csv_folder: the folder of the CSV relative to the root, "" if it is the root; a whole path if it is elsewhere.
    Raises: DataError: a path leaves the root, or is an address in the web.
    """
    starts = list(dict.fromkeys(("", IMAGES, csv_folder, posixpath.join(csv_folder, IMAGES))))
    places = {value: _places(value, pictures, starts) for value in values}
    candidates = _at_one_start(places, pictures, len(starts)) or {
        value: _candidates(value, paths, pictures) for value, paths in places.items()
    }
    notes = _stray_note(places, candidates)
    if not any(candidates[value] for value in places if _is_path(value)):
        deeper = {value: pictures.below(places[value][0]) for value in places if _is_path(value)}
        candidates |= deeper
        notes += _below_note(deeper)
    same = {value: paths for value, paths in candidates.items() if len(paths) > 1 and _one_content(paths, pictures)}
    if same:
        value, paths = next(iter(same.items()))
        notes.append(
            f"{len(same):,} pictures are there more than once, with the same content, such as {few(paths)}; the first "
            "is read."
        )
    return Found(
        {value: paths[0] for value, paths in candidates.items() if len(paths) == 1 or value in same},
        {value: paths for value, paths in candidates.items() if len(paths) > 1 and value not in same},
        [value for value, paths in candidates.items() if not paths],
        notes,
    )


# ---- Texts --------------------------------------------------------------------------------------------


def _key(path):
    """Returns the path as it is compared: plain text, and the suffix of a picture in lower case."""
    path = path if path.isascii() and " " not in path else "/".join(map(plain, path.split("/")))
    stem, suffix = posixpath.splitext(path)
    return stem + suffix.lower() if suffix.lower() in IMAGE_SUFFIXES else path


def _keys(path):
    """Returns the keys of a picture: with its suffix and without it."""
    key = _key(path)
    stem, suffix = posixpath.splitext(key)
    return (key, stem) if suffix in IMAGE_SUFFIXES else (key,)


def _nearest(paths, asked):
    """Returns the paths that agree with the whole name that was asked for, or all if none does."""
    if len(paths) < 2:
        return paths
    end = f"/{_key(asked)}"
    return [path for path in paths if f"/{_key(path)}".endswith(end)] or paths


def _as_posix(value):
    """Returns the text of a path with slashes; a file:// address and ~ become the path that they mean."""
    text = value.translate(INVISIBLE).strip().replace("\\", "/")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.\-]*)://", text)
    if scheme and scheme[1].lower() == "file":
        text = urllib.parse.unquote(urllib.parse.urlsplit(text).path)
        text = text.removeprefix("/") if re.match(r"/[A-Za-z]:", text) else text
    elif scheme:
        raise DataError(f"The CSV names a web address, not a file: {value!r}. Download the pictures; name their files.")
    return pathlib.Path(text).expanduser().as_posix() if text.startswith("~/") else text


def _is_path(value):
    return "/" in value or "\\" in value


def _places(value, pictures, starts):
    """Returns the paths relative to the root that a text may mean, one for each start ("" if it leads out)."""
    text, root = _as_posix(value), pictures.root
    if text.startswith("/") or re.match(r"[A-Za-z]:", text):
        path = pictures.inside(text)
        places = [] if path is None else [path] * len(starts)
    else:
        up = posixpath.normpath(text).startswith("..")
        paths = [
            ".." if up and start.endswith(IMAGES) else posixpath.normpath(f"{start or '.'}/{text}") for start in starts
        ]
        paths = [(pictures.inside(path) or "..") if path.startswith("/") else path for path in paths]
        places = ["" if path.split("/")[0] == ".." else path for path in paths]
    if not any(places):
        place = "" if root is None else f" {root}"
        raise DataError(
            f"A path in the CSV leaves the data folder{place}. Received: {value!r}. If the pictures lie there, give "
            "their folder as the data, and this file as labels_csv."
        )
    return places


# ---- Places -------------------------------------------------------------------------------------------


def _at_one_start(places, pictures, num_starts):
    """Returns {text: pictures} of the first start at which every text is found, or None."""
    for index in range(num_starts):
        found = {}
        for value, paths in places.items():
            if not paths[index] or not (there := pictures.at(paths[index])):
                break
            found[value] = there
        else:
            return found
    return None


def _candidates(value, paths, pictures):
    """Returns the pictures that a text may mean, wherever the others are."""
    near = [found for path in dict.fromkeys(paths) if path for found in pictures.at(path)]
    if _is_path(value):
        near += pictures.behind_own_folders(posixpath.normpath(_as_posix(value)))
    else:
        near += pictures.named(_as_posix(value))
    return list(dict.fromkeys(near))


def _stray_note(places, candidates):
    """Returns a line about names that are found elsewhere than most of the others, or nothing."""
    names = {value: paths[0] for value, paths in candidates.items() if len(paths) == 1 and not _is_path(value)}
    folders = {posixpath.dirname(place) for value in names for place in places[value]}
    strays = [path for path in names.values() if posixpath.dirname(path) not in folders]
    if not strays or 2 * len(strays) > len(names):
        return []
    return [f"{len(strays):,} pictures are found by their name in other folders: {few(strays)}."]


def _below_note(deeper):
    folders = sorted({paths[0] for paths in deeper.values() if len(paths) == 1})
    if not folders:
        return []
    value, paths = next((value, paths) for value, paths in deeper.items() if paths)
    return [f"The paths of the CSV are found further below: {value.strip()} is {paths[0]}."]


def _one_content(paths, pictures):
    files = [] if pictures.root is None else [pictures.root / path for path in paths]
    return bool(files) and all(filecmp.cmp(files[0], other, shallow=False) for other in files[1:])


def _folder_of(csv_path, root):
    """Returns the folder of the CSV relative to the root, "" if it is the root, its whole path if it is outside."""
    folder, root = csv_path.resolve().parent, root.resolve()
    if not folder.is_relative_to(root):
        return folder.as_posix()
    return "" if folder == root else folder.relative_to(root).as_posix()


# ---- Messages -----------------------------------------------------------------------------------------


def _missing(missing, values, pictures):
    """Returns the message about pictures that are not there, with a hint where they may be."""
    lost = set(missing)
    count = sum(value in lost for value in values)
    hint = _renamed_hint(missing, pictures) or _elsewhere_hint(missing[0], pictures)
    return f"{count} of {len(values)} pictures named in the CSV are not in {pictures.root}: {few(missing)}." + hint


def _renamed_hint(missing, pictures):
    """Returns a hint if all paths start with one folder, and are found without it."""
    parts = [_as_posix(value).lstrip("/").split("/") for value in missing]
    first = parts[0][0]
    if any(len(path) < 2 or path[0] != first for path in parts):
        return ""
    if not all(pictures.at("/".join(path[1:])) for path in parts):
        return ""
    return (
        f" Without their first folder, {first!r}, they are found: if {pictures.root.absolute().name} is that folder, "
        "give it this name, or remove the folder from the CSV."
    )


def _elsewhere_hint(value, pictures):
    name = posixpath.basename(_as_posix(value))
    stem = _loose(name)
    near = [path for path in pictures.paths if _loose(posixpath.basename(path)) == stem]
    return f" A similar name is there, but is not taken for it: {near[0]}." if near else ""


def _unlisted(pictures, paths, root, where):
    """Returns a line that counts the pictures that the CSV does not name, or nothing."""
    listed = set(paths)
    left = [path for path in pictures if path not in listed]
    if not left:
        return []
    count = f"{len(left):,} of {len(pictures):,} pictures in {root.absolute().name}"
    return [f"{count} are not listed in {where} and are left out: {few(left)}."]


def _loose(name):
    """Returns what similar names share: no suffix, no case, no %20, and of a number neither leading zeros nor .0."""
    stem = _keys(urllib.parse.unquote(name))[-1].casefold()
    return re.sub(r"^0+(?=\d)|(?<=\d)\.0+$", "", stem) if re.fullmatch(r"[\d.]+", stem) else stem
