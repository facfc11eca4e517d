"""Figures: they draw what they were given, and change no global state."""

import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kmed.errors import RunError
from kmed.figures import plot_confusion, plot_history, save_figure
from kmed.metrics.class_scores import Confusion


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
