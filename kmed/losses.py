"""Losses over the labels that are known: binary cross-entropy, focal, asymmetric; and against a teacher's answers.

An unknown label (NaN) is neither a 0 nor a 1: it adds nothing to the loss and nothing to its gradient.
With the default reduction a loss is sum(weight * entropy) / number of known labels, or 0 if no label
is known, so an image with one known label counts as one label, not as a whole image. Sample weights
have shape (N,), one per image; as in Keras, they do not change the divisor.
"""

import keras
from keras import ops

from kmed.errors import ConfigError


class _MaskedLoss(keras.losses.Loss):
    """Masks unknown labels and averages the rest; subclasses define the cost of one label.

    Call with labels (N, K) in {0, 1, NaN} and predictions (N, K).
    """

    def call(self, y_true, y_pred):
        known = ops.logical_not(ops.isnan(y_true))
        # NaN is replaced before the arithmetic, since 0 * NaN would still make the gradient NaN.
        entropy = self.entropy(ops.where(known, y_true, ops.zeros_like(y_true)), y_pred)  # (N, K)
        known = ops.cast(known, entropy.dtype)
        num_known = ops.maximum(ops.sum(known), 1.0)
        num_images = ops.cast(ops.shape(entropy)[0], entropy.dtype)
        # Keras divides by the number of images; this factor makes it the number of known labels.
        return ops.sum(entropy * known, axis=-1) * (num_images / num_known)  # (N,)


@keras.saving.register_keras_serializable(package="kmed")
class MaskedBinaryCrossentropy(_MaskedLoss):
    """Binary cross-entropy; equal to `keras.losses.BinaryCrossentropy` if every label is known.

    Args:
      from_logits: whether predictions are logits; otherwise probabilities in [0, 1].
      label_smoothing: in [0, 1): labels move towards 0.5, y -> y (1 - s) + s / 2.
      positive_weights: K factors above 0, one per label, by which the cost of its positives is
        multiplied; None: all 1.
      reduction, name: as in `keras.losses.Loss`.
    Raises: ConfigError: label_smoothing outside [0, 1), a weight that is not above 0.
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        positive_weights=None,
        reduction: str | None = "sum_over_batch_size",
        name: str = "masked_binary_crossentropy",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        check_label_smoothing(label_smoothing)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.positive_weights = None if positive_weights is None else [float(weight) for weight in positive_weights]
        if any(not weight > 0 for weight in self.positive_weights or []):
            raise ConfigError(f"positive_weights must be above 0. Received: {self.positive_weights}.")

    def entropy(self, labels, predictions):
        """Returns the cost of each label, (N, K)."""
        labels = labels * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        entropy = ops.binary_crossentropy(labels, predictions, from_logits=self.from_logits)
        if self.positive_weights is None:
            return entropy
        # The positive term of the cross-entropy: -y log p.
        of_positives = ops.binary_crossentropy(ops.ones_like(labels), predictions, from_logits=self.from_logits)
        return entropy + labels * (ops.convert_to_tensor(self.positive_weights, entropy.dtype) - 1.0) * of_positives

    def get_config(self):
        return {
            **super().get_config(),
            "from_logits": self.from_logits,
            "label_smoothing": self.label_smoothing,
            "positive_weights": self.positive_weights,
        }


@keras.saving.register_keras_serializable(package="kmed")
class AsymmetricLoss(_MaskedLoss):
    """Cross-entropy in which easy labels count less, with one power for positives and one for negatives.

    L = -y (1 - p)^g+ log p - (1 - y) q^g- log(1 - q), with q = max(p - margin, 0), so that a negative
    with p <= margin costs nothing (Ridnik et al., "Asymmetric Loss for Multi-Label Classification",
    2021). With g+ = g- and margin 0 it is the focal loss (Lin et al., 2017) without its alpha.

    Args:
      gamma_positive, gamma_negative: the powers g+ and g-, at least 0.
      margin: in [0, 1).
      reduction, name: as in `keras.losses.Loss`.
    Call with probabilities in [0, 1], not logits.
    Raises: ConfigError: a power below 0, a margin outside [0, 1).
    """

    def __init__(
        self,
        gamma_positive: float = 0.0,
        gamma_negative: float = 4.0,
        margin: float = 0.05,
        reduction: str | None = "sum_over_batch_size",
        name: str = "asymmetric_loss",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not (gamma_positive >= 0 and gamma_negative >= 0 and 0 <= margin < 1):
            raise ConfigError(
                "An asymmetric loss needs powers of at least 0 and a margin in [0, 1). Received: "
                f"gamma_positive={gamma_positive}, gamma_negative={gamma_negative}, margin={margin}."
            )
        self.gamma_positive = gamma_positive
        self.gamma_negative = gamma_negative
        self.margin = margin

    def entropy(self, labels, predictions):
        """Returns the cost of each label, (N, K)."""
        probs = ops.clip(predictions, keras.config.epsilon(), 1.0 - keras.config.epsilon())
        shifted = ops.maximum(probs - self.margin, 0.0)
        # A power of 0 is left out: the gradient of x^0 at x = 0 is NaN on some backends.
        focus = ops.power(1.0 - probs, self.gamma_positive) if self.gamma_positive else 1.0
        fade = ops.power(shifted, self.gamma_negative) if self.gamma_negative else 1.0
        return -labels * focus * ops.log(probs) - (1.0 - labels) * fade * ops.log(1.0 - shifted)

    def get_config(self):
        return {
            **super().get_config(),
            "gamma_positive": self.gamma_positive,
            "gamma_negative": self.gamma_negative,
            "margin": self.margin,
        }


# ----- the answers of a teacher -----


@keras.saving.register_keras_serializable(package="kmed")
class DistillationLoss(keras.losses.Loss):
    """A loss against the labels, mixed with the divergence from a teacher's answers.

    L = (1 - w) labels + w T^2 KL(teacher || student), where the divergence is that of both networks' probabilities
    after their logits are divided by the temperature T (Hinton et al., 2015, "Distilling the Knowledge in a Neural
    Network"). The gradients of the divergence shrink with 1 / T^2; the factor undoes that, so that w means the same at
    each T. A divergence differs from Hinton's cross-entropy only by a constant, and is 0 where both agree.

    The teacher answers for unknown labels too, so those are learnt from it alone.

    Args:
      loss: the keras.losses.Loss of (labels, probs) against the labels.
      activation: a key of DIVERGENCES, how the networks make probabilities.
      temperature: T, above 0; 1 compares the probabilities as they are.
      weight: w, in [0, 1]; 0: only the labels count, 1: only the teacher.
      reduction, name: as in `keras.losses.Loss`.
    Call with the labels and the teacher's probabilities side by side, (N, 2 K), and the student's probabilities (N, K).
    """

    def __init__(
        self,
        loss,
        activation: str,
        temperature: float = 3.0,
        weight: float = 0.5,
        reduction: str | None = "sum_over_batch_size",
        name: str = "distillation_loss",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if activation not in DIVERGENCES or not temperature > 0 or not 0 <= weight <= 1:
            raise ConfigError(
                f"Distillation needs an activation ({' or '.join(DIVERGENCES)}), a temperature above 0 and a weight in "
                f"[0, 1]. Received: activation={activation!r}, temperature={temperature}, weight={weight}."
            )
        self.loss = keras.saving.deserialize_keras_object(loss) if isinstance(loss, dict) else loss
        self.activation = activation
        self.temperature = temperature
        self.weight = weight

    def call(self, y_true, y_pred):
        labels, taught = ops.split(y_true, 2, axis=-1)
        divergence = DIVERGENCES[self.activation](taught, y_pred, self.temperature)  # (N,)
        return (1.0 - self.weight) * self.loss.call(labels, y_pred) + self.weight * self.temperature**2 * divergence

    def get_config(self):
        return {
            **super().get_config(),
            "loss": keras.saving.serialize_keras_object(self.loss),
            "activation": self.activation,
            "temperature": self.temperature,
            "weight": self.weight,
        }


def softmax_divergence(taught, probs, temperature: float):
    """Returns (N,), KL(taught || probs) of one class per image, both softened by `temperature`.

    Args:
      taught, probs: probabilities (N, K), each row with the sum 1. Their logarithms are logits up to a constant per
        image, which the softmax ignores, so the temperature acts as on the networks' own logits.
      temperature: above 0.
    """
    wanted, found = (ops.log_softmax(ops.log(ops.maximum(each, TINY)) / temperature) for each in (taught, probs))
    return ops.sum(ops.exp(wanted) * (wanted - found), axis=-1)


def sigmoid_divergence(taught, probs, temperature: float):
    """Returns (N,), the mean over the labels of KL(taught || probs) between yes and no, softened by `temperature`.

    Args:
      taught, probs: probabilities (N, K) of independent labels.
      temperature: above 0.
    """
    wanted, found = (_logits(each) / temperature for each in (taught, probs))
    yes = ops.sigmoid(wanted) * (ops.log_sigmoid(wanted) - ops.log_sigmoid(found))
    no = ops.sigmoid(-wanted) * (ops.log_sigmoid(-wanted) - ops.log_sigmoid(-found))
    return ops.mean(yes + no, axis=-1)


def _logits(probs):
    probs = ops.clip(probs, keras.config.epsilon(), 1.0 - keras.config.epsilon())
    return ops.log(probs) - ops.log(1.0 - probs)


TINY = 1e-30  # float32 can still divide by it
DIVERGENCES = {"softmax": softmax_divergence, "sigmoid": sigmoid_divergence}


# ----- by name -----


def make_crossentropy(label_smoothing: float, positive_weights) -> keras.losses.Loss:
    """Returns the cross-entropy for one class per image."""
    check_label_smoothing(label_smoothing)
    return keras.losses.CategoricalCrossentropy(label_smoothing=label_smoothing)


def make_bce(label_smoothing: float, positive_weights) -> keras.losses.Loss:
    """Returns the binary cross-entropy of each label."""
    return MaskedBinaryCrossentropy(label_smoothing=label_smoothing)


def make_weighted_bce(label_smoothing: float, positive_weights) -> keras.losses.Loss:
    """Returns the binary cross-entropy with weights on the positives."""
    if positive_weights is None:
        raise ConfigError("loss='weighted_bce' needs positive_weights, one per label. Received: None.")
    return MaskedBinaryCrossentropy(label_smoothing=label_smoothing, positive_weights=positive_weights)


def make_focal(label_smoothing: float, positive_weights) -> keras.losses.Loss:
    """Returns the focal loss with a power of 2."""
    _refuse_smoothing("focal", label_smoothing)
    return AsymmetricLoss(gamma_positive=2.0, gamma_negative=2.0, margin=0.0, name="focal_loss")


def make_asymmetric(label_smoothing: float, positive_weights) -> keras.losses.Loss:
    """Returns the asymmetric loss with the published powers and margin."""
    _refuse_smoothing("asymmetric", label_smoothing)
    return AsymmetricLoss()


# {name in the settings: function of (label_smoothing, positive_weights (K,) or None) that returns a new Keras loss of
# (labels, probs)}. A task's row in kmed.tasks.TASKS lists the losses that the task may use.
LOSSES = {
    "crossentropy": make_crossentropy,
    "bce": make_bce,
    "weighted_bce": make_weighted_bce,
    "focal": make_focal,
    "asymmetric": make_asymmetric,
}


# ----- checks -----


def _refuse_smoothing(name: str, label_smoothing: float) -> None:
    if label_smoothing:
        raise ConfigError(f"loss={name!r} has no label smoothing. Received: label_smoothing={label_smoothing}.")


def check_label_smoothing(label_smoothing: float) -> None:
    """Raises ConfigError unless 0 <= label_smoothing < 1."""
    if not 0.0 <= label_smoothing < 1.0:
        raise ConfigError(
            f"label_smoothing must be at least 0 (no smoothing) and below 1. "
            f"Received: label_smoothing={label_smoothing}."
        )
