"""The answers of `kmed predict --by`: one per case, from those of its pictures."""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from kmed.data.readers.csv_file import read_csv
from kmed.data.readers.groups import compile_pattern
from kmed.errors import DataError, suggest
from kmed.evaluation.decisions import DecisionRule, Fitted
from kmed.metrics.cases import pool_probs
from kmed.metrics.thresholds import Thresholds
from kmed.progress import say


def find_cases(paths: list[str], by: str) -> list[str]:
    """Returns the case of each picture.

    Args:
      paths: of the pictures.
      by: "folder", the folder of each picture; "regex:...(...)", what the group captures in its path; or
        "FILE.csv:COLUMN", a table with the columns path (relative to the table, or absolute) and COLUMN.
    Raises: DataError: `by` is none of these, or a picture has no case.
    """
    if by == "folder":
        return [str(pathlib.Path(path).parent) for path in paths]
    if by.startswith("regex:"):
        found = _from_pattern(paths, by.removeprefix("regex:"))
    elif ".csv:" in by.lower():
        found = _from_csv(paths, *by.rsplit(":", 1))
    else:
        raise DataError(
            f"by must be folder, regex:...(...) or FILE.csv:COLUMN. Received: {by!r}.{suggest(by, ['folder'])}"
        )
    lost = [path for path, case in zip(paths, found, strict=True) if not case]
    if lost:
        raise DataError(f"{by} gives no case for {len(lost)} of {len(paths)} pictures, such as {lost[0]}.")
    return [str(case) for case in found]


def _from_pattern(paths: list[str], pattern: str) -> list[str | None]:
    compiled = compile_pattern(pattern, "by")
    matches = [compiled.search(path) for path in paths]
    return [None if match is None else match[1] for match in matches]


def _from_csv(paths: list[str], file: str, column: str) -> list[str | None]:
    frame = read_csv(pathlib.Path(file), [])
    for name in ("path", column):
        if name not in frame.columns:
            names = ", ".join(frame.columns)
            raise DataError(f"{file} has no column {name!r}; it has {names}.{suggest(name, frame.columns)}")
    folder = pathlib.Path(file).parent
    known: dict[pathlib.Path, str] = {}
    for path, case in zip(frame["path"].astype(str), frame[column].fillna("").astype(str), strict=True):
        place = (folder / path.strip()).resolve()
        if known.setdefault(place, case.strip()) != case.strip():
            raise DataError(f"{file} gives {path} two values of {column}: {known[place]!r} and {case.strip()!r}.")
    return [known.get(pathlib.Path(path).resolve()) for path in paths]


def choose_rule(fitted: Fitted, exclusive: bool) -> str:
    """Returns how pictures are pooled: as on the run's validation cases, else by the mean, which one line says."""
    if fitted.cases is not None:
        return fitted.cases.pooling
    if not exclusive:
        say(
            "The run was not scored per case, so it is not known whether the mean or the largest logit is better: the "
            "mean is taken, and a finding is reported from a probability of 0.5. Choose with: kmed evaluate RUN "
            "--rescore --set evaluate.case=group"
        )
    return "mean"


def choose_thresholds(fitted: Fitted, exclusive: bool) -> Thresholds | None:
    """Returns the thresholds of the run's validation cases; None if it has none, or for the most probable class.

    One line says if one answer for every case was better than thresholds.
    """
    thresholds = None if exclusive or fitted.cases is None else fitted.cases.thresholds
    if thresholds is not None and thresholds.choice is not None and thresholds.choice.chosen == "constant":
        say(thresholds.choice.sentence(exclusive))
    return thresholds


def pool_answers(
    answers: Iterator, cases: list[str], rule: DecisionRule, pooling: str, thresholds: Thresholds | None = None
) -> Iterator:
    """Yields the answers for pictures that could not be read, as they come, then one for each case.

    A case is unlike the training data if one of its pictures is, and the members of an ensemble disagree by as much as
    they do on one of them. Its classes are the most probable one, or the findings over their thresholds for cases.

    Args:
      answers: `kmed.deployment.classify.Answer` for each picture.
      cases: the case of each.
      rule: the run's DecisionRule.
      pooling: one of `kmed.metrics.cases.POOLINGS`.
      thresholds: those for cases; None: the most probable class, or findings with a probability of 0.5 or more.
    """
    held: dict[str, list] = {}
    for answer, case in zip(answers, cases, strict=True):
        if answer.error:
            yield answer
        else:
            held.setdefault(case, []).append(answer)
    for case, parts in held.items():
        probs = np.array([[part.probs[name] for name in rule.class_names] for part in parts])
        index = np.zeros(len(parts), int)
        pooled = pool_probs(probs, index, rule.class_names, pooling, exclusive=rule.task.exclusive)
        found = (rule.task.decode(pooled) if thresholds is None else thresholds.decide(rule.task.decode, pooled))[0]
        farthest = max(parts, key=lambda part: -1.0 if part.distance is None else part.distance)
        yield dataclasses.replace(
            farthest,
            path=case,
            found=tuple(name for name, held_by in zip(rule.class_names, found, strict=True) if held_by),
            probs=dict(zip(rule.class_names, pooled[0].tolist(), strict=True)),
            prediction_set=(),
            disagreement=max((part.disagreement for part in parts if part.disagreement is not None), default=None),
            overlay=None,
            report=None,
            pictures=len(parts),
        )
