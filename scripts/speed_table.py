"""Writes the results of `scripts/benchmark.py train` as a table between marks, and as a figure.

python scripts/speed_table.py results/training_speed.csv docs/performance.md --image docs/images/training_speed.png
python scripts/speed_table.py results/training_speed_same_work.csv docs/performance.md --mark "same work"
"""

import pathlib

import click
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from study import replace_marked

from kmed.figures import save_figure
from kmed.files import write_text

# The frameworks to draw, each in its faster mode. Blue and orange are from Okabe & Ito's palette.
FRAMEWORKS = {"keras": ("stock Keras", "#0072B2", "o"), "pytorch": ("timm on PyTorch", "#D55E00", "s")}
THERE = click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)


@click.command(help=__doc__.split("\n")[0])
@click.argument("results", type=THERE)
@click.argument("page", type=THERE)
@click.option("--mark", default="training speed", show_default=True, help="The marks around the table.")
@click.option("--image", type=click.Path(path_type=pathlib.Path), help="The file of the figure; default: no figure.")
def main(results, page, mark, image):
    """Writes the table of RESULTS into PAGE between the marks <!-- MARK --> and <!-- /MARK -->, and the figure."""
    rows = pd.read_csv(results)
    text = replace_marked(page.read_text(encoding="utf-8"), mark, markdown(rows))
    if image:
        save_figure(plot(rows), image)
    write_text(page, text)


def races(rows: pd.DataFrame):
    """Yields (model, image size, rows by mode) in the order of the table."""
    for (model, size), race in rows.groupby(["model", "image_size"], sort=False):
        yield model, size, race.set_index("mode")


def best(race: pd.DataFrame, framework: str) -> pd.Series:
    """Returns the row of a framework's faster mode."""
    return race[race.index.str.startswith(framework)].sort_values("kmed_ratio").iloc[0]


def markdown(rows: pd.DataFrame) -> str:
    """Returns a table of kmed's images/s and its ratios to each other mode: median, lowest and highest round."""
    lines = []
    for model, size, race in races(rows):
        ours = race.loc["kmed"]
        line = {"model": model, "size": size, "kmed, images/s": f"{ours['images_per_second']:.0f} ({ours['dtype']})"}
        for mode, other in race.drop(index="kmed").iterrows():
            line[mode] = f"{other['kmed_ratio']:.2f} ({other['ratio_low']:.2f} to {other['ratio_high']:.2f})"
        lines.append(line)
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def plot(rows: pd.DataFrame) -> Figure:
    """Returns a figure of kmed's speed relative to the others' faster mode: small pictures left, large ones right."""
    all_races = list(races(rows))
    drawn = {name: look for name, look in FRAMEWORKS.items() if rows["mode"].str.startswith(name).any()}
    models = list(dict.fromkeys(model for model, _, _ in all_races))
    sizes = [[(model, size, race) for model, size, race in all_races if model == name] for name in models]
    figure = Figure(figsize=(9.0, 0.42 * len(models) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    for axes, column in zip(panels, zip(*sizes)):
        for row, (_, _, race) in enumerate(column):
            for offset, (framework, (_, color, marker)) in zip((-0.15, 0.15), drawn.items()):
                other = best(race, framework)
                axes.plot([other["ratio_low"], other["ratio_high"]], [row + offset] * 2, color=color, lw=2, alpha=0.6)
                axes.plot(other["kmed_ratio"], row + offset, marker, color=color, ms=6)
        axes.axvline(1.0, color="#595959", lw=1, ls="--")
        axes.set_title(" and ".join(dict.fromkeys(size for _, size, _ in column)), fontsize=11)
        axes.set_xscale("log")
        axes.set_xticks(ticks := np.array([0.5, 0.7, 1.0, 1.5, 2, 3, 5]), [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3, axis="x")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(models)), models)
    panels[0].invert_yaxis()
    for words, color, marker in drawn.values():
        panels[0].plot([], [], marker, color=color, label=words)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=10
    )
    figure.supxlabel(
        "speed of kmed divided by that of the other's faster mode; lines: slowest to fastest round", fontsize=9
    )
    return figure


if __name__ == "__main__":
    main()
