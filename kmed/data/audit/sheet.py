"""The contact sheet of an audit: the worst pairs of pictures side by side, with what they share outlined."""

import itertools
import pathlib

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from kmed.data.audit.leaks import Audit, Pair
from kmed.data.images import Resizing, read_row, resize_array
from kmed.figures import drawable
from kmed.files import replacing

MAX_PAIRS = 12
MAX_CAPTION = 34
PIXELS = 320  # the longer side of a drawn picture
OUTLINE, ALARM = "#009E73", "#B00020"
IN_DOUBT = "in doubt"


def draw_pairs(audit: Audit, pairs: list[Pair]) -> Figure:
    """Returns a Figure with two pairs per row, each titled with what is wrong; the shared region is outlined.

    Args:
      audit: the audit that found the pairs.
      pairs: the pairs to draw, worst first; at least one.
    Raises: DataError: one of the pictures cannot be read.
    """
    num_rows = -(-len(pairs) // 2)
    figure = Figure(figsize=(13, 2.9 * num_rows + 0.5), layout="constrained")
    figure.suptitle(f"{drawable(audit.table.name)}: the worst pairs, and what they share (outlined)", fontsize=12)
    panels = figure.subfigures(num_rows, 2, squeeze=False, wspace=0.03, hspace=0.03).ravel()
    for panel, pair in zip(panels, pairs, strict=False):
        panel.suptitle(
            headline(pair).replace(" (", "\n("),
            fontsize=10,
            weight="bold",
            color=ALARM if _problems(pair) and pair.verdict != "doubt" else "black",
        )
        outlines = (None, None) if pair.alignment is None else pair.alignment.outlines
        for axis, row, outline in zip(panel.subplots(1, 2), (pair.first, pair.second), outlines):
            pixels = _picture(audit.table, row)
            axis.imshow(pixels)
            if outline is not None:
                corners = outline * np.array(pixels.shape[1::-1])
                axis.add_patch(Polygon(corners, closed=True, fill=False, ec=OUTLINE, lw=1.5, clip_on=True))
            axis.set_xlim(-0.5, pixels.shape[1] - 0.5)
            axis.set_ylim(pixels.shape[0] - 0.5, -0.5)
            axis.set_axis_off()
            axis.set_title(caption(audit, row), fontsize=8, pad=3)
    return figure


def save_pairs(audit: Audit, pairs: list[Pair], path: pathlib.Path) -> None:
    """Writes `draw_pairs` as a PNG, whole or not at all."""
    with replacing(path) as temporary:
        FigureCanvasAgg(draw_pairs(audit, pairs)).print_figure(temporary, dpi=100)


def worst_pairs(audit: Audit) -> list[Pair]:
    """Returns at most MAX_PAIRS pairs: contradictions, pairs on two sides, then across groups, doubts, small overlaps.

    Where the first three do not all fit, they take turns for a place on the sheet.
    """
    labels = sorted(audit.contradictions, key=lambda pair: (-pair.sides, -pair.share))
    sides = sorted(audit.on_two_sides.values(), key=lambda pair: (-pair.labels, -pair.share))
    kinds = [labels, sides, audit.across_groups]
    turns = [pair for turn in itertools.zip_longest(*kinds) for pair in turn if pair is not None]
    rest = [*audit.doubts, *audit.overlaps]
    placed = list(dict.fromkeys((pair.first, pair.second) for pair in [*turns, *rest]))[:MAX_PAIRS]
    chosen: dict[tuple[int, int], Pair] = {}
    for pair in itertools.chain(*kinds, rest):
        if (pair.first, pair.second) in placed:
            chosen.setdefault((pair.first, pair.second), pair)
    return list(chosen.values())


def headline(pair: Pair) -> str:
    """Returns what is wrong with a pair, and the evidence, in a few words."""
    share = "" if np.isnan(pair.share) or pair.kind == "identical files" else f", {pair.share:.0%} shared"
    found = pair.alignment
    measured = (
        ""
        if found is None
        else f" ({found.inliers} matches, agreement {found.agreement:.3f}, of tiles {found.tile_detail:.2f})"
    )
    words = " and ".join(_problems(pair)) or "pair"
    if pair.verdict == "doubt" and pair.labels and not pair.groups:
        words = f"{IN_DOUBT}: {words}"
    return f"{words[0].upper()}{words[1:]}: {pair.kind}{share}{measured}"


def _problems(pair):
    # Two exposures of one subject may well have two labels.
    labels = pair.labels and pair.verdict != "other"
    found = (("two labels", labels), ("two sides", pair.sides), ("two groups", pair.groups))
    return [words for words, is_so in found if is_so]


def caption(audit: Audit, row: int) -> str:
    """Returns a picture's name, split and label on two lines."""
    path = audit.table.rows["path"].iloc[row]
    name = path if len(path) <= MAX_CAPTION else f"...{path[-MAX_CAPTION:]}"
    split = audit.table.rows["split"].iloc[row] or "no split"
    label = label_text(audit, row)
    return f"{drawable(name)}\n{drawable(split)}: {drawable(label, MAX_CAPTION)}"


def label_text(audit: Audit, row: int) -> str:
    """Returns a picture's labels as words: those that are 1, joined by |; "none" if all known ones are 0."""
    names = [name for name, value in zip(audit.table.class_names, audit.table.labels[row]) if value == 1]
    return "|".join(names) or ("unknown" if np.isnan(audit.table.labels[row]).all() else "none")


def _picture(table, row):
    pixels = read_row(table, row)
    scale = PIXELS / max(pixels.shape[:2])
    size = tuple(max(round(side * scale), 1) for side in pixels.shape[:2])
    return resize_array(pixels, Resizing(size, fit="stretch"))
