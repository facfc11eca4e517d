"""`kmed.find_label_errors`: the labels of a cross-validation that look wrong, as a CSV to edit and a contact sheet."""

import pathlib

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kmed.config import FULL, parse_range
from kmed.data.images import Resizing, read_row
from kmed.data.prepare import open_table
from kmed.data.readers.csv_file import read_csv
from kmed.data.table import Table
from kmed.errors import DataError, RunError
from kmed.evaluation.label_errors import AUTO, check_cut, make_units, suspect_labels
from kmed.evaluation.predictions import stored_predictions
from kmed.figures import drawable, save_figure
from kmed.files import write_frame
from kmed.progress import optional, say
from kmed.runs import is_crossval, judged_crossval

MAX_PICTURES, COLUMNS = 32, 8
TILE_SIZE = (120, 160)


def find_label_errors(
    folder: str | pathlib.Path,
    *,
    out: str | pathlib.Path | None = None,
    data: str | pathlib.Path | None = None,
    cut: float | str = AUTO,
) -> tuple[pd.DataFrame, list[pathlib.Path]]:
    """Lists the labels that look wrong to models that have not seen their pictures, the most doubtful first.

    A cluster whose pictures share their labels, such as the pictures of one photograph, is one row. In a cluster with
    several labels each picture is a row.

    Args:
      folder: what `kmed crossval` made.
      out: the folder to write to; None: labels, in the folder of the cross-validation.
      data: the folder, CSV or npz to read instead of the one in the settings, for the contact sheet.
      cut: "auto": as many labels as confident learning expects to be wrong, which needs cleanlab; a number between 0
        and 1: all labels whose out-of-fold probability is lower.
    Returns: (the rows of labels.csv, the paths of labels.csv and labels.png).
    Raises: RunError: the folder is no finished cross-validation, or `out` holds labels that were edited. ConfigError: a
      cut that is not legal, or cleanlab is not installed. DataError: there are too few classes.
    Example:
      >>> rows, files = kmed.find_label_errors("saved_models/folds")
    """
    cut = check_cut(cut)
    if not is_crossval(folder):
        raise RunError(f"{folder} is not the folder of a cross-validation. Give one that `kmed crossval` made.")
    pooled = judged_crossval(folder)
    predictions = stored_predictions(pooled)
    units = make_units(predictions)
    rows = suspect_labels(units, predictions.class_names, exclusive=predictions.task.exclusive, cut=cut)
    say(
        f"{len(rows):,} of {len(units.rows):,} labels look wrong ({rows['pictures'].sum():,} of "
        f"{units.rows['pictures'].sum():,} pictures)."
    )
    if earlier := pooled.read_config().data.corrections:
        say(
            "The labels of this cross-validation were corrected before, so its labels.csv counts after the earlier "
            f"corrections: --set data.corrections=[{','.join(earlier)},labels.csv]"
        )
    out = pathlib.Path(out) if out is not None else pooled.folder / "labels"
    files = [out / "labels.csv"]
    _check_not_edited(files[0])
    write_frame(files[0], rows)
    sheet = out / "labels.png"
    sheet.unlink(missing_ok=True)  # an older one would show other labels
    if len(rows):
        config = pooled.read_config(data)
        with optional(f"The contact sheet {sheet}", "Give the pictures' place with --data."):
            limits = parse_range(config.data.range) or FULL
            save_figure(draw_suspects(open_table(config), rows, Resizing(TILE_SIZE, range=limits)), sheet)
            files.append(sheet)
    return rows, files


def _check_not_edited(path: pathlib.Path) -> None:
    """Raises RunError if the file that would be written is there, and is not as `find_label_errors` left it."""
    if not path.exists():
        return
    frame = read_csv(path)
    if not {"label", "given"} <= set(frame.columns) or (frame["label"] != frame["given"]).any():
        raise RunError(f"{path} holds labels that were edited, which would be lost. Move it, or choose another --out.")


def draw_suspects(table: Table, rows: pd.DataFrame, resizing: Resizing) -> Figure:
    """Returns a Figure of the first pictures of the most doubtful rows, with the given and the suggested label.

    Args:
      table: the pictures.
      rows: from `kmed.evaluation.label_errors.suspect_labels`; at least one.
      resizing: the size of the drawn pictures, and what becomes black and white.
    Raises: DataError: a picture is not in the table, or cannot be read.
    """
    shown = rows.head(MAX_PICTURES)
    place = {path: row for row, path in enumerate(table.rows["path"])}
    if lost := [path for path in shown["path"] if path not in place]:
        raise DataError(f"{table.name} has no picture {lost[0]}.")
    num_columns = min(COLUMNS, len(shown))
    num_rows = -(-len(shown) // num_columns)
    figure = Figure(figsize=(1.7 * num_columns + 0.4, 1.75 * num_rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axis in panels:
        axis.set_axis_off()
    for axis, row in zip(panels, shown.to_dict("records"), strict=False):
        axis.imshow(read_row(table, place[row["path"]], resizing))
        more = f" (+{row['pictures'] - 1})" if row["pictures"] > 1 else ""
        given, suggested = (drawable(row[name] or "none", 24) for name in ("given", "suggested"))
        axis.set_title(f"{given}{more}\nrather {suggested}: {row['quality']:.2f}", fontsize=7, pad=3)
    figure.suptitle(
        f"{drawable(table.name)}: given labels that look wrong, and their probability; the first {len(shown)} of "
        f"{len(rows)}",
        fontsize=9,
    )
    return figure
