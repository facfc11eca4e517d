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
        name = _printable(answer.path)
        if answer.error:
            yield f"{name}: not predicted: {_printable(answer.error)}"
            continue
        found = ", ".join(f"{name} {answer.probs[name]:.3f}" for name in answer.found)
        notes = [found or "no finding over its threshold"]
        if len(answer.prediction_set) > 1 or set(answer.prediction_set) != set(answer.found):
            notes.append(f"prediction set: {', '.join(answer.prediction_set) or 'empty'}")
        if answer.unlike_training:
            notes.append("UNLIKE THE TRAINING PICTURES: do not trust this")
        yield f"{name}: {'; '.join(notes)}"


def as_json(answers: Iterator[Answer]) -> Iterator[str]:
    """Yields a line of JSON a picture, with all fields of `kmed.classify.Answer`."""
    for answer in answers:
        line = json.dumps(dataclasses.asdict(answer), ensure_ascii=False)
        yield line.encode("utf-8", "replace").decode("utf-8")  # JSON holds no bytes that are no text


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


def _printable(text: str) -> str:
    """Returns the text on one line, with control characters written as Python does."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _line(cells: list) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(cells)
    return buffer.getvalue()
