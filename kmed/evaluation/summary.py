"""An assessment as plain text for a terminal: scores beside those of constant predictors, then scores per class."""

import math

from kmed.evaluation.assessment import Assessment
from kmed.evaluation.cases import CaseScores
from kmed.labels import printable
from kmed.metrics.class_scores import CLASS_SCORES
from kmed.metrics.intervals import Score
from kmed.metrics.scores import CALIBRATED, TUNED, Scores
from kmed.metrics.whole_decisions import DecisionScore
from kmed.runs import judged_split


def describe_assessment(assessment: Assessment, split: str, *, pictures: str | None = None) -> str:
    """Returns the lines that `kmed train` and `kmed evaluate` end with.

    A score that rests on fewer than 20 clusters is marked, since its interval is too narrow.

    Args:
      assessment: what is described.
      split: the name of the split.
      pictures: how many of which pictures were scored, if they are not those of one split.
    """
    scores = assessment.scores
    title = (
        f"{pictures or f'{split} split: {scores.num_images} pictures'}, {scores.num_labels} labels; "
        f"{scores.level:.0%} intervals from resampling {scores.num_clusters} clusters"
    )
    lines = [title, *_overall(scores, assessment.constants), "", *_by_class(scores)]
    if scores.left_out:
        lines += [
            "",
            f"No AUROC, and not in its mean ({len(scores.left_out)}): {printable(', '.join(scores.left_out))}.",
        ]
    for column, values in assessment.subgroups.items():
        lines += ["", *_by_subgroup(column, values, assessment.task.subgroup_scores)]
    if assessment.sets is not None:
        sets = assessment.sets
        lines += [
            "",
            f"Prediction sets made to hold {sets.wanted:.0%} of the true labels held {cell(sets.coverage)} of them, "
            f"with {sets.size.value:.2f} labels on average.",
        ]
    if assessment.cases is not None:
        lines += ["", *_by_case(assessment.cases, assessment.task.paired_scores)]
    if assessment.decision is not None:
        lines += ["", *_describe_decision(assessment.decision, assessment.task.exclusive)]
    return "\n".join([*lines, "", assessment.verdict.sentence])


def _by_case(cases: CaseScores, shown: tuple[str, ...]) -> list[str]:
    scores, constants = cases.scores, cases.constants
    rows: list[tuple[str, ...]] = [(f"per {cases.rule.by}", "value", "interval", "clusters", *constants, "")]
    for name in [*shown, *(f"{name}{TUNED}" for name in shown if f"{name}{TUNED}" in scores.scores)]:
        plain, score = name.removesuffix(TUNED), scores.scores[name]
        beside = [number(constant.scores[plain].value) for constant in constants.values()]
        rows.append((name, number(score.value), span(score), str(score.num_clusters), *beside, mark(score)))
    ranked = "; ".join(f"{name} {cell(score)}" for name, score in cases.by_count.items())
    count = [f"Ranked by their number of pictures alone, the cases have {ranked}."] if ranked else []
    return [cases.rule.sentence(cases.num_pictures, scores.num_images, len(cases.mixed)), *aligned(rows), *count]


def _describe_decision(decision: DecisionScore, exclusive: bool) -> tuple[str, str]:
    """Returns what was chosen on validation, and how it does on the split."""
    here = (
        f"Here: {decision.choice.score} {cell(decision.score)}, {decision.choice.constant_name} "
        f"{number(decision.constant.value)}, difference {cell(decision.gain)}."
    )
    return decision.choice.sentence(exclusive), here


def describe_novelty(record: dict | None) -> str:
    """Returns the line on how often images of the data themselves are flagged as unlike it; "" where unknown."""
    if record is None:
        return ""
    name = judged_split(record)
    of_split = record[name]
    few = f"; few clusters ({of_split['num_clusters']})" if of_split["few_clusters"] else ""
    return (
        f"Flagged as unlike the training pictures: {of_split['value']:.1%} of {name} ({of_split['low']:.1%} to "
        f"{of_split['high']:.1%}{few}), by a threshold that flags {record['wanted']:.2%} of validation.\n"
    )


def _overall(scores: Scores, constants: dict[str, Scores]) -> list[str]:
    interval = f"{100 * scores.level:g} % interval"
    rows: list[tuple[str, ...]] = [("score", "value", interval, "clusters", *constants, "")]
    for name, score in scores.scores.items():
        plain = name.removesuffix(TUNED).removesuffix(CALIBRATED)
        beside = [number(constant.scores[plain].value) for constant in constants.values()]
        rows.append((name, number(score.value), span(score), str(score.num_clusters), *beside, mark(score)))
    return aligned(rows)


def _by_class(scores: Scores) -> list[str]:
    rows: list[tuple[str, ...]] = [("class", "positives", *CLASS_SCORES, "clusters", "")]
    for name, of_class in scores.per_class.items():
        counts = scores.counts[name]
        cells = [cell(of_class[key]) for key in CLASS_SCORES]
        few = mark(of_class["recall"])
        rows.append((name, str(counts["positives"]), *cells, str(counts["clusters"]), few))
    return aligned(rows)


def _by_subgroup(column: str, values: dict[str, Scores], shown: tuple[str, ...]) -> list[str]:
    if not values:
        return [f"{column}: no value lies in two or more clusters."]
    rows: list[tuple[str, ...]] = [(column, "pictures", "clusters", *shown)]
    for value, scores in values.items():
        cells = [cell(scores.scores[name]) for name in shown]
        rows.append((value, str(scores.num_images), str(scores.num_clusters), *cells))
    return aligned(rows)


def number(value: float) -> str:
    """Returns three decimals, or "undefined"."""
    return "undefined" if math.isnan(value) else f"{value:.3f}"


def span(score: Score) -> str:
    """Returns the interval, or "none"."""
    return "none" if math.isnan(score.low) else f"{score.low:.3f} to {score.high:.3f}"


def cell(score: Score) -> str:
    """Returns a value with its interval."""
    return f"{number(score.value)} ({span(score)})"


def mark(score: Score) -> str:
    """Returns a warning if the interval is too narrow to trust, else ""."""
    return f"few clusters ({score.num_clusters})" if score.few_clusters else ""


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Returns the rows as lines with columns of equal width; a line break in a name is written as an escape."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
