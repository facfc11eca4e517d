"""The results on somebody else's data as plain text: what was read, what changed, then the scores themselves."""

from kmed.evaluation.side_by_side import Beside, SideBySide
from kmed.evaluation.summary import aligned, cell, describe_assessment
from kmed.metrics.intervals import Score
from kmed.metrics.scores import CALIBRATED
from kmed.tasks import Task

OVERALL = ("brier", "ece")  # shown beside the task's paired scores, where there are calibrated probabilities


def describe_external(external) -> str:
    """Returns the text of summary.txt; `external` is a kmed.evaluation.external.External."""
    table, beside = external.foreign.table, external.beside
    task = external.assessment.task
    sizes = {side: "{:,} pictures of {:,} clusters".format(*beside.sizes[side]) for side in beside.sizes}
    level = f"{external.assessment.scores.level:.0%}"
    lines = [
        f"{external.name}: {len(external.predictions):,} pictures of {table.name} judge the run.",
        *external.foreign.seen.sentences(),
        *([] if external.is_home else [external.home_sentence()]),
        "",
        f"Side by side over {len(beside.classes)} of {len(table.class_names)} classes, which both sides have: "
        f"{sizes['internal']} of the run's own {external.internal_split} split, and {sizes['external']} here; {level} "
        "intervals from resampling the clusters of each side by itself.",
        *(["The run has no test split: its thresholds were chosen on these validation pictures."]
          if external.internal_split == "val" else []),
        *describe_changes(beside, task),
        "",
        *describe_classes(beside),
        *_describe_novelty(external.novelty),
        "",
        describe_assessment(external.assessment, external.name, pictures=f"{external.name}: all classes, "
                            f"{external.assessment.scores.num_images} pictures"),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def shown_scores(beside: SideBySide, task: Task) -> list[str]:
    """Returns the names of the overall scores that are shown side by side, in their order."""
    names = [*task.paired_scores, *(f"{name}{CALIBRATED}" for name in OVERALL)]
    return [name for name in dict.fromkeys(names) if name in beside.scores]


def describe_changes(beside: SideBySide, task: Task) -> list[str]:
    """Returns the table of the overall scores, the calibration slope and the intercept."""
    rows: list[tuple[str, ...]] = [("score", "internal", "external", "change", "")]
    rows += [_row(name, beside.scores[name]) for name in shown_scores(beside, task)]
    rows += [_row(f"calibration {kind}", lines["mean"]) for kind, lines in beside.lines.items()]
    return aligned(rows)


def describe_classes(beside: SideBySide) -> list[str]:
    """Returns the table of the classes: their shares, and what the run's thresholds do here."""
    rows: list[tuple[str, ...]] = [("class", "score", "internal", "external", "change", "")]
    for name in beside.shares:
        rows.append((name, *_row("share", beside.shares[name])))
        if name in beside.classes:
            rows += [("", *_row(kind, values[name])) for kind, values in beside.points.items()]
            rows.append(("", *_row("auroc", beside.auroc[name])))
    return aligned(rows)


def _row(name: str, both: Beside) -> tuple[str, ...]:
    few = f"few clusters ({both.change.num_clusters})" if both.change.few_clusters else ""
    return name, cell(both.internal), cell(both.external), cell(both.change), "differs" if both.differs else few


def _describe_novelty(novelty: dict | None) -> list[str]:
    if novelty is None:
        return ["", "The run has no novelty.npz, so pictures unlike its training pictures are not counted."]
    inside, share = novelty["internal"], novelty["external"]
    at_home = f"{inside['value']:.1%}" if inside else "an unknown share"
    return [
        "",
        f"Flagged as unlike the training pictures: {share.value:.1%} here ({_percent(share)}), and {at_home} of the "
        "run's own pictures.",
    ]


def _percent(score: Score) -> str:
    return "no interval" if score.low != score.low else f"{score.low:.1%} to {score.high:.1%}"
