"""Answers of `kmed predict` as lines of text, JSON or CSV, written as they come."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterator

from kmed.classify import Answer

_LAST = ("distance", "threshold", "unlike_training", "overlay", "error")


def as_text(answers: Iterator[Answer]) -> Iterator[str]:
    """Yields a line a picture to read: what was found with its probability, and what speaks against trusting it."""
    for answer in answers:
        if answer.error:
            yield f"{answer.path}: not predicted: {answer.error}"
            continue
        found = ", ".join(f"{name} {answer.probs[name]:.3f}" for name in answer.found)
        notes = [found or "no finding over its threshold"]
        if len(answer.prediction_set) > 1 or set(answer.prediction_set) != set(answer.found):
            notes.append(f"prediction set: {', '.join(answer.prediction_set) or 'empty'}")
        if answer.unlike_training:
            notes.append("UNLIKE THE TRAINING PICTURES: do not trust this")
        yield f"{answer.path}: {'; '.join(notes)}"


def as_json(answers: Iterator[Answer]) -> Iterator[str]:
    """Yields a line of JSON a picture, with all fields of `kmed.classify.Answer`."""
    for answer in answers:
        yield json.dumps(dataclasses.asdict(answer), ensure_ascii=False)


def as_csv(answers: Iterator[Answer], class_names) -> Iterator[str]:
    """Yields a header and a line a picture; several classes of a picture are joined by "|".

    Columns: path, found, prob_NAME for each class, prediction_set, distance, threshold, unlike_training, overlay,
    error.
    """
    columns = [f"prob_{name}" for name in class_names]
    yield _line(["path", "found", *columns, "prediction_set", *_LAST])
    for answer in answers:
        probs = [answer.probs.get(name, "") for name in class_names]
        told = ["" if value is None else value for value in (getattr(answer, name) for name in _LAST)]
        yield _line([answer.path, "|".join(answer.found), *probs, "|".join(answer.prediction_set), *told])


def _line(cells: list) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(cells)
    return buffer.getvalue()
