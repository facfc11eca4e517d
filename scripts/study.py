"""Writes tables and figures of the six models of configs/*_six.yaml, beside the scores of a study.

    python scripts/study.py README.md docs/results.md docs/images

The study ("Medical Image Classification with ResNets, DenseNets, EfficientNet and ViT", course slides, Skoltech, no
date) gives its scores without intervals. They are in results/study.csv, with kmed's names of models and scores.
"""

import pathlib
import re

import click
import pandas as pd

from kmed import figures
from kmed.evaluation.summary import cell
from kmed.files import write_text
from kmed.metrics.intervals import Score
from kmed.tables import read_table
from kmed.tasks import get_task

RESULTS = pathlib.Path(__file__).parent.parent / "results"
TASKS = {"blood_cells": "multiclass", "nih_cxr": "multilabel"}
# Scores that the study does not give, shown beside those that it gives.
FURTHER = {
    "multiclass": {},
    "multilabel": {"auroc_macro": "AUROC macro", "auroc_macro_common": "AUROC of common findings"},
}
# Scores to draw: the study's first one, and on X-rays a ranking score, which a constant predictor cannot raise.
DRAWN = {"multiclass": ("accuracy",), "multilabel": ("exact_match_ratio", "auroc_macro_common")}
# Columns of the README's only table: (data, score, heading).
OVERVIEW = (
    ("blood_cells", "accuracy", "blood cells: accuracy"),
    ("nih_cxr", "auroc_macro_common", "X-rays: AUROC of common findings"),
    ("nih_cxr", "exact_match_ratio", "X-rays: exact match"),
)


PAGE = click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)


@click.command(help=__doc__.split("\n")[0])
@click.argument("readme", type=PAGE)
@click.argument("page", type=PAGE)
@click.argument("images", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
def main(readme, page, images):
    """Writes the overview between the README's marks, both tables between PAGE's, and both figures to IMAGES."""
    overview = insert_overview(readme.read_text(encoding="utf-8"))
    tables = page.read_text(encoding="utf-8")
    for data in TASKS:
        tables = insert(tables, data)
    for data in TASKS:
        figures.save_figure(plot(data), images / f"six_{data}.png")
    write_text(readme, overview)
    write_text(page, tables)


def insert(text: str, data: str) -> str:
    """Returns `text` with the table of `data` between its marks."""
    return replace_marked(text, f"six {data}", markdown(data))


def insert_overview(text: str) -> str:
    """Returns `text` with the table of both data sets between its marks."""
    return replace_marked(text, "six models", markdown_overview())


def replace_marked(text: str, mark: str, content: str) -> str:
    """Returns `text` with `content` between the marks <!-- MARK --> and <!-- /MARK -->, in place of the old text."""
    found = re.search(rf"<!-- {mark} -->\n.*?<!-- /{mark} -->", text, re.DOTALL)
    if found is None:
        raise click.ClickException(f"the text lacks the marks <!-- {mark} --> and <!-- /{mark} -->.")
    return text.replace(found[0], f"<!-- {mark} -->\n{content}\n<!-- /{mark} -->")


def read_rows(data: str) -> pd.DataFrame:
    """Returns the first row of each of the six models on `data`, in the study's order, indexed by model.

    Only rows of the unchanged recipe count: a command with any further option belongs to another experiment.
    """
    rows = read_table(RESULTS / f"{data}.csv", needed=("model", "command"))
    recipe = rf"kmed train --config[= ]configs/{data}_six\.yaml --data[= ]\S+ --model \S+ --out \S+"
    rows = rows[rows["command"].str.fullmatch(recipe)].drop_duplicates("model").set_index("model")
    return rows.loc[[model for model in read_study().index if model in rows.index]]


def read_study() -> pd.DataFrame:
    """Returns the study's figures, indexed by model."""
    return pd.read_csv(RESULTS / "study.csv").set_index("model")


def markdown(data: str) -> str:
    """Returns the table of `data`: our scores with intervals, and how they compare with the study's."""
    study, lines = read_study(), []
    for model, row in read_rows(data).iterrows():
        cells = {"model": model}
        for name in get_task(TASKS[data]).study_scores:
            score = read_score(row, name)
            cells[name.replace("_", " ")] = f"{cell(score)}<br>{relation(score, study.loc[model, name])}"
        cells |= {words: cell(read_score(row, name)) for name, words in FURTHER[TASKS[data]].items()}
        lines.append(cells | {"parameters": f"{int(row['parameters']) / 1e6:.1f} M", "minutes": row["minutes"]})
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def markdown_overview() -> str:
    """Returns the table of OVERVIEW: the scores of the six on both data sets, and the best constant predictor's."""
    rows = {data: read_rows(data) for data in TASKS}
    lines = []
    for model in read_study().index:
        cells = {heading: cell(read_score(rows[data].loc[model], name)) for data, name, heading in OVERVIEW}
        parameters = f"{int(rows['blood_cells'].loc[model, 'parameters']) / 1e6:.1f} M"
        lines.append({"model": model, "parameters": parameters} | cells)
    best = {heading: f"{constant(rows[data], name):.3f}" for data, name, heading in OVERVIEW}
    lines.append({"model": "best constant", "parameters": ""} | best)
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


def constant(rows: pd.DataFrame, name: str) -> float:
    """Returns the score of the best constant predictor; 0.5 for ranking scores."""
    return 0.5 if name.startswith("auroc") else float(rows[f"best_constant_{name}"].iloc[0])


def relation(score: Score, figure: float) -> str:
    """Returns whether the interval of `score` contains a value without interval, or lies above or below it."""
    word = "contains" if score.low <= figure <= score.high else "above" if score.low > figure else "below"
    return f"{word} {figure:.3f}"


def read_score(row: pd.Series, name: str) -> Score:
    """Returns a score from a row of results; its `num_clusters` is that of the whole test split."""
    value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return Score(value, low, high, int(row["num_clusters"]))


def plot(data: str):
    """Returns a figure of the six models' scores, the study's (crosses) and the best constant's (dashed line)."""
    rows, study, shown = read_rows(data), read_study(), DRAWN[TASKS[data]]
    constants = {name: constant(rows, name) for name in shown}
    runs = {model: {name: read_score(row, name) for name in shown} for model, row in rows.iterrows()}
    crosses = {name: study.loc[rows.index, name].tolist() for name in shown if name in study}
    return figures.plot_compared(runs, constants, crosses, "the study's figures, without intervals")


if __name__ == "__main__":
    main()
