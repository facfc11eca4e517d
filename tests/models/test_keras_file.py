"""What Keras unpacks while it saves and loads lies in a folder that is cleared if the process is killed."""

import os
import tempfile

import keras
import numpy as np
import pytest

from kmed.errors import RunError
from kmed.models.keras_file import load_model, save_model


@pytest.fixture
def used(monkeypatch, tmp_path):
    """The folders in which Keras makes its temporary files, all of them below `tmp_path`/system."""
    system = tmp_path / "system"
    system.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(system))
    folders = []

    def noting(real):
        def call(*arguments, **options):
            folders.append(os.path.relpath(tempfile.gettempdir(), system))
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(keras.Model, "save", noting(keras.Model.save))
    monkeypatch.setattr(keras.saving, "load_model", noting(keras.saving.load_model))
    return folders


def test_keras_unpacks_into_a_folder_that_kmed_clears(used, tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    save_model(model, tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])
    assert len(used) == 2 and all(folder.startswith(".kmed-") and folder.endswith(".tmp") for folder in used)
    assert tempfile.gettempdir() == str(tmp_path / "system") and not list((tmp_path / "system").iterdir())


def test_the_usual_folder_is_back_after_an_error(used, tmp_path):
    (tmp_path / "model.keras").write_bytes(b"no archive")
    with pytest.raises(RunError, match="cannot be loaded"):
        load_model(tmp_path / "model.keras")
    assert tempfile.gettempdir() == str(tmp_path / "system") and not list((tmp_path / "system").iterdir())
