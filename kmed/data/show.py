"""What a data set holds, as text and as pictures: counts, a contact sheet, a chart of the splits."""

import pathlib
from collections.abc import Iterable

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kmed.config import FULL, load_config
from kmed.data.images import Resizing, read_row
from kmed.data.prepare import read_split_table
from kmed.data.table import Table
from kmed.figures import drawable, drawable_names
from kmed.files import replacing, write_text

MAX_CLASSES = 16
COLUMNS_PER_CLASS = 8
TILE_SIZE = (96, 128)


def show_data(
    path, *, out=None, config=None, settings: Iterable[str | tuple[str, object]] = ()
) -> tuple[Table, list[pathlib.Path]]:
    """Reads, checks and splits a data set, and draws what it holds.

    Args:
      path: a folder, a CSV or an npz.
      out: the output folder; None: NAME_shown.
      config: a YAML file whose data section is used.
      settings: overrides such as "data.group=patient_id".
    Returns: (Table with its splits, paths of counts.txt, contact_sheet.png and splits.png).
    Raises: DataError: the data cannot be used, or an image that is shown cannot be read.
    """
    table = read_split_table(load_config(config, [*settings, ("data.path", str(path))]))
    return table, show(table, pathlib.Path(f"{table.name}_shown") if out is None else out)


def show(table: Table, out_dir, seed: int = 0) -> list[pathlib.Path]:
    """Writes counts.txt, contact_sheet.png and splits.png into `out_dir`, and returns their paths.

    Args:
      table: any table, with splits or without.
      out_dir: a folder; it is created.
      seed: decides which pictures the contact sheet shows.
    Raises: DataError: one of the pictures shown cannot be read.
    """
    out_dir = pathlib.Path(out_dir)
    counts, sheet, splits = (out_dir / name for name in ("counts.txt", "contact_sheet.png", "splits.png"))
    write_text(counts, describe(table) + "\n")
    _save(draw_contact_sheet(table, seed), sheet)
    _save(draw_splits(table), splits)
    return [counts, sheet, splits]


def describe(table: Table) -> str:
    """Returns the table's name, size, counts per class (rows) and split (columns), and notes, as text."""
    counts = table.counts().rename(index={"": "(no split)"}).T
    counts["all"] = counts.sum(axis=1)
    # A group may be in several test splits (test and test_simple), so these two do not add up.
    counts.loc["groups", "all"] = table.rows["group"].nunique()
    counts.loc["clusters", "all"] = table.rows["cluster"].nunique()
    unknown = int(np.isnan(table.labels).sum())
    lines = [
        f"{table.name}: {len(table):,} pictures, {len(table.class_names)} classes, {table.task}, "
        f"{'grouped' if table.grouped else 'not grouped'}",
        "",
        counts.astype(int).to_string(),
        *([f"{unknown:,} labels are unknown."] if unknown else []),
        *(["", *table.notes] if table.notes else []),
    ]
    return "\n".join(lines)


def draw_contact_sheet(table: Table, seed: int = 0) -> Figure:
    """Returns a Figure with one row of pictures per class (at most 16), titled by split, from different groups."""
    rng = np.random.default_rng(seed)
    names, resizing = table.class_names[:MAX_CLASSES], Resizing(TILE_SIZE, range=table.range or FULL)
    figure = Figure(figsize=(1.35 * COLUMNS_PER_CLASS + 1.2, 1.25 * len(names) + 0.5), layout="constrained")
    axes = figure.subplots(len(names), COLUMNS_PER_CLASS, squeeze=False)
    for row, name in enumerate(drawable_names(names)):
        chosen = _pick(table, row, rng)
        for column, axis in enumerate(axes[row]):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
            if column < len(chosen):
                axis.imshow(read_row(table, chosen[column], resizing))
                axis.set_title(drawable(table.rows["split"].iloc[chosen[column]] or "no split"), fontsize=7, pad=2)
        axes[row, 0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    figure.suptitle(drawable(table.name), fontsize=10)
    return figure


def draw_splits(table: Table) -> Figure:
    """Returns a Figure of the images per class in each split, and of the groups per split."""
    counts = table.counts().rename(index={"": "no split"})
    figure = Figure(figsize=(max(7.0, 0.7 * len(table.class_names) + 4), 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 1])
    positions, width = np.arange(len(table.class_names)), 0.8 / len(counts)
    for index, (split, row) in enumerate(counts.iterrows()):
        offset = (index - (len(counts) - 1) / 2) * width
        left.bar(positions + offset, row[list(table.class_names)].astype(int), width, label=drawable(split))
        right.bar(index, row["groups"], 0.7)
        right.annotate(f"{row['groups']:,}", (index, row["groups"]), ha="center", va="bottom", fontsize=8)
    left.set_xticks(positions, drawable_names(table.class_names), rotation=30, ha="right", fontsize=8)
    left.set(ylabel="images", title=f"{drawable(table.name)}: images per class")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(counts), frameon=False)
    right.set_xticks(range(len(counts)), drawable_names(counts.index), rotation=30, ha="right", fontsize=8)
    right.set(ylabel="groups", title="groups per split")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _pick(table, index, rng):
    """Returns up to 8 rows of a class, from the splits in turn; no group comes twice while there are others."""
    positive = np.flatnonzero(table.labels[:, index] == 1)
    rows = table.rows.iloc[rng.permutation(positive)]
    rows = rows.assign(again=rows.groupby(["split", "group"]).cumcount())
    rows = rows.sort_values("again", kind="stable")
    rows = rows.assign(turn=rows.groupby("split").cumcount()).sort_values("turn", kind="stable").head(COLUMNS_PER_CLASS)
    order = {"train": 0, "val": 1, "test": 2}
    return sorted(rows.index, key=lambda row: (order.get(rows["split"][row], 3), rows["split"][row]))


def _save(figure, path):
    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_figure(temporary, dpi=110)
