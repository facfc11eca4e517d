"""Checkpoints: the newest whole one is found, and the remains of a killed process are removed."""

import keras
import numpy as np
import pytest

from kmed.errors import RunError
from kmed.training import checkpoint
from kmed.training.ema import WeightAverage


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(2)]
    )
    model.compile(keras.optimizers.AdamW(0.01), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def train_a_little(model, average, steps=3):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(8 * steps, 4)), rng.normal(size=(8 * steps, 2))
    model.fit(images, labels, batch_size=8, verbose=0, shuffle=False, callbacks=[average])


def test_what_is_stored_is_restored(model, tmp_path):
    average = WeightAverage(model.weights, 0.9)
    train_a_little(model, average)
    state = checkpoint.State(epoch=1, rows=[{"epoch": 1}], num_updates=average.num_updates)
    checkpoint.save(tmp_path, state, model, average, improved=True)
    stored = [keras.ops.convert_to_numpy(variable.value) for variable in model.variables]
    train_a_little(model, average)
    after = [keras.ops.convert_to_numpy(variable.value) for variable in model.weights]

    last = checkpoint.newest(tmp_path)
    read = checkpoint.read_state(last)
    assert read == state
    checkpoint.restore(last, read, model, average)
    for variable, value in zip(model.variables, stored):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable.value), value)
    assert average.num_updates == 3
    # The state of the dropout layer's generator is restored too: the same steps lead to the same weights.
    train_a_little(model, average)
    for variable, value in zip(model.weights, after):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable.value), value)


def test_only_the_newest_stays_and_the_best_weights_are_kept(model, tmp_path):
    checkpoint.save(tmp_path, checkpoint.State(epoch=1), model, None, improved=True)
    best = [weight.numpy() for weight in model.weights]
    model.layers[0].kernel.assign(model.layers[0].kernel * 0)
    (tmp_path / ".epoch-0002.99999.tmp").mkdir()  # what a killed process leaves
    checkpoint.save(tmp_path, checkpoint.State(epoch=2), model, None, improved=False)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0002"]
    checkpoint.load_best(tmp_path, model)
    for weight, value in zip(model.weights, best):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_no_checkpoint_and_a_damaged_one(model, tmp_path):
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.read_state(None) == checkpoint.State()
    with pytest.raises(RunError, match="holds no checkpoint"):
        checkpoint.load_best(tmp_path, model)
    checkpoint.save(tmp_path, checkpoint.State(epoch=1), model, None, improved=True)
    last = checkpoint.newest(tmp_path)
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(RunError, match="does not fit"):
        checkpoint.load_best(tmp_path, other)
    (last / "state.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        checkpoint.read_state(last)


def test_the_average_covers_batch_normalisation():
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    average = WeightAverage(model.weights, 0.5)
    expected = [weight.numpy().copy() for weight in model.weights]

    class Follow(keras.callbacks.Callback):
        """The definition, in NumPy."""

        def on_train_batch_end(self, batch, logs=None):
            decay = min(0.5, (2 + batch) / (11 + batch))
            for number, weight in enumerate(model.weights):
                expected[number] = decay * expected[number] + (1 - decay) * weight.numpy()

    rng = np.random.default_rng(0)
    model.fit(
        rng.normal(3, 2, (32, 4)), rng.normal(size=(32, 2)), batch_size=8, verbose=0, callbacks=[average, Follow()]
    )
    for value, other in zip(average.values, expected):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(value), other, rtol=1e-5, atol=1e-6)
    own = [weight.numpy() for weight in model.weights]
    with average.applied():
        np.testing.assert_allclose(model.weights[2].numpy(), expected[2], rtol=1e-5)
    for weight, value in zip(model.weights, own):
        np.testing.assert_array_equal(weight.numpy(), value)
