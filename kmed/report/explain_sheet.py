"""What a finished run looks at: heat maps of chosen test pictures, or of the user's own, as PNG files."""

import pathlib
import re

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image

from kmed.data.images import Resizing, read_image
from kmed.errors import DataError, suggest
from kmed.evaluation.predictions import Predictions, stored_predictions
from kmed.figures import drawable, save_figure
from kmed.files import replacing
from kmed.labels import join_names
from kmed.models.heatmaps import COLOR_MAP, explain_and_overlay
from kmed.models.keras_file import load_run_model
from kmed.progress import say
from kmed.report import gallery
from kmed.runs import Run, finished_run, judged_split

PAIRS_PER_ROW = 3


def explain_run(run_folder, files=(), *, class_name=None, data=None, out=None, seed: int = 0) -> list[pathlib.Path]:
    """Writes what a run's model looks at, and returns the paths: one overlay per picture, then a sheet of them all.

    Without `files`, the pictures are of the test split (or of the validation split if there is no test split): the 4
    most confident errors, the 4 most confident hits, and 4 drawn at random, since the most confident are not typical.
    A hit is a picture whose most probable class is among its labels.

    Args:
      run_folder: what `kmed train` made.
      files: pictures to explain instead; any size, read as the run's pictures were.
      class_name: the class to explain; None: the most probable class of each picture.
      data: the folder, CSV or npz to read instead of the one in the run's settings.
      out: the folder to write to; None: figures/explain in the run folder.
      seed: of the pictures drawn at random.
    Raises: RunError: no such run, or it is not finished. DataError: the pictures are gone or cannot
      be read, or the class does not exist.
    Example:
      >>> explain_run("saved_models/latest", out="looked_at")
    """
    run = finished_run(run_folder)
    config, class_names = run.read_config(data), run.read_classes().class_names
    if class_name is not None and class_name not in class_names:
        raise DataError(
            f"The run has no class {class_name!r}.{suggest(class_name, class_names)} "
            f"Its classes: {', '.join(class_names)}."
        )
    if files:
        resizing = Resizing.from_settings(config.data)
        images = np.stack([read_image(file, resizing) for file in files])
        names, truths = [f"picture{number}_{_plain(file)}" for number, file in enumerate(files, 1)], [""] * len(files)
    else:
        predictions = stored_predictions(run)
        images, names, truths = _chosen_pictures(run, predictions, seed, data)
    model = load_run_model(run)
    say(f"Explaining {len(images)} pictures ...")
    probs = np.asarray(model.predict(images, batch_size=config.evaluate.batch_size, verbose=0))
    if class_name is None:
        chosen = probs.argmax(axis=1)
    else:
        chosen = np.full(len(images), class_names.index(class_name))
    heat, overlays = explain_and_overlay(model, images, chosen)
    explained = [class_names[index] for index in chosen]
    shown_probs = probs[np.arange(len(chosen)), chosen]
    titles = [_title(*each) for each in zip(truths, explained, shown_probs, (heatmap.any() for heatmap in heat))]
    out = pathlib.Path(out) if out is not None else run.figures / "explain"
    return _write(out, images, overlays, names, titles)


def _chosen_pictures(run: Run, predictions: Predictions, seed: int, data):
    """Returns (images, names, true classes) of the most confident errors and hits, and of some drawn at random."""
    of_split = predictions.split(judged_split(set(predictions.rows["split"])))
    kinds, rows = gallery.choose_pictures(of_split, seed)
    chosen = of_split.take(rows)
    images = gallery.read_pictures(run, chosen, data=data)
    names = [f"{kind}_{_plain(path)}" for kind, path in zip(kinds, chosen.rows["path"], strict=True)]
    return images, names, [names or "none" for names in join_names(chosen.labels, chosen.class_names)]


def draw_sheet(images, overlays, titles, kinds) -> Figure:
    """Returns a Figure with each picture beside its overlay.

    Args:
      images, overlays: uint8 (N, H, W, 3).
      titles: N strings, above the overlays.
      kinds: N strings, above the pictures.
    """
    num_rows = -(-len(images) // PAIRS_PER_ROW)
    num_pairs = min(PAIRS_PER_ROW, len(images))
    height, width = images.shape[1:3]
    figure = Figure(
        figsize=(4.4 * num_pairs + 0.8, (2.1 * height / width + 0.55) * num_rows + 0.2), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(num_rows, 2 * num_pairs, squeeze=False)
    for axis in panels.ravel():
        axis.set_axis_off()
    for axis, picture, title in zip(
        panels.ravel(),
        np.stack([images, overlays], axis=1).reshape(-1, height, width, 3),
        [text for pair in zip(kinds, titles, strict=True) for text in pair],
        strict=False,
    ):
        axis.imshow(picture)
        axis.set_title(title, fontsize=8, pad=3)
    scale = figure.colorbar(ScalarMappable(cmap=COLOR_MAP), ax=panels, fraction=0.02, pad=0.01, ticks=[0, 1])
    scale.set_ticklabels(["none", "most"], fontsize=8)
    scale.set_label("evidence for the class", fontsize=8)
    return figure


def _write(out: pathlib.Path, images, overlays, names, titles) -> list[pathlib.Path]:
    paths = []
    for name, picture in zip(names, overlays, strict=True):
        paths.append(out / f"{name}.png")
        with replacing(paths[-1]) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
    kinds = ["\n".join(map(drawable, name.split("_", 1))) for name in names]
    sheet = out / "explain.png"
    save_figure(draw_sheet(images, overlays, titles, kinds), sheet)
    return [*paths, sheet]


def _title(truth: str, name: str, prob: float, has_evidence: bool) -> str:
    lines = [f"true: {drawable(truth)}"] if truth else []
    lines += [f"{drawable(name)}: {prob:.2f}"]
    return "\n".join(lines if has_evidence else [*lines, "(no place stands out)"])


def _plain(path) -> str:
    """Returns a file's name without folders and suffix, in characters that every file system accepts."""
    return re.sub(r"[^\w.-]", "_", pathlib.Path(path).stem)[:60]
