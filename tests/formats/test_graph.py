"""What all exports share: they are written by TensorFlow, and calibrate as the run does."""

import dataclasses

import keras
import numpy as np
import pytest
import untrained_models

from kmed.errors import ConfigError
from kmed.formats.graph import calibrated, check_backend


def test_exports_need_tensorflow(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ConfigError, match="Exports are written by TensorFlow. Received: KERAS_BACKEND=jax"):
        check_backend()


def test_other_shares_of_the_classes_are_part_of_the_exported_function():
    model, pictures = untrained_models.build("small vit"), untrained_models.pictures()
    plain = untrained_models.CALIBRATIONS["multiclass"]
    calibration = dataclasses.replace(plain, log_weights=(1.0, 0.0, -0.5, 0.2))
    found = np.asarray(calibrated(model, calibration)(pictures.astype(np.float32)))
    probs = model.predict(pictures, verbose=0)
    np.testing.assert_allclose(found, calibration.apply(probs), atol=1e-5)
    assert np.abs(found - plain.apply(probs)).max() > 0.05
