"""Labels as arrays and as text: one-hot rows, joined names, and the label that says that no other holds."""

import numpy as np

from kmed.errors import ScoreError

NEGATIVE = frozenset({"no finding", "no findings", "none"})  # labels that say that none of the others holds


def negative_label(class_names) -> int | None:
    """Returns the index of the class that says that no other holds, such as "No Finding", or None.

    Such a label is modelled as any other, but it is no finding: macro means leave it out.
    """
    return next((index for index, name in enumerate(class_names) if str(name).strip().lower() in NEGATIVE), None)


def join_names(labels: np.ndarray, class_names) -> list[str]:
    """Returns N texts: the names of each row's classes, joined by "|"."""
    return ["|".join(name for name, held in zip(class_names, row) if held == 1) for row in labels]


def one_hot_labels(labels, num_classes: int) -> np.ndarray:
    """Returns float64 (N, K) from one row an image, or from integer classes (N,)."""
    labels = np.asarray(labels, dtype=np.float64)
    if labels.ndim != 1:
        return labels
    if not np.isin(labels, np.arange(num_classes)).all():
        raise ScoreError(f"Integer labels must lie in 0..{num_classes - 1}. Received: {np.unique(labels)[:10]}.")
    return np.eye(num_classes)[labels.astype(int)]
