"""What a recalibration found, as plain text: what was fitted to what, the gains, the shares and the learning curve."""

from kmed.evaluation.summary import aligned, cell

SHOWN = ("brier_calibrated", "ece_calibrated")  # the scores that come first


def describe(recalibration) -> str:
    """Returns what the summary says of a `kmed.evaluation.recalibration.Recalibration`."""
    tables = [_gains(recalibration), _shares(recalibration), _curve(recalibration)]
    lines = [*recalibration.sentences(), *(line for rows in tables if rows for line in ("", *aligned(rows)))]
    return "\n".join(lines) + "\n"


def _gains(recalibration) -> list[tuple[str, ...]]:
    gains = recalibration.gains
    if gains is None:
        return []
    rows: list[tuple[str, ...]] = [("score of the check", "fitted at home", "fitted here", "gain")]
    for name in dict.fromkeys([*SHOWN, *gains]):
        rows.append((name, cell(gains[name].home), cell(gains[name].local), cell(gains[name].gain)))
    return rows


def _shares(recalibration) -> list[tuple[str, ...]]:
    shares, names = recalibration.shares, recalibration.predictions.class_names
    if shares is None:
        return []
    titles = {"home": "share at home", "found": "found here", "true": "true here"}
    columns = [(title, *(f"{value:.3f}" for value in shares[kind])) for kind, title in titles.items() if kind in shares]
    if not recalibration.labelled:
        columns.append(("used", *("home's" if name in recalibration.kept else "found" for name in names)))
    return list(zip(("class", *names), *columns, strict=True))


def _curve(recalibration) -> list[tuple[str, ...]]:
    curve = recalibration.curve
    if curve is None:
        return []
    rows: list[tuple[str, ...]] = [("labelled groups", "log loss of the check", "range of draws")]
    rows.append(("0 (home)", f"{curve['home']:.4f}", ""))
    for point in curve["points"]:
        rows.append((str(point["groups"]), f"{point['mean']:.4f}", f"{point['low']:.4f} to {point['high']:.4f}"))
    return rows


def describe_flagged(record: dict | None) -> str:
    """Returns the line on how many pictures without labels are unlike the training pictures; "" where unknown.

    Args:
      record: the novelty of metrics.json, whose "val" are these pictures.
    """
    if record is None:
        return ""
    found = record["val"]
    line = f"\nFlagged as unlike the training pictures: {found['value']:.1%} of these"
    line += "" if found["low"] is None else f" ({found['low']:.1%} to {found['high']:.1%})"
    return f"{line}, by a threshold that flags {record['wanted']:.2%} of the pictures that it was chosen on.\n"
