"""Calibration of probabilities on the validation split: temperature scaling, or Platt scaling of each label."""

import dataclasses

import numpy as np
import scipy.special

from kmed.errors import ScoreError

MIN_POSITIVES = 10  # a label with fewer positives or negatives on the validation split keeps its probabilities
_SMALLEST = 1e-7
_TINY = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A map of probabilities, fitted on validation data and stored in the run.

    Attributes:
      method: "temperature", p -> softmax(log p / T + w), or "platt", p_k -> sigmoid(a_k logit(p_k) + b_k).
      class_names: K names, in the order of the columns.
      temperature: T > 0, used by "temperature".
      slopes, intercepts: a and b, K numbers each, used by "platt".
      not_fitted: {label: reason} of the labels that keep their probabilities (a = 1, b = 0).
      log_weights: w, K numbers that move a "temperature" to other shares of the classes; (): none, w = 0.
    """

    method: str
    class_names: tuple[str, ...]
    temperature: float = 1.0
    slopes: tuple[float, ...] = ()
    intercepts: tuple[float, ...] = ()
    not_fitted: dict[str, str] = dataclasses.field(default_factory=dict)
    log_weights: tuple[float, ...] = ()

    @property
    def weights(self) -> np.ndarray:
        """w, float64 (K,), zeros without `log_weights`."""
        return np.array(self.log_weights or [0.0] * len(self.class_names))

    @property
    def constant(self) -> np.ndarray:
        """bool (K,): the labels whose calibrated probability is the same for every picture (a slope of 0)."""
        return np.array([slope == 0 for slope in self.slopes] or [False] * len(self.class_names))

    def apply(self, probs: np.ndarray) -> np.ndarray:
        """Returns float64 (N, K), the calibrated probabilities."""
        probs = np.clip(np.asarray(probs, np.float64), _SMALLEST, 1 - _SMALLEST)
        if self.method == "temperature":
            return scipy.special.softmax(np.log(probs) / self.temperature + self.weights, axis=1)
        return scipy.special.expit(scipy.special.logit(probs) * np.array(self.slopes) + np.array(self.intercepts))

    def invert(self, calibrated: np.ndarray) -> np.ndarray:
        """Returns float64 (N, K), the probabilities that `apply` turns into `calibrated`.

        The result is as exact as float32 allows: a probability that calibration turned into 0 or 1 comes back as
        the number nearest to it. A label whose slope is 0 cannot be inverted: it stays as it is, the same for every
        picture.
        """
        calibrated = np.asarray(calibrated, np.float64)
        if self.method == "temperature":
            logits = (np.log(np.maximum(calibrated, _TINY)) - self.weights) * self.temperature
            return scipy.special.softmax(logits, axis=1)
        calibrated = np.clip(calibrated, _TINY, 1 - _SMALLEST)
        slopes = np.array(self.slopes)
        odds = (scipy.special.logit(calibrated) - np.array(self.intercepts)) / np.where(slopes > 0, slopes, 1.0)
        return np.where(slopes > 0, scipy.special.expit(odds), calibrated)

    def to_dict(self) -> dict:
        """Returns the fields, for `kmed.files.write_json`."""
        fields = dataclasses.asdict(self)
        return fields if self.log_weights else {name: fields[name] for name in fields if name != "log_weights"}

    @classmethod
    def from_dict(cls, fields: dict, class_names) -> "Calibration":
        """Returns the Calibration whose `to_dict` gave `fields`. Raises ScoreError if it belongs to other labels."""
        if list(fields["class_names"]) != list(class_names):
            raise ScoreError(
                f"The calibration was fitted for {list(fields['class_names'])}. Received: {list(class_names)}."
            )
        lists = {key: tuple(fields.get(key, ())) for key in ("class_names", "slopes", "intercepts", "log_weights")}
        return cls(**{**fields, **lists})


def fit_temperature(labels: np.ndarray, probs: np.ndarray, class_names) -> Calibration:
    """Returns temperature scaling: the T with the lowest log loss (Guo et al., 2017).

    Args:
      labels: (N, K) with one 1 per row.
      probs: (N, K), softmax probabilities.
      class_names: K names.
    """
    log_probs = np.log(np.clip(probs, _SMALLEST, None))
    rows, truth = np.arange(len(labels)), labels.argmax(axis=1)

    def log_loss(log_temperature):
        return -scipy.special.log_softmax(log_probs / np.exp(log_temperature), axis=1)[rows, truth].mean()

    fitted = scipy.optimize.minimize_scalar(log_loss, bounds=(-3.0, 3.0), method="bounded")
    return Calibration("temperature", tuple(class_names), temperature=float(np.exp(fitted.x)))


def fit_platt(labels: np.ndarray, probs: np.ndarray, class_names) -> Calibration:
    """Returns Platt scaling of each label: a logistic regression on the log-odds (Platt, 1999).

    If higher probabilities of a label go with fewer positives on the validation split (a < 0), a is set to 0 and the
    calibrated probability is the label's share, because reversing a model's ranking is not calibration.

    Args:
      labels: (N, K) in {0, 1}, NaN where unknown.
      probs: (N, K) in [0, 1].
      class_names: K names.
    """
    slopes, intercepts, not_fitted = [], [], {}
    for name, truth, prob in zip(class_names, labels.T, probs.T, strict=True):
        known = ~np.isnan(truth)
        fewest = int(min((truth == 1).sum(), (truth == 0).sum()))
        if fewest < MIN_POSITIVES:
            kind = "positives" if (truth == 1).sum() == fewest else "negatives"
            not_fitted[name] = f"{fewest} {kind} on validation; {MIN_POSITIVES} are needed"
        slope, intercept = (1.0, 0.0) if name in not_fitted else _logistic(truth[known], prob[known])
        slopes.append(slope)
        intercepts.append(intercept)
    return Calibration(
        "platt", tuple(class_names), slopes=tuple(slopes), intercepts=tuple(intercepts), not_fitted=not_fitted
    )


def _logistic(truth, probs):
    from sklearn.linear_model import LogisticRegression

    odds = scipy.special.logit(np.clip(probs.astype(np.float64), _SMALLEST, 1 - _SMALLEST))
    share = float(scipy.special.logit(truth.mean()))
    scale = odds.std()
    if scale < 1e-6:  # the same for every picture
        return 0.0, share
    # Standardised, so that the solver works with numbers near 1, however widely the model's outputs are spread.
    fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(((odds - odds.mean()) / scale)[:, None], truth)
    slope = float(fitted.coef_[0, 0] / scale)
    return (slope, float(fitted.intercept_[0] - slope * odds.mean())) if slope > 0 else (0.0, share)


def mean_log_loss(labels: np.ndarray, probs: np.ndarray, *, exclusive: bool) -> float:
    """Returns the log loss of probabilities: per picture if classes exclude each other, else per known label.

    Args:
      labels: (N, K) in {0, 1}, NaN where unknown.
      probs: (N, K) in [0, 1].
      exclusive: whether each picture has exactly one class.
    """
    probs = np.clip(probs, 1e-12, 1 - 1e-12)
    loss = -labels * np.log(probs)
    return float(loss.sum(axis=1).mean() if exclusive else np.nanmean(loss - (1 - labels) * np.log(1 - probs)))
