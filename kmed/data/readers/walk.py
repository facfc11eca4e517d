"""Walks a folder, in one way for all that reads pictures: links are followed, hidden files and folders are not data."""

import contextlib
import dataclasses
import os
import pathlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from kmed.data.dicom import SUFFIXES as DICOM_SUFFIXES
from kmed.data.dicom import is_dicom
from kmed.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}) | DICOM_SUFFIXES
# What operating systems, archives and network disks put beside the data, besides names that start with a dot.
SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "__pycache__", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini"),
        *("@eadir", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "system volume information"),
    }
)
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")  # JPEG, PNG, GIF, TIFF
_SHOWN = 3  # examples in a note


@dataclasses.dataclass
class Walk:
    """What a folder and all folders below it hold. Paths are POSIX paths relative to `root`.

    Attributes:
      root: the folder, as it was given.
      pictures: the pictures, sorted.
      folders: the folders below `root`, hidden ones apart.
      others: files that are no pictures.
      hidden: hidden files and folders, which are not looked into; folders end with "/".
      links: links to folders, which are followed.
      back: links to folders that were not followed again: they lead back to a folder above, or to one that was seen
        in another linked folder.
      broken: links that lead nowhere.
      unnamed: pictures whose name does not say so, known by their first bytes.
      real: {picture that is reached through a link: its real path}.
    """

    root: pathlib.Path
    pictures: list[str] = dataclasses.field(default_factory=list)
    folders: list[str] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)
    hidden: list[str] = dataclasses.field(default_factory=list)
    links: list[str] = dataclasses.field(default_factory=list)
    back: list[str] = dataclasses.field(default_factory=list)
    broken: list[str] = dataclasses.field(default_factory=list)
    unnamed: list[str] = dataclasses.field(default_factory=list)
    real: dict[str, str] = dataclasses.field(default_factory=dict)

    def repeated(self, pictures: Iterable[str]) -> dict[str, str]:
        """Returns {picture: another of `pictures` that is the same file}; that one is not a link, or the first."""
        if not self.real:
            return {}
        start = os.path.realpath(self.root)
        first: dict[str, str] = {}
        repeated = {}
        for path in sorted(pictures, key=lambda path: (path in self.real, path)):
            kept = first.setdefault(self.real.get(path) or str(pathlib.PurePath(start, path)), path)
            if kept != path:
                repeated[path] = kept
        return repeated

    def notes(self) -> list[str]:
        """Returns lines about links, hidden folders and pictures, and pictures without a suffix."""
        hidden = [path for path in self.hidden if path.endswith("/") or _has_image_suffix(path)]
        lines = [
            ("Linked folders are followed", self.links),
            ("Links to a folder that is read already are not followed", self.back),
            ("Links that lead nowhere are left out", self.broken),
            ("Hidden files and folders are left out", hidden),
            ("Files without a suffix are read as pictures, since they start as pictures do", self.unnamed),
        ]
        return [f"{words} ({len(paths):,}): {few(paths)}." for words, paths in lines if paths]


def walk(root) -> Walk:
    """Returns what `root` and all folders below it hold.

    Links are followed: to files, and to folders unless they lead back to a folder above. Inside a linked folder,
    further links to folders are followed only if their target was not seen before. Hidden are names that start with a
    dot (`.ipynb_checkpoints`, `._1.png`) and SYSTEM_NAMES.

    Raises: DataError: a folder cannot be opened.
    """
    found = Walk(pathlib.Path(root))
    start = os.path.realpath(root)
    seen: set[str] = set()
    folders = [("", start, False)]  # (path, real path, whether it is in a linked folder)
    links: deque[tuple[str, str, bool]] = deque()  # likewise; followed when all that is no link has been read
    while folders or links:
        is_link = not folders
        path, real, linked = links.popleft() if is_link else folders.pop()
        if is_link and linked and real in seen:
            found.back.append(path)
            continue
        if is_link:
            found.links.append(path)
            linked = True
        seen.add(real)
        for below, target, leads_away in _read_folder(found, path, real, linked):
            if not leads_away:
                folders.append((below, target, linked))
            elif _is_in(real, target) or _is_in(start, target):
                found.back.append(below)
            else:
                links.append((below, target, linked))
    for paths in vars(found).values():
        if isinstance(paths, list):
            paths.sort()
    return found


def repeated_note(repeated: Mapping[str, str]) -> list[str]:
    """Returns a line about the pictures of `Walk.repeated`, each of which counts once."""
    if not repeated:
        return []
    examples = few([f"{path} is {kept}" for path, kept in repeated.items()])
    return [f"Pictures that are there again behind a link count once ({len(repeated):,}): {examples}."]


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders directly inside `folder`, sorted, without hidden ones; links count."""
    entries = _entries(folder, folder)
    return [folder / entry.name for entry in entries if not is_hidden(entry.name) and _kind(entry) == "folder"]


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder of this name is never data."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def is_image(path) -> bool:
    """Returns whether the name is that of a picture. Hidden files (`._x.jpg` of macOS archives) do not count."""
    return _has_image_suffix(path) and not is_hidden(pathlib.PurePath(path).name)


def few(texts: Sequence[str]) -> str:
    """Returns the first texts, separated by commas, and "..." if there are more."""
    return ", ".join(texts[:_SHOWN]) + (", ..." if len(texts) > _SHOWN else "")


def _read_folder(found, folder, real, linked):
    """Adds the files in one folder to `found`; returns [(path, real path, is_link)] of the folders in it."""
    below = []
    for entry in _entries(found.root / folder, found.root):
        path = f"{folder}/{entry.name}" if folder else entry.name
        kind, is_link = _kind(entry), entry.is_symlink()
        if is_hidden(entry.name):
            found.hidden.append(path + "/" * (kind == "folder"))
        elif kind == "folder":
            found.folders.append(path)
            below.append((path, _real(entry, real, is_link), is_link))
        elif kind == "broken":
            found.broken.append(path)
        elif kind == "file" and not (is_image(entry.name) or _is_unnamed_picture(entry)):
            found.others.append(path)
        elif kind == "file":
            found.pictures.append(path)
            if not is_image(entry.name):
                found.unnamed.append(path)
            if is_link or linked:
                found.real[path] = _real(entry, real, is_link)
    return below


def _entries(folder, root):
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"The folder {folder} cannot be opened ({error.strerror}). Allow it to be read, or move it out of {root}."
        ) from error


def _real(entry, folder, is_link):
    """Returns the real path of an entry; `folder` is the real path of the folder that it is in."""
    return os.path.realpath(entry.path) if is_link else str(pathlib.PurePath(folder, entry.name))


def _has_image_suffix(path):
    return pathlib.PurePath(path).suffix.lower() in IMAGE_SUFFIXES


def _kind(entry):
    """Returns "folder", "file", "broken" (a link that leads nowhere, or to itself), or "" (a pipe, a device)."""
    try:
        kind = "folder" if entry.is_dir() else "file" if entry.is_file() else ""
        return "broken" if not kind and entry.is_symlink() and not pathlib.Path(entry.path).exists() else kind
    except OSError:
        return "broken"


def _is_unnamed_picture(entry):
    """Returns whether a file without a suffix, or with a number in its place as in a UID, starts as pictures do."""
    suffix = pathlib.PurePath(entry.name).suffix.lower()
    may_be = suffix in ("", ".ima") or suffix[1:].isdigit()
    if not may_be or entry.name.upper() == "DICOMDIR":
        return False
    return is_dicom(entry.path) or _start(entry.path).startswith(_STARTS)


def _start(path):
    """Returns the first bytes of a file, none if it cannot be opened."""
    with contextlib.suppress(OSError), pathlib.Path(path).open("rb") as file:
        return file.read(max(map(len, _STARTS)))
    return b""


def _is_in(path, folder):
    """Returns whether a real path is `folder`, or lies inside it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
