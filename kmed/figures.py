"""Figures of a run, drawn without pyplot, so that no global state is created or left behind."""

import functools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

from kmed.errors import RunError
from kmed.files import name_as_text, replacing

# Okabe & Ito's palette, distinct for any colour vision; validation curves are also thicker, with round marks.
_TRAIN, _VAL, _BEST = "#0072B2", "#D55E00", "#595959"
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
_MAX_NUMBERED = 20  # above this many classes the numbers in the cells of a confusion matrix cannot be read
NOT_PLOTTED = {"epoch", "seconds", "time", "learning_rate"}
MAX_NAME = 40  # characters of a name in a figure; longer ones leave no room for what is drawn


def drawable(text, limit: int = MAX_NAME) -> str:
    """Returns a name as matplotlib draws it literally: one line, never read as mathematics, of at most `limit` letters.

    Letters that the font lacks become boxes, which are drawn without matplotlib's warnings.
    """
    letters = "".join(letter if letter.isprintable() else " " for letter in name_as_text(str(text)))
    shown = "".join(letter if ord(letter) in _letters() else "\N{WHITE SQUARE}" for letter in " ".join(letters.split()))
    shown = shown if len(shown) <= limit else f"{shown[: limit - 3].rstrip()}..."
    return shown.replace("$", r"\$")


def drawable_names(names, limit: int = MAX_NAME) -> list[str]:
    """Returns class names as `drawable` does; names that would look the same get their place in the list, from 1."""
    shown = [drawable(str(name).replace("_", " "), limit) for name in names]
    return [f"{name} ({place})" if shown.count(name) > 1 else name for place, name in enumerate(shown, 1)]


@functools.cache
def _letters() -> frozenset[int]:
    """Returns the code points that matplotlib's font can draw."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def plot_history(history: pd.DataFrame, best_epoch: int | None = None) -> Figure:
    """Returns a figure with one panel per quantity, the loss first: training and validation over the epochs.

    Args:
      history: one row per epoch, with the column `epoch`; `name` and `val_name` share a panel. Columns
        that are not numeric, or that hold times or the learning rate, are not drawn.
      best_epoch: the epoch to mark, in the units of the column `epoch`.
    Raises: RunError: no epochs, no column `epoch`, or nothing to draw.
    """
    if "epoch" not in history or history.empty:
        raise RunError(
            f"A history needs a column 'epoch' and at least one row. Received: columns={list(history.columns)}."
        )
    numbers = history.select_dtypes("number").columns
    names = dict.fromkeys(str(name).removeprefix("val_") for name in numbers if name not in NOT_PLOTTED)
    if not names:
        raise RunError(f"The history has no column to draw. Received: columns={list(history.columns)}.")
    ordered = sorted(names, key=lambda name: name != "loss")
    num_columns = 2 if len(ordered) == 4 else min(len(ordered), 3)
    num_rows = -(-len(ordered) // num_columns)
    figure = _figure(4.0 * num_columns, 3.2 * num_rows)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, name in zip(panels, ordered, strict=False):
        _draw_curves(axes, history, name, best_epoch)
    for axes in panels[len(ordered) :]:
        axes.remove()
    return figure


def _draw_curves(axes, history, name, best_epoch):
    for column, label, color, width, marker in (
        (name, "training", _TRAIN, 1.5, "s" if len(history) == 1 else ""),
        (f"val_{name}", "validation", _VAL, 2.0, "o"),
    ):
        if column in history:
            axes.plot(history["epoch"], history[column], label=label, color=color, lw=width, marker=marker, ms=4)
    if best_epoch is not None:
        axes.axvline(best_epoch, color=_BEST, lw=1, ls="--", label=f"best epoch ({best_epoch})")
    axes.set_title(name.replace("_", " "), fontsize=12)
    axes.set_xlabel("epoch")
    axes.set_xlim(history["epoch"].min() - 0.5, history["epoch"].max() + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False)


def plot_confusion(confusion: np.ndarray, class_names, title: str = "") -> Figure:
    """Returns the confusion matrix; each cell shows its count and its share of the row, which sets the shade.

    Args:
      confusion: (K, K) counts, or `kmed.metrics.class_scores.Confusion`; rows are the true classes.
      class_names: K names.
      title: what was scored.
    """
    counts = np.asarray(getattr(confusion, "counts", confusion))
    sizes = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, sizes, out=np.zeros(counts.shape), where=sizes > 0)
    num_classes = len(class_names)
    numbered = num_classes <= _MAX_NUMBERED
    side = max(4.2, (0.75 if numbered else 0.2) * num_classes + 2.4)
    figure = _figure(side + 0.6, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if numbered:
        _write_cells(axes, counts, shares)
    font = 10 if num_classes <= 2 * _MAX_NUMBERED else 6
    names = drawable_names(class_names)
    axes.set_xticks(range(num_classes), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=font)
    axes.set_yticks(range(num_classes), names, fontsize=font)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title, fontsize=12)
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label="share of the true class")
    return figure


def _write_cells(axes, counts, shares):
    for row, column in np.ndindex(counts.shape):
        color = "white" if shares[row, column] > 0.55 else "black"
        # A class without images has no shares, so its row shows counts only.
        share = f"\n{100 * shares[row, column]:.0f} %" if counts[row].any() else ""
        axes.text(column, row, f"{counts[row, column]}{share}", ha="center", va="center", color=color, fontsize=10)


def plot_per_class(scores, title: str = "") -> Figure:
    """Returns the AUROC and F1 of each class with their intervals, and its numbers of positives and clusters.

    Args:
      scores: kmed.metrics.scores.Scores.
      title: what was scored.
    """
    names = list(scores.per_class)
    figure = _figure(9.0, 0.36 * len(names) + 1.6)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, words in ((left, "auroc", "AUROC"), (right, "f1", "F1 at 0.5")):
        _draw_intervals(axes, [of_class[key] for of_class in scores.per_class.values()], _VAL)
        axes.set_title(words, fontsize=12)
    tuned = [of_class.get("f1_tuned") for of_class in scores.per_class.values()]
    if all(score is not None for score in tuned):
        _draw_intervals(right, tuned, _TRAIN, offset=0.22, marker="s")
        right.set_title("F1: at 0.5 (round), tuned (square)", fontsize=12)
    left.axvline(0.5, color=_BEST, lw=1, ls="--")
    labels = [
        f"{shown}  ({scores.counts[name]['positives']} / {scores.counts[name]['clusters']})"
        for name, shown in zip(names, drawable_names(names), strict=True)
    ]
    left.set_yticks(range(len(names)), labels)
    left.invert_yaxis()
    figure.suptitle(f"{title}: positives / clusters with positives".lstrip(": "), fontsize=11)
    return figure


def _draw_intervals(axes, scores, color, offset=0.0, marker="o"):
    for row, score in enumerate(scores):
        axes.plot([score.low, score.high], [row + offset] * 2, color=color, lw=2, alpha=0.6)
        axes.plot(score.value, row + offset, marker, color=color, ms=5, mfc="white" if score.few_clusters else color)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(alpha=0.3, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("open marks: fewer than 20 clusters", fontsize=8)


def plot_histories(histories: dict[str, pd.DataFrame]) -> Figure:
    """Returns the losses of several runs over the epochs: training thin and dashed, validation thick.

    Args:
      histories: {name: history with the columns epoch, loss and val_loss}; one without epochs is not drawn.
    """
    figure = _figure(7.5, 4.2)
    axes = figure.subplots()
    for index, (name, history) in enumerate(histories.items()):
        if not len(history):
            continue
        color = _PALETTE[index % len(_PALETTE)]
        style: dict[str, Any] = {"color": color, "marker": "o" if len(history) == 1 else ""}
        axes.plot(history["epoch"], history["loss"], lw=1, ls="--", **style)
        label = drawable(name)
        label = f" {label}" if label.startswith("_") else label  # matplotlib leaves such a name out of the legend
        axes.plot(history["epoch"], history["val_loss"], lw=2, label=label, **style)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.set_title("loss: validation (thick), training (dashed)", fontsize=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_trials(trials: pd.DataFrame, score: str, *, minimize: bool) -> Figure:
    """Returns the score of each trial of a study, with the best one so far as a line.

    Args:
      trials: one row per trial with the columns `trial`, `state` ("finished" or another) and the score.
      score: the name of the score.
      minimize: whether a lower score is better.
    """
    figure = _figure(7.5, 4.2)
    axes = figure.subplots()
    finished = trials["state"] == "finished"
    so_far = trials.loc[finished, score].cummin() if minimize else trials.loc[finished, score].cummax()
    axes.step(trials.loc[finished, "trial"], so_far, where="post", color=_VAL, lw=2, label="best so far")
    axes.plot(trials.loc[finished, "trial"], trials.loc[finished, score], "o", color=_TRAIN, label="finished")
    if (~finished).any():
        others = trials.loc[~finished]
        axes.plot(others["trial"], others[score], "x", color=_BEST, label="not finished: the best until then")
    axes.set(xlabel="trial", ylabel=drawable(score.replace("_", " ")))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False)
    return figure


def plot_importance(shares: dict[str, float]) -> Figure:
    """Returns a bar per setting: its share of what the settings explain, the largest at the top."""
    figure = _figure(7.5, 0.36 * len(shares) + 1.2)
    axes = figure.subplots()
    axes.barh(range(len(shares)), list(shares.values()), color=_TRAIN, height=0.6)
    axes.set_yticks(range(len(shares)), [drawable(name) for name in shares])
    axes.invert_yaxis()
    axes.set(xlabel="share of importance", xlim=(0, 1))
    axes.grid(alpha=0.3, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_compared(
    runs: dict, constants: dict[str, float], crosses: dict[str, list[float]] | None = None, crosses_are: str = ""
) -> Figure:
    """Returns a figure with one panel per score, in which each run is a mark with its interval.

    Args:
      runs: {name of the run: {name of the score: kmed.metrics.intervals.Score}}.
      constants: {name of the score: value of the best constant predictor, drawn as a dashed line}.
      crosses: {name of the score: one value per run, drawn as crosses}; scores may be left out.
      crosses_are: what the crosses stand for, written below the panels.
    """
    num_columns = min(3, len(constants))
    num_rows = -(-len(constants) // num_columns)
    figure = _figure(3.6 * num_columns + 1, num_rows * (0.36 * len(runs) + 1.5))
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True).ravel()
    for axes, (name, line) in zip(panels, constants.items()):
        for row, scores in enumerate(runs.values()):
            score, color = scores[name], _PALETTE[row % len(_PALETTE)]
            axes.plot([score.low, score.high], [row, row], color=color, lw=2, alpha=0.6)
            axes.plot(score.value, row, "o", color=color, mfc="white" if score.few_clusters else color)
        if crosses and name in crosses:
            axes.plot(crosses[name], range(len(runs)), "x", color="black", ms=7, mew=1.5)
        axes.axvline(line, color=_BEST, lw=1, ls="--")
        axes.set_title(name.replace("_", " "), fontsize=11)
        axes.grid(alpha=0.3, axis="x")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(runs)), [drawable(name) for name in runs])
    panels[0].invert_yaxis()
    for axes in panels[len(constants) :]:
        axes.remove()
    words = "dashed: the best constant predictor; open marks: fewer than 20 clusters"
    figure.supxlabel(words + (f"\ncrosses: {crosses_are}" if crosses else ""), fontsize=9)
    return figure


def plot_reliability(reliability: dict, title: str = "") -> Figure:
    """Returns the reliability diagram: observed frequencies and numbers of predictions by predicted probability.

    Args:
      reliability: {"raw" and perhaps "calibrated": kmed.metrics.reliability.Reliability}.
      title: what was scored.
    """
    figure = _figure(5.2, 5.4)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color=_BEST, lw=1, ls="--", label="perfect calibration")
    for (name, bins), color, marker in zip(reliability.items(), (_VAL, _TRAIN), "os"):
        held = bins.counts > 0
        x, y = bins.predicted[held], bins.observed[held]
        ends = np.nan_to_num([y - bins.low[held], bins.high[held] - y]).clip(0)
        axes.errorbar(x, y, yerr=ends, color=color, marker=marker, ms=4, lw=1.5, elinewidth=1, label=name)
        counts.step(np.linspace(0, 1, len(bins.counts) + 1), [*bins.counts, bins.counts[-1]], where="post", color=color)
    axes.set(ylabel="observed frequency", ylim=(-0.02, 1.02), xlim=(-0.02, 1.02))
    axes.set_title(title, fontsize=12)
    axes.legend(fontsize=9, frameon=False)
    counts.set(xlabel="predicted probability", ylabel="predictions", yscale="log")
    for panel in (axes, counts):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def plot_risk_coverage(risk, title: str = "") -> Figure:
    """Returns the error rate by the share of pictures that are answered. `risk`: a RiskCoverage."""
    figure = _figure(5.0, 3.6)
    axes = figure.subplots()
    axes.fill_between(risk.coverage, risk.low, risk.high, color=_VAL, alpha=0.2, lw=0)
    axes.plot(risk.coverage, risk.risk, color=_VAL, lw=2)
    axes.set(xlabel="share of pictures answered, most confident first", ylabel="error rate", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    axes.set_title(f"{title}: area {risk.area.value:.3f}".lstrip(": "), fontsize=12)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def save_figure(figure: Figure, path) -> None:
    """Writes `figure` to `path` (PNG, 120 dots per inch), whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight", pad_inches=0.1)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
