"""An ensemble as a run folder: its model, splits, scores and figures, made from finished runs."""

import dataclasses
import pathlib

import numpy as np
import pandas as pd

from kmed import runtime
from kmed.config import Config, ModelConfig, load_config
from kmed.data.prepare import open_table
from kmed.data.splits import write_splits
from kmed.errors import ConfigError
from kmed.evaluation.cases import check_columns
from kmed.evaluation.decisions import fit_on_validation
from kmed.evaluation.inference import novelty_reference, predict_with_distances, run_table
from kmed.evaluation.members import (
    Judged,
    differing_settings,
    judge_pictures,
    judges_of,
    mean_probs,
    relative_path,
    validation_losses,
)
from kmed.evaluation.novelty import feature_model
from kmed.evaluation.predictions import make_predictions
from kmed.evaluation.result_rows import in_order, score_columns
from kmed.evaluation.run_evaluation import write_figures, write_novelty, write_scores
from kmed.files import write_frame, write_json
from kmed.models.combined import check_views, combine
from kmed.models.keras_file import load_plain_model, save_model
from kmed.models.registry import ENSEMBLE
from kmed.progress import say
from kmed.runs import Run, judged_split, write_classes, written_whole
from kmed.schemas.records import stamped
from kmed.schemas.tables import PREDICTED
from kmed.tasks import Task, get_task

TOTALS = ("epochs", "images_seen", "minutes")  # columns of a result that are summed over the members
AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class Plan:
    """An ensemble that is to be made.

    Attributes:
      members: its runs.
      out: its folder.
      requested: "auto", "probabilities" or "logits".
      config: its settings: those of the first member, without a network, and with the changes asked for.
    """

    members: tuple[Run, ...]
    out: pathlib.Path
    requested: str
    config: Config

    @property
    def task(self) -> Task:
        """The task of all members."""
        return get_task(self.config.task)

    def record(self) -> list[dict]:
        """Returns the members as ensemble.json has them."""
        configs = [run.read_config() for run in self.members]
        return [
            {"path": relative_path(run.folder, self.out), "model": config.model.name, "settings": differing}
            for run, config, differing in zip(self.members, configs, differing_settings(configs), strict=True)
        ]


def make_plan(members: list[Run], out, requested: str, data, settings) -> Plan:
    """Returns the Plan of an ensemble. Raises ConfigError: settings other than those of evaluate, or illegal views."""
    for setting in settings:
        if not str(setting).startswith("evaluate."):
            raise ConfigError(f"An ensemble takes only settings of evaluate. Received: {setting!r}.")
    moved = [] if data is None else [("data.path", str(pathlib.Path(data).expanduser().absolute()))]
    config = load_config(members[0].config, [*settings, *moved])
    for run in members:
        check_views(run.read_config().model_copy(update={"evaluate": config.evaluate}))
    config = config.model_copy(update={"model": ModelConfig(name=ENSEMBLE)})
    return Plan(tuple(members), pathlib.Path(out), requested, config)


def find_made(plan: Plan) -> Run | None:
    """Returns the run in the plan's folder if it is this ensemble; None if it is not."""
    run = Run(plan.out)
    if not (run.ensemble.exists() and run.result.exists()):
        return None
    stored = run.read_json(run.ensemble)
    same = (stored["members"], stored["requested"]) == (plan.record(), plan.requested)
    return run if same and run.read_config() == plan.config else None


def write_ensemble(plan: Plan) -> Run:
    """Writes an ensemble, whole or not at all, and returns its run.

    Raises: RunError: the folder is taken, or a member has seen a held-out picture. DataError: the pictures cannot be
      read, or are not those of the members.
    """
    with written_whole(plan.out) as run:
        table = open_table(plan.config)
        check_columns(table.rows, plan.config.evaluate)
        judged = judge_pictures(list(plan.members), table)
        _describe(plan, judged)
        _write(run, plan, judged)
    return Run(plan.out)


def _describe(plan: Plan, judged: Judged) -> None:
    """Says which pictures judge the ensemble, and how many of its members may judge each."""
    splits, judges = judged.table.rows["split"], judges_of(judged.table, len(plan.members))
    names = [name for name in dict.fromkeys(("train", *PREDICTED, *splits)) if (splits == name).any()]
    counts = ", ".join(f"{(splits == name).sum()} {name}" for name in names)
    say(f"Ensemble of {len(plan.members)}: {', '.join(str(run.folder) for run in plan.members)}. Pictures: {counts}.")
    validating = judges[(splits == "val").to_numpy()].sum(axis=1)
    if (validating < len(plan.members)).any():
        say(
            f"Each of the {len(validating)} validation pictures is judged by the members that were not trained on it: "
            f"{validating.min()} to {validating.max()} of {len(plan.members)}. All members together should be a "
            "little better than that."
        )


def _write(run: Run, plan: Plan, judged: Judged) -> None:
    """Writes every file of an ensemble, the scores before the figures."""
    config, task, table = plan.config, plan.task, judged.table
    config.write(run.config)
    write_json(run.environment, stamped(runtime.environment()))
    write_classes(run, config, table.class_names)
    write_splits(table, run.splits, labels=True)
    models = [load_plain_model(member) for member in plan.members]

    # ---- 1. One pass over validation and test: the outputs of each member, and distances for novelty
    views = config.evaluate.views
    both = feature_model(combine(models, task.activation, views=views))
    predicted = table.rows["split"].isin(PREDICTED).to_numpy()
    parts, first = table.take(predicted), judged.first[predicted]
    novelty = novelty_reference(both, run_table(plan.members[0], table), config)
    probs, distances, *logits = predict_with_distances(both, parts, config, novelty)

    # ---- 2. The way of averaging, chosen on validation, and the ensemble's own probabilities
    judges = judges_of(parts, len(models))
    average, reason, losses = _choose(plan, parts, logits, judges)
    say(f"Averaged: {average} ({reason}).")
    model = combine(models, task.activation, average=average)
    save_model(model, run.model)
    if logits:
        probs = _ensemble_probs(model, logits[0], judges, average, task)
    record = {"members": plan.record(), "requested": plan.requested, "average": average, "reason": reason}
    write_json(run.ensemble, stamped(record | {"validation_log_loss": losses}))

    # ---- 3. Scores, as for any run
    predictions = make_predictions(parts, probs, config.evaluate.subgroups, config.evaluate.case)
    write_frame(run.predictions, predictions.to_frame())
    fitted = fit_on_validation(predictions.split("val"), config.evaluate, config.data.not_findings)
    rows = parts.rows.assign(split=np.where(parts.rows["split"] == "test", "test", np.where(first == "val", "val", "")))
    flagged = {"novelty": write_novelty(run, config, rows, novelty, distances)}
    assessments = write_scores(run, config, predictions, judged.prior, fitted, flagged)
    split = judged_split(assessments)
    write_frame(run.result, pd.DataFrame([_result_row(run, plan, table, model, split, assessments[split])]))
    write_figures(run, assessments)


def _choose(plan: Plan, parts, logits: list[np.ndarray], judges: np.ndarray) -> tuple[str, str, dict[str, float]]:
    """Returns how the members are averaged, why, and the log loss on validation of each way.

    Args:
      plan: the Plan.
      parts: the Table of validation and test pictures.
      logits: the logits (N, M, K) of its members, or nothing for a single member.
      judges: bool (N, M).
    """
    if not logits:
        return "logits", "there is one member, so nothing is averaged", {}
    chosen = (parts.rows["split"] == "val").to_numpy()
    validation = (logits[0][chosen], judges[chosen], parts.labels[chosen].astype(np.float64))
    losses = validation_losses(*validation, parts.class_names, plan.task)
    if plan.requested != AUTO:
        return plan.requested, "as requested", losses
    best = min(losses, key=lambda name: losses[name])
    other = next(name for name in losses if name != best)
    reason = f"log loss {losses[best]:.4f} on validation after calibration, and {losses[other]:.4f} with {other}"
    return best, reason, losses


def _ensemble_probs(model, logits: np.ndarray, judges: np.ndarray, average: str, task: Task) -> np.ndarray:
    """Returns (N, K), the probabilities of an ensemble, from the members that may judge each picture.

    Where all members may, they are computed by the layers of the model itself, so that they are the model's to the bit.
    """
    probs = mean_probs(logits, judges, average, task)
    if (whole := judges.all(axis=1)).any():
        probs[whole] = np.asarray(model.get_layer("probs")(model.get_layer("head")(logits[whole])))
    return probs


def _result_row(run: Run, plan: Plan, table, model, split: str, assessment) -> dict:
    """Returns an ensemble as one row of a results table: epochs, images_seen and minutes are those of all members."""
    environment = run.read_json(run.environment)
    rows = [member.read_result(TOTALS) for member in plan.members]
    totals = {name: sum(float(row[name]) for row in rows) for name in TOTALS}
    others = {
        "model": ENSEMBLE,
        "task": plan.config.task,
        "data": table.name,
        "split": split,
        "image_size": "x".join(map(str, plan.config.data.image_size)),
        "epochs": int(totals["epochs"]),
        "best_epoch": 0,  # each member has its own
        "images_seen": int(totals["images_seen"]),
        "parameters": int(sum(np.prod(weight.shape) for weight in model.trainable_weights)),
        "seed": plan.config.seed,
        "minutes": round(totals["minutes"], 1),
        "members": len(plan.members),
        "device": environment["device"],
        "versions": runtime.join_versions(environment["versions"]),
        "command": environment["command"],
    }
    return in_order(others, score_columns(assessment))
