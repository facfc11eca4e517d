"""Figures: they draw what they were given, and change no global state."""

import itertools
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kmed.errors import RunError
from kmed.evaluation.assessment import assess
from kmed.evaluation.predictions import Predictions
from kmed.figures import (
    drawable,
    drawable_names,
    plot_compared,
    plot_confusion,
    plot_histories,
    plot_history,
    plot_importance,
    plot_per_class,
    plot_trials,
    save_figure,
)
from kmed.metrics.baselines import count_prior
from kmed.metrics.class_scores import Confusion
from kmed.metrics.intervals import Bootstrap
from kmed.report.page import inline_figure
from kmed.tasks import get_task


def history(num_epochs=3):
    epochs = np.arange(1, num_epochs + 1)
    return pd.DataFrame(
        {
            "epoch": epochs,
            "learning_rate": 1e-3,
            "accuracy": epochs / 10,
            "val_accuracy": epochs / 20,
            "loss": 1 / epochs,
            "val_loss": 2 / epochs,
            "val_auroc_macro": 0.5,
            "seconds": 3.0,
            "note": "text",
        }
    )


def test_history_draws_each_quantity_once_loss_first():
    figure = plot_history(history(), best_epoch=2)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "accuracy", "auroc macro"]
    training, validation, best = figure.axes[0].get_lines()
    np.testing.assert_allclose(training.get_ydata(), history()["loss"])
    np.testing.assert_allclose(validation.get_ydata(), history()["val_loss"])
    assert set(best.get_xdata()) == {2}
    labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert labels == ["validation", "best epoch (2)"]


def test_trials_are_drawn_with_the_best_one_so_far():
    scores = pd.DataFrame({"trial": range(4), "state": ["finished", "finished", "pruned", "finished"]})
    scores["val_loss"] = [0.5, 0.7, 0.1, 0.4]
    so_far, finished, others = plot_trials(scores, "val_loss", minimize=True).axes[0].get_lines()
    assert list(so_far.get_ydata()) == [0.5, 0.5, 0.4] and list(finished.get_ydata()) == [0.5, 0.7, 0.4]
    assert list(others.get_xdata()) == [2]
    so_far, _, _ = plot_trials(scores, "val_loss", minimize=False).axes[0].get_lines()
    assert list(so_far.get_ydata()) == [0.5, 0.7, 0.7]


def test_importance_has_a_bar_per_setting():
    (axes,) = plot_importance({"train.learning_rate": 0.8, "augment.level": 0.2}).axes
    assert [bar.get_width() for bar in axes.patches] == [0.8, 0.2]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["train.learning_rate", "augment.level"]


@pytest.mark.parametrize("num_epochs", [1, 40])
def test_history_is_saved_as_png(num_epochs, tmp_path):
    save_figure(plot_history(history(num_epochs)), tmp_path / "figures" / "history.png")
    with Image.open(tmp_path / "figures" / "history.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["history.png"]


def test_confusion_shows_counts_and_shares_of_the_row(tmp_path):
    counts = np.array([[30, 10], [0, 0]])
    figure = plot_confusion(counts, ["red_cell", "blood"], "test")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["30\n75 %", "10\n25 %", "0", "0"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["red cell", "blood"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("predicted class", "true class", "test")
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])
    save_figure(figure, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert len(image.convert("L").getcolors()) > 20


def test_confusion_accepts_a_scored_confusion_and_many_classes():
    counts = np.eye(30, dtype=int)
    figure = plot_confusion(Confusion(counts, low=counts, high=counts), [f"class {k}" for k in range(30)])
    assert not figure.axes[0].texts  # numbers would overlap
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), counts)


def test_no_pyplot():
    assert "pyplot" not in vars(sys.modules["kmed.figures"])
    plot_history(history())
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize("frame", [history().drop(columns="epoch"), history().head(0), history()[["epoch", "seconds"]]])
def test_history_without_anything_to_draw(frame):
    with pytest.raises(RunError, match="Received: columns="):
        plot_history(frame)


# Class names that matplotlib would read as mathematics, that its font lacks, or that would take all the room.
ODD_NAMES = (
    "$\\bad_{x$", "$", "$$", "a$b$c", "\\$5", "$\\mathdefault{\\frac$", "x_{1}^2", "back\\", "line\nbreak", "tab\t\r\n",
    "n" * 300, "\u7ec6\u80de", "\u0645\u0631\u062d\u0628\u0627", "\U0001f600\U0001fac0", "\u202eright to left",
    "\udcf6 no UTF-8", "\x00", "", "  ", "<b>&\"'</b>", "%s {} {0}", "a_b", "a b", "CON", "../..", "_hidden",
)  # fmt: skip


def scored(names, split="test"):
    """Returns the Assessment of drawn predictions of a multilabel run with these class names."""
    rng = np.random.default_rng(0)
    labels = (rng.random((60, len(names))) < 0.5).astype(float)
    rows = pd.DataFrame(
        {"path": np.arange(60).astype(str), "split": split, "group": "g", "cluster": np.arange(60) % 30}
    )
    predictions = Predictions(rows, labels, rng.random(labels.shape), tuple(names), get_task("multilabel"))
    return assess(predictions, count_prior(labels, tuple(names)), Bootstrap(num_resamples=10))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_names", [1, len(ODD_NAMES)])
def test_odd_names_are_drawn_as_they_are(num_names, tmp_path):
    names = ODD_NAMES[:num_names]
    of_runs = {name: history() for name in names}
    part = scored(names)
    figures = {
        "confusion": plot_confusion(np.eye(num_names, dtype=int), names, "test"),
        "per_class": plot_per_class(part.scores, "test"),
        "histories": plot_histories(of_runs),
        "compared": plot_compared(dict.fromkeys(names, part.scores.scores), {"f1_macro": 0.5}),
    }
    for name, figure in figures.items():
        save_figure(figure, tmp_path / f"{name}.png")
        assert "<svg" in inline_figure(figure, "A figure.")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    shown = [tick.get_text() for tick in figures["confusion"].axes[0].get_yticklabels()]
    assert shown[0] == r"\$\bad {x\$" and len(set(shown)) == num_names
    assert max(map(len, shown)) < 50


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("benign", "benign"),
        ("a$b$c", r"a\$b\$c"),
        ("\\$5", r"\\$5"),
        ("line\nbreak \t and\x00more", "line break and more"),
        ("\u7ec6\u80de x", "\u25a1\u25a1 x"),
        ("gr\udcf6sse", "gr\ufffdf6sse"),
        ("n" * 41, "n" * 37 + "..."),
        ("n" * 40, "n" * 40),
        ("stra\u00dfe \u00e9\u03b1", "stra\u00dfe \u00e9\u03b1"),
        ("\u202eabc", "abc"),
        ("", ""),
    ],
)
def test_what_is_drawn_of_a_name(name, shown):
    assert drawable(name) == shown


def test_names_that_look_the_same_are_numbered():
    assert drawable_names(["a_b", "c", "a b", "\u7ec6", "\u80de"]) == [
        "a b (1)",
        "c",
        "a b (3)",
        "\u25a1 (4)",
        "\u25a1 (5)",
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", itertools.product([np.nan, np.inf, -np.inf, 1.0], repeat=2))
def test_curves_with_values_that_are_not_finite(values):
    frame = pd.DataFrame({"epoch": [1, 2], "loss": values, "val_loss": values[::-1], "accuracy": [0.1, 0.2]})
    for figure in (plot_history(frame, best_epoch=1), plot_histories({"a": frame, "b": frame})):
        assert "<svg" in inline_figure(figure, "Curves.")
