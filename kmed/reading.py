"""Files that are read back: one that is damaged, or is something else, gives one line that names it.

A run folder is passed on, edited and cut short, so nothing in it is taken on trust. The readers here know formats
(text, JSON, YAML, CSV, npz); `kmed.schemas` knows what each file of a run holds.
"""

import csv
import io
import json
import math
import pathlib
import re
import stat
import zipfile
from collections.abc import Callable

import numpy as np
import pandas as pd
import yaml

from kmed.errors import KmedError, RunError, shorten

LARGEST_TEXT = 500_000_000  # bytes
MOST_NODES = 100_000  # values in a YAML file
_SMALL_ARCHIVE, _LARGEST_RATIO = 64_000_000, 20  # bytes when unpacked, and how often the packed size beyond that


def damaged(message: str) -> KmedError:
    """Returns the error about a file of a run folder."""
    return RunError(f"{message} The run folder is damaged.")


def read_text(path, error: Callable[[str], KmedError] = damaged) -> str:
    """Returns the content of a text file in UTF-8, without a byte order mark.

    Args:
      path: the file.
      error: what makes an error of a message, which names the file.
    Raises: what `error` returns: the file is missing, is a folder or a device, is too large, or is not UTF-8.
    """
    path = pathlib.Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a file")
        if status.st_size > LARGEST_TEXT:
            raise ValueError(f"it has {status.st_size / 1e6:,.0f} MB, and {LARGEST_TEXT / 1e6:,.0f} are read at most")
        text = path.read_bytes().decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("it is not text")
        return text
    except (OSError, ValueError) as problem:
        raise error(f"{path} cannot be read: {getattr(problem, 'strerror', None) or problem}.") from None


def read_json(path, error: Callable[[str], KmedError] = damaged) -> dict:
    """Returns the object in a JSON file, whose numbers may be NaN and infinite; arguments as for `read_text`."""
    text = read_text(path, error)
    try:
        return parse_json(text)
    except ValueError as problem:
        raise error(f"{path} cannot be read: {problem}.") from None


def parse_json(text: str) -> dict:
    """Returns the object that JSON describes. Raises ValueError if it is not JSON, or is not one object."""
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    if re.search(r"\\u[dD][89a-fA-F]", text):
        json.dumps(value, ensure_ascii=False).encode()  # a ValueError if half a character is among the texts
    if not isinstance(value, dict):
        raise ValueError(f"it must hold a JSON object, not {shorten(value)}")
    return value


def _without_doubles(pairs: list) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {shorten(_first_double([name for name, _ in pairs]))} stands there twice")
    return found


def parse_yaml(text: str, prepare: Callable[[yaml.Node], None] = lambda node: None):
    """Returns the value that YAML describes.

    Args:
      text: the YAML.
      prepare: may change how the parts of the text are taken, before they become values.
    Raises: ValueError: it is not legal, with the place and the reason. A key that stands twice, and references
      (`*name`) that make a value endless or huge, are not legal either.
    """
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_nodes(node, {}) > MOST_NODES:
            raise _refused(node, "its references stand for too many values")
        prepare(node)
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(": its values are nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{where}: {getattr(error, 'problem', None) or shorten(str(error))}") from None
    except Exception as error:  # PyYAML's constructors: a month 13 is a ValueError, !!bool maybe a KeyError
        raise ValueError(f": a value cannot be read ({shorten(error)})") from None
    finally:
        if loader is not None:
            loader.dispose()


def _refused(node: yaml.Node, reason: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, reason, node.start_mark)


def _count_nodes(node: yaml.Node, counted: dict[int, int | None]) -> int:
    """Returns how many values a node stands for when its references are written out. Raises YAMLError if endless.

    Args:
      counted: {id: count} of the nodes that are counted, None of those that hold this one.
    """
    if id(node) in counted:
        if (count := counted[id(node)]) is None:
            raise _refused(node, "a value refers to itself")
        return count
    counted[id(node)] = None
    children = []
    if isinstance(node, yaml.MappingNode):
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for number, (_, key) in enumerate(keys) if keys[number] in keys[:number]]:
            raise _refused(node, f"the key {shorten(twice[0])} stands there twice")
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    elif any("\ud800" <= letter <= "\udfff" for letter in node.value):
        raise _refused(node, "half a character, which cannot be written")
    counted[id(node)] = count = 1 + sum(_count_nodes(child, counted) for child in children)
    return count


def read_csv(path, error: Callable[[str], KmedError] = damaged) -> pd.DataFrame:
    """Returns a CSV as a table of text; arguments as for `read_text`.

    Raises: what `error` returns: the file cannot be read, names a column twice, or has a row with more or fewer cells
      than columns. pandas would rename the column, shift the row or fill it up.
    """
    text = read_text(path, error)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as problem:
        raise error(f"{path} cannot be read: {problem}.") from None
    if not rows:
        raise error(f"{path} cannot be read: it is empty.")
    names, *rows = rows
    if len(set(names)) < len(names):
        raise error(f"{path} has two columns named {shorten(_first_double(names))}.")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise error(f"{path} has {len(row)} cells in row {number}, but {len(names)} columns.")
    return pd.DataFrame(rows, columns=names, dtype=object)


def _first_double(names: list):
    return next(name for number, name in enumerate(names) if name in names[:number])


def numbers(column: pd.Series) -> np.ndarray:
    """Returns float64 (N,), the numbers of a column of text, exactly as written; NaN where a cell is empty.

    Raises: ValueError: a cell holds something else; its first argument is the cell.
    """
    filled = column.where(column != "", "nan").to_numpy(dtype=object)
    try:
        if any("_" in cell for cell in filled):  # Python takes 1_000 for a number
            raise ValueError
        return filled.astype(np.float64)
    except ValueError:
        raise ValueError(next(cell for cell in filled if not _is_number(cell))) from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def read_arrays(path, error: Callable[[str], KmedError] = damaged) -> dict[str, np.ndarray]:
    """Returns the arrays of an npz file; arguments as for `read_text`.

    Raises: what `error` returns: the file is missing or damaged, holds Python objects, or claims to be far larger than
      it is, which is found before memory is taken for it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_unpacked_size(path, archive)
            for entry in archive.infolist():
                _check_claim(archive, entry)
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as problem:  # NumPy and zipfile raise many kinds of errors for damaged files
        reason = getattr(problem, "strerror", None) or (str(problem).splitlines() or [type(problem).__name__])[0]
        raise error(f"{path} cannot be read: {reason.rstrip('.')}.") from None


def check_unpacked_size(path, archive: zipfile.ZipFile) -> None:
    """Raises ValueError if a zip archive unpacks to far more than a file of its size can hold."""
    total = sum(entry.file_size for entry in archive.infolist())
    if total > max(_SMALL_ARCHIVE, _LARGEST_RATIO * pathlib.Path(path).stat().st_size):
        raise ValueError(f"it would unpack to {total / 1e6:,.0f} MB")


def _check_claim(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Raises ValueError if the header of an array claims more numbers than its file holds."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}.get(version[0])
        if read is None:
            raise ValueError(f"{entry.filename} has an unknown format")
        shape, _, dtype = read(file)
        if math.prod(shape) * dtype.itemsize + file.tell() > entry.file_size:
            raise ValueError(f"{entry.filename} claims shape {shape} but is too short for it")


def place_name(parts) -> str:
    """Returns the place of a value inside a file, such as "thresholds.values.No Finding" or "slopes[3]"."""
    place = ""
    for part in parts:
        plain = str(part) if re.fullmatch(r"[\w |()'-]{1,60}", str(part)) else shorten(part)
        place += f"[{part}]" if isinstance(part, int) else f".{plain}" if place else plain
    return place
