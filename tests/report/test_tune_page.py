"""The page of a study: what it says of the best trial, of poor ones, and of a study that has only begun."""

import re

import pandas as pd

from kmed.report.tune_page import try_tune_report, write_tune_report

SPACE = {"train.learning_rate": {"log": [0.0001, 0.01]}, "augment.level": {"choices": ["light", "strong"]}}
TRIALS = pd.DataFrame(
    {
        "trial": [0, 1, 2, 3],
        "state": ["finished", "finished", "pruned", "failed"],
        "val_loss": [0.9, 0.5, 1.5, float("nan")],
        "best_epoch": [3, 2, 1, 0],
        "epochs": [3, 3, 1, 0],
        "minutes": [0.1, 0.1, 0.1, 0.0],
        "note": ["", "", "worse", "No <memory>."],
        "train.learning_rate": [0.001, 0.00234567, 0.01, 0.002],
        "augment.level": ["light", "strong", "light", "light"],
    }
)


def write(folder, trials=TRIALS, *, best=1, importance=None):
    content = {"monitor": "val_loss", "minimize": True, "best": best, "space": SPACE, "wanted": 9}
    return write_tune_report(folder, trials, importance or {}, **content).read_text()


def test_the_best_trial_comes_first_and_its_settings_are_named(tmp_path):
    page = write(tmp_path, importance={"train.learning_rate": 0.75, "augment.level": 0.25})
    assert re.findall(r'<th scope="row">(trial\d)</th>', page) == ["trial1", "trial0", "trial2", "trial3"]
    assert "The best trial is trial1: train.learning_rate = 0.002346, augment.level = strong." in page
    assert f"kmed train --config {tmp_path / 'best.yaml'}" in page and "4 of 9 trials" in page
    assert "2 finished" in page and "1 pruned" in page and "lower is better" in page
    assert "No &lt;memory&gt;." in page  # a note is text
    assert page.count('<svg class="chart"') == 2 and "Importance: train.learning_rate 0.75, augment.level 0.25." in page


def test_a_study_that_has_only_begun_has_a_page_too(tmp_path):
    page = write(tmp_path, TRIALS.iloc[[3]], best=None)
    assert "No trial has finished yet." in page and "No trial has a score yet." in page and "four are needed" in page
    assert "<svg" not in page


def test_a_page_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    try_tune_report(tmp_path, TRIALS, {}, monitor="val_loss", minimize=True, best=7, space=SPACE, wanted=9)
    assert "was not made" in caplog.text and f"kmed tune --resume {tmp_path}" in caplog.text
