"""Both sides are compared over the same classes, and change by what two independent samples allow."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from kmed.errors import ScoreError
from kmed.evaluation.side_by_side import set_side_by_side
from kmed.metrics.intervals import Score, change_of


@pytest.fixture
def coverage(script):
    return script("external_coverage")


@pytest.fixture
def sides(coverage):
    rng = np.random.default_rng(0)
    return coverage.draw("home", 60, rng), coverage.draw("other", 50, rng)


def beside(coverage, sides):
    return set_side_by_side(*sides, coverage.FITTED, coverage.RULE, coverage.Bootstrap(50))


def test_a_side_beside_itself_has_not_changed(coverage, sides):
    same = beside(coverage, (sides[0], sides[0]))
    for both in (*same.scores.values(), *same.shares.values(), *same.lines["slope"].values()):
        assert both.change.value == 0 and not both.differs
        assert both.change.low < 0 < both.change.high  # though it is the same sample, the draws are others


def test_a_finding_that_one_side_lacks_counts_on_neither(coverage, sides):
    home, other = sides
    labels = other.labels.copy()
    labels[:, 1] = np.nan
    compared = beside(coverage, (home, dataclasses.replace(other, labels=labels)))
    assert compared.classes == ("one",)
    whole = beside(coverage, sides)
    assert compared.scores["auroc_macro"].internal.value == pytest.approx(whole.auroc["one"].internal.value)
    assert set(compared.points["sensitivity"]) == {"one"}
    assert np.isnan(compared.shares["two"].external.value)
    assert compared.shares["two"].internal.value == pytest.approx(home.labels[:, 1].mean())


def test_the_mean_line_is_over_the_classes_that_have_one_on_both_sides(coverage, sides):
    home, other = sides
    probs = other.probs.copy()
    probs[:, 1] = np.where(other.labels[:, 1] == 1, 0.9, 0.1)  # separated: no slope
    compared = beside(coverage, (home, dataclasses.replace(other, probs=probs)))
    slopes = compared.lines["slope"]
    assert np.isnan(slopes["two"].external.value) and np.isfinite(slopes["two"].internal.value)
    assert slopes["mean"].internal.value == slopes["one"].internal.value
    assert slopes["mean"].external.value == slopes["one"].external.value


def test_two_scores_need_as_many_draws():
    one, other = (Score(0.5, 0, 1, 30, resampled=np.zeros(size)) for size in (10, 20))
    with pytest.raises(ScoreError, match="as many draws each"):
        change_of(one, other, 0.95)
    none = change_of(dataclasses.replace(one, num_clusters=1), one, 0.95)
    assert np.isnan(none.low) and none.num_clusters == 1


def test_intervals_of_changes_cover_the_truth(coverage):
    """In short; results/external_coverage.csv has 1,000 pairs of hospitals."""
    frame = coverage.measure([60, 50], data_sets=12, resamples=60, truth_patients=5000).set_index("score")
    assert frame.loc[["auroc_macro", "brier_calibrated", "sensitivity", "share"], "coverage"].mean() > 0.8
    assert (frame["true_change"].drop("exact_match_ratio") != 0).all()


def test_the_stored_coverage_is_near_the_nominal_one(pytestconfig):
    frame = pd.read_csv(pytestconfig.rootpath / "results" / "external_coverage.csv").set_index("score")
    assert (frame["data_sets"] == 1000).all()
    assert frame["coverage"].drop("ece_calibrated").between(0.93, 0.97).all()
