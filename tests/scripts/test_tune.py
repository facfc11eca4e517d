"""scripts/tune.py: test pictures are not used, and the row is that of the epoch that a run would keep."""

import itertools

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import kmed


@pytest.fixture
def tune(script):
    return script("tune")


def test_a_trial_does_not_use_test_pictures(tune, tmp_path, monkeypatch):
    config = tmp_path / "config.yaml"
    config.write_text(
        "train: {epochs: 1}\ndata: {image_size: 16x16}\nmodel: {options: {width: 8, depth: 1, num_heads: 2}}\n"
    )
    fit, seen = kmed.fit, []

    def watched(config, *, table, out):
        seen.append(set(table.rows["split"]))
        return fit(config, table=table, out=out)

    monkeypatch.setattr(kmed, "fit", watched)
    rng = np.random.default_rng(0)
    for split, label, number in itertools.product(("train", "val", "test"), "ab", range(4)):
        folder = tmp_path / "data" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{number}.png")
    arguments = [
        "--config",
        str(config),
        "--data",
        str(tmp_path / "data"),
        "--model",
        "vit",
        "--out",
        str(tmp_path / "t.csv"),
    ]
    for rate in ("0.001", "0.002"):
        outcome = CliRunner().invoke(tune.main, [*arguments, "--set", f"train.learning_rate={rate}"])
        assert outcome.exit_code == 0, outcome.output
    assert seen == [{"train", "val"}] * 2
    rows = pd.read_csv(tmp_path / "t.csv")
    assert list(rows["settings"]) == ["train.learning_rate=0.001", "train.learning_rate=0.002"]
    assert rows["val_loss"].notna().all()


def test_the_best_epoch_is_the_monitored_one(tune):
    history = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0], "val_loss": [0.5, 0.7], "val_accuracy": [0.1, 0.9]})
    assert tune.best_epoch(history, "val_loss")["best_epoch"] == 1
    assert tune.best_epoch(history, "val_accuracy")["val_loss"] == 0.7
