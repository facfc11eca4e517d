"""recalibration.json: what contradicts itself, or cannot be a number of its kind, is one line that names the field."""

import copy

import pytest

from kmed.errors import RunError
from kmed.schemas.recalibration import RecalibrationFile
from kmed.schemas.records import check

PATH = "run/recalibration.json"
SCORE = {"value": 0.3, "low": 0.2, "high": 0.4, "num_clusters": 33, "num_undefined": 0, "few_clusters": False}
LOST = {**SCORE, "value": -0.1, "low": -0.2, "high": None}
POINTS = [
    {"groups": 10, "mean": 0.6, "low": 0.3, "high": 2.2},
    {"groups": 32, "mean": 0.5, "low": 0.5, "high": 0.5},
]
LABELS = {
    "source": "../run",
    "method": "labels",
    "assumption": "",
    "groups": {"fit": 32, "check": 33},
    "pictures": {"fit": 37, "check": 34},
    "kept": ["Mass"],
    "shares": None,
    "gains": {"brier_calibrated": {"home": SCORE, "local": SCORE, "gain": LOST}},
    "curve": {"home": 0.34, "points": POINTS, "enough": 10},
    "sentences": ["Labels of 10 groups would have been enough."],
}
PRIOR = {
    **LABELS,
    "method": "prior",
    "assumption": "Only the shares differ.",
    "shares": {"home": {"Mass": 0.4, "Edema": 0.1}, "found": {"Mass": 0.3, "Edema": 0.2},
               "true": {"Mass": None, "Edema": 0.1}},
    "curve": None,
}  # fmt: skip
UNLABELLED = {
    **PRIOR,
    "groups": {"fit": 32, "check": None},
    "pictures": {"fit": 37, "check": None},
    "shares": {**PRIOR["shares"], "true": None},
    "gains": None,
}


def changed(content, place, value):
    content = holder = copy.deepcopy(content)
    *above, last = [int(key) if key.isdigit() else key for key in place.split("/")]
    for key in above:
        holder = holder[key]
    holder[last] = value
    return content


def test_the_three_kinds_are_read():
    for content, labelled in ((LABELS, True), (PRIOR, True), (UNLABELLED, False)):
        assert check(RecalibrationFile, content, PATH).labelled is labelled
    assert check(RecalibrationFile, LABELS, PATH).class_names is None
    assert check(RecalibrationFile, UNLABELLED, PATH).class_names == ["Mass", "Edema"]


@pytest.mark.parametrize(
    ("content", "place", "value", "message"),
    [
        (LABELS, "groups/fit", 0, "groups.fit must be greater than or equal to 1. Received: 0"),
        (LABELS, "groups/check", 35, r"groups.check \(35\) must not exceed pictures.check \(34\)"),
        (LABELS, "groups/other", 1, "there is no field groups.other"),
        (LABELS, "kept", ["Mass", "Mass"], "kept names 'Mass' twice"),
        (LABELS, "gains", None, "groups.check, gains must all be null, as without labels, or none of them"),
        (LABELS, "gains/brier_calibrated/local", None, "gains.brier_calibrated.local must be a valid dictionary"),
        (LABELS, "gains/brier_calibrated/home/low", 0.5, "low must not be above high"),
        (LABELS, "gains/brier_calibrated/home/high", 2.5, "gains.brier_calibrated.home.high must be from 0 to 2"),
        (LABELS, "gains/brier_calibrated/gain/low", -2.5, "gains.brier_calibrated.gain.low must be from -2 to 2"),
        (LABELS, "gains/brier_calibrated/gain", {"value": 1}, "gains.brier_calibrated.gain.low is missing"),
        (LABELS, "curve", None, "curve must be given if method is 'labels'"),
        (LABELS, "curve/points", POINTS[:1], "curve.points must end with the 32 groups of groups.fit. Received: 10"),
        (LABELS, "curve/points", POINTS[::-1], r"curve.points must have ever more groups. Received: .32, 10."),
        (LABELS, "curve/points/0/low", 3.0, "low must not be above high"),
        (LABELS, "curve/points/0/mean", -1.0, "curve.points.0.*.mean must be greater than or equal to 0"),
        (LABELS, "curve/enough", 20, "curve.enough must be 0 or the groups of a point. Received: 20"),
        (LABELS, "shares", PRIOR["shares"], "shares must not be given if method is 'labels'"),
        (LABELS, "sentences", [], "sentences must hold at least 1 item"),
        (PRIOR, "assumption", "", "assumption must be given if method is 'prior'"),
        (PRIOR, "shares", None, "shares must be given if method is 'prior'"),
        (PRIOR, "curve", LABELS["curve"], "curve must not be given if method is 'prior'"),
        (PRIOR, "kept", ["Masses"], "kept names 'Masses', which is none of"),
        (PRIOR, "shares/found/Mass", 1.5, "shares.found.Mass must be less than or equal to 1"),
        (PRIOR, "shares/home/Mass", None, "shares.home.Mass must be a valid number"),
        (PRIOR, "shares/found", {"Mass": 0.3}, "shares.found lacks 'Edema'"),
        (PRIOR, "shares/true", None, "groups.check, gains, shares.true must all be null"),
        (UNLABELLED, "groups/check", 3, r"groups.check \(3\) must not exceed pictures.check \(None\)"),
        (UNLABELLED, "gains", {}, "groups.check, gains, shares.true must all be null"),
    ],
)
def test_what_is_not_legal_is_named(content, place, value, message):
    with pytest.raises(RunError, match=f"{PATH}: .*{message}") as caught:
        check(RecalibrationFile, changed(content, place, value), PATH)
    assert "\n" not in str(caught.value)
