"""Several runs compared on the same test images: one table, paired differences, which runs the data tell apart."""

import dataclasses
import itertools
import math
import pathlib

import pandas as pd

from kmed import figures
from kmed.errors import RunError
from kmed.evaluation.assessment import score_constants, score_predictions
from kmed.evaluation.cases import CaseScores, score_cases
from kmed.evaluation.decisions import Fitted, read_fitted
from kmed.evaluation.pooling import score_pooled, score_pooled_cases
from kmed.evaluation.predictions import Predictions, stored_predictions
from kmed.evaluation.result_rows import study_columns
from kmed.evaluation.summary import cell
from kmed.files import write_frame, write_text
from kmed.metrics.baselines import Prior, Verdict, judge_against_constants
from kmed.metrics.intervals import Bootstrap, Score
from kmed.metrics.scores import Scores
from kmed.progress import optional
from kmed.runs import Run, is_crossval, judged
from kmed.schemas.tables import CASE
from kmed.tasks import LOWER_IS_BETTER, Task

DESCRIBED = ("image_size", "epochs", "images_seen", "parameters", "minutes")
NEEDED = (*DESCRIBED, "data", "best_epoch", "device", "command")  # what a comparison reads from result.csv


@dataclasses.dataclass(frozen=True)
class Compared:
    """One of the compared runs.

    Attributes:
      name: the model's name, or the folder's if two runs share a model.
      run: its folder.
      scores: its Scores on the split; runs on the same images share their resamples.
      constants: name -> Scores of the constant predictors; one dict for all runs of the same images and prior.
      cases: the run's CaseScores; None unless all runs are scored per case, and by the same cases.
      verdict: whether the run is better than the constant predictors.
      row: its result.csv, column -> text.
      history: its history.csv.
    """

    name: str
    run: Run
    scores: Scores
    constants: dict[str, Scores]
    cases: CaseScores | None
    verdict: Verdict
    row: dict[str, str]
    history: pd.DataFrame

    @property
    def shown(self) -> dict[str, Score]:
        """Name -> Score, of the scores per picture, and per case as case_NAME."""
        return with_cases(self.scores, None if self.cases is None else self.cases.scores)


def with_cases(scores: Scores, cases: Scores | None) -> dict[str, Score]:
    """Returns name -> Score, those of `cases` as case_NAME."""
    more = {} if cases is None else {f"{CASE}{name}": score for name, score in cases.scores.items()}
    return scores.scores | more


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The result of `compare_runs`.

    Attributes:
      task: the kmed.tasks.Task of all runs.
      split: "test" or "val".
      class_names: K names, the same for all runs.
      runs: the runs, sorted by `ranked_by`, best first.
      table: one row per run and per constant predictor: the study's columns, further scores, size and time.
      pairs: one row per pair of runs and score: difference, its interval, whether the data tell them apart.
      ranked_by: the score that ranks the runs; None if every score rests on few clusters.
      conclusions: sentences that the data support.
    """

    task: Task
    split: str
    class_names: tuple[str, ...]
    runs: tuple[Compared, ...]
    table: pd.DataFrame
    pairs: pd.DataFrame
    ranked_by: str | None
    conclusions: tuple[str, ...]


def compare_runs(folders, *, different_pictures: bool = False, split: str = "test") -> Comparison:
    """Returns the Comparison of finished runs, from their stored predictions; no images or weights are read.

    Args:
      folders: two or more run folders, or folders of cross-validations.
      different_pictures: whether runs may have been scored on different images; such runs are not paired.
      split: "test" or "val".
    Raises: RunError: fewer than two runs, an unfinished run, or runs of different tasks, labels or images.
    """
    opened = [judged(folder) for folder in folders]
    if len({run.folder.resolve() for run in opened}) < max(2, len(opened)):
        raise RunError(f"A comparison needs at least two different runs. Received: {', '.join(map(str, folders))}.")
    predictions = [_read(run, split) for run in opened]
    _check_alike(opened, predictions, different_pictures)
    task, bootstrap = predictions[0].task, Bootstrap.from_config(opened[0].read_config())
    runs = _compared(opened, predictions, bootstrap)
    paired = _same_pictures(predictions)
    ranked_by = next((name for name in task.paired_scores if _ranks(runs, name)), None)
    if ranked_by is not None:
        runs.sort(key=lambda run: -_goodness(run, ranked_by))
    pairs = _pairs(runs if paired else [], task)
    return Comparison(
        task=task,
        split=split,
        class_names=predictions[0].class_names,
        runs=tuple(runs),
        table=_table(runs, task),
        pairs=pairs,
        ranked_by=ranked_by,
        conclusions=tuple(_conclusions(runs, pairs, ranked_by, paired)),
    )


def write_files(comparison: Comparison, folder) -> list[pathlib.Path]:
    """Writes comparison.csv, pairs.csv, comparison.md, scores.png and curves.png; returns the paths of those made.

    A figure that cannot be drawn or stored is one warning.
    """
    folder = pathlib.Path(folder)
    write_frame(folder / "comparison.csv", comparison.table)
    write_frame(folder / "pairs.csv", comparison.pairs)
    write_text(folder / "comparison.md", markdown(comparison))
    made = [folder / name for name in ("comparison.csv", "pairs.csv", "comparison.md")]
    curves = {run.name: run.history for run in comparison.runs}
    drawings = {"scores.png": lambda: plot_scores(comparison), "curves.png": lambda: figures.plot_histories(curves)}
    for name, draw in drawings.items():
        with optional(f"The figure {folder / name}", "Compare the runs again to draw it."):
            figures.save_figure(draw(), folder / name)
            made.append(folder / name)
    return made


def markdown(comparison: Comparison) -> str:
    """Returns the table, the pairs and the conclusions as Markdown."""
    shown = dict.fromkeys([*comparison.task.study_scores, *comparison.task.paired_scores])
    rows = []
    if comparison.runs[0].cases is not None:
        shown |= dict.fromkeys(f"{CASE}{name}" for name in comparison.task.paired_scores)
    for name, scores, cases, row in _rows(comparison.runs):
        merged = with_cases(scores, cases)
        cells = {column.replace("_", " "): cell(merged[column]) for column in shown}
        rows.append({"model": name, **cells, **{key: row.get(key, "") for key in ("parameters", "minutes")}})
    level = f"{comparison.runs[0].scores.level:.0%}"
    lines = [
        f"{comparison.split} split; {level} intervals from resampling clusters.\n",
        pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True),
        "",
        *(f"- {sentence}" for sentence in comparison.conclusions),
    ]
    return "\n".join(lines) + "\n"


def plot_scores(comparison: Comparison):
    """Returns a Figure of the ranking score and the study's scores, with intervals and the best constant predictor."""
    first = [comparison.ranked_by] if comparison.ranked_by else []
    shown = list(dict.fromkeys([*first, *comparison.task.study_scores]))
    runs = {run.name: {name: run.scores.scores[name] for name in shown} for run in comparison.runs}
    lines = {}
    for name in shown:
        values = [scores.scores[name].value for scores in comparison.runs[0].constants.values()]
        lines[name] = min(values) if name in LOWER_IS_BETTER else max(values)
    return figures.plot_compared(runs, lines)


def _read(run: Run, split: str) -> Predictions:
    stored = stored_predictions(run)
    read = stored.split(split)
    if not len(read) and split == "val" and is_crossval(run.folder):
        read = stored  # its test pictures, each judged out of fold, are what an ensemble of its runs has as validation
    if not len(read):
        others = sorted(set(stored.rows["split"]))
        hint = f" It has those of {others[0]}: choose them with --split {others[0]}." if others else ""
        raise RunError(f"{run.folder} has no predictions of split {split!r}.{hint}")
    return read.take(read.rows["path"].argsort(kind="stable").to_numpy())  # repeats of a picture keep their order


def _check_alike(runs, predictions, different_pictures):
    first, run = predictions[0], runs[0]
    for other, its_run in zip(predictions[1:], runs[1:]):
        if other.task != first.task:
            raise RunError(
                f"Only runs of one task can be compared. Received: {run.folder} ({first.task.name}), "
                f"{its_run.folder} ({other.task.name})."
            )
        if other.class_names != first.class_names:
            raise RunError(
                f"Only runs with the same labels, in the same order, can be compared. Received: "
                f"{run.folder} ({', '.join(first.class_names)}) and {its_run.folder} ({', '.join(other.class_names)})."
            )
        if not different_pictures and not _same_pictures([first, other]):
            raise RunError(
                f"{run.folder} and {its_run.folder} were scored on different pictures ({len(first)} and {len(other)}, "
                f"{len(set(first.rows['path']) & set(other.rows['path']))} of them shared): their scores cannot be "
                "compared picture by picture. Use one splits file for both, or add --different-pictures."
            )


def _same_pictures(predictions) -> bool:
    first = predictions[0]
    return all(
        len(other) == len(first)
        and (other.rows[["path", "cluster"]].to_numpy() == first.rows[["path", "cluster"]].to_numpy()).all()
        and pd.DataFrame(other.labels).equals(pd.DataFrame(first.labels))
        for other in predictions[1:]
    )


def _names(runs) -> list[str]:
    models = [run.read_config().model.name for run in runs]
    folders = [run.folder.resolve().name for run in runs]
    short = [model if models.count(model) == 1 else folder for model, folder in zip(models, folders)]
    return short if len(set(short)) == len(short) else [str(run.folder) for run in runs]


def _compared(runs, predictions, bootstrap) -> list[Compared]:
    """Returns the runs with their scores; constant predictors are scored once per prior and set of images."""
    compared = []
    scored: list[tuple[Prior, Predictions, dict[str, Scores]]] = []  # Scores of the constant predictors
    for name, run, predicted in zip(_names(runs), runs, predictions, strict=True):
        fitted, prior = None if is_crossval(run.folder) else read_fitted(run), _prior(run)
        scores = _score(run, predicted, fitted, bootstrap)
        same = (known for before, others, known in scored if before == prior and _same_pictures([others, predicted]))
        if (constants := next(same, None)) is None:
            constants = score_constants(predicted, prior, bootstrap)
            scored.append((prior, predicted, constants))
        verdict = judge_against_constants(predicted.task, scores, constants, predicted.probs)
        cases = None
        if is_crossval(run.folder):
            cases = score_pooled_cases(run, predicted, prior, bootstrap)
        elif fitted is not None and fitted.cases is not None:
            cases = score_cases(predicted, fitted.calibration, fitted.cases, prior, bootstrap)
        compared.append(Compared(name, run, scores, constants, cases, verdict, _row(run), run.read_history()))
    if len({run.cases and run.cases.rule.by for run in compared}) > 1:
        return [dataclasses.replace(run, cases=None) for run in compared]
    return compared


def _score(run: Run, predictions: Predictions, fitted: Fitted | None, bootstrap: Bootstrap) -> Scores:
    """Returns a run's Scores; on validation without those of what was fitted to it, which would flatter."""
    if fitted is None:
        return score_pooled(predictions, run.read_config(), bootstrap)
    return score_predictions(predictions, None if set(predictions.rows["split"]) == {"val"} else fitted, bootstrap)


def _prior(run) -> Prior:
    return Prior.from_dict(run.read_json(run.metrics)["training"])


def _row(run) -> dict[str, str]:
    return run.read_result(NEEDED)


def _ranks(runs, name) -> bool:
    return all(not run.scores.scores[name].few_clusters and not math.isnan(run.scores.scores[name].low) for run in runs)


def _goodness(run, name) -> float:
    value = run.scores.scores[name].value
    return -value if name in LOWER_IS_BETTER else value


def _rows(runs):
    """Yields (name, Scores, Scores per case or None, result row): the runs, then the constant predictors."""
    for run in runs:
        yield run.name, run.scores, run.cases and run.cases.scores, run.row
    of_cases = {} if runs[0].cases is None else runs[0].cases.constants
    for name, scores in runs[0].constants.items():
        yield f"constant: {name}", scores, of_cases.get(name), {}


def _table(runs, task) -> pd.DataFrame:
    rows = []
    learnt = {run.name: run.verdict.learnt for run in runs}
    for name, scores, cases, row in _rows(runs):
        per_case = {} if cases is None else {f"{CASE}{key}": value for key, value in cases.flat().items()}
        described = {column: row.get(column, "") for column in DESCRIBED}
        study = study_columns(task, scores)
        rows.append(
            {"model": name, **study, **described, "learnt": learnt.get(name, False), **scores.flat(), **per_case}
        )
    return pd.DataFrame(rows)


def _pairs(runs, task) -> pd.DataFrame:
    rows = []
    for first, second in itertools.combinations(runs, 2):
        for name in [*task.paired_scores, *(f"{CASE}{name}" for name in task.paired_scores)]:
            if name not in first.shown:
                continue
            gap: Score = first.scores.resamples.difference(first.shown[name], second.shown[name])
            rows.append(
                {
                    "first": first.name, "second": second.name, "score": name,
                    "difference": gap.value, "low": gap.low, "high": gap.high, "num_clusters": gap.num_clusters,
                    "few_clusters": gap.few_clusters,
                    "told_apart": bool(not gap.few_clusters and (gap.low > 0 or gap.high < 0)),
                }
            )  # fmt: skip
    columns = ["first", "second", "score", "difference", "low", "high", "num_clusters", "few_clusters", "told_apart"]
    return pd.DataFrame(rows, columns=columns)


def _conclusions(runs, pairs, ranked_by, paired) -> list[str]:
    sentences = []
    if ranked_by is None:
        sentences.append("Every score rests on fewer than 20 clusters: the data do not rank these models.")
    else:
        best, words = runs[0], ranked_by.replace("_", " ")
        sentences.append(f"Highest {words}: {best.name}, {cell(best.scores.scores[ranked_by])}.")
        if ranked_by in LOWER_IS_BETTER:
            sentences[-1] = sentences[-1].replace("Highest", "Lowest", 1)
        if paired:
            ranked = pairs[pairs["score"] == ranked_by]
            with_best = ranked[(ranked["first"] == best.name) & ~ranked["told_apart"]]
            if len(with_best):
                others = ", ".join(with_best["second"])
                sentences.append(
                    f"The data cannot tell it apart from: {others} (intervals of the difference contain 0)."
                )
            apart = [f"{row['first']} over {row['second']}" for _, row in ranked[ranked["told_apart"]].iterrows()]
            listed = f": {'; '.join(apart)}" if apart else ""
            sentences.append(f"{len(apart)} of {len(ranked)} pairs are told apart by {words}{listed}.")
            sentences.append(
                "The intervals show how much the scores vary with the pictures. Scores also vary from one training run "
                "of a model to the next, which no interval here shows."
            )
            if len(ranked) > 1:
                sentences.append(
                    f"The intervals are not corrected for the {len(ranked)} comparisons: about one pair in twenty "
                    "would be told apart by chance."
                )
    if not paired:
        sentences.append("The runs were scored on different pictures, so they are not compared pair by pair.")
    return sentences + [f"{run.name}: {run.verdict.sentence}" for run in runs]
