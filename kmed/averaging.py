"""Exponential moving average of all of a model's weights, those of batch normalisation included."""

import contextlib

import keras


class WeightAverage(keras.callbacks.Callback):
    """Keeps an exponential moving average of every weight, updated after each step.

    average <- d * average + (1 - d) * weight, with d = min(decay, (1 + t) / (10 + t)) at step t, so
    that early averages forget the random start (as in TensorFlow's ExponentialMovingAverage).
    Keras' own `use_ema` leaves the moving mean and variance of batch normalisation behind, which
    then fit neither set of weights; here they are averaged like the rest.

    Args:
      weights: the variables to average, such as `model.weights` (trainable and not).
      decay: in [0, 1); the average looks back over about 1 / (1 - decay) steps. 0 keeps the last.
    """

    def __init__(self, weights, decay: float):
        super().__init__()
        self.decay = decay
        self.num_updates = 0
        self._weights = list(weights)
        self._update = _compiled(_average)
        self.values = [keras.ops.copy(weight.value) for weight in self._weights]

    def on_train_batch_end(self, batch, logs=None):
        """Adds one step to the average."""
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()  # fit keeps the newest weights to itself until asked
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        values = [keras.ops.convert_to_tensor(weight.value) for weight in self._weights]
        self.values = self._update(self.values, values, keras.ops.convert_to_tensor(decay, "float32"))

    @contextlib.contextmanager
    def applied(self):
        """The model holds its averaged weights inside the block, and its own again after it."""
        own = [keras.ops.copy(weight.value) for weight in self._weights]
        # Copies, since JAX frees the arrays that it was given once it has computed with them.
        _assign(self._weights, [keras.ops.copy(value) for value in self.values])
        try:
            yield
        finally:
            _assign(self._weights, own)


def _average(averages, values, decay):
    # Written as a step towards the value, so that a weight that stands still has itself as its average.
    return [average + (1 - decay) * (value - average) for average, value in zip(averages, values, strict=True)]


def _assign(weights, values) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.assign(value)


def _compiled(function):
    """Returns `function` compiled by the backend: one call a step instead of one an array."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function
