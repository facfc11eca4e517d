"""The JSON files of a run: what does not fit is one line that names the file and the field; older files are read."""

import copy
import json
import math
import pathlib
import shutil

import pytest

from kmed.errors import KmedError, RunError
from kmed.reading import read_json
from kmed.runs import SCHEMAS, Run
from kmed.schemas.records import VERSION, StateFile, check, stamped
from kmed.version import __version__

ROOT = pathlib.Path(__file__).parent.parent
KEPT = ROOT / "fixtures" / "runs_0_1_0"
VALUES = (None, True, "", "x", -1, 1e308, math.nan, math.inf, 10**400, [], {}, [[1]], {"a": {"b": 1}}, "y" * 5000)

SCORE = {"value": 0.3, "low": 0.2, "high": 0.4, "num_clusters": 33, "num_undefined": 0, "few_clusters": False}
# Files that kmed 0.1.0 did not have.
NEW = {
    "ensemble.json": {
        "members": [{"path": "../vit", "model": "vit", "settings": {"seed": 0}}],
        "requested": "auto",
        "average": "logits",
        "reason": "log loss 0.6 on validation after calibration, and 0.7 with probabilities",
        "validation_log_loss": {"probabilities": 0.7, "logits": 0.6},
    },
    "recalibration.json": {
        "source": "../run",
        "method": "labels",
        "assumption": "",
        "groups": {"fit": 32, "check": 33},
        "pictures": {"fit": 37, "check": 34},
        "kept": [],
        "shares": None,
        "gains": {"brier_calibrated": {"home": SCORE, "local": SCORE, "gain": SCORE}},
        "curve": {"home": 0.34, "points": [{"groups": 32, "mean": 0.6, "low": 0.3, "high": 2.2}], "enough": 32},
        "sentences": ["Labels of 32 groups would have been enough."],
    },
    "teacher.json": {"folder": "saved_models/teacher", "model": "vit", "sha256": "0" * 64},
    "trackers.json": {"trackers": {"mlflow": {"id": "0" * 32, "failed": False}}},
}


@pytest.fixture
def run(tmp_path):
    return Run(shutil.copytree(KEPT / "multiclass", tmp_path / "run"))


def fields(content, place=()):
    """Yields the place of each field of nested objects; of an object with many alike, the first."""
    for key in list(content)[: 1 if place and place[-1] in ("scores", "per_class", "counts", "constants") else None]:
        yield (*place, key)
        if isinstance(content[key], dict) and content[key]:
            yield from fields(content[key], (*place, key))


def changed(content, place, *value):
    """Returns a copy with one field replaced, or removed without a value."""
    content = copy.deepcopy(content)
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    if value:
        holder[place[-1]] = value[0]
    else:
        del holder[place[-1]]
    return content


@pytest.mark.parametrize("name", [*SCHEMAS, "state.json"])
def test_every_field_removed_retyped_or_made_extreme(name):
    schema = SCHEMAS.get(name, StateFile)
    kept = (KEPT / ("multiclass" if name in SCHEMAS else "interrupted")).rglob(name)
    path = pathlib.Path(name) if name in NEW else next(kept)
    content, refused = NEW[name] if name in NEW else read_json(path), 0
    for place in fields(content):
        for value in ((), *((value,) for value in VALUES)):
            try:
                check(schema, changed(content, place, *value), path)
            except RunError as error:
                refused += 1
                text = str(error)
                assert "\n" not in text and str(path) in text and len(text) < 1000, text
                assert any(str(key)[:20] in text for key in place), (place, value, text)
    assert refused > 5 * len(list(fields(content)))


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        (
            "calibration.json",
            "calibration/temperature",
            0,
            "calibration.temperature must be greater than .* Received: 0",
        ),
        ("calibration.json", "calibration/temperature", math.nan, "calibration.temperature must be a finite number"),
        ("calibration.json", "calibration/method", "none", "calibration.method must be 'temperature' or 'platt'"),
        ("calibration.json", "thresholds/values/NEUTROPHIL", -0.1, "thresholds.values.NEUTROPHIL .*-0.1"),
        ("calibration.json", "thresholds/values/BASOPHIL", 0.5, "thresholds.values names 'BASOPHIL'"),
        ("calibration.json", "prediction_sets/coverage", 1.5, "prediction_sets.coverage must be less than 1"),
        ("calibration.json", "calibration/class_names", ["A", "A"], "calibration.class_names names 'A' twice"),
        ("calibration.json", "extra", 1, "there is no field extra"),
        ("metrics.json", "test/scores/accuracy/value", 7, "scores.accuracy.value must be from 0 to 1. Received: 7"),
        ("metrics.json", "test/scores/accuracy/low", 0.9, "low must not be above high"),
        ("metrics.json", "training/positives", [1, 2], "training.positives must hold 4 counts, not 2"),
        ("metrics.json", "val/task", "multilabel", "val.scores lacks 'exact_match_ratio'"),
        ("metrics.json", "test/verdict/best_constant", "x", "best_constant names 'x', which is none of"),
        ("classes.json", "image_size", [32], "image_size must .* Received: .32."),
        ("classes.json", "fit", "crop", "fit is 'crop', but .*config.yaml says 'pad'"),
        ("environment.json", "versions", "new", "versions must be a valid dictionary. Received: 'new'"),
    ],
)
def test_a_value_that_is_not_legal_is_named(run, name, place, value, message):
    path = run.folder / name
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place.split("/"), value)))
    with pytest.raises(RunError, match=f"{name}: .*{message}") as caught:
        run.read_classes() if name == "classes.json" else run.read_json(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["classes.json", "calibration.json", "metrics.json"])
def test_names_in_another_order_are_found(run, name):
    text = (run.folder / name).read_text()
    swapped = text.replace("MONOCYTE", "?").replace("LYMPHOCYTE", "MONOCYTE").replace("?", "LYMPHOCYTE")
    (run.folder / name).write_text(swapped)
    with pytest.raises(RunError, match="class_names is .*MONOCYTE.*, but .*classes.json says .*LYMPHOCYTE"):
        for path in (run.fitted, run.metrics):
            run.read_json(path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"rubbish", b"\xff\xfe", b"null", b"[]", b"3", b"[" * 100_000, b'{"a":' * 5000, b'{"a": 1, "a": 2}', b"\0",
        b'{"a": "\\ud800"}', b'{"a": ' + b"9" * 5000 + b"}", "{'é'}".encode("latin-1"), None, "folder", "link",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["classes.json", "metrics.json", "config.yaml"])
def test_rubbish_in_place_of_a_file_is_one_line(run, name, content):
    path = run.folder / name
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content == "link":
        path.symlink_to("nowhere")
    elif content is not None:
        path.write_bytes(content)
    try:
        run.read_json(run.metrics)
        raise AssertionError("taken in silence")
    except KmedError as error:
        assert "\n" not in str(error) and name in str(error) and len(str(error)) < 1000


def test_a_newer_version_is_refused_and_an_older_one_is_read(run):
    old = json.loads(run.metrics.read_text())
    assert "version" not in old and run.read_json(run.metrics) == old
    run.metrics.write_text(json.dumps(stamped(old)))
    assert list(run.read_json(run.metrics))[:2] == ["version", "kmed_version"]
    run.metrics.write_text(json.dumps(stamped(old) | {"version": VERSION + 1, "kmed_version": "9.1", "new": 1}))
    with pytest.raises(RunError, match=f"metrics.json has version {VERSION + 1} and was written by kmed 9.1; kmed "
                                       f"{__version__} reads versions up to {VERSION}. Upgrade"):  # fmt: skip
        run.read_json(run.metrics)


def test_harmless_differences_are_read(run):
    for path in (run.classes, run.metrics, run.fitted, run.history, run.predictions):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r", b"").replace(b"\n", b"\r\n"))
    assert run.read_json(run.fitted) and run.read_json(run.metrics) and len(run.read_history()) == 2


@pytest.mark.parametrize("folder", [*sorted(ROOT.parent.glob("results/*/*/")), *KEPT.glob("multi*")])
def test_kept_runs_are_read(folder):
    from kmed.evaluation.predictions import stored_predictions

    run = Run(folder)
    assert run.read_json(run.metrics) and run.read_json(run.fitted)
    assert (len(run.read_history()) > 0) == (not run.ensemble.exists())
    assert len(stored_predictions(run)) and run.read_result(["minutes"])


def test_mutants_of_whole_runs(script, tmp_path):
    """A few of the mutants that scripts/fuzz_runs.py makes; nothing but errors of kmed leaves the readers."""
    import random

    fuzz, rng = script("fuzz_runs"), random.Random(3)
    outcomes = set()
    for _ in range(60):
        mutant = tmp_path / "mutant"
        shutil.rmtree(mutant, ignore_errors=True)
        shutil.copytree(KEPT / rng.choice(["multiclass", "interrupted"]), mutant)
        name, done, _ = fuzz.damage(mutant, rng)
        for file, read in fuzz.readers(mutant).items():
            try:
                read()
                error = None
            except Exception as problem:  # the test is about which kind it is
                error = problem
            outcomes.add(fuzz.judge(error, name))
            assert outcomes <= {"fine", "refused"}, (name, done, file, error)
    assert outcomes == {"fine", "refused"}
