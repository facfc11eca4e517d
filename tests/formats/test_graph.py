"""What all exports share: they are written by TensorFlow."""

import keras
import pytest

from kmed.errors import ConfigError
from kmed.formats.graph import check_backend


def test_exports_need_tensorflow(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ConfigError, match="Exports are written by TensorFlow. Received: KERAS_BACKEND=jax"):
        check_backend()
