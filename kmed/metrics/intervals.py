"""How sure a score is: whole clusters drawn again and again, and the score of every draw."""

import dataclasses
import math

import numpy as np
import scipy.sparse

from kmed.errors import ScoreError

FEW_CLUSTERS = 20
MIN_CLUSTERS = 2
_CHUNK_NUMBERS = 2_000_000  # numbers held at once by a kernel: 16 MB, whatever the size of the data


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: whole clusters are drawn again, many times.

    Attributes:
      num_resamples: R, at least 1.
      level: nominal coverage of the intervals, in (0, 1).
      seed: of the draws.
    Raises: ScoreError: a number out of its range.
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
                f"Intervals need num_resamples of 1 or more and level between 0 and 1. "
                f"Received: num_resamples={self.num_resamples}, level={self.level}."
            )

    @classmethod
    def from_config(cls, config) -> "Bootstrap":
        """Returns the settings that a kmed.config.Config holds in its evaluate section and its seed."""
        return cls(config.evaluate.num_resamples, config.evaluate.level, config.seed)


DEFAULT_BOOTSTRAP = Bootstrap()


@dataclasses.dataclass(frozen=True)
class Score:
    """A value and its percentile interval.

    Attributes:
      value: the score of the data; NaN where undefined.
      low, high: ends of the interval; NaN where the score rests on fewer than two clusters.
      num_clusters: how many clusters the score rests on: for a class, those that hold it (AUROC: or
        those that hold another, if fewer); for a macro mean, those of its rarest class, since a
        mean is no surer than its least sure part.
      num_undefined: resamples in which the score was undefined; they are left out of the interval.
      resampled: (R,), the score of every draw, NaN where undefined; empty where it was not kept. Two scores
        of the same draws can be compared draw by draw, see `difference`.
    """

    value: float
    low: float
    high: float
    num_clusters: int
    num_undefined: int = 0
    resampled: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0), compare=False, repr=False)

    @property
    def few_clusters(self) -> bool:
        """Whether the interval is too narrow to trust: a nominal 95 % covers 92 % at 20 clusters, 80 % at 4."""
        return self.num_clusters < FEW_CLUSTERS

    def to_dict(self) -> dict:
        """Returns the fields and `few_clusters`, without the draws."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["resampled"]
        return {**fields, "few_clusters": self.few_clusters}


@dataclasses.dataclass(frozen=True)
class Resamples:
    """Draws of C clusters out of C, with replacement, and the sums and AUROCs of every draw.

    Pictures of one patient or one slide err together, so resampling single images promises a
    precision that the data do not hold (Field & Welsh, "Bootstrapping clustered data", 2007).

    Attributes:
      index: int (N,), the cluster of each image, in 0..C-1.
      counts: uint16 (R, C), how often each draw holds each cluster; a row sums to C.
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
        """Returns float64 (R,): the area under the ROC curve of each draw, NaN where it lacks a 0 or a 1.

        The area is the share of pairs of a positive and a negative that are in the right order, a
        tie counting half (Hanley & McNeil, 1982). The negatives are sorted once; a draw then only
        changes how much weight lies below each positive.

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
        """Returns float64 (R,): the average precision of each draw, NaN where it lacks a 1.

        AP = sum over thresholds of (R_n - R_{n-1}) P_n, precision times the gain in recall, without
        interpolation; equal probabilities are one threshold. The images are sorted once.

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
            found = np.cumsum(weights, axis=1)[:, last]  # (r, thresholds), images at or above each
            hits = np.cumsum(weights * truth, axis=1)[:, last]
            gains = np.diff(hits, axis=1, prepend=0)
            area = (gains * divide(hits, found)).sum(axis=1)
            values[rows] = divide(area, hits[:, -1], empty=np.nan) if len(known) else np.nan
        return values

    def clusters_with(self, mask: np.ndarray) -> int:
        """Returns how many clusters hold an image of `mask` (N,) bool."""
        return len(np.unique(self.index[mask]))

    def score(self, value: float, resampled: np.ndarray, num_clusters: int | None = None) -> Score:
        """Returns the Score of `value` with the percentile interval of `resampled` (R,).

        Args:
          value: the score of the data itself.
          resampled: the score of every draw, NaN where undefined.
          num_clusters: how many clusters the score rests on; all, if None.
        """
        num_clusters = self.num_clusters if num_clusters is None else num_clusters
        defined = resampled[~np.isnan(resampled)]
        low, high = self.bounds(defined, num_clusters) if not math.isnan(value) else (np.nan, np.nan)
        num_undefined = int(len(resampled) - len(defined))
        return Score(float(value), float(low), float(high), int(num_clusters), num_undefined, resampled)

    def difference(self, score: Score, other: Score) -> Score:
        """Returns the Score of `score` - `other`, both of these draws: paired, so what they share cancels out.

        It rests on as many clusters as the less sure of the two.
        """
        num_clusters = min(score.num_clusters, other.num_clusters)
        return self.score(score.value - other.value, score.resampled - other.resampled, num_clusters)

    def bounds(self, resampled: np.ndarray, num_clusters: int) -> np.ndarray:
        """Returns (2, ...), the percentiles of `resampled` (R, ...); NaN where one cluster makes all draws alike."""
        if num_clusters < 2 or not len(resampled):
            return np.full((2, *resampled.shape[1:]), np.nan)
        return np.quantile(resampled, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)


def draw_resamples(clusters, bootstrap: Bootstrap = DEFAULT_BOOTSTRAP) -> Resamples:
    """Returns draws of whole clusters; the order of the images does not change them.

    Args:
      clusters: (N,) of strings or numbers, one value per patient, slide or photograph.
      bootstrap: how many draws, and from which seed.
    Raises: ScoreError: a missing cluster.
    """
    clusters = np.asarray(clusters, dtype=object)
    missing = sum(value is None or value != value for value in clusters)
    if missing:
        raise ScoreError(f"Every image needs a cluster; give a lone image one of its own. Received: {missing} missing.")
    names, index = np.unique(clusters.astype(str), return_inverse=True)
    generator = np.random.default_rng(bootstrap.seed)
    draws = (generator.integers(len(names), size=len(names)) for _ in range(bootstrap.num_resamples))
    counts = np.stack([np.bincount(draw, minlength=len(names)).astype(np.uint16) for draw in draws])
    return Resamples(index=index, counts=counts, level=bootstrap.level)


def check_clusters(clusters) -> None:
    """Raises ScoreError where there are fewer than two clusters, of which no interval can be made."""
    num_clusters = len(set(clusters))
    if num_clusters < MIN_CLUSTERS:
        raise ScoreError(
            f"A split is judged by resampling its clusters (patients, photographs), and needs two or more, better 20. "
            f"Received: {len(clusters)} pictures of {num_clusters} cluster(s). Give it pictures of other patients, "
            "or tell groups apart with data.group."
        )


def mean_score(resamples: Resamples, value, summed, counted=None) -> Score:
    """Returns the Score of sum(summed) / sum(counted), each (N,); `counted` is 1 per image, if None."""
    counted = np.ones(len(summed)) if counted is None else counted
    sums = resamples.sums(np.column_stack([summed, counted]))  # (R, 2)
    return resamples.score(value, divide(sums[:, 0], sums[:, 1], empty=np.nan))


def macro_score(scores: list[Score], resamples: Resamples, classes=None) -> Score:
    """Returns the mean over the classes whose score is defined.

    Args:
      scores: K Scores of these resamples.
      resamples: the draws.
      classes: the indices of those that may be part of the mean; None: all.
    """
    classes = range(len(scores)) if classes is None else classes
    defined = [k for k in classes if not math.isnan(scores[k].value)]
    if not defined:
        return resamples.score(math.nan, np.full(len(resamples.counts), np.nan), 0)
    value = np.mean([scores[k].value for k in defined])
    drawn = np.stack([score.resampled for score in scores], axis=1)  # (R, K)
    return resamples.score(value, drawn[:, defined].mean(axis=1), min(scores[k].num_clusters for k in defined))


def divide(numerator, denominator, empty: float = 0.0) -> np.ndarray:
    """Returns numerator / denominator, and `empty` where the denominator is 0."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.full(numerator.shape, empty), where=denominator != 0)


def _chunks(num_rows: int, row_size: int) -> list[slice]:
    step = max(1, _CHUNK_NUMBERS // max(1, row_size))
    return [slice(start, start + step) for start in range(0, num_rows, step)]
