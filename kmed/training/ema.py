"""Exponential moving average of all weights of a model, including those of batch normalisation."""

import contextlib

import keras


class WeightAverage(keras.callbacks.Callback):
    """Keeps an exponential moving average of every weight, renewed after every few updates of the weights.

    average <- d^n * average + (1 - d^n) * weight, n updates after the last time, with d = min(decay, (1 + t) /
    (10 + t)) at update t, so that early averages forget the random start (as in TensorFlow's ExponentialMovingAverage).
    Keras' own `use_ema` does not average the moving mean and variance of batch normalisation, which
    then fit neither set of weights; here they are averaged like the others.

    Args:
      weights: the variables to average, such as `model.weights` (trainable and not).
      decay: in [0, 1); the average covers about the last 1 / (1 - decay) updates. 0: only the last one.
      accumulate: how many steps make one update of the weights.
      every: how many updates n lie between two renewals, at least 1. At the end of an epoch fewer may: the average is
        then always that of the last update, and a run that is resumed has the same one.

    Attributes:
      num_updates: how many updates are in the average.
      num_steps: how many steps were made; it is set at the beginning of each epoch.
    """

    def __init__(self, weights, decay: float, accumulate: int = 1, every: int = 1):
        super().__init__()
        self.decay, self.accumulate, self.every = decay, accumulate, every
        self.num_updates = self.num_steps = self._missing = 0
        self._weights = list(weights)
        # They are variables, so that a step updates them in place. They hold copies, since Keras would use a
        # TensorFlow variable itself instead of its value.
        self._averages = [
            keras.Variable(keras.ops.copy(weight.value), trainable=False, dtype=weight.dtype)
            for weight in self._weights
        ]
        self._step = _compiled_step(self._averages, self._weights)

    @property
    def values(self) -> list:
        """The present averages, in the order of the weights."""
        return [average.value for average in self._averages]

    @values.setter
    def values(self, values) -> None:
        _assign(self._averages, values)

    def on_train_batch_end(self, batch, logs=None):
        """Counts an update if this step has made one, and renews the average after every few of them."""
        self.num_steps += 1
        if self.num_steps % self.accumulate:
            return
        self.num_updates += 1
        self._missing += 1
        if self._missing == self.every:
            self._renew()

    def on_train_end(self, logs=None):
        """Renews the average at the end of an epoch, each of which is a call of `fit`."""
        if self._missing:
            self._renew()

    def _renew(self) -> None:
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()  # `fit` writes the newest weights to the model only when it is asked to
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates)) ** self._missing
        self._missing = 0
        self._step(keras.ops.convert_to_tensor(decay, "float32"))

    @contextlib.contextmanager
    def applied(self):
        """Gives the model its averaged weights inside the block, and its own weights again after it."""
        own = [keras.ops.copy(weight.value) for weight in self._weights]
        # Copies, since JAX frees its input arrays once it has computed with them.
        _assign(self._weights, [keras.ops.copy(value) for value in self.values])
        try:
            yield
        finally:
            _assign(self._weights, own)


def _compiled_step(averages: list, weights: list):
    """Returns a function of the decay that updates the averages by one step, in one call of the backend."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function
        def step_in_place(decay):
            # The variables are captured: passing hundreds of arrays would take as long as averaging them.
            for average, weight in zip(averages, weights, strict=True):
                average.assign(_moved(average, weight, decay))

        return step_in_place

    def move_all(values, targets, decay):
        return [_moved(value, target, decay) for value, target in zip(values, targets, strict=True)]

    if keras.backend.backend() == "jax":
        import jax

        move_all = jax.jit(move_all)

    def step(decay):
        _assign(averages, move_all([a.value for a in averages], [weight.value for weight in weights], decay))

    return step


def _moved(average, weight, decay):
    # Written as a step towards the weight, so that the average of a constant weight is exactly that weight.
    return average + (1 - decay) * (weight - average)


def _assign(variables, values) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
