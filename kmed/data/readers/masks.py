"""Finds masks (segmentations) among pictures by their names, but only where the pictures that they belong to are."""

import pathlib
import re
from collections import defaultdict
from collections.abc import Sequence

from kmed.data.readers.walk import few

_WORDS = "masks?|seg|segm|segmentations?|gt|ground[ _-]?truth|annotations?|annot|labels?|superpixels|contours?"
# benign (1)_mask.png, benign (1)_mask_1.png, x-GT.tif, x_segmentation2.png: the name of a picture and more.
_MASK_NAME = re.compile(rf"(?P<picture>.+?)[ _.\-]+(?:{_WORDS})(?:[ _.\-]*\d+)?", re.IGNORECASE)
_MASK_FOLDER = re.compile(rf"(?:{_WORDS})", re.IGNORECASE)
_PICTURE_FOLDER = re.compile(r"images?|imgs?|pictures?|photos?|scans?|originals?", re.IGNORECASE)


def is_picture_folder(name: str) -> bool:
    """Returns whether a folder's name says no more than that it holds pictures, such as "images"."""
    return _PICTURE_FOLDER.fullmatch(name) is not None


def find_masks(pictures: Sequence[str]) -> list[str]:
    """Returns those of the POSIX paths that are masks of others.

    A file is a mask if its name is that of a picture beside it and a word such as "_mask". All pictures in a folder
    such as "masks" are masks if a folder such as "images" with pictures is beside it, or if the folder above holds a
    picture of the name of each. So a class called "mask" is none.
    """
    stems: dict[str, set[str]] = defaultdict(set)  # of the pictures in each folder
    below: dict[str, set[str]] = defaultdict(set)  # the folders in each folder that hold pictures at some depth
    for path in pictures:
        *folders, name = path.split("/")
        stems["/".join(folders)].add(pathlib.PurePosixPath(name).stem.lower())
        for depth, folder in enumerate(folders):
            below["/".join(folders[:depth])].add(folder)
    masked = {folder for folder in _mask_folders(below) if _is_of_masks(folder, stems, below)}
    return [path for path in pictures if _has_picture(path, stems) or _is_inside(path, masked)]


def mask_note(masks: Sequence[str]) -> list[str]:
    """Returns a line about masks that are left out; none without masks."""
    if not masks:
        return []
    return [f"Masks of other pictures are left out, as their names say ({len(masks):,}): {few(masks)}."]


def _mask_folders(below):
    for parent, names in below.items():
        yield from (f"{parent}/{name}" if parent else name for name in names if _MASK_FOLDER.fullmatch(name))


def _is_of_masks(folder, stems, below):
    parent = folder.rpartition("/")[0]
    if any(map(is_picture_folder, below[parent])):
        return True
    names = [stem for other, found in stems.items() if _is_inside(f"{other}/", {folder}) for stem in found]
    return all(stem in stems[parent] or _picture_of(stem) in stems[parent] for stem in names)


def _has_picture(path, stems):
    folder, _, name = path.rpartition("/")
    return _picture_of(pathlib.PurePosixPath(name).stem.lower()) in stems[folder]


def _picture_of(stem):
    match = _MASK_NAME.fullmatch(stem)
    return match["picture"] if match else None


def _is_inside(path, folders):
    parts = path.split("/")
    return any("/".join(parts[:depth]) in folders for depth in range(1, len(parts)))
