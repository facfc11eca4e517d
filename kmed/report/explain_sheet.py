"""What a finished run looks at: heat maps of telling pictures, or of the user's own, as PNG files."""

import pathlib
import re

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image

from kmed.data.images import Pictures, read_image
from kmed.data.prepare import open_table
from kmed.errors import DataError, suggest
from kmed.evaluation.inference import run_table
from kmed.evaluation.predictions import Predictions, read_predictions
from kmed.figures import save_figure
from kmed.files import replacing
from kmed.labels import join_names
from kmed.models.heatmaps import COLOR_MAP, explain, overlay
from kmed.models.keras_file import load_model
from kmed.progress import say
from kmed.runs import Run, finished_run

PICTURES_A_KIND = 4

PAIRS_A_ROW = 3

KINDS = ("error", "hit", "random")


def explain_run(run_folder, files=(), *, class_name=None, data=None, out=None, seed: int = 0) -> list[pathlib.Path]:
    """Writes what a run's model looks at, and returns the paths: an overlay a picture, and all on one sheet.

    Without `files`, of the test split (of the validation split where there is no test split): the 4
    surest errors, the 4 surest hits, and 4 pictures drawn at random, since the surest are not the
    usual ones. A hit is a picture whose most probable class is among its labels.

    Args:
      run_folder: what `kmed train` made.
      files: pictures to explain instead; any size, read as the run's pictures were.
      class_name: the class to explain; None takes each picture's most probable one.
      data: the folder, CSV or npz to read instead of the one in the run's settings.
      out: the folder to write into; None takes figures/explain in the run folder.
      seed: decides which pictures are drawn at random.
    Raises: RunError: no such run, or it is not finished. DataError: the pictures are gone or cannot
      be read, or the class does not exist.
    Example:
      >>> explain_run("saved_models/latest", out="looked_at")
    """
    run = finished_run(run_folder)
    config, class_names = run.read_config(data), run.read_json(run.classes)["class_names"]
    if class_name is not None and class_name not in class_names:
        raise DataError(
            f"The run has no class {class_name!r}.{suggest(class_name, class_names)} "
            f"Its classes: {', '.join(class_names)}."
        )
    geometry = (config.data.image_size, config.data.fit, config.data.interpolation)
    if files:
        images = np.stack([read_image(file, *geometry) for file in files])
        names, truths = [f"picture{number}_{_plain(file)}" for number, file in enumerate(files, 1)], [""] * len(files)
    else:
        images, names, truths = _telling_pictures(run, config, class_names, seed)
    model = load_model(run.model)
    say(f"Explaining {len(images)} pictures ...")
    probs = np.asarray(model.predict(images, batch_size=config.evaluate.batch_size, verbose=0))
    if class_name is None:
        chosen = probs.argmax(axis=1)
    else:
        chosen = np.full(len(images), class_names.index(class_name))
    heat = explain(model, images, chosen)
    told = [class_names[index] for index in chosen]
    titles = [
        _title(truth, name, prob) for truth, name, prob in zip(truths, told, probs[np.arange(len(chosen)), chosen])
    ]
    out = pathlib.Path(out) if out is not None else run.figures / "explain"
    return _write(out, images, heat, names, titles)


def _telling_pictures(run: Run, config, class_names, seed: int):
    """Returns (images, names, true classes) of the surest errors, the surest hits, and some drawn at random."""
    predictions = read_predictions(run.predictions, class_names, config.task)
    split = "test" if len(predictions.split("test")) else "val"
    predictions = predictions.split(split)
    kinds, rows = choose(predictions, seed)
    chosen = predictions.take(rows)
    table = run_table(run, open_table(config)).split(split)
    places = {path: place for place, path in enumerate(table.rows["path"])}
    if lost := [path for path in chosen.rows["path"] if path not in places]:
        raise DataError(f"{run.predictions} names {lost[0]}, which is not in split {split!r} of {table.name}.")
    table = table.take([places[path] for path in chosen.rows["path"]])
    geometry = {"fit": config.data.fit, "interpolation": config.data.interpolation}
    images = Pictures(table, config.data.image_size, cache="none", **geometry).gather(np.arange(len(table)))
    names = [f"{kind}_{_plain(path)}" for kind, path in zip(kinds, chosen.rows["path"], strict=True)]
    return images, names, [names or "none" for names in join_names(chosen.labels, class_names)]


def choose(predictions: Predictions, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Returns (kinds, rows): "error1", "error2", ..., "hit1", ..., "random1", ... and the row of each.

    Args:
      predictions: of the pictures of one split.
      seed: of the random ones, which are none of the others.
    """
    sure, best = predictions.probs.max(axis=1), predictions.probs.argmax(axis=1)
    labels = predictions.labels[np.arange(len(predictions)), best]  # NaN, unknown, is neither hit nor error
    order = np.argsort(-sure, kind="stable")
    found = {
        "error": order[labels[order] == 0][:PICTURES_A_KIND],
        "hit": order[labels[order] == 1][:PICTURES_A_KIND],
    }
    others = np.setdiff1d(np.arange(len(predictions)), np.concatenate(list(found.values())))
    found["random"] = np.random.default_rng(seed).permutation(others)[:PICTURES_A_KIND]
    kinds = [f"{kind}{number}" for kind in KINDS for number in range(1, len(found[kind]) + 1)]
    return kinds, np.concatenate([found[kind] for kind in KINDS])


def draw_sheet(images, overlays, titles, kinds) -> Figure:
    """Returns a Figure with each picture beside its overlay.

    Args:
      images, overlays: uint8 (N, H, W, 3).
      titles: N strings, above the overlays.
      kinds: N strings, above the pictures.
    """
    num_rows = -(-len(images) // PAIRS_A_ROW)
    num_pairs = min(PAIRS_A_ROW, len(images))
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
    scale.set_ticklabels(["nothing", "most"], fontsize=8)
    scale.set_label("speaks for the class", fontsize=8)
    return figure


def _write(out: pathlib.Path, images, heat, names, titles) -> list[pathlib.Path]:
    overlays = np.stack([overlay(image, heatmap) for image, heatmap in zip(images, heat, strict=True)])
    paths = []
    for name, picture in zip(names, overlays, strict=True):
        paths.append(out / f"{name}.png")
        with replacing(paths[-1]) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
    titles = [title if heatmap.any() else f"{title}\n(no place stands out)" for title, heatmap in zip(titles, heat)]
    kinds = [name.replace("_", "\n", 1) for name in names]
    sheet = out / "explain.png"
    save_figure(draw_sheet(images, overlays, titles, kinds), sheet)
    return [*paths, sheet]


def _title(truth: str, name: str, prob: float) -> str:
    lines = [f"true: {truth}"] if truth else []
    return "\n".join([*lines, f"{name}: {prob:.2f}"])


def _plain(path) -> str:
    """Returns a file's name without folders and suffix, in letters that every file system takes."""
    return re.sub(r"[^\w.-]", "_", pathlib.Path(path).stem)[:60]
