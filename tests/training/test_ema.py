"""The moving average of the weights, against its formula in double precision."""

import keras
import numpy as np
import pytest

from kmed.training.ema import WeightAverage


class Kept(keras.callbacks.Callback):
    """Keeps the kernel after each step."""

    def __init__(self):
        super().__init__()
        self.kernels = []

    def on_train_batch_end(self, batch, logs=None):
        self.kernels.append(self.model.get_weights()[0].astype(np.float64))


@pytest.mark.parametrize(("every", "renewed"), [(1, range(1, 11)), (3, (3, 5, 8, 10)), (100, (5, 10))])
def test_the_average_every_few_updates(every, renewed):
    """Two epochs of five steps; each ends with the average of its last update."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    average, kept = WeightAverage(model.weights, 0.5, every=every), Kept()
    expected, before = model.get_weights()[0].astype(np.float64), 0
    draw = np.random.default_rng(0).normal
    for _ in range(2):
        model.fit(draw(size=(20, 3)), draw(size=(20, 2)), batch_size=4, verbose=0, callbacks=[average, kept])
    for number in renewed:
        decay = min(0.5, (1 + number) / (10 + number)) ** (number - before)
        expected, before = decay * expected + (1 - decay) * kept.kernels[number - 1], number
    assert average.num_updates == 10
    np.testing.assert_allclose(np.asarray(average.values[0]), expected, atol=1e-6)
