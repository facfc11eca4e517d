"""Confidence intervals of scores by the cluster bootstrap: whole clusters are drawn, and every draw is scored."""

import dataclasses
import math

import numpy as np
import scipy.sparse

from kmed.errors import ScoreError

FEW_CLUSTERS = 20
MIN_CLUSTERS = 2
_CHUNK_NUMBERS = 2_000_000  # numbers in memory at a time: 16 MB, however large the data set is


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """How intervals are computed: whole clusters are drawn with replacement, many times.

    Attributes:
      num_resamples: R, the number of draws, at least 1.
      level: nominal coverage of the intervals, in (0, 1).
      seed: random seed of the draws.
    Raises: ScoreError: a number is out of range.
    Example:
      >>> Bootstrap(num_resamples=200, seed=3).level
      0.95
    """

    num_resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self):
        if self.num_resamples < 1 or not 0 < self.level < 1:
            raise ScoreError(
                f"Intervals need num_resamples to be at least 1 and level to be between 0 and 1. "
                f"Received: num_resamples={self.num_resamples}, level={self.level}."
            )

    @classmethod
    def from_config(cls, config) -> "Bootstrap":
        """Returns the settings of a kmed.config.Config: its seed and those of its evaluate section."""
        return cls(config.evaluate.num_resamples, config.evaluate.level, config.seed)


DEFAULT_BOOTSTRAP = Bootstrap()


@dataclasses.dataclass(frozen=True)
class Score:
    """A value and its percentile interval.

    Attributes:
      value: the score of the data; NaN if undefined.
      low, high: ends of the interval; NaN if the score rests on fewer than two clusters.
      num_clusters: how many clusters the score rests on. For a class, these are the clusters that contain it (for
        AUROC and average precision, or those that contain a negative, if fewer). For a macro mean, these are the
        clusters of its rarest class, because a mean is no more certain than its least certain part.
      num_undefined: in how many resamples the score is undefined; the interval leaves them out.
      resampled: (R,), the score of every draw, NaN where undefined; empty if it was not kept. Two
        scores of the same draws can be compared draw by draw, see `Resamples.difference`.
    """

    value: float
    low: float
    high: float
    num_clusters: int
    num_undefined: int = 0
    resampled: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0), compare=False, repr=False)

    @property
    def few_clusters(self) -> bool:
        """Whether the interval is too narrow: a nominal coverage of 95 % is 92 % with 20 clusters, and 80 % with 4."""
        return self.num_clusters < FEW_CLUSTERS

    def to_dict(self) -> dict:
        """Returns the fields and `few_clusters`, without the draws."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["resampled"]
        return {**fields, "few_clusters": self.few_clusters}


@dataclasses.dataclass(frozen=True)
class Resamples:
    """Draws of C clusters out of C, with replacement, and what is computed for every draw.

    Errors on images of one patient or slide go together, so resampling single images promises a
    precision that the data do not have (Field & Welsh, "Bootstrapping clustered data", 2007).

    Attributes:
      index: int (N,), the cluster of each image, in 0..C-1.
      counts: uint16 (R, C), how often each draw contains each cluster; each row sums to C.
      level: nominal coverage of the intervals, in (0, 1).
    """

    index: np.ndarray
    counts: np.ndarray
    level: float

    @property
    def num_clusters(self) -> int:
        """C, the number of clusters."""
        return self.counts.shape[1]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Returns float64 (R, M): the columns of `values` (N, M) summed over each draw."""
        num_images = len(self.index)
        members = (np.ones(num_images), (self.index, np.arange(num_images)))
        per_cluster = scipy.sparse.csr_array(members, shape=(self.num_clusters, num_images)) @ values.astype(float)
        chunks = _chunks(len(self.counts), self.num_clusters)
        return np.concatenate([self.counts[rows].astype(float) @ per_cluster for rows in chunks])  # (R, M)

    def auroc(self, labels: np.ndarray, probs: np.ndarray) -> np.ndarray:
        """Returns float64 (R,): the area under the ROC curve of each draw, NaN for draws without a 0 or without a 1.

        The area is the share of pairs of a positive and a negative that are in the right order, where
        a tie counts half (Hanley & McNeil, 1982). The negatives are sorted once; a draw only changes
        how much weight lies below each positive.

        Args:
          labels: (N,) in {0, 1}, NaN where unknown.
          probs: (N,) of any finite numbers.
        """
        positives, negatives = (np.flatnonzero(labels == value) for value in (1, 0))
        positives, negatives = (rows[np.argsort(probs[rows], kind="stable")] for rows in (positives, negatives))
        below = np.searchsorted(probs[negatives], probs[positives], side="left")
        up_to = np.searchsorted(probs[negatives], probs[positives], side="right")
        areas = np.full(len(self.counts), np.nan)
        for rows in _chunks(len(self.counts), len(self.index)):
            lower = np.zeros((len(self.counts[rows]), len(negatives) + 1))  # (r, negatives + 1)
            np.cumsum(self.counts[rows][:, self.index[negatives]], axis=1, out=lower[:, 1:])
            weights = self.counts[rows][:, self.index[positives]].astype(float)  # (r, positives)
            right = np.einsum("rp,rp->r", weights, lower[:, below] + lower[:, up_to]) / 2
            areas[rows] = divide(right, weights.sum(axis=1) * lower[:, -1], empty=np.nan)
        return areas

    def average_precision(self, labels: np.ndarray, probs: np.ndarray) -> np.ndarray:
        """Returns float64 (R,): the average precision of each draw, NaN for draws without a 1.

        AP = sum over thresholds of (R_n - R_{n-1}) P_n, precision times the gain in recall, without
        interpolation. Equal probabilities are one threshold. The images are sorted once.

        Args:
          labels: (N,) in {0, 1}, NaN where unknown.
          probs: (N,) of any finite numbers.
        """
        known = np.flatnonzero(~np.isnan(labels))
        known = known[np.argsort(-probs[known], kind="stable")]
        truth, clusters = labels[known], self.index[known]
        last = np.flatnonzero(np.diff(probs[known], append=-np.inf))  # the end of each run of equal probabilities
        values = np.full(len(self.counts), np.nan)
        for rows in _chunks(len(self.counts), 2 * len(self.index)):
            weights = self.counts[rows][:, clusters].astype(float)  # (r, n)
            found = np.cumsum(weights, axis=1)[:, last]  # (r, thresholds), images at or above each threshold
            hits = np.cumsum(weights * truth, axis=1)[:, last]
            gains = np.diff(hits, axis=1, prepend=0)
            area = (gains * divide(hits, found)).sum(axis=1)
            values[rows] = divide(area, hits[:, -1], empty=np.nan) if len(known) else np.nan
        return values

    def clusters_with(self, mask: np.ndarray) -> int:
        """Returns how many clusters contain an image of `mask`, bool (N,)."""
        return len(np.unique(self.index[mask]))

    def score(self, value: float, resampled: np.ndarray, num_clusters: int | None = None) -> Score:
        """Returns the Score of `value` with the percentile interval of `resampled` (R,).

        Args:
          value: the score of the data itself.
          resampled: the score of every draw, NaN where undefined.
          num_clusters: how many clusters the score rests on; None: all of them.
        """
        num_clusters = self.num_clusters if num_clusters is None else num_clusters
        defined = resampled[~np.isnan(resampled)]
        low, high = self.bounds(defined, num_clusters) if not math.isnan(value) else (np.nan, np.nan)
        num_undefined = int(len(resampled) - len(defined))
        return Score(float(value), float(low), float(high), int(num_clusters), num_undefined, resampled)

    def difference(self, score: Score, other: Score) -> Score:
        """Returns the Score of `score` - `other`, both from these draws, paired so that what they share cancels out.

        It rests on as many clusters as the score with fewer of them.
        """
        num_clusters = min(score.num_clusters, other.num_clusters)
        return self.score(score.value - other.value, score.resampled - other.resampled, num_clusters)

    def bounds(self, resampled: np.ndarray, num_clusters: int) -> np.ndarray:
        """Returns (2, ...), the percentiles of `resampled` (R, ...); NaN for one cluster, whose draws are all alike."""
        if num_clusters < 2 or not len(resampled):
            return np.full((2, *resampled.shape[1:]), np.nan)
        return np.quantile(resampled, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)


def draw_resamples(clusters, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP) -> Resamples:
    """Returns draws of whole clusters; the order of the images does not change them.

    Args:
      clusters: (N,) of strings or numbers, one value per patient, slide or photograph.
      bootstrap: number and seed of the draws, and level of the intervals.
    Raises: ScoreError: an image has no cluster.
    """
    clusters = np.asarray(clusters, dtype=object)
    missing = sum(value is None or value != value for value in clusters)
    if missing:
        raise ScoreError(f"Every image needs a cluster, which may be its own. Received: {missing} missing.")
    names, index = np.unique(clusters.astype(str), return_inverse=True)
    generator = np.random.default_rng(bootstrap.seed)
    draws = (generator.integers(len(names), size=len(names)) for _ in range(bootstrap.num_resamples))
    counts = np.stack([np.bincount(draw, minlength=len(names)).astype(np.uint16) for draw in draws])
    return Resamples(index=index, counts=counts, level=bootstrap.level)


def check_clusters(clusters) -> None:
    """Raises ScoreError if there are fewer than two clusters, too few for an interval."""
    num_clusters = len(set(clusters))
    if num_clusters < MIN_CLUSTERS:
        raise ScoreError(
            f"A split is scored by resampling its clusters (patients, photographs). It needs at least two, better 20. "
            f"Received: {len(clusters)} pictures of {num_clusters} cluster(s). Add pictures of other patients, "
            "or tell groups apart with data.group."
        )


def change_of(before: Score, after: Score, level: float) -> Score:
    """Returns the Score of `after` - `before`, which come from two independent samples, such as two hospitals.

    Each draw of one sample is set against a draw of the other, so the interval holds the uncertainty of both. It rests
    on as many clusters as the score with fewer of them.

    Args:
      before, after: scores of different clusters, with as many draws, from different seeds.
      level: nominal coverage of the interval, in (0, 1).
    Raises: ScoreError: the numbers of draws differ.
    """
    if len(before.resampled) != len(after.resampled):
        raise ScoreError(
            "Two scores need as many draws each for the interval of their change. "
            f"Received: {len(before.resampled)} and {len(after.resampled)}."
        )
    drawn, value = after.resampled - before.resampled, after.value - before.value
    defined = drawn[~np.isnan(drawn)]
    num_clusters = min(before.num_clusters, after.num_clusters)
    low = high = np.nan
    if num_clusters >= MIN_CLUSTERS and len(defined) and not math.isnan(value):
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Score(float(value), float(low), float(high), num_clusters, int(len(drawn) - len(defined)), drawn)


def mean_score(resamples: Resamples, value, summed, counted=None) -> Score:
    """Returns the Score of sum(summed) / sum(counted), both (N,); if `counted` is None, each image counts 1."""
    counted = np.ones(len(summed)) if counted is None else counted
    sums = resamples.sums(np.column_stack([summed, counted]))  # (R, 2)
    return resamples.score(value, divide(sums[:, 0], sums[:, 1], empty=np.nan))


def macro_score(scores: list[Score], resamples: Resamples, classes=None) -> Score:
    """Returns the Score of the mean over the classes whose score is defined.

    Args:
      scores: K Scores, one per class, of these resamples.
      resamples: the draws.
      classes: indices of the classes that may be part of the mean; None: all.
    """
    classes = range(len(scores)) if classes is None else classes
    defined = [k for k in classes if not math.isnan(scores[k].value)]
    if not defined:
        return resamples.score(math.nan, np.full(len(resamples.counts), np.nan), 0)
    value = np.mean([scores[k].value for k in defined])
    drawn = np.stack([score.resampled for score in scores], axis=1)  # (R, K)
    return resamples.score(value, drawn[:, defined].mean(axis=1), min(scores[k].num_clusters for k in defined))


def divide(numerator, denominator, empty: float = 0.0) -> np.ndarray:
    """Returns numerator / denominator, with `empty` where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.full(numerator.shape, empty), where=denominator != 0)


def _chunks(num_rows: int, row_size: int) -> list[slice]:
    step = max(1, _CHUNK_NUMBERS // max(1, row_size))
    return [slice(start, start + step) for start in range(0, num_rows, step)]
