"""Labels as arrays and as text: one-hot rows, joined names, and the label that means "none of the others"."""

import numpy as np

from kmed.errors import ScoreError

NEGATIVE = frozenset({"no finding", "no findings", "none"})  # labels that mean "none of the others"


def negative_label(class_names) -> int | None:
    """Returns the index of the class that means "none of the others", such as "No Finding", or None.

    Such a label is modelled like any other, but it is not a finding: macro averages leave it out.
    """
    return next((index for index, name in enumerate(class_names) if str(name).strip().lower() in NEGATIVE), None)


def finding_indices(class_names) -> list[int]:
    """Returns the indices of the classes in macro means: all but "No Finding", unless it is the only class."""
    negative = negative_label(class_names)
    return [index for index in range(len(class_names)) if index != negative] or [0]


def describe_difference(names, expected) -> str:
    """Returns in which way class names are not the expected ones: "new: zA; missing: A" or "in another order"."""
    new = [str(name) for name in names if name not in expected]
    missing = [str(name) for name in expected if name not in names]
    lists = [("new", new), ("missing", missing)]
    return "; ".join(f"{word}: {', '.join(found)}" for word, found in lists if found) or "in another order"


def join_names(labels: np.ndarray, class_names) -> list[str]:
    """Returns N strings: the names of each row's classes, joined by "|"."""
    return ["|".join(name for name, held in zip(class_names, row) if held == 1) for row in labels]


def printable(text: str) -> str:
    """Returns the text on one line, with control characters as Python's escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def one_hot_labels(labels, num_classes: int) -> np.ndarray:
    """Returns float64 (N, K) from labels with one row per image, or from integer classes (N,)."""
    labels = np.asarray(labels, dtype=np.float64)
    if labels.ndim != 1:
        return labels
    if not np.isin(labels, np.arange(num_classes)).all():
        raise ScoreError(f"Integer labels must lie in 0..{num_classes - 1}. Received: {np.unique(labels)[:10]}.")
    return np.eye(num_classes)[labels.astype(int)]
