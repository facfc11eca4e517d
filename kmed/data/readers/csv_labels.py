"""Labels of a CSV: one column of words, which may be joined, or columns of 0, 1 and unknown."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from kmed.data.readers.csv_columns import NO_VALUE, TRUTH
from kmed.data.readers.source import NOT_FINDINGS, DataSource
from kmed.data.readers.text import plain, spelling_key, unite_spellings
from kmed.errors import DataError, suggest
from kmed.labels import NEGATIVE, negative_label

# What may join the labels of one cell, in the order in which it is looked for. A bar is in no label's name; the
# others may be.
JOINTS = {"|": "always", ";": "if likely", ",": "if likely"}
LIKELY = 0.5  # the share of the parts that must also occur elsewhere, so that a cell is a list and not a name
LIST = re.compile(r"\[.*\]|\{.*\}|\(\s*(['\"]).*\1\s*,?\s*\)", re.DOTALL)  # a list as Python or JSON writes it
QUOTED = re.compile(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'")


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of the rows of a CSV.

    Attributes:
      values: float32 (N, K) in {0, 1}, NaN where unknown.
      names: K class names.
      task: "multiclass", "multilabel", or None: one label per row, but it was not asked for.
      notes: lines to show to the user.
    """

    values: np.ndarray
    names: tuple[str, ...]
    task: str | None
    notes: tuple[str, ...] = ()


def labels_of_words(cells: pd.Series, paths: pd.Series, source: DataSource) -> Labels:
    """Returns the labels of one column of words.

    Args:
      cells: (N,) a label, or several in one of the forms that `split_words` knows.
      paths: (N,) how messages call each row.
      source: what the user says about the task and the classes.
    Raises: DataError: a row without a label, an unknown label, or several labels in a multiclass task.
    """
    words, notes = split_words([plain(cell) for cell in cells], source.task, source.class_names)
    _refuse_unknown(words, paths, source.class_names)
    other = next(((path, row) for path, row in zip(paths, words) if len(row) != 1), None)
    if source.task == "multiclass" and other is not None:
        raise DataError(
            f"task='multiclass' needs one label per picture, but {other[0]} has {'several' if other[1] else 'none'}. "
            "Use task='multilabel'."
        )
    united, spellings = unite_spellings([word for row in words for word in row], source.class_names)
    words = [[united[word] for word in row] for row in words]
    negative = any(word.lower() in NEGATIVE for word in united.values())
    task = source.task or ("multilabel" if other is not None or negative else None)
    names = _names(source.class_names) or _sorted_names(words, task)
    if not names:
        raise DataError(f"No row of the CSV has a label in the column {cells.name!r}.")
    if task == "multilabel":
        words = _with_one_negative(words, names)
    return Labels(_one_hot(words, names, paths), names, task, (*notes, *spellings))


def split_words(
    cells: Sequence[str], task: str | None, class_names: Sequence[str] | None
) -> tuple[list[list[str]], list[str]]:
    """Returns (the labels of each cell, notes).

    Labels are joined by "|", or are a list as Python or JSON writes it. A semicolon or a comma may join labels or be
    part of a name. It joins them if `class_names` say so; without them, if most parts occur elsewhere too ("Mass,
    Edema" beside "Edema"), or if the task is multilabel and nothing else joins labels.
    """
    words, notes = _unpacked(cells)
    whole = {spelling_key(name) for name in class_names or ()}
    for joint, rule in JOINTS.items():
        parted = {word for row in words for word in row if joint in word and spelling_key(word) not in whole}
        if not parted:
            continue
        example = min(parted)
        alone = all(len(row) == 1 for row in words)
        if rule == "always" or _is_joint(joint, parted, words, whole, task == "multilabel" and alone):
            words = [
                [part for word in row for part in (_parts(word, joint) if word in parted else [word])] for row in words
            ]
            if rule != "always":
                notes.append(f"Labels joined by {joint!r}, such as {example!r}, are read as several labels.")
        else:
            notes.append(
                f"{len(parted)} labels hold {joint!r}, such as {example!r}, and are one class each. If they are "
                "several labels, set task=multilabel."
            )
    return words, notes


def labels_of_columns(frame: pd.DataFrame, paths: pd.Series, source: DataSource) -> Labels:
    """Returns the labels of columns of 0, 1 and unknown.

    Args:
      frame: the columns.
      paths: (N,) how messages call each row.
      source: what the user says about the task and the classes.
    Raises: DataError: a class without a column, two columns of one name, or rows that do not fit a multiclass task.
    """
    columns = {spelling_key(name): name for name in frame.columns}
    if len(columns) < len(frame.columns):
        twins = [name for name in frame.columns if name not in columns.values()]
        raise DataError(
            f"Two label columns differ only in case or blanks: {twins[0]!r} and {columns[spelling_key(twins[0])]!r}. "
            "Remove one, or name the labels with label_columns."
        )
    names = _names(source.class_names) or tuple(frame.columns)
    for name in names:
        if spelling_key(name) not in columns:
            raise DataError(
                f"There is no label column {name!r}; the label columns are {', '.join(frame.columns)}."
                + suggest(name, frame.columns)
            )
    cells = [frame[columns[spelling_key(name)]].map(plain).str.lower().map(TRUTH) for name in names]
    values = np.stack([cell.to_numpy(np.float32) for cell in cells], axis=1)
    single = (np.nansum(values, axis=1) == 1) & ~np.isnan(values).any(axis=1)
    if source.task == "multiclass" and not single.all():
        wrong = paths[~single]
        raise DataError(
            f"task='multiclass' needs exactly one 1 per row, but {len(wrong)} rows differ, such as {wrong.iloc[0]}. "
            "Use task='multilabel'."
        )
    task = source.task or (None if single.all() else "multilabel")
    if task == "multilabel" or source.class_names:
        return Labels(values, names, task)
    used = (values == 1).any(axis=0)
    notes = tuple(
        f"The column {name!r} holds no 1, so it is no class here." for name, has in zip(names, used) if not has
    )
    return Labels(values[:, used], tuple(name for name, has in zip(names, used) if has), task, notes)


def without_negative(labels: Labels) -> Labels:
    """Returns the labels without "No Finding"."""
    negative = negative_label(labels.names)
    if negative is None:
        return labels
    names = tuple(name for index, name in enumerate(labels.names) if index != negative)
    return dataclasses.replace(labels, values=np.delete(labels.values, negative, axis=1), names=names)


def check_contradictions(labels: Labels, paths: Sequence[str], not_findings: Sequence[str]) -> None:
    """Raises DataError if a picture has "No Finding" and a finding; `not_findings` may stand beside it."""
    negative = negative_label(labels.names)
    if negative is None:
        return
    beside = {spelling_key(name) for name in not_findings}
    findings = [i for i, name in enumerate(labels.names) if i != negative and spelling_key(name) not in beside]
    wrong = np.flatnonzero((labels.values[:, negative] == 1) & (labels.values[:, findings] == 1).any(axis=1))
    if len(wrong):
        index = findings[int(np.argmax(labels.values[wrong[0], findings] == 1))]
        raise DataError(
            f"{len(wrong)} rows of the CSV have both {labels.names[negative]!r} and a finding, such as "
            f"{paths[wrong[0]]} ({labels.names[index]}). Correct them, or name what is not a finding in not_findings."
            + "".join(f" {line}" for line in unknown_not_findings(labels, not_findings))
        )


def unknown_not_findings(labels: Labels, not_findings: Sequence[str]) -> list[str]:
    """Returns a line for each name in `not_findings` that no label has, other than those by default."""
    known = {spelling_key(name) for name in (*labels.names, *NOT_FINDINGS)}
    lost = [name for name in not_findings if spelling_key(name) not in known]
    return [f"not_findings holds {name!r}, which is no label here.{suggest(name, labels.names)}" for name in lost]


# ---- Words --------------------------------------------------------------------------------------------


def _unpacked(cells):
    """Returns ([labels of each cell], notes) of cells that may be lists as Python or JSON writes them."""
    lists = [cell for cell in cells if LIST.fullmatch(cell)]
    if not lists or not (
        len(lists) == sum(map(bool, cells)) or any(QUOTED.search(cell) or "," in cell for cell in lists)
    ):
        return [[cell] for cell in cells], []
    notes = [f"Labels joined as lists, such as {lists[0]}, are read as several labels."]
    return [_items(cell) if LIST.fullmatch(cell) else [cell] for cell in cells], notes


def _items(cell):
    quoted = [plain(one or other) for one, other in QUOTED.findall(cell)]
    items = quoted or [plain(part) for part in cell[1:-1].split(",")]
    return list(dict.fromkeys(item for item in items if item))


def _parts(word, joint):
    """Returns the different parts of a cell that are not empty; [""] if all are."""
    parts = [plain(part) for part in word.split(joint)]
    return list(dict.fromkeys(part for part in parts if part)) or [""]


def _is_joint(joint, parted, words, whole, asked):
    """Returns whether `joint` joins labels in the words `parted`, rather than being a part of their names."""
    parts = {word: [spelling_key(part) for part in _parts(word, joint)] for word in parted}
    different = {part for each in parts.values() for part in each}
    if whole:
        return len(different & whole) >= LIKELY * len(different)
    others = {word for row in words for word in row} - parted
    seen = Counter(part for each in parts.values() for part in set(each))
    seen.update(map(spelling_key, others))
    return asked or sum(seen[part] > 1 for part in different) >= LIKELY * len(different)


def _refuse_unknown(words, paths, class_names):
    """Raises DataError for rows without a label: an empty one, or what programs write for one, unless it is a class.

    -1 is one if 0 is a label, as in grades from 0.
    """
    known = {*_names(class_names)}
    absent = NO_VALUE | ({"-1", "-1.0"} if any(word in ("0", "0.0") for row in words for word in row) else set())
    empty = [(path, word) for path, row in zip(paths, words) for word in row if word.lower() in absent]
    empty = [(path, word) for path, word in empty if word not in known]
    if empty:
        listed = ", ".join(f"{path} ({word})" if word else str(path) for path, word in empty[:3])
        raise DataError(
            f"{len(empty)} rows of the CSV have an empty label: {listed}. Fill or remove them"
            + ("." if not any(word for _, word in empty) else ", or list the word in class_names if it is a class.")
        )


def _names(class_names):
    return tuple(plain(str(name)) for name in class_names or ())


def _sorted_names(words, task):
    """Returns the names that occur, sorted; in a multilabel set "No Finding" comes last, in one spelling only."""
    found = sorted({word for row in words for word in row})
    if task != "multilabel":
        return tuple(found)
    negative = [word for word in found if word.lower() in NEGATIVE]
    return tuple([word for word in found if word.lower() not in NEGATIVE] + negative[:1])


def _with_one_negative(words, names):
    """Returns the words with one spelling of "No Finding", or without it if it is no class: then all labels are 0."""
    if negative_label(names) is None:
        return [[word for word in row if word.lower() not in NEGATIVE] for row in words]
    spelling = names[negative_label(names)]
    return [[spelling if word.lower() in NEGATIVE else word for word in row] for row in words]


def _one_hot(words, names, paths):
    column = {name: index for index, name in enumerate(names)}
    labels = np.zeros((len(words), len(names)), np.float32)
    for index, row in enumerate(words):
        for word in row:
            if word not in column:
                raise DataError(
                    f"Unknown label {word!r} of {paths.iloc[index]}; the classes are {', '.join(names)}."
                    + suggest(word, names)
                )
            labels[index, column[word]] = 1
    return labels
