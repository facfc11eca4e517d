"""Finished runs without a model, as `kmed train` leaves them: their predictions are drawn, and scored as real ones."""

import functools
import pathlib
import tempfile

import numpy as np
import pandas as pd

from kmed import files
from kmed.config import load_config
from kmed.evaluation import result_rows, run_evaluation
from kmed.evaluation.decisions import fit_on_validation
from kmed.evaluation.predictions import Predictions
from kmed.metrics.baselines import count_prior
from kmed.runs import Run, write_classes
from kmed.tasks import get_task
from kmed.training import loop

NAMES = {"multiclass": ("a", "b", "c"), "multilabel": ("Mass", "Edema", "No Finding")}
FOLDER = "its own folder"  # stands in result.csv until it is known


def make_run(folder, task="multiclass", skill=1.0, model="vit", seed=0, names=None, prefix="", settings=()) -> Run:
    """Returns a run in `folder`, whose predictions are of some skill: 0 for constants, 1 for good ones."""
    run = Run(pathlib.Path(folder))
    for name, content in contents(task, skill, model, seed, names or NAMES[task], prefix, tuple(settings)).items():
        (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (run.folder / name).write_bytes(content.replace(FOLDER.encode(), str(folder).encode()))
    return run


@functools.cache
def contents(task, skill, model, seed, names, prefix, settings) -> dict[str, bytes]:
    """Returns the files of such a run, {name: bytes}; scoring takes a second, so that equal runs are scored once."""
    labels, patients = draw_labels(task)
    probs = draw_probs(task, labels, skill, seed)
    config = load_config(overrides=[f"task={task}", f"model.name={model}", "evaluate.num_resamples=100", *settings])
    rows = pd.DataFrame(
        {
            "path": [f"{prefix}{index:04d}.png" for index in range(len(labels))],
            "split": np.where(patients < 30, "val", "test"),
            "group": patients.astype(str),
            "cluster": patients.astype(str),
        }
    )
    predictions = Predictions(rows, labels, probs, tuple(names), get_task(task))
    history = [{"epoch": 1, "loss": 1.0, "val_loss": 1.1}, {"epoch": 2, "loss": 0.8, "val_loss": 1.0}]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(pathlib.Path(folder))
        config.write(run.config)
        write_classes(run, config, names)
        files.write_frame(run.predictions, predictions.to_frame())
        loop.write_history(run.history, history)
        fitted = fit_on_validation(predictions.split("val"), config.evaluate)
        assessments = run_evaluation.write_scores(run, config, predictions, count_prior(labels, names), fitted)
        row = {"model": model, "task": task, "data": "drawn", "split": "test", "image_size": "8x8", "epochs": 2}
        row |= {"best_epoch": 2, "images_seen": 9, "parameters": 5}
        row |= result_rows.score_columns(assessments["test"])
        row |= {"minutes": 1.5, "device": "none", "versions": "none", "command": f"kmed train --out {FOLDER}"}
        files.write_frame(run.result, pd.DataFrame([row]))
        run.model.write_bytes(b"")
        made = [path for path in run.folder.rglob("*") if path.is_file()]
        return {path.relative_to(run.folder).as_posix(): path.read_bytes() for path in made}


def draw_labels(task, num_images=400, seed=0):
    """Returns labels (N, 3) and the patient of each image."""
    rng = np.random.default_rng(seed)
    if task == "multiclass":
        return np.eye(3)[rng.integers(0, 3, num_images)], rng.integers(0, 120, num_images)
    findings = rng.random((num_images, 2)) < 0.35
    return np.column_stack([findings, ~findings.any(axis=1)]).astype(float), rng.integers(0, 120, num_images)


def draw_probs(task, labels, skill, seed):
    """Returns probabilities (N, 3): the labels blurred by noise, or where the skill is 0 the same for each image."""
    noise = np.random.default_rng(seed).normal(0, 1, labels.shape)
    if task == "multilabel":
        return 1 / (1 + np.exp(1.5 - 3 * skill * labels - noise * (skill > 0)))
    probs = np.exp(2 * skill * labels + noise * (skill > 0))
    return probs / probs.sum(axis=1, keepdims=True)
