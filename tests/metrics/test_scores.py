"""Final scores: scikit-learn as the oracle for every value and every resample, laws, and cases by hand."""

import json
import math

import numpy as np
import pytest
import sklearn.metrics

from kmed.errors import ScoreError
from kmed.files import write_json
from kmed.metrics.intervals import Bootstrap, draw_resamples
from kmed.metrics.scores import FinalScore
from kmed.tasks import TASKS

NAMES = ("a", "b", "c")
score_multiclass, score_multilabel = TASKS["multiclass"].score, TASKS["multilabel"].score
RATES = ("precision", "recall", "f1")


def draw_multiclass(num_images=90, num_clusters=12, seed=0):
    """Returns (labels (N, 3), probs (N, 3) full of ties, clusters (N,))."""
    rng = np.random.default_rng(seed)
    labels = np.eye(3)[rng.choice(3, num_images, p=[0.5, 0.3, 0.2])]
    probs = (1 + rng.integers(0, 4, labels.shape)) + 2 * labels
    return labels, probs / probs.sum(axis=1, keepdims=True), rng.integers(0, num_clusters, num_images)


def draw_multilabel(num_images=90, num_clusters=12, unknown=0.2, seed=0):
    """Returns (labels (N, 3) with NaN, probs (N, 3) full of ties, clusters (N,))."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_images, 3)) < [0.5, 0.3, 0.2]).astype(float)
    probs = np.clip(0.3 * labels + rng.integers(0, 8, labels.shape) / 10, 0, 1)
    labels[rng.random(labels.shape) < unknown] = np.nan
    return labels, probs, rng.integers(0, num_clusters, num_images)


def oracle_rates(actual, guesses, average, weight=None):
    values = sklearn.metrics.precision_recall_fscore_support(
        actual, guesses, average=average, zero_division=0, sample_weight=weight
    )
    return dict(zip(RATES, values[:3], strict=True))


def oracle_multiclass(labels, probs, weight=None):
    """Returns the overall scores by scikit-learn."""
    truth, guess = labels.argmax(axis=1), probs.argmax(axis=1)
    expected = {"accuracy": sklearn.metrics.accuracy_score(truth, guess, sample_weight=weight)}
    for average in ("macro", "micro"):
        for name, value in oracle_rates(truth, guess, average, weight).items():
            expected[f"{name}_{average}"] = value
    expected |= oracle_ranking(labels, probs, weight)
    expected["brier"] = sklearn.metrics.brier_score_loss(truth, probs, sample_weight=weight, labels=[0, 1, 2])
    return expected


def oracle_ranking(labels, probs, weight=None):
    """Returns the macro means of AUROC and average precision."""
    settings = {"average": "macro", "sample_weight": weight}
    return {
        "auroc_macro": sklearn.metrics.roc_auc_score(labels, probs, **settings),
        "average_precision_macro": sklearn.metrics.average_precision_score(labels, probs, **settings),
    }


def oracle_multilabel(labels, probs, weight=None):
    """Returns the overall scores by scikit-learn; every label must be known."""
    guesses = (probs >= 0.5).astype(int)
    expected = {
        "exact_match_ratio": sklearn.metrics.accuracy_score(labels, guesses, sample_weight=weight),
        "hamming_loss": sklearn.metrics.hamming_loss(labels, guesses, sample_weight=weight),
    }
    for average in ("samples", "macro", "micro"):
        for name, value in oracle_rates(labels, guesses, average, weight).items():
            expected[f"{name}_{average}"] = value
    expected |= oracle_ranking(labels, probs, weight)
    flat_weight = None if weight is None else np.repeat(weight, labels.shape[1])
    expected["brier"] = sklearn.metrics.brier_score_loss(labels.ravel(), probs.ravel(), sample_weight=flat_weight)
    return expected


NOT_SCIKIT_LEARNS = {"ece", "auroc_macro_common"}  # tested in test_reliability.py and below


def values_of(scores):
    return {name: score.value for name, score in scores.scores.items()}


def ends_of(scores):
    overall = [(score.low, score.high) for score in scores.scores.values()]
    return overall + [(score.low, score.high) for row in scores.per_class.values() for score in row.values()]


CASES = {
    "multiclass": (draw_multiclass, score_multiclass, oracle_multiclass),
    "multilabel": (lambda **settings: draw_multilabel(unknown=0, **settings), score_multilabel, oracle_multilabel),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_values_and_intervals_equal_a_loop_of_scikit_learn(case, seed):
    draw, score, oracle = CASES[case]
    labels, probs, clusters = draw(seed=seed)
    scores = score(labels, probs, clusters, NAMES, bootstrap=Bootstrap(40, seed=seed))
    assert set(scores.scores) - NOT_SCIKIT_LEARNS == set(oracle(labels, probs))
    values = {name: value for name, value in values_of(scores).items() if name not in NOT_SCIKIT_LEARNS}
    assert values == pytest.approx(oracle(labels, probs))
    resamples = draw_resamples(clusters, Bootstrap(40, seed=seed))
    loop = [oracle(labels, probs, counts[resamples.index]) for counts in resamples.counts]
    for name in values:
        value = scores.scores[name]
        low, high = np.quantile([row[name] for row in loop], [0.025, 0.975])
        assert (value.low, value.high) == (pytest.approx(low), pytest.approx(high)), name
        assert value.num_undefined == 0


@pytest.mark.parametrize("case", CASES)
def test_class_scores_equal_a_loop_of_scikit_learn(case):
    draw, score, _ = CASES[case]
    labels, probs, clusters = draw()
    scores = score(labels, probs, clusters, NAMES, bootstrap=Bootstrap(40))
    guesses = np.eye(3)[probs.argmax(axis=1)] if case == "multiclass" else probs >= 0.5
    resamples = draw_resamples(clusters, Bootstrap(40))
    weights = [None, *(counts[resamples.index] for counts in resamples.counts)]
    for k, name in enumerate(NAMES):
        rows = [oracle_rates(labels[:, k], guesses[:, k], "binary", weight) for weight in weights]
        areas = {
            key: [measure(labels[:, k], probs[:, k], sample_weight=weight) for weight in weights]
            for key, measure in (
                ("auroc", sklearn.metrics.roc_auc_score),
                ("average_precision", sklearn.metrics.average_precision_score),
            )
        }
        for key, scored in scores.per_class[name].items():
            expected = areas[key] if key in areas else [row[key] for row in rows]
            assert scored.value == pytest.approx(expected[0])
            assert (scored.low, scored.high) == pytest.approx(tuple(np.quantile(expected[1:], [0.025, 0.975])))
            with_and_without = [len(set(clusters[labels[:, k] == value])) for value in (1, 0)]
            assert scored.num_clusters == (min(with_and_without) if key in areas else with_and_without[0])


def test_confusion_equals_scikit_learn():
    labels, probs, clusters = draw_multiclass()
    truth, guess = labels.argmax(axis=1), probs.argmax(axis=1)
    confusion = score_multiclass(labels, probs, clusters, NAMES, bootstrap=Bootstrap(50)).confusion
    np.testing.assert_array_equal(confusion.counts, sklearn.metrics.confusion_matrix(truth, guess))
    np.testing.assert_allclose(confusion.rates, sklearn.metrics.confusion_matrix(truth, guess, normalize="true"))
    resamples = draw_resamples(clusters, Bootstrap(50))
    loop = [
        sklearn.metrics.confusion_matrix(truth, guess, normalize="true", sample_weight=counts[resamples.index])
        for counts in resamples.counts
    ]
    np.testing.assert_allclose([confusion.low, confusion.high], np.quantile(loop, [0.025, 0.975], axis=0))


@pytest.mark.parametrize("case", CASES)
def test_order_of_images_does_not_matter(case):
    draw, score, _ = CASES[case]
    labels, probs, clusters = draw()
    order = np.random.default_rng(9).permutation(len(labels))
    first = score(labels, probs, clusters, NAMES, bootstrap=Bootstrap(30))
    second = score(labels[order], probs[order], clusters[order], NAMES, bootstrap=Bootstrap(30))
    assert values_of(first) == pytest.approx(values_of(second), nan_ok=True)
    np.testing.assert_allclose(ends_of(first), ends_of(second))


@pytest.mark.parametrize("case", CASES)
def test_order_of_classes_does_not_matter(case):
    draw, score, _ = CASES[case]
    labels, probs, clusters = draw()
    probs = probs + np.random.default_rng(0).random(probs.shape) * 1e-6  # no ties, of which the first class would win
    probs = np.clip(probs, 0, 1) if case == "multilabel" else probs / probs.sum(axis=1, keepdims=True)
    first = score(labels, probs, clusters, NAMES, bootstrap=Bootstrap(30))
    second = score(labels[:, ::-1], probs[:, ::-1], clusters, NAMES[::-1], bootstrap=Bootstrap(30))
    assert values_of(first) == pytest.approx(values_of(second), nan_ok=True)
    assert first.per_class["a"] == second.per_class["a"]


def test_integers_equal_one_hot():
    labels, probs, clusters = draw_multiclass()
    first = score_multiclass(labels, probs, clusters, NAMES, bootstrap=Bootstrap(20))
    second = score_multiclass(labels.argmax(axis=1), probs, clusters, NAMES, bootstrap=Bootstrap(20))
    assert json.dumps(first.to_dict()) == json.dumps(second.to_dict())


def test_masked_equals_filtered():
    labels, probs, clusters = draw_multilabel(unknown=0.3)
    scores = score_multilabel(labels, probs, clusters, NAMES, bootstrap=Bootstrap(20))
    known = ~np.isnan(labels)
    hamming = sklearn.metrics.hamming_loss(labels[known], probs[known] >= 0.5)
    assert scores.scores["hamming_loss"].value == pytest.approx(hamming)
    for k, name in enumerate(NAMES):
        kept = known[:, k]
        alone = score_multilabel(
            labels[kept][:, [k]], probs[kept][:, [k]], clusters[kept], [name], bootstrap=Bootstrap(20)
        )
        expected = {key: score.value for key, score in alone.per_class[name].items()}
        assert {key: score.value for key, score in scores.per_class[name].items()} == pytest.approx(expected)


def test_probs_of_unknown_labels_and_rows_without_labels_do_not_matter():
    labels, probs, clusters = draw_multilabel()
    first = score_multilabel(labels, probs, clusters, NAMES, bootstrap=Bootstrap(20))
    other = np.where(np.isnan(labels), 1 - probs, probs)
    more = (
        np.vstack([labels, np.full((4, 3), np.nan)]),
        np.vstack([other, np.ones((4, 3))]),
        [*clusters, 90, 91, 92, 93],
    )
    second = score_multilabel(*more, NAMES, bootstrap=Bootstrap(20))
    assert first.scores == second.scores
    assert first.num_images == second.num_images == np.sum(~np.isnan(labels).all(axis=1))


def test_multilabel_by_hand():
    labels = np.array([[1, 0], [1, 1], [np.nan, 0], [0, 0]])
    probs = np.array([[0.9, 0.6], [0.8, 0.7], [0.9, 0.1], [0.2, 0.3]])
    values = values_of(score_multilabel(labels, probs, range(4), ["a", "b"], bootstrap=Bootstrap(5)))
    assert values["exact_match_ratio"] == pytest.approx(3 / 4)
    assert values["hamming_loss"] == pytest.approx(1 / 7)
    assert values["precision_macro"] == pytest.approx((1 + 1 / 2) / 2)
    assert values["precision_micro"] == pytest.approx(3 / 4)
    assert values["precision_samples"] == pytest.approx((1 / 2 + 1 + 0 + 0) / 4)
    assert values["f1_samples"] == pytest.approx((2 / 3 + 1 + 0 + 0) / 4)
    assert values["auroc_macro"] == 1


def test_tuned_thresholds_have_names_of_their_own():
    labels, probs, clusters = draw_multilabel(unknown=0)
    plain = score_multilabel(labels, probs, clusters, NAMES, bootstrap=Bootstrap(20))
    scores = score_multilabel(labels, probs, clusters, NAMES, thresholds=[0.2, 0.5, 0.8], bootstrap=Bootstrap(20))
    guesses = probs >= [0.2, 0.5, 0.8]
    assert scores.scores["f1_macro_tuned"].value == pytest.approx(oracle_rates(labels, guesses, "macro")["f1"])
    assert scores.scores["hamming_loss_tuned"].value == pytest.approx(sklearn.metrics.hamming_loss(labels, guesses))
    assert scores.per_class["a"]["recall_tuned"].value == pytest.approx(
        sklearn.metrics.recall_score(labels[:, 0], guesses[:, 0])
    )
    assert {name: score for name, score in scores.scores.items() if not name.endswith("_tuned")} == plain.scores
    same = score_multilabel(labels, probs, clusters, NAMES, thresholds=[0.5] * 3, bootstrap=Bootstrap(20))
    assert same.scores["exact_match_ratio_tuned"] == same.scores["exact_match_ratio"]


def test_tuned_thresholds_of_one_class_weigh_the_probabilities():
    labels, probs, clusters = draw_multiclass()
    scores = score_multiclass(labels, probs, clusters, NAMES, thresholds=[0.6, 0.3, 0.1], bootstrap=Bootstrap(5))
    guess = (probs / [0.6, 0.3, 0.1]).argmax(axis=1)
    expected = sklearn.metrics.accuracy_score(labels.argmax(axis=1), guess)
    assert scores.scores["accuracy_tuned"].value == pytest.approx(expected)


@pytest.mark.parametrize("case", CASES)
def test_calibrated_probabilities_have_names_of_their_own(case):
    draw, score, _ = CASES[case]
    labels, probs, clusters = draw()
    other = probs**2 if case == "multilabel" else probs**2 / np.sum(probs**2, axis=1, keepdims=True)
    scores = score(labels, probs, clusters, NAMES, calibrated=other, bootstrap=Bootstrap(20))
    alone = score(labels, other, clusters, NAMES, bootstrap=Bootstrap(20))
    assert scores.scores["brier_calibrated"] == alone.scores["brier"]
    assert scores.scores["ece_calibrated"] == alone.scores["ece"]
    assert set(scores.reliability) == {"raw", "calibrated"}


def test_no_finding_is_a_label_but_not_a_finding():
    labels, probs, clusters = draw_multilabel(unknown=0)
    names = ["a", "No Finding", "c"]
    scores = score_multilabel(labels, probs, clusters, names, bootstrap=Bootstrap(20))
    findings = score_multilabel(labels[:, [0, 2]], probs[:, [0, 2]], clusters, ["a", "c"], bootstrap=Bootstrap(20))
    for name in ("auroc_macro", "average_precision_macro", "f1_macro"):
        assert scores.scores[name] == findings.scores[name]
    guesses = probs >= 0.5
    assert scores.scores["exact_match_ratio"].value == pytest.approx(np.mean((guesses == labels).all(axis=1)))
    assert scores.scores["hamming_loss"].value == pytest.approx(np.mean(guesses != labels))
    assert scores.num_labels == scores.to_dict()["num_labels"] == 3
    labels[:, 1] = 1
    assert score_multilabel(labels, probs, clusters, names, bootstrap=Bootstrap(5)).left_out == ()


def test_common_findings_are_those_in_at_least_twenty_clusters():
    labels, probs, clusters = draw_multilabel(num_images=400, num_clusters=60, unknown=0.1)
    rare = np.flatnonzero(labels[:, 2] == 1)[10:]
    labels[rare, 2] = 0
    scores = score_multilabel(labels, probs, clusters, NAMES, bootstrap=Bootstrap(20))
    assert scores.per_class["c"]["auroc"].few_clusters
    expected = np.mean([scores.per_class[name]["auroc"].value for name in ("a", "b")])
    assert scores.scores["auroc_macro_common"].value == pytest.approx(expected)
    assert not scores.scores["auroc_macro_common"].few_clusters
    assert scores.scores["auroc_macro"].few_clusters


def test_counts_beside_each_class():
    labels, probs, clusters = draw_multilabel()
    counts = score_multilabel(labels, probs, clusters, NAMES, bootstrap=Bootstrap(5)).counts
    for k, name in enumerate(NAMES):
        held = labels[:, k] == 1
        known = int((~np.isnan(labels[:, k])).sum())
        assert counts[name] == {"positives": held.sum(), "known": known, "clusters": len(set(clusters[held]))}


def test_absent_class_is_undefined_left_out_and_named():
    labels, probs, clusters = draw_multiclass()
    kept = labels[:, 2] == 0
    labels, probs, clusters = labels[kept], probs[kept], clusters[kept]
    scores = score_multiclass(labels, probs, clusters, NAMES, bootstrap=Bootstrap(20))
    assert scores.left_out == ("c",)
    for score in scores.per_class["c"].values():
        assert math.isnan(score.value) and math.isnan(score.low)
        assert (score.num_clusters, score.num_undefined) == (0, 20)
    truth, guess = labels.argmax(axis=1), probs.argmax(axis=1)
    expected = sklearn.metrics.balanced_accuracy_score(truth, np.where(guess == 2, 1 - truth, guess))
    assert scores.scores["recall_macro"].value == pytest.approx(expected)
    aurocs = [sklearn.metrics.roc_auc_score(labels[:, k], probs[:, k]) for k in (0, 1)]
    assert scores.scores["auroc_macro"].value == pytest.approx(np.mean(aurocs))
    assert np.isnan(scores.confusion.rates[2]).all() and np.isnan(scores.confusion.low[2]).all()


def test_never_predicted_class_has_precision_zero():
    probs = np.tile([0.6, 0.3, 0.1], (6, 1))
    scores = score_multiclass([0, 1, 2, 0, 1, 2], probs, range(6), NAMES, bootstrap=Bootstrap(10))
    assert scores.per_class["c"]["precision"].value == scores.per_class["c"]["f1"].value == 0


def test_resamples_without_a_class_are_counted_for_it_and_for_the_macro():
    labels = np.array([0] * 10 + [1] * 10 + [2, 2])
    clusters = [*range(20), "last", "last but one"]
    probs = np.eye(3)[labels] * 0.8 + 0.05
    scores = score_multiclass(labels, probs, clusters, NAMES, bootstrap=Bootstrap(500))
    undefined = scores.per_class["c"]["recall"].num_undefined
    assert undefined / 500 == pytest.approx((20 / 22) ** 22, abs=0.05)
    assert scores.scores["recall_macro"].num_undefined >= undefined
    assert scores.scores["accuracy"].num_undefined == 0
    assert scores.scores["recall_macro"].num_clusters == scores.per_class["c"]["recall"].num_clusters == 2
    assert scores.per_class["c"]["recall"].few_clusters
    assert not scores.scores["accuracy"].few_clusters


def test_one_cluster_gives_values_without_intervals():
    labels, probs, _ = draw_multiclass()
    scores = score_multiclass(labels, probs, ["one"] * len(labels), NAMES, bootstrap=Bootstrap(10))
    assert scores.num_clusters == 1
    expected = oracle_multiclass(labels, probs)
    assert {name: values_of(scores)[name] for name in expected} == pytest.approx(expected)
    assert np.isnan(ends_of(scores)).all()
    assert np.isnan(scores.confusion.high).all()


@pytest.mark.parametrize("case", CASES)
def test_wider_level_and_same_seed(case):
    draw, score, _ = CASES[case]
    arguments = (*draw(), NAMES)
    first, again = (
        score(*arguments, bootstrap=Bootstrap(50, seed=5)),
        score(*arguments, bootstrap=Bootstrap(50, seed=5)),
    )
    np.testing.assert_array_equal(ends_of(first), ends_of(again))
    wide, narrow = (
        np.array(ends_of(first)),
        np.array(ends_of(score(*arguments, bootstrap=Bootstrap(50, level=0.5, seed=5)))),
    )
    defined = ~np.isnan(wide).any(axis=1)
    assert (wide[defined, 0] <= narrow[defined, 0]).all() and (narrow[defined, 1] <= wide[defined, 1]).all()


@pytest.mark.parametrize("case", CASES)
def test_dictionaries_are_json_and_rows(case, tmp_path):
    draw, score, _ = CASES[case]
    scores = score(*draw(), NAMES, bootstrap=Bootstrap(10))
    write_json(tmp_path / "metrics.json", scores.to_dict())
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored["scores"]["f1_macro"]["low"] == scores.scores["f1_macro"].low
    assert stored["per_class"]["b"]["auroc"]["few_clusters"] is True
    assert (stored["confusion"] is None) == (case == "multilabel")
    row = scores.flat()
    assert list(row)[:3] == [f"{next(iter(scores.scores))}{end}" for end in ("", "_low", "_high")]
    assert len(row) == 3 * len(scores.scores)


def test_multiclass_row_has_the_promised_columns():
    names = list(score_multiclass(*draw_multiclass(), NAMES, bootstrap=Bootstrap(5)).flat())[::3]
    assert names == [
        "accuracy",
        *(f"{rate}_{average}" for rate in RATES for average in ("macro", "micro")),
        "auroc_macro",
        "average_precision_macro",
        "brier",
        "ece",
    ]


GOOD = {"labels": [0, 1, 2], "probs": np.full((3, 3), 1 / 3), "clusters": [0, 1, 2], "class_names": NAMES}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probs": np.full((3, 2), 0.5)}, "probs.shape=\\(3, 2\\)"),
        ({"labels": np.eye(3)[:2]}, "labels.shape=\\(2, 3\\)"),
        ({"clusters": [0, 1]}, "2 clusters"),
        ({"labels": np.zeros((0, 3)), "probs": np.zeros((0, 3)), "clusters": []}, "0 images"),
        ({"probs": np.full((3, 3), np.nan)}, "9 NaN"),
        ({"probs": np.array([[np.inf, 0, 0]] * 3)}, "3 NaN or infinite"),
        ({"probs": np.full((3, 3), 2.0)}, "logits"),
        ({"probs": np.full((3, 3), -0.1)}, "logits"),
        ({"labels": [0, 1, 3]}, "0..2"),
        ({"labels": [[1, 1, 0], [0, 1, 0], [0, 0, 1]]}, "exactly one"),
        ({"labels": [[np.nan, 1, 0], [0, 1, 0], [0, 0, 1]]}, "exactly one"),
        ({"labels": np.eye(3) / 2}, "0, 1 or NaN"),
        ({"class_names": ["a", "a", "b"]}, "must be unique"),
        ({"clusters": [0, None, 1]}, "1 missing"),
    ],
)
def test_what_cannot_be_scored(changes, message):
    with pytest.raises(ScoreError, match=message):
        score_multiclass(**(GOOD | changes))


def test_multilabel_needs_known_labels_and_fitting_thresholds():
    probs = np.full((2, 3), 0.5)
    with pytest.raises(ScoreError, match="all NaN"):
        score_multilabel(np.full((2, 3), np.nan), probs, [0, 1], NAMES)
    with pytest.raises(ScoreError, match="thresholds"):
        score_multilabel(np.ones((2, 3)), probs, [0, 1], NAMES, thresholds=[0.5, 0.5])


def test_a_score_of_an_unknown_kind_is_refused():
    with pytest.raises(ScoreError, match="must be one of decisions, ranking, probabilities. Received: kind='d"):
        FinalScore("decision", lambda decisions: None)
