"""scripts/tune.py: test pictures are not used, and the row is that of the epoch that a run would keep."""

import itertools
import types

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import kmed


@pytest.fixture
def tune(script):
    return script("tune")


@pytest.fixture
def arguments(tmp_path):
    """Returns arguments for a tiny network on 24 pictures, of which each split has 4 of either class."""
    (tmp_path / "config.yaml").write_text(
        "train: {epochs: 1}\ndata: {image_size: 16x16}\nmodel: {options: {width: 8, depth: 1, num_heads: 2}}\n"
    )
    rng = np.random.default_rng(0)
    for split, label, number in itertools.product(("train", "val", "test"), "ab", range(4)):
        folder = tmp_path / "data" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{split}{number}.png")
    paths = {"--config": tmp_path / "config.yaml", "--data": tmp_path / "data", "--out": tmp_path / "t.csv"}
    return [*itertools.chain(*((name, str(path)) for name, path in paths.items())), "--model", "vit"]


@pytest.fixture
def seen(monkeypatch):
    """Returns the list of the tables that are trained on, which grows."""
    fit, tables = kmed.fit, []

    def watched(config, *, table, out):
        tables.append(table)
        return fit(config, table=table, out=out)

    monkeypatch.setattr(kmed, "fit", watched)
    return tables


def test_a_trial_does_not_use_test_pictures(tune, arguments, seen, tmp_path):
    for rate in ("0.001", "0.002"):
        outcome = CliRunner().invoke(tune.main, [*arguments, "--set", f"train.learning_rate={rate}"])
        assert outcome.exit_code == 0, outcome.output
    assert [set(table.rows["split"]) for table in seen] == [{"train", "val"}] * 2
    rows = pd.read_csv(tmp_path / "t.csv")
    assert list(rows["settings"]) == ["train.learning_rate=0.001", "train.learning_rate=0.002"]
    assert rows["val_loss"].notna().all()


def test_each_picture_is_validated_once_in_folds(tune, arguments, seen, tmp_path):
    outcome = CliRunner().invoke(tune.main, [*arguments, "--folds", "2", "--note", "twice"])
    assert outcome.exit_code == 0, outcome.output
    held = [set(table.rows["path"][table.rows["split"] == "val"]) for table in seen]
    trained = [set(table.rows["path"][table.rows["split"] == "train"]) for table in seen]
    assert len(held) == 2 and not held[0] & held[1] and held == trained[::-1] and len(held[0] | held[1]) == 16
    assert not [path for path in held[0] | held[1] if "test" in path]
    row = pd.read_csv(tmp_path / "t.csv").iloc[0]
    low, high = map(float, row["val_accuracy_interval"].split(" to "))
    assert (row["folds"], row["clusters"], row["note"]) == (2, 16, "twice") and low <= row["val_accuracy"] <= high


def test_the_scores_of_folds_are_those_of_all_predictions_together(tune, tmp_path):
    parts = []
    for number, text in enumerate(("a,a,p\nb,a,p\na,a,q\n", "a,b,r\n")):
        (tmp_path / f"{number}.csv").write_text("label,predicted,cluster\n" + text)
        parts.append(types.SimpleNamespace(predictions=tmp_path / f"{number}.csv"))
    best = [{"val_loss": 0.5, "val_accuracy": 2 / 3}, {"val_loss": 0.7, "val_accuracy": 0.0}]
    found = tune.pooled_scores(best, parts)
    assert found["val_loss"] == 0.6 and found["val_accuracy"] == 0.5  # 2 of 4, not the mean of 2/3 and 0
    assert found["val_accuracy_per_cluster"] == 0.5 and found["clusters"] == 3  # p: 1/2, q: 1, r: 0
    assert tune.pooled_scores([{"val_auroc_macro": 0.6}, {"val_auroc_macro": 0.7}], parts) == {"val_auroc_macro": 0.65}


def test_the_best_epoch_is_the_monitored_one(tune):
    history = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "val_loss": [0.5, 0.7], "val_accuracy": [0.1, 0.9]})
    assert tune.best_epoch(history, "val_loss")["best_epoch"] == 1
    assert tune.best_epoch(history, "val_accuracy")["val_loss"] == 0.7
