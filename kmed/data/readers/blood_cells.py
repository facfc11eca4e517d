"""The map from each file of Kaggle's "Blood Cell Images" to its photograph and field of view.

The 12,515 files of that set are augmented copies of 348 photographs; the numbers in their names do
not identify the photographs. The map was made by matching local features with an affine RANSAC
against the originals. `source` is the photograph; `field` joins photographs that show the same spot
of a slide.
"""

import functools
import importlib.resources
import io
import lzma

import pandas as pd

from kmed.data.table import Table

NAME = "blood_cells"
MAP_FILE = "blood_cells_sources.csv.xz"
CLASSES = frozenset({"eosinophil", "lymphocyte", "monocyte", "neutrophil"})
ENOUGH = 0.99


def apply_map(table: Table) -> Table | None:
    """Returns the table with the field as group and the photograph as cluster, or None if it is another set.

    A file is recognised by the last three parts of its path, SPLIT/CLASS/name, in upper or lower case, so
    a part of the set is recognised too. At least 99 % of the files must be known; each of the others is a
    group of its own.
    """
    if table.root is None or not {name.lower() for name in table.class_names} <= CLASSES:
        return None
    known = load_map()
    found = [known.get(_key(path)) for path in table.files]
    lost = [path for path, entry in zip(table.rows["path"], found) if entry is None]
    if len(found) == 0 or len(lost) > (1 - ENOUGH) * len(found):
        return None
    cluster = [path if entry is None else entry[0] for path, entry in zip(table.rows["path"], found)]
    group = [path if entry is None else entry[1] for path, entry in zip(table.rows["path"], found)]
    notes = [
        f"These are the Kaggle blood cells: {len(found):,} files are copies of {len(set(cluster))} photographs of "
        f"{len(set(group))} fields of view, according to the map that comes with kmed. "
        "Group: field; cluster: photograph."
    ]
    if lost:
        notes.append(f"{len(lost)} files are not in that map and count as independent: {', '.join(lost[:3])}.")
    return table.with_columns(group=group, cluster=cluster).replace(name=NAME, grouped=True).with_notes(*notes)


@functools.cache
def load_map() -> dict[str, tuple[str, str]]:
    """Returns {"split/class/name" in lower case: (photograph, field)}."""
    packed = importlib.resources.files("kmed.data.readers").joinpath(MAP_FILE).read_bytes()
    lines = lzma.decompress(packed).decode("utf-8")
    frame = pd.read_csv(io.StringIO(lines), dtype=str)
    return {
        path.lower(): (source, field) for path, source, field in zip(frame["path"], frame["source"], frame["field"])
    }


def _key(path):
    return "/".join(path.absolute().parts[-3:]).lower()
