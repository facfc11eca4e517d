"""report.html: everything that is known about a run, on one page to read, print and pass on."""

import json
import pathlib
import shlex
import typing

import numpy as np

from kmed import figures
from kmed.data.splits import HELD_OUT
from kmed.data.table import SPLITS, Table
from kmed.errors import DataError, ModelError, RunError
from kmed.evaluation.cases import CaseRule
from kmed.evaluation.predictions import PROB, Predictions, stored_predictions
from kmed.labels import negative_label
from kmed.metrics.calibration import MIN_POSITIVES
from kmed.metrics.intervals import FEW_CLUSTERS, Score
from kmed.metrics.reliability import Reliability
from kmed.metrics.scores import CALIBRATED, TUNED
from kmed.metrics.selective import RiskCoverage
from kmed.metrics.thresholds import Thresholds
from kmed.progress import optional
from kmed.report import gallery
from kmed.report.checklist.facts import Facts
from kmed.report.checklist.filled import count_status, write_checklist
from kmed.report.page import Cited, inline_figure, picture, render_page, run_content, words
from kmed.report.unlabelled_page import write_unlabelled
from kmed.runs import Run, judged_run, judged_split, unscored, without_labels
from kmed.tasks import LOWER_IS_BETTER, Task

_SHOWN = ("data", "epochs", "best_epoch", "parameters", "minutes", "device", "versions", "command")  # of result.csv
_PANEL = (4.0, 3.2)  # inches: text of 10 points stays readable where a phone shows the figure 330 pixels wide


def write_report(
    run_folder, *, data=None, checklist: bool = False, table: Table | None = None, model=None
) -> pathlib.Path:
    """Writes a finished run's report.html from what is in its folder; returns its path.

    Images and explanations need the data and the model. If these are gone, the page says so. A run that was
    recalibrated without labels has no scores; its page shows what was found.

    Args:
      run_folder: what `kmed train` made, or its Run.
      data: where the images are now, if they have moved: a folder, a CSV or an npz.
      checklist: also write checklist.md, the items of CLAIM 2024 and TRIPOD+AI with the run's answers, and show them
        on the page. A run that has a checklist.md gets it in any case, and keeps what the authors wrote into it.
      table: the run's data, if they are already open; None opens them.
      model: the run's keras.Model, if it is already loaded; None loads it.
    Raises: RunError: the run is not finished, or its folder is damaged or cannot be written.
    """
    run = judged_run(getattr(run_folder, "folder", run_folder), unlabelled=True)
    if without_labels(run):
        if checklist:
            raise unscored(run)
        return write_unlabelled(run)
    metrics = Cited(run.metrics.name, run.read_json(run.metrics))
    content = _content(run, metrics, table, model, data)
    checklists = write_checklist(_facts(run, content)) if checklist or run.checklist.exists() else []
    return render_page(run.report, "run.html.j2", **content, checklists=checklists, count_status=count_status)


def _content(run: Run, metrics: Cited, table, model, data) -> dict:
    """Returns what the page's templates show."""
    names = run.read_classes().class_names
    split = judged_split(metrics)
    content, result = run_content(run), run.read_result(_SHOWN)
    task, assessed, fitted = content["task"], metrics[split], run.read_json(run.fitted)
    others = ["val"] if split == "test" and "val" in metrics else []
    return {
        **content,
        "result": result,
        "class_names": names,
        "negative": negative_label(names),
        "metrics": metrics,
        "fitted": Cited(run.fitted.name, fitted),
        "cases_sentence": describe_cases(assessed),
        "choice": Thresholds.from_dict(fitted["thresholds"], names).choice,
        "split": split,
        "assessed": assessed,
        "others": [(name, metrics[name], score_sections(task, metrics[name])) for name in others],
        "sections": score_sections(task, assessed),
        "headline": pick_headline(task, assessed),
        "meanings": {name: row.meaning for name, row in task.make_scores().items() if row.meaning},
        "data": count_splits(run, metrics, names),
        "held_out": run.splits.exists() and HELD_OUT in set(run.read_splits()["split"]),
        "ensemble": run.read_json(run.ensemble) if run.ensemble.exists() else None,
        "recalibrated": run.read_json(run.recalibration)["sentences"] if run.recalibration.exists() else [],
        "history": _history(run),
        "figures": _figures(run, assessed, int(float(result["best_epoch"]))),
        "gallery": _gallery(run, stored_predictions(run).split(split), table, model, data),
        "few": FEW_CLUSTERS,
        "min_positives": MIN_POSITIVES,
        "lower_is_better": LOWER_IS_BETTER,
    }


def _facts(run: Run, content: dict) -> Facts:
    """Returns what the check-lists are answered from: a part of the page's content."""
    return Facts(run, **{name: content[name] for name in Facts.__dataclass_fields__ if name != "run"})


def try_report(run: Run) -> None:
    """Writes report.html for a run whose results are stored; if that fails, it is one warning."""
    with optional(f"The page {run.report}", f"Draw it again with: kmed report {shlex.quote(str(run.folder))}"):
        run.report.unlink(missing_ok=True)  # an older page would show other scores
        write_report(run)


def describe_cases(assessed: Cited) -> str:
    """Returns how the pictures of a split were pooled to cases; "" if they were not."""
    if "cases" not in assessed:
        return ""
    fields = assessed["cases"].raw
    rule = CaseRule(*(fields[name] for name in ("by", "pooling", "tried")))
    return rule.sentence(fields["num_pictures"], fields["num_images"], len(fields["mixed"]))


def score_sections(task: Task, assessed: Cited) -> list[tuple[str, list]]:
    """Returns [(kind, [(name, plain name, score, {constant: score})])] for a split's overall scores.

    The kinds are "plain" and "tuned" decisions, "ranking" and "probabilities"; no score is left out.

    Args:
      task: kmed.tasks.Task.
      assessed: the split's part of metrics.json.
    """
    sections: dict[str, list] = {kind: [] for kind in ("plain", "tuned", "ranking", "probabilities")}
    rows = task.make_scores()
    for name, score in assessed["scores"].items():
        plain = name.removesuffix(TUNED).removesuffix(CALIBRATED)
        kind = rows[plain].kind if plain in rows else "decisions"
        if kind == "decisions":
            kind = "tuned" if name.endswith(TUNED) else "plain"
        beside = {constant: scored["scores"][plain] for constant, scored in assessed["constants"].items()}
        sections[kind].append((name, plain, score, beside))
    return [(kind, scores) for kind, scores in sections.items() if scores]


def pick_headline(task: Task, assessed: Cited) -> list[tuple[str, Cited, Cited]]:
    """Returns [(name, score, the best constant predictor's)] for the few scores at the top of the page."""
    best = assessed["constants"][assessed["verdict"]["best_constant"].raw]["scores"]
    chosen = [assessed["verdict"]["ranking"].raw, *task.headline_scores]
    return [(name, assessed["scores"][name], best[name]) for name in chosen]


def count_splits(run: Run, metrics: Cited, class_names) -> list[dict]:
    """Returns each split's name, its counts of images, groups and clusters, and the positives of each class.

    Returns an empty list without splits.csv, which runs kept for comparison lack.
    """
    if not run.splits.exists():
        return []
    rows = run.read_splits()
    present = [name for name in (*SPLITS, *sorted(set(rows["split"]) - set(SPLITS))) if name in set(rows["split"])]
    counted = []
    for name in present:
        part = rows[rows["split"] == name]
        positives = None
        if name == "train":
            positives = [metrics["training"]["positives"][k] for k in range(len(class_names))]
        elif name in metrics:
            positives = [metrics[name]["counts"][label]["positives"] for label in class_names]
        sizes = {"pictures": len(part), "groups": part["group"].nunique(), "clusters": part["cluster"].nunique()}
        counted.append({"name": name, "positives": positives, **sizes})
    return counted


def _history(run: Run) -> Cited:
    frame = run.read_history()  # of an ensemble, none
    frame = frame[[name for name in frame if name == "epoch" or name not in figures.NOT_PLOTTED]]
    return Cited(run.history.name, json.loads(frame.to_json(orient="records", double_precision=15)))


def _figures(run: Run, assessed: Cited, best_epoch: int) -> dict:
    """Returns the page's figures: "curves" (one per quantity; an ensemble has none), "reliability" and "risk"."""
    bins = {name: Reliability(**_arrays(part.raw)) for name, part in assessed["reliability"].items()}
    risk = dict(assessed["risk_coverage"].raw)
    area: dict[str, typing.Any] = {key: np.nan if value is None else value for key, value in risk.pop("area").items()}
    del area["few_clusters"]
    curve = RiskCoverage(**_arrays(risk), area=Score(**area))
    return {
        "curves": _curves(run, best_epoch),
        "reliability": inline_figure(figures.plot_reliability(bins), _reliability_words(bins), (4.0, 4.4)),
        "risk": inline_figure(figures.plot_risk_coverage(curve), _risk_words(curve), _PANEL),
    }


def _curves(run: Run, best_epoch: int) -> list:
    history = run.read_history()
    if best_epoch > len(history):
        raise RunError(f"{run.result}: best_epoch is {best_epoch}, but {run.history} has {len(history)} epochs.")
    names = dict.fromkeys(name.removeprefix("val_") for name in history.select_dtypes("number"))
    curves = []
    for name in sorted(names, key=lambda name: name != "loss"):
        columns = [column for column in (name, f"val_{name}") if column in history]
        if name not in figures.NOT_PLOTTED and history[columns].notna().any(axis=None):
            figure = figures.plot_history(history[["epoch", *columns]], best_epoch)
            figure.axes[0].set_title(words(name), fontsize=12)
            curves.append(inline_figure(figure, _curve_words(history, name, columns, best_epoch), _PANEL))
    return curves


def _arrays(fields: dict) -> dict:
    return {name: np.array(values, float) for name, values in fields.items()}  # null becomes NaN


def _curve_words(history, name, columns, best_epoch) -> str:
    parts = []
    for column in columns:
        kind = "validation" if column.startswith("val_") else "training"
        parts.append(f"{kind} from {history[column].iloc[0]:.3f} to {history[column].iloc[-1]:.3f}")
    return f"{words(name)} over {len(history)} epochs: {', '.join(parts)}; best epoch {best_epoch}."


def _reliability_words(bins) -> str:
    parts = []
    for name, part in bins.items():
        held = np.flatnonzero(part.counts > 0)
        pairs = ", ".join(f"{part.predicted[k]:.2f}: {part.observed[k]:.2f}" for k in held)
        parts.append(f"{name} (predicted: observed) {pairs}")
    return f"Reliability diagram. {'; '.join(parts)}."


def _risk_words(curve) -> str:
    half = float(np.interp(0.5, curve.coverage, curve.risk))
    return (
        f"Share of wrong answers against the share of pictures answered, the surest first: {half:.3f} if half are "
        f"answered, {curve.risk[-1]:.3f} if all are."
    )


def _gallery(run: Run, predictions: Predictions, table, model, data) -> dict:
    """Returns the pictures to show, or a sentence that says why there are none."""
    errors = gallery.confident_errors(predictions)
    explained = [*gallery.confident_answers(predictions), *errors[: gallery.NUM_EXPLAINED]]
    shown = {
        "num_wrong": _count_wrong(predictions),
        "errors": [],
        "explained": [],
        "no_pictures": "",
        "no_attention": "",
    }
    if not errors and not explained:
        return shown
    try:
        rows = np.array([example.row for example in (*errors, *explained)])
        pictures = gallery.read_pictures(run, predictions.take(rows), table, data)
    except DataError as error:
        return shown | {"no_pictures": str(error), "errors": [(_example(example), None) for example in errors]}
    thumbnails = [picture(pixels) for pixels in pictures]
    shown["errors"] = [(_example(example), thumbnail) for example, thumbnail in zip(errors, thumbnails)]
    if model is None and not run.model.exists():
        return shown | {"no_attention": f"the run folder no longer holds its weights ({run.model.name})."}
    try:
        drawn = gallery.draw_attention(run, explained, pictures[len(errors) :], model)
    except ModelError as error:
        return shown | {"no_attention": str(error)}
    overlays = [picture(pixels) for pixels in drawn]
    shown["explained"] = list(zip(map(_example, explained), thumbnails[len(errors) :], overlays))
    return shown


def _example(example: gallery.Example) -> dict:
    prob = Cited("predictions.csv", {example.path: {f"{PROB}{example.class_name}": example.prob}})
    truth = example.truth.replace("|", ", ")
    return {**vars(example), "truth": truth, "prob": prob[example.path][f"{PROB}{example.class_name}"]}


def _count_wrong(predictions: Predictions) -> int:
    known = ~np.isnan(predictions.labels)
    return int((known & (predictions.decided() != (predictions.labels == 1))).any(axis=1).sum())
