"""External validation: a finished run judged on somebody else's pictures, and what changes against its own test."""

import dataclasses
import functools
import pathlib
import re
import shlex

import numpy as np
import pandas as pd

from kmed.config import Config, DataConfig, load_config
from kmed.data.class_map import read_class_map
from kmed.data.pixel_range import with_range
from kmed.data.prepare import open_table
from kmed.data.readable import check_readable, look_at, peaks
from kmed.data.table import Table
from kmed.errors import ConfigError, DataError, RunError, suggest
from kmed.evaluation.assessment import Assessment, assess
from kmed.evaluation.cases import CASE_ROWS
from kmed.evaluation.decisions import decision_rule, read_fitted
from kmed.evaluation.external_text import describe_external
from kmed.evaluation.inference import predict, predict_with_distances
from kmed.evaluation.lineage import scored_run
from kmed.evaluation.novelty import false_alarms, feature_model, run_novelty
from kmed.evaluation.predictions import Predictions, make_predictions, stored_predictions
from kmed.evaluation.result_rows import LAST, read_results, score_columns, with_scores
from kmed.evaluation.seen import Seen, check_copies, find_seen
from kmed.evaluation.side_by_side import SideBySide, set_side_by_side
from kmed.files import replacing, write_frame, write_json, write_text
from kmed.metrics.baselines import Prior
from kmed.metrics.intervals import Bootstrap, Score, check_clusters
from kmed.models.keras_file import load_run_model
from kmed.progress import say
from kmed.reading import read_csv, read_json
from kmed.runs import Run, finished_run, judged_split
from kmed.runtime import command_line
from kmed.schemas.records import stamped
from kmed.tables import append_rows

FOLDER = "external"  # in a run's folder: one folder per data set that judged it
SPLIT = "external"  # what predictions.csv and rows of results have in the column split
# Settings of data that belong to the model or are arguments of their own; all others say how somebody's data are read.
_FIXED = frozenset({"path", "class_names", "class_map", "image_size", "fit", "interpolation", "decode", "cache"})
# Settings of data that a run keeps for other data: how its model takes pictures, and what its labels mean.
_KEPT = (*sorted(_FIXED - {"path", "class_names", "class_map"}), "range", "no_finding", "not_findings")
_SCORING = ("num_resamples", "level", "subgroups", "batch_size")  # settings of evaluate that may be changed


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Somebody else's data, read for the model of a run.

    Attributes:
      config: the run's settings, with those of data that say how these data are read.
      table: the pictures with the run's classes, all of them readable.
      seen: which of them the run knows.
    """

    config: Config
    table: Table
    seen: Seen

    @property
    def judging(self) -> Table:
        """The pictures that may judge the run."""
        return self.table.take(~self.seen.left_out)

    @property
    def labelled(self) -> bool:
        """Whether any label of these pictures is known."""
        return not np.isnan(self.judging.labels).all()


@dataclasses.dataclass(frozen=True)
class External:
    """A run judged on somebody else's data.

    Attributes:
      name: that of the data; the results are in external/NAME of the run.
      folder: where they are.
      foreign: the data.
      predictions: those for the pictures that judge the run.
      assessment: their Assessment.
      internal_split: the run's own split that it is compared with, "test" or "val".
      beside: both sides and the changes.
      home: the run at its home: the run itself, or the one that it was made of if it was recalibrated without labels.
      novelty: {"threshold", "wanted", "internal", "external"}: the share of pictures that is flagged as unlike the
        training pictures, as Scores or dicts of them; None if the run has no novelty.npz.
    """

    name: str
    folder: pathlib.Path
    foreign: Foreign
    predictions: Predictions
    assessment: Assessment
    internal_split: str
    beside: SideBySide
    home: Run
    novelty: dict | None

    @property
    def is_home(self) -> bool:
        """Whether the run itself stands on the internal side."""
        return self.home.folder == self.folder.parent.parent

    def home_sentence(self) -> str:
        """Returns what stands on the internal side of a run that was recalibrated without labels."""
        return (
            f"The run was recalibrated without labels and has no scores of its own: at home stands {self.home.folder}, "
            "of which it was made, with the calibration and thresholds of home."
        )

    def to_dict(self) -> dict:
        """Returns the content of metrics.json."""
        data, table = self.foreign.config.data, self.foreign.table
        return {
            "name": self.name,
            "data": {"path": data.path, "name": table.name, "class_map": data.class_map, "notes": list(table.notes)},
            "home": "" if self.is_home else self.home_sentence(),
            "internal_split": self.internal_split,
            "external": {"task": table.task, **self.assessment.to_dict()},
            "side_by_side": self.beside.to_dict(),
            "novelty": self.novelty and {
                name: value.to_dict() if isinstance(value, Score) else value for name, value in self.novelty.items()
            },
            "seen": self.foreign.seen.to_dict() | {"sentences": self.foreign.seen.sentences()},
        }  # fmt: skip


# ---- Reading ---------------------------------------------------------------------------------------


def foreign_config(run: Run, on, class_map=(), settings=(), scoring=_SCORING) -> Config:
    """Returns a run's settings for somebody else's data.

    Args:
      run: the run.
      on: the folder, CSV or npz.
      class_map: as for `kmed.data.class_map.read_class_map`.
      settings: overrides "data.KEY=VALUE" of how the data are read, and of how they are scored.
      scoring: the settings of evaluate that may be changed.
    Raises: ConfigError: a setting that belongs to the model, or is not legal.
    """
    for setting in settings:
        section, _, key = str(setting).partition("=")[0].strip().partition(".")
        legal = [f"data.{name}" for name in DataConfig.model_fields if name not in _FIXED]
        legal += [f"evaluate.{name}" for name in scoring]
        if f"{section}.{key}" not in legal:
            raise ConfigError(
                "With --on, --set takes settings of data that say how DATA are read, and of evaluate "
                f"{', '.join(scoring)}. Received: {setting!r}." + suggest(f"{section}.{key}", legal)
            )
    config = run.read_config()
    kept = {f"data.{name}": getattr(config.data, name) for name in _KEPT}
    defaults = {f"data.{name}": value for name, value in DataConfig().model_dump().items()}
    own = {
        "data.path": str(pathlib.Path(on).expanduser()),
        "data.class_names": run.read_classes().class_names,
        "data.class_map": read_class_map(class_map),
        "evaluate.subgroups": None,
        "evaluate.case": config.evaluate.case if config.evaluate.case in CASE_ROWS else None,
    }
    return load_config(run.config, [*(defaults | kept | own).items(), *settings])


def open_foreign(config: Config, split: str | None = None) -> Table:
    """Returns somebody else's pictures with a run's classes, and prints how they were read.

    Args:
      config: from `foreign_config`.
      split: one of their splits; None: all of their pictures.
    Raises: DataError: they cannot be read, or their classes do not fit.
    """
    table = open_table(config)
    if split is not None:
        table = table.split(split)
    facts = look_at(table)
    table, _ = check_readable(table, config.data.skip_unreadable, facts)
    table = with_range(table, peaks(facts), config.data.range)
    for note in table.notes:
        say(note)
    return table


def read_foreign(
    run: Run, on, internal: str, *, class_map=(), settings=(), split=None, copies="pixels", data=None, scoring=_SCORING
) -> Foreign:
    """Returns somebody else's data for a run, and which of their pictures it knows; arguments as for `judge_on`.

    `internal` is the split by which the run is judged.

    Raises: DataError: as `open_foreign` does, or the run knows all pictures. ScoreError: fewer than two clusters.
    """
    check_copies(copies)
    config = foreign_config(run, on, class_map, settings, scoring)
    table = open_foreign(config, split)
    seen = find_seen(run, table, internal, copies=copies, data=data, seed=config.seed)
    for sentence in seen.sentences():
        say(sentence)
    if seen.left_out.all():
        raise DataError(f"The run has learnt from all {len(table)} pictures in {on}, so they cannot judge it.")
    foreign = Foreign(config, table, seen)
    if foreign.labelled:
        check_clusters(foreign.judging.rows["cluster"])
    return foreign


def predict_foreign(run: Run, foreign: Foreign) -> tuple[Predictions, np.ndarray | None, dict | None]:
    """Returns (predictions, flagged, record) for the pictures that may judge a run.

    `flagged`, bool (N,), says which are unlike the training pictures, and `record` is the run's own of that; both are
    None if the run has no novelty.npz.
    """
    config, table, model = foreign.config, foreign.judging, load_run_model(run)
    flagged = record = None
    if run.novelty.exists():
        both = feature_model(model)
        novelty, record = run_novelty(run, both)
        probs, distances = predict_with_distances(both, table, config, novelty)[:2]
        flagged = novelty.flags(distances)
    else:
        probs = predict(model, table, config)
    table = table.with_columns(split=np.full(len(table), SPLIT, dtype=object))
    return make_predictions(table, probs, config.evaluate.subgroups, config.evaluate.case), flagged, record


# ---- Judging ---------------------------------------------------------------------------------------


def judge_on(
    run_folder, on, *, class_map=(), name=None, settings=(), split=None, copies="pixels", data=None
) -> External:
    """Returns a finished run judged on somebody else's data; nothing is written.

    Args:
      run_folder: what `kmed train` made.
      on: the folder, CSV or npz with somebody else's pictures and labels.
      class_map: their names of the run's classes, as for `kmed.data.class_map.read_class_map`.
      name: what the data are called; None: the name that the reader gives them.
      settings: overrides of how the data are read (data.KEY=VALUE) and scored.
      split: one of their splits; None: all pictures.
      copies: how pictures that the run knows are looked for: "pixels", "bytes" or "none".
      data: where the run's own pictures are now, if they have moved.
    Raises: RunError: no such run, or a name that is taken. DataError: the data cannot be used, or their classes do not
      fit. ConfigError: a setting is not legal. ScoreError: there is nothing to score.
    """
    run = finished_run(run_folder)
    home = scored_run(run)
    stored = stored_predictions(home)
    internal_split = judged_split(stored.rows["split"].unique())
    reading = {"class_map": class_map, "settings": settings, "split": split, "copies": copies, "data": data}
    foreign = read_foreign(run, on, internal_split, **reading)
    if not foreign.labelled:
        raise DataError(
            f"All labels of the {len(foreign.judging):,} pictures in {on} are unknown, so they cannot judge a run. "
            "Give pictures with labels."
        )
    name, folder = choose_folder(run, name, foreign)
    say(f"Scoring {len(foreign.judging):,} pictures of {foreign.table.name!r} ...")
    predictions, flagged, record = predict_foreign(run, foreign)
    fitted, metrics = read_fitted(run), run.read_json(run.metrics)
    bootstrap = Bootstrap.from_config(foreign.config)
    outer = dataclasses.replace(bootstrap, seed=bootstrap.seed + 1)
    scored = fitted if foreign.config.evaluate.case is not None else dataclasses.replace(fitted, cases=None)
    novelty = None
    if flagged is not None and record is not None:
        share = false_alarms(flagged, predictions.clusters, outer)
        novelty = {key: record.get(key) for key in ("threshold", "wanted")}
        own = home.read_json(home.metrics).get("novelty") or {}
        novelty |= {"internal": own.get(internal_split), "external": share}
    return External(
        name=name,
        folder=folder,
        foreign=foreign,
        predictions=predictions,
        assessment=assess(predictions, Prior.from_dict(metrics["training"]), outer, scored),
        internal_split=internal_split,
        beside=set_side_by_side(
            stored.split(internal_split),
            predictions,
            fitted,
            decision_rule(run),
            bootstrap,
            (read_fitted(home), decision_rule(home)),
        ),
        home=home,
        novelty=novelty,
    )


def choose_folder(run: Run, name: str | None, foreign: Foreign) -> tuple[str, pathlib.Path]:
    """Returns (name, folder) of the results on other data.

    Raises: ConfigError: the name cannot be a folder's. RunError: the folder holds the results on other data.
    """
    if name is None:
        name = re.sub(r"[^\w.-]+", "_", foreign.table.name).strip("._") or "data"
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise ConfigError(f"name becomes a folder: letters, digits, '_', '-' and '.'. Received: name={name!r}.")
    folder = run.folder / FOLDER / name
    if folder.exists():
        held = read_json(folder / "metrics.json").get("data", {}).get("path")
        if held is None or pathlib.Path(held).resolve() != pathlib.Path(str(foreign.config.data.path)).resolve():
            raise RunError(f"{folder} holds the results on {held}. Choose another name with --name.")
    return name, folder


# ---- Writing ---------------------------------------------------------------------------------------


def write_external(run: Run, external: External, draw=None) -> pathlib.Path:
    """Writes predictions.csv, metrics.json, summary.txt, result.csv and perhaps seen.csv; returns the folder.

    The folder is written whole or not at all, and replaces earlier results on the same data. The run's own files stay
    as they are.

    Args:
      run: the run.
      external: from `judge_on`.
      draw: function (folder) that adds the page to the folder before it is put in place; None: no page.
    """
    with replacing(external.folder) as folder:
        folder.mkdir()
        write_frame(folder / "predictions.csv", external.predictions.to_frame())
        write_json(folder / "metrics.json", stamped(external.to_dict()))
        write_text(folder / "summary.txt", describe_external(external))
        write_frame(folder / "result.csv", pd.DataFrame([external_row(external)]))
        external.foreign.seen.write(folder)
        if draw is not None:
            draw(folder)
    return external.folder


def external_row(external: External) -> dict:
    """Returns the results as one row of a results table: the run's, with these scores and their changes."""
    changes: dict[str, float] = {}
    for name in external.assessment.task.paired_scores:
        change = external.beside.scores[name].change
        changes |= {
            f"change_{name}": change.value,
            f"change_{name}_low": change.low,
            f"change_{name}_high": change.high,
        }
    scored = score_columns(external.assessment) | changes
    own = {"data": external.foreign.table.name, "split": SPLIT, "command": command_line()}
    return with_scores(external.home.read_result(LAST), scored, **own)


def append_external(external: External, path) -> None:
    """Adds the row of stored results to a results table; says so if the table already has it."""
    row = read_csv(external.folder / "result.csv")
    task = external.assessment.task.name
    if not append_rows(path, [row], functools.partial(read_results, tasks={task})):
        say(f"{path} already holds this row.")


def again(run: Run, external: External) -> str:
    """Returns the command that writes the results again."""
    words = ["kmed", "evaluate", str(run.folder), "--on", str(external.foreign.config.data.path)]
    return shlex.join([*words, "--name", external.name])
