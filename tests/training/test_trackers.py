"""Trackers: a run is found again in MLflow's store with all that belongs to it, and a broken store stops nothing."""

import json
import logging
import pathlib
import types

import numpy as np
import pandas as pd
import pytest
from drawn_runs import make_run

import kmed
from kmed.config import load_config
from kmed.errors import ConfigError, RunError
from kmed.files import write_json
from kmed.runs import Run
from kmed.training import fit, loop, mlflow_tracker, trackers

mlflow = pytest.importorskip("mlflow", reason="pip install kmed[mlflow]")
pytest.importorskip("sqlalchemy", reason="pip install kmed[mlflow]")

ROWS = [{"epoch": 1, "loss": 1.0, "val_loss": 1.1}, {"epoch": 2, "loss": 0.8, "val_loss": float("nan")}]


@pytest.fixture(autouse=True)
def no_store(monkeypatch):
    """MLflow's variables are those of the test alone."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in mlflow_tracker._DEFAULTS:
        monkeypatch.setenv(name, mlflow_tracker._DEFAULTS[name])


def tracked_run(folder) -> Run:
    """Returns a drawn run that a tracker shall follow, with its page."""
    run = make_run(folder, settings=("train.trackers=[mlflow]",))
    write_json(
        run.environment, {"device": "none", "backend": "b", "platform": "p", "versions": {}, "command": "kmed x"}
    )
    loop.write_history(run.history, ROWS)
    run.report.write_text("<html>")
    return run


def client_of(run, uri=None):
    return mlflow.MlflowClient(tracking_uri=uri or f"sqlite:///{run.folder.parent / 'mlflow.db'}")


def stored(run, uri=None):
    """Returns (client, MLflow's run) of trackers.json."""
    client = client_of(run, uri)
    return client, client.get_run(json.loads(run.trackers.read_text())["trackers"]["mlflow"]["id"])


def artifacts(client, id, folder=None) -> set:
    found = client.list_artifacts(id, folder)
    return {file.path for file in found if not file.is_dir}.union(
        *(artifacts(client, id, file.path) for file in found if file.is_dir)
    )


def follow(run, rows=ROWS) -> None:
    """Does what a training does with its trackers."""
    with trackers.following(run, run.read_config()) as followers:
        for count in range(1, len(rows) + 1):
            followers.write_epochs(rows[:count])
        followers.write_results(rows)


def check_whole(run, uri=None) -> None:
    """Asserts that the store has a finished run's settings, epochs, final scores and files."""
    client, found = stored(run, uri)
    assert found.info.status == "FINISHED" and found.info.run_name == run.folder.name
    flat = {name: str(value) for name, value in run.read_config().flat().items()}
    assert found.data.params == flat and len(flat) > 60
    metrics = json.loads(run.metrics.read_text())
    for split in ("val", "test"):
        for name, score in metrics[split]["scores"].items():
            for end, key in (("", "value"), ("_low", "low"), ("_high", "high")):
                if score[key] is not None:
                    assert found.data.metrics[f"{split}/{name}{end}"] == pytest.approx(score[key])
                else:
                    assert f"{split}/{name}{end}" not in found.data.metrics
    history = run.read_history()
    for name in set(history) - {"epoch"}:
        points = {point.step: point.value for point in client.get_metric_history(found.info.run_id, name)}
        known = history[np.isfinite(history[name])]
        assert points == pytest.approx(dict(zip(known["epoch"], known[name]))), name
    assert found.data.tags["kmed.folder"] == str(run.folder)
    assert found.data.tags["mlflow.note.content"] == metrics["test"]["verdict"]["sentence"]
    assert artifacts(client, found.info.run_id) >= {
        "report.html", "config.yaml", "metrics.json", "history.csv", "summary.txt", "model/model.keras",
        "model/calibration.json", "model/classes.json",
    }  # fmt: skip
    assert not artifacts(client, found.info.run_id) & {"predictions.csv", "splits.csv"}  # names of patients


def test_a_run_is_found_again_with_everything(tmp_path, monkeypatch):
    run = tracked_run(tmp_path / "blood")
    follow(run)
    monkeypatch.setattr("kmed.report.run_page.try_report", lambda run: None)
    trackers.report_run(run)
    check_whole(run)
    client, found = stored(run)
    assert [point.step for point in client.get_metric_history(found.info.run_id, "val_loss")] == [1]  # NaN is left out
    assert pathlib.Path(found.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path / "mlartifacts")


def test_a_resumed_run_continues_in_the_store(tmp_path):
    run = tracked_run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), trackers.following(run, run.read_config()) as followers:
        followers.write_epochs(ROWS[:1])
        raise KeyboardInterrupt
    client, first = stored(run)
    assert first.info.status == "KILLED"
    follow(run)
    _, found = stored(run)
    assert found.info.run_id == first.info.run_id and found.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(found.info.run_id, "loss")] == [1, 2]
    trackers.catch_up(run)  # a second time, as after a kill: no epoch is there twice
    assert len(client.get_metric_history(found.info.run_id, "loss")) == 2


def test_a_run_that_is_stopped_on_purpose_says_why(tmp_path):
    run = tracked_run(tmp_path / "trial7")
    with pytest.raises(trackers.Stopped), trackers.following(run, run.read_config()) as followers:
        followers.write_epochs(ROWS[:1])
        raise trackers.Stopped("pruned at epoch 1")
    _, found = stored(run)
    assert found.info.status == "KILLED" and found.data.tags["kmed.stopped"] == "pruned at epoch 1"
    follow(run)  # as if the process had been killed before the study knew it
    _, found = stored(run)
    assert found.info.status == "FINISHED" and "kmed.stopped" not in found.data.tags


def test_a_run_that_fails_is_marked(tmp_path):
    run = tracked_run(tmp_path / "run")
    with pytest.raises(RunError), trackers.following(run, run.read_config()) as followers:
        followers.write_epochs(ROWS[:1])
        raise RunError("no")
    assert stored(run)[1].info.status == "FAILED"


def test_a_run_that_fails_before_its_first_epoch_is_in_no_store(tmp_path):
    run = tracked_run(tmp_path / "run")
    with pytest.raises(RunError), trackers.following(run, run.read_config()):
        raise RunError("no")
    assert not run.trackers.exists() and not (tmp_path / "mlflow.db").exists()


def test_mlflows_own_variables_choose_store_and_experiment(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "smears")
    monkeypatch.chdir(tmp_path)
    run = tracked_run(tmp_path / "runs" / "run")
    follow(run)
    client, found = stored(run, uri)
    assert client.get_experiment(found.info.experiment_id).name == "smears"
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_mlflows_file_store_is_taken_where_mlflow_allows_it(tmp_path, monkeypatch):
    uri = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = tracked_run(tmp_path / "run")
    follow(run)
    monkeypatch.setattr("kmed.report.run_page.try_report", lambda run: None)
    trackers.report_run(run)
    check_whole(run, uri)


def test_a_run_of_another_store_begins_anew(tmp_path, monkeypatch):
    run = tracked_run(tmp_path / "run")
    follow(run)
    first = stored(run)[1].info.run_id
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    follow(run)
    assert stored(run, uri)[1].info.run_id != first


def test_two_runs_that_begin_at_once_share_the_experiment():
    class Client:
        made = False

        def get_experiment_by_name(self, name):
            return types.SimpleNamespace(experiment_id="7") if self.made else None

        def create_experiment(self, name, artifact_location):
            self.made = True  # by the other run
            raise mlflow.MlflowException("exists")

    assert mlflow_tracker._experiment(Client(), "kmed", None) == "7"


@pytest.mark.parametrize("marker", ["sweep.json", "crossval.json"])
def test_runs_of_a_sweep_share_the_store_of_all_runs(tmp_path, marker):
    run = Run(tmp_path / "study" / "vit")
    run.folder.mkdir(parents=True)
    assert mlflow_tracker.home_of(run) == tmp_path / "study"
    (tmp_path / "study" / marker).write_text("{}")
    assert mlflow_tracker.home_of(run) == tmp_path


def broken_file(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)


def no_server(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


def no_such_scheme(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")


def file_store_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())


def fails_later(tmp_path, monkeypatch):
    def fail(self, rows):
        raise OSError("the network is gone\nand more")

    monkeypatch.setattr(mlflow_tracker.MlflowTracker, "write_epochs", fail)


@pytest.mark.parametrize("break_it", [broken_file, no_server, no_such_scheme, file_store_refused, fails_later])
def test_a_broken_store_is_one_warning(tmp_path, monkeypatch, caplog, break_it):
    run = tracked_run(tmp_path / "run")
    break_it(tmp_path, monkeypatch)
    monkeypatch.setattr("kmed.report.run_page.try_report", lambda run: None)
    with caplog.at_level(logging.WARNING):
        follow(run)
        trackers.report_run(run)
    (warning,) = caplog.messages
    assert warning.startswith(f"Warning: mlflow does not follow {run.folder} any more (") and "\n" not in warning


def test_a_store_that_fails_in_the_middle_gets_the_rest_when_the_run_continues(tmp_path, monkeypatch, caplog):
    run = tracked_run(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        fails_later(tmp_path, patch)
        follow(run)
    assert json.loads(run.trackers.read_text())["trackers"]["mlflow"]["failed"] is True
    follow(run)
    client, found = stored(run)
    assert [point.step for point in client.get_metric_history(found.info.run_id, "loss")] == [1, 2]
    assert json.loads(run.trackers.read_text())["trackers"]["mlflow"]["failed"] is False


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("[mlfow]", r"takes mlflow, each once. Received: 'mlfow'. Did you mean 'mlflow'"),
        ("[mlflow, mlflow]", "each once"),
    ],
)
def test_an_unknown_tracker_is_one_line(names, message):
    with pytest.raises(ConfigError, match=message):
        fit.check_settings(load_config(overrides=[f"train.trackers={names}", "task=multiclass"]))


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "sqlalchemy" else object())
    with pytest.raises(ConfigError, match=r"mlflow needs sqlalchemy. Install with: pip install kmed\[mlflow\]"):
        fit.check_settings(load_config(overrides=["train.trackers=[mlflow]", "task=multiclass"]))


def test_a_damaged_trackers_file_is_named(tmp_path):
    run = tracked_run(tmp_path / "run")
    run.trackers.write_text('{"version": 1, "kmed_version": "0", "trackers": {"mlflow": {"id": "a b", "failed": 0}}}')
    with pytest.raises(RunError, match="trackers.json: trackers.mlflow.id"):
        trackers.read_trackers(run)


def test_a_trained_run_is_followed_across_an_interruption(small_npz, tmp_path, monkeypatch):
    settings = ["model.name=vit", "model.options={width: 8, depth: 1, num_heads: 2}", "data.image_size=16x16"]
    settings += ["train.epochs=2", "train.tensorboard=false", "train.dtype=float32", "evaluate.num_resamples=20"]
    settings += ["train.trackers=[mlflow]", f"data.path={small_npz}"]
    write, calls = loop.write_history, []

    def interrupt(path, rows):
        write(path, rows)
        calls.append(rows)
        if len(calls) == 2:  # after the second epoch's checkpoint, before the trackers know of it
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "write_history", interrupt)
    with pytest.raises(KeyboardInterrupt):
        kmed.train(settings=settings, out=tmp_path / "run")
    run = Run(tmp_path / "run")
    assert stored(run)[1].info.status == "KILLED"
    kmed.train(resume=run.folder)
    check_whole(run)
    assert len(pd.read_csv(run.history)) == 2
    assert len(client_of(run).search_runs(["1"])) == 1


def test_a_run_with_a_broken_store_ends_well(small_npz, tmp_path, caplog):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    settings = ["model.name=vit", "model.options={width: 8, depth: 1, num_heads: 2}", "data.image_size=16x16"]
    settings += ["train.epochs=1", "train.tensorboard=false", "train.dtype=float32", "evaluate.num_resamples=20"]
    with caplog.at_level(logging.WARNING):
        run = kmed.train(
            settings=[*settings, "train.trackers=[mlflow]", f"data.path={small_npz}"], out=tmp_path / "run"
        )
    assert run.result.exists() and run.report.exists()
    assert len([message for message in caplog.messages if "mlflow" in message]) == 1
