"""report.html: all that is known of a run, or of several side by side, as one page to read, print and pass on."""

import json
import pathlib

import numpy as np
import pandas as pd

from kmed import figures
from kmed.data.table import SPLITS, Table
from kmed.errors import DataError, ModelError, RunError
from kmed.evaluation.predictions import PROB, Predictions, read_predictions
from kmed.labels import negative_label
from kmed.metrics.calibration import MIN_POSITIVES
from kmed.metrics.intervals import FEW_CLUSTERS, Score
from kmed.metrics.reliability import Reliability
from kmed.metrics.scores import CALIBRATED, TUNED
from kmed.metrics.selective import RiskCoverage
from kmed.report import gallery
from kmed.report.page import Told, inline_figure, picture, words, write_page
from kmed.runs import Run, finished_run
from kmed.tasks import LOWER_IS_BETTER

PROBABILITY_SCORES = ("brier", "ece")
RANKING_SCORES = ("auroc", "average_precision")

_PANEL = (4.0, 3.2)  # inches: text of 10 points stays readable where a phone shows the figure 330 pixels wide


def write_report(run_folder, *, data=None, table: Table | None = None, model=None) -> pathlib.Path:
    """Writes a finished run's report.html from what is in its folder; returns its path.

    Pictures and explanations need the data and the model. Where they are no longer there, the page says so.

    Args:
      run_folder: what `kmed train` made, or its Run.
      data: where the pictures are now, if they have moved: a folder, a CSV or an npz.
      table: the run's data, where they are open already; None opens them.
      model: its keras.Model, where it is loaded already; None loads it.
    Raises: RunError: the run is not finished, or its folder is damaged or cannot be written.
    """
    run = finished_run(getattr(run_folder, "folder", run_folder))
    if not run.result.exists():
        raise RunError(f"{run.folder} is not judged yet: it has no result.csv. Finish it with --resume {run.folder}.")
    metrics = Told(run.metrics.name, run.read_json(run.metrics))
    names = run.read_json(run.classes)["class_names"]
    shown = [name for name in ("test", "val") if name in metrics]
    if not shown or "training" not in metrics:
        raise RunError(f"{run.metrics} holds no scores, or was written by an older kmed. Train the run again.")
    config = run.read_config()
    judged = metrics[shown[0]]
    result = pd.read_csv(run.result, dtype=str, keep_default_na=False).iloc[0].to_dict()
    predictions = read_predictions(run.predictions, names, config.task).split(shown[0])
    return write_page(
        run.report,
        "run.html.j2",
        name=run.folder.resolve().name,
        config=config,
        config_text=run.config.read_text(encoding="utf-8"),
        environment=run.read_json(run.environment),
        result=result,
        class_names=names,
        negative=negative_label(names),
        metrics=metrics,
        fitted=Told(run.fitted.name, run.read_json(run.fitted)),
        split=shown[0],
        judged=judged,
        others=[(name, metrics[name], score_sections(metrics[name])) for name in shown[1:]],
        sections=score_sections(judged),
        headline=headline(config.task, judged),
        data=count_splits(run, metrics, names),
        history=_history(run),
        figures=_figures(run, judged, int(float(result["best_epoch"]))),
        gallery=_gallery(run, predictions, table, model, data),
        few=FEW_CLUSTERS,
        min_positives=MIN_POSITIVES,
        lower_is_better=LOWER_IS_BETTER,
    )


def score_sections(judged: Told) -> list[tuple[str, list]]:
    """Returns [(kind, [(name, plain name, score, {constant: score})])] of a split's overall scores.

    The kinds are "plain" and "tuned" decisions, "ranking" and "probabilities"; no score is left out.

    Args:
      judged: of one split in metrics.json.
    """
    sections = {kind: [] for kind in ("plain", "tuned", "ranking", "probabilities")}
    for name, score in judged["scores"].items():
        plain = name.removesuffix(TUNED).removesuffix(CALIBRATED)
        kind = "tuned" if name.endswith(TUNED) else "plain"
        kind = "probabilities" if plain in PROBABILITY_SCORES else kind
        kind = "ranking" if plain.startswith(RANKING_SCORES) else kind
        beside = {constant: told["scores"][plain] for constant, told in judged["constants"].items()}
        sections[kind].append((name, plain, score, beside))
    return [(kind, rows) for kind, rows in sections.items() if rows]


def headline(task: str, judged: Told) -> list[tuple[str, Told, Told]]:
    """Returns [(name, score, the best constant predictor's)] of the few scores that stand at the top."""
    names = {"multiclass": ["accuracy", "f1_macro"], "multilabel": ["exact_match_ratio", "f1_samples"]}[task]
    best = judged["constants"][judged["verdict"]["best_constant"].raw]["scores"]
    chosen = [judged["verdict"]["ranking"].raw, *names]
    return [(name, judged["scores"][name], best[name]) for name in chosen]


def count_splits(run: Run, metrics: Told, class_names) -> list[dict]:
    """Returns, of each split, its name, counts of pictures, groups and clusters, and of each class' positives."""
    rows = pd.read_csv(run.splits, dtype=str, keep_default_na=False)
    present = [name for name in (*SPLITS, *sorted(set(rows["split"]) - set(SPLITS))) if name in set(rows["split"])]
    told = []
    for name in present:
        part = rows[rows["split"] == name]
        positives = None
        if name == "train":
            positives = [metrics["training"]["positives"][k] for k in range(len(class_names))]
        elif name in metrics:
            positives = [metrics[name]["counts"][label]["positives"] for label in class_names]
        sizes = {"pictures": len(part), "groups": part["group"].nunique(), "clusters": part["cluster"].nunique()}
        told.append({"name": name, "positives": positives, **sizes})
    return told


def _history(run: Run) -> Told:
    frame = pd.read_csv(run.history)
    frame = frame[[name for name in frame if name == "epoch" or name not in figures.NOT_PLOTTED]]
    return Told(run.history.name, json.loads(frame.to_json(orient="records", double_precision=15)))


def _figures(run: Run, judged: Told, best_epoch: int) -> dict:
    """Returns the page's figures: "curves" (one a quantity), "reliability" and "risk"."""
    history = pd.read_csv(run.history)
    names = dict.fromkeys(name.removeprefix("val_") for name in history.select_dtypes("number"))
    curves = []
    for name in sorted(names, key=lambda name: name != "loss"):
        columns = [column for column in (name, f"val_{name}") if column in history]
        if name not in figures.NOT_PLOTTED and history[columns].notna().any(axis=None):
            figure = figures.plot_history(history[["epoch", *columns]], best_epoch)
            figure.axes[0].set_title(words(name), fontsize=12)
            curves.append(inline_figure(figure, _tell_curve(history, name, columns, best_epoch), _PANEL))
    bins = {name: Reliability(**_arrays(part.raw)) for name, part in judged["reliability"].items()}
    risk = dict(judged["risk_coverage"].raw)
    area = {key: value for key, value in risk.pop("area").items() if key != "few_clusters"}
    area = Score(**{key: np.nan if value is None else value for key, value in area.items()})
    curve = RiskCoverage(**_arrays(risk), area=area)
    return {
        "curves": curves,
        "reliability": inline_figure(figures.plot_reliability(bins), _tell_reliability(bins), (4.0, 4.4)),
        "risk": inline_figure(figures.plot_risk_coverage(curve), _tell_risk(curve), _PANEL),
    }


def _arrays(fields: dict) -> dict:
    return {name: np.array(values, float) for name, values in fields.items()}  # null becomes NaN


def _tell_curve(history, name, columns, best_epoch) -> str:
    parts = []
    for column in columns:
        kind = "validation" if column.startswith("val_") else "training"
        parts.append(f"{kind} from {history[column].iloc[0]:.3f} to {history[column].iloc[-1]:.3f}")
    return f"{words(name)} over {len(history)} epochs: {', '.join(parts)}; best epoch {best_epoch}."


def _tell_reliability(bins) -> str:
    parts = []
    for name, part in bins.items():
        held = np.flatnonzero(part.counts > 0)
        pairs = ", ".join(f"{part.predicted[k]:.2f}: {part.observed[k]:.2f}" for k in held)
        parts.append(f"{name} (predicted: came true) {pairs}")
    return f"Reliability diagram. {'; '.join(parts)}."


def _tell_risk(curve) -> str:
    half = float(np.interp(0.5, curve.coverage, curve.risk))
    return (
        f"Share of wrong answers over the share of pictures answered, the surest first: {half:.3f} where half are "
        f"answered, {curve.risk[-1]:.3f} where all are."
    )


def _gallery(run: Run, predictions: Predictions, table, model, data) -> dict:
    """Returns the pictures to show, or the sentence that says why there are none."""
    errors = gallery.confident_errors(predictions)
    explained = [*gallery.confident_answers(predictions), *errors[: gallery.NUM_EXPLAINED]]
    told = {
        "num_wrong": _count_wrong(predictions),
        "errors": [],
        "explained": [],
        "no_pictures": "",
        "no_attention": "",
    }
    if not errors and not explained:
        return told
    try:
        pictures = gallery.read_pictures(run, [*errors, *explained], table, data)
    except DataError as error:
        return told | {"no_pictures": str(error), "errors": [(_answer(answer), None) for answer in errors]}
    thumbnails = [picture(pixels) for pixels in pictures]
    told["errors"] = [(_answer(answer), thumbnail) for answer, thumbnail in zip(errors, thumbnails)]
    try:
        drawn = gallery.draw_attention(run, explained, pictures[len(errors) :], model)
    except ModelError as error:
        return told | {"no_attention": str(error)}
    overlays = [picture(pixels) for pixels in drawn]
    told["explained"] = list(zip(map(_answer, explained), thumbnails[len(errors) :], overlays))
    return told


def _answer(answer: gallery.Answer) -> dict:
    prob = Told("predictions.csv", {answer.path: {f"{PROB}{answer.class_name}": answer.prob}})
    return {**vars(answer), "prob": prob[answer.path][f"{PROB}{answer.class_name}"]}


def _count_wrong(predictions: Predictions) -> int:
    known = ~np.isnan(predictions.labels)
    return int((known & (predictions.decided() != (predictions.labels == 1))).any(axis=1).sum())
