"""The epochs: which one is the best, also where its score is undefined, and when training stops."""

import logging
import math

import numpy as np
import pandas as pd
import pytest

from kmed.config import load_config
from kmed.data.table import Table
from kmed.errors import ConfigError
from kmed.training import loop
from kmed.training.callbacks import NonFiniteLoss, check_finite
from kmed.training.checkpoint import State
from kmed.training.fit import check_monitor

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("monitor", "values", "best", "waited"),
    [
        ("val_loss", [3, 2, 1], 3, 0),
        ("val_loss", [1, 2, 1], 1, 2),
        ("val_loss", [NAN, 2, 3], 2, 1),
        ("val_loss", [2, NAN, 1], 3, 0),
        ("val_loss", [2, NAN, NAN], 1, 2),
        ("val_loss", [NAN, NAN, NAN], 0, 3),
        ("val_loss", [INF, 5, INF], 2, 1),
        ("val_loss", [-INF, 5, 4], 3, 0),
        ("val_loss", [INF, -INF], 0, 2),
        ("val_auroc_macro", [NAN, 0.4, 0.6], 3, 0),
        ("val_auroc_macro", [0.6, NAN, INF], 1, 2),
        ("val_auroc_macro", [NAN, NAN], 0, 2),
        ("val_accuracy", [0.0, 0.0], 1, 1),
        ("val_hamming_loss", [NAN, 0.2, 0.1, NAN], 3, 1),
    ],
)
def test_an_undefined_score_is_never_the_best(monitor, values, best, waited):
    state = State()
    for epoch, value in enumerate(values, 1):
        improved = loop.record_epoch(state, {"epoch": epoch, "seconds": 1.0, monitor: value}, monitor, None)
        assert improved == (state.best_epoch == epoch)
    assert (state.best_epoch, state.waited, state.epoch) == (best, waited, len(values))
    assert state.best_value == (values[best - 1] if best else None)


def test_without_a_best_epoch_the_last_one_is_kept_and_said(caplog):
    logging.getLogger("kmed").propagate = True
    state = State(epoch=7, seconds=60)
    with caplog.at_level(logging.INFO, logger="kmed"):
        loop.choose_epoch(state, "val_auroc_macro")
    warning, line = dict.fromkeys(caplog.messages)  # another handler of the tests may record each of them too
    assert "val_auroc_macro was undefined in every epoch" in warning and "train.monitor, such as val_loss" in warning
    assert line == "Best epoch: 7 (the last one), 60 s." and state.best_epoch == 7


def test_an_undefined_score_is_called_so():
    row = {"epoch": 2, "learning_rate": 1e-3, "loss": 0.5, "val_loss": NAN, "seconds": 3.0}
    line = loop.describe_epoch(row, 9, improved=False)
    assert line == "Epoch 2/9: loss 0.5000  val_loss undefined  (3 s)"


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [(0, 0), (4, 1), (slice(None), slice(None))])
def test_predictions_that_are_not_finite_stop_training(bad, place):
    probs = np.full((5, 2), 0.5, np.float32)
    check_finite(probs, 1)
    probs[place] = bad
    with pytest.raises(NonFiniteLoss, match="not finite after epoch 3: training has diverged .* Lower --lr"):
        check_finite(probs, 3)


def table_of(findings):
    """Returns 20 training and 10 validation images; in the latter, each finding has the given labels, repeated."""
    labels = [np.append(np.resize([0, 1], 20), np.resize(values, 10)) for values in findings]
    rows = pd.DataFrame(
        {"path": np.arange(30).astype(str), "group": "g", "cluster": "c", "split": ["train"] * 20 + ["val"] * 10}
    )
    return Table(rows, np.stack(labels, axis=1).astype(np.float32), tuple("abc"[: len(findings)]), "multilabel", "x")


KNOWN, NONE, ALL = [0, 1], [0], [1]  # in the validation split: in some images, in none, in all


@pytest.mark.parametrize(
    ("monitor", "findings", "is_defined"),
    [
        ("val_loss", [KNOWN], True),
        ("val_loss", [NONE, NONE], True),
        ("val_auroc_macro", [KNOWN], True),
        ("val_auroc_macro", [NONE], False),
        ("val_auroc_macro", [ALL], False),
        ("val_auroc_macro", [NONE, KNOWN], True),
        ("val_auroc_macro", [NONE, ALL], False),
        ("val_auroc_macro", [[NAN], NONE], False),
        ("val_auroc_macro", [[NAN, 1], [NAN, 0]], False),
        ("val_auroc_macro", [[NAN, 1, 0]], True),
        ("val_hamming_loss", [NONE, ALL], True),
        ("val_exact_match_ratio", [ALL], True),
    ],
)
def test_a_monitor_that_cannot_be_defined_is_refused_before_training(monitor, findings, is_defined):
    config = load_config(overrides=["task=multilabel", f"train.monitor={monitor}"])
    if is_defined:
        check_monitor(config, table_of(findings))
        return
    with pytest.raises(ConfigError, match=f"train.monitor={monitor} is undefined .* to val_loss or val_exact"):
        check_monitor(config, table_of(findings))
