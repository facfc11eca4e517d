"""Scores of a whole split, one number each, from decisions or rankings. `kmed.tasks` lists and names them."""

import numpy as np
import sklearn.metrics

from kmed.metrics.class_scores import Decisions, Probabilities, resampled_rates
from kmed.metrics.intervals import FEW_CLUSTERS, Score, macro_score, mean_score


def accuracy(decisions: Decisions) -> Score:
    """Returns the share of images whose class is predicted correctly."""
    sample, guesses = decisions.sample, decisions.guesses
    right = (guesses & sample.actual).any(axis=1)  # (N,)
    value = sklearn.metrics.accuracy_score(sample.labels.argmax(axis=1), guesses.argmax(axis=1))
    return mean_score(sample.resamples, value, right)


def exact_match_ratio(decisions: Decisions) -> Score:
    """Returns the share of images whose known labels are all predicted correctly."""
    right = ~_wrong(decisions).any(axis=1)  # (N,)
    return mean_score(decisions.sample.resamples, np.mean(right), right)


def hamming_loss(decisions: Decisions) -> Score:
    """Returns the share of the known labels that are wrong; 0 is best."""
    wrong, known = _wrong(decisions), decisions.sample.known
    return mean_score(decisions.sample.resamples, wrong.sum() / known.sum(), wrong.sum(axis=1), known.sum(axis=1))


def macro_rate(decisions: Decisions, name: str) -> Score:
    """Returns the mean of "precision", "recall" or "f1" over classes, with equal weights."""
    return macro_score(decisions.rates[name], decisions.sample.resamples, decisions.sample.averaged)


def micro_rate(decisions: Decisions, name: str) -> Score:
    """Returns "precision", "recall" or "f1" of all classes pooled."""
    return decisions.pooled_rates[name]


def samples_rate(decisions: Decisions, name: str) -> Score:
    """Returns the mean of "precision", "recall" or "f1" over images, 0 where undefined."""
    actual, guesses = decisions.sample.actual, decisions.guesses
    per_image = resampled_rates((actual & guesses).sum(axis=1), guesses.sum(axis=1), actual.sum(axis=1))[name]  # (N,)
    per_image = np.nan_to_num(per_image)
    return mean_score(decisions.sample.resamples, per_image.mean(), per_image)


def macro_auroc(probabilities: Probabilities) -> Score:
    """Returns the mean area under the ROC curve over classes, with equal weights."""
    sample = probabilities.sample
    return macro_score(probabilities.auroc, sample.resamples, sample.averaged)


def macro_auroc_common(probabilities: Probabilities) -> Score:
    """Returns the mean AUROC over the findings that are in enough clusters to rank models by it."""
    sample, areas = probabilities.sample, probabilities.auroc
    common = [k for k in sample.averaged if areas[k].num_clusters >= FEW_CLUSTERS]
    return macro_score(areas, sample.resamples, common)


def macro_average_precision(probabilities: Probabilities) -> Score:
    """Returns the mean average precision over classes, with equal weights."""
    sample = probabilities.sample
    return macro_score(probabilities.average_precision, sample.resamples, sample.averaged)


def _wrong(decisions: Decisions) -> np.ndarray:
    """Returns bool (N, K): which known labels are predicted wrongly."""
    sample = decisions.sample
    return sample.known & (decisions.guesses != sample.actual)
