"""A run in MLflow: its settings, the scores of each epoch, the final scores with intervals, its page and its model.

The store is the one that MLflow's own variable MLFLOW_TRACKING_URI names, a server or a database; else a SQLite file
beside the run folders. MLFLOW_EXPERIMENT_NAME names the experiment, else it is "kmed".
"""

import logging
import math
import os
import pathlib
import time

from kmed.config import Config
from kmed.reading import read_json
from kmed.runs import CROSSVAL, SWEEP, TUNE, Run, judged_split
from kmed.training.trackers import Stopped
from kmed.version import __version__

STORE, ARTIFACTS, EXPERIMENT = "mlflow.db", "mlartifacts", "kmed"
LONGEST = 6000  # characters of a parameter, by MLflow's limit
REASON = "kmed.stopped"  # the tag with the reason why a run was stopped on purpose
AT_ONCE = 100  # parameters per request, by MLflow's limit
# A server that does not answer must not hold up a run for minutes, and nothing is sent to MLflow's makers.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class MlflowTracker:
    """One run of kmed as one run of MLflow.

    Args:
      client: mlflow.MlflowClient.
      run: the run folder.
      id: of MLflow's run.
    """

    def __init__(self, client, run: Run, id: str):
        self.client, self.run, self.id = client, run, id
        self.stored = {metric.step for metric in client.get_metric_history(id, "loss")}

    def write_epochs(self, rows: list[dict]) -> None:
        """Stores the rows of history.csv that are not stored yet; an undefined score is left out."""
        for row in rows:
            if row["epoch"] not in self.stored:
                values = {name: value for name, value in row.items() if name != "epoch"}
                self._write_metrics(values, step=row["epoch"])
                self.stored.add(row["epoch"])

    def write_results(self) -> None:
        """Stores the final scores, such as test/accuracy with test/accuracy_low and _high, and the files."""
        metrics = read_json(self.run.metrics)
        for split in ("val", "test"):
            for name, score in (metrics.get(split) or {"scores": {}})["scores"].items():
                ends = {"": score["value"], "_low": score["low"], "_high": score["high"]}
                self._write_metrics({f"{split}/{name}{end}": value for end, value in ends.items()}, step=0)
        verdict = metrics[judged_split(metrics)]["verdict"]["sentence"]
        self.client.set_tag(self.id, "mlflow.note.content", verdict)
        run = self.run
        for path in (run.model, run.fitted, run.classes):
            self.client.log_artifact(self.id, str(path), "model")
        for path in (run.config, run.history, run.metrics, run.summary):
            self.client.log_artifact(self.id, str(path))
        self.client.set_terminated(self.id, "FINISHED")

    def write_page(self) -> None:
        """Stores report.html."""
        self.client.log_artifact(self.id, str(self.run.report))

    def stop(self, error: BaseException) -> None:
        """Notes that the run has stopped before its end; a tag holds why it was stopped on purpose."""
        if isinstance(error, Stopped):
            self.client.set_tag(self.id, REASON, str(error))
        self.client.set_terminated(self.id, "KILLED" if isinstance(error, (Stopped, KeyboardInterrupt)) else "FAILED")

    def _write_metrics(self, values: dict, step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(name, float(value), now, step)
            for name, value in values.items()
            if value is not None and math.isfinite(value)
        ]
        self.client.log_batch(self.id, metrics=metrics)


def open_tracker(run: Run, config: Config, id: str | None) -> MlflowTracker:
    """Returns a run's MlflowTracker: MLflow's run of this id continued, or a new one if the store has none.

    Raises: whatever MLflow raises if its store cannot be reached.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)  # what fails is one warning of kmed's
    home = home_of(run)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / STORE}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    if id is None or not _continues(client, id):
        artifacts = None if os.environ.get("MLFLOW_TRACKING_URI") else (home / ARTIFACTS).as_uri()
        id = _create(client, run, config, artifacts)
    return MlflowTracker(client, run, id)


def home_of(run: Run) -> pathlib.Path:
    """Returns the folder of the store: that of the run folders, also for those of a sweep or a study."""
    folder = run.folder.resolve().parent
    return folder.parent if any((folder / name).exists() for name in (SWEEP, CROSSVAL, TUNE)) else folder


def _continues(client, id: str) -> bool:
    """Returns whether the store has a run of this id, which is then marked as running again, unless it has ended."""
    from mlflow.exceptions import MlflowException

    try:
        known = client.get_run(id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False  # the run was begun in another store
    if known.info.status in ("KILLED", "FAILED"):
        client.update_run(id, status="RUNNING")
    if REASON in known.data.tags:
        client.delete_tag(id, REASON)
    return True


def _create(client, run: Run, config: Config, artifacts: str | None) -> str:
    """Returns the id of a new run in the store, with the settings as its parameters."""
    from mlflow.entities import Param

    experiment = _experiment(client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT, artifacts)
    folder, environment = run.folder.resolve(), read_json(run.environment)
    tags = {"kmed.version": __version__, "kmed.folder": str(folder), "kmed.parent": folder.parent.name}
    tags |= {"kmed.command": environment["command"], "kmed.device": environment["device"]}
    created = client.create_run(experiment, run_name=folder.name, tags=tags).info.run_id
    params = [Param(key, str(value)[:LONGEST]) for key, value in config.flat().items()]
    for start in range(0, len(params), AT_ONCE):
        client.log_batch(created, params=params[start : start + AT_ONCE])
    return created


def _experiment(client, name: str, artifacts: str | None) -> str:
    """Returns the id of the experiment of this name, which is created if there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:  # else another run of a sweep has just created it
                raise
    return found.experiment_id
