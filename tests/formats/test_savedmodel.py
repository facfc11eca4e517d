"""A SavedModel decodes and resizes encoded pictures itself."""

import io

import numpy as np
import pytest
from PIL import Image
from untrained_models import CALIBRATIONS, build, description

from kmed.data.images import Resizing, read_image
from kmed.formats import savedmodel


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_encoded_pictures_are_decoded_and_resized(fit, tmp_path):
    import tensorflow as tf

    settings = {**description("vit", "multiclass"), "fit": fit}
    model = build("small vit")
    savedmodel.write(model, CALIBRATIONS["multiclass"], tmp_path / "saved", settings)
    signature = tf.saved_model.load(str(tmp_path / "saved")).signatures["serve_bytes"]
    rng = np.random.default_rng(0)
    encoded = []
    for size, mode in (((90, 61), "RGB"), ((50, 140), "RGB"), ((32, 40), "RGB"), ((77, 80), "L")):
        smooth = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        smooth.convert(mode).save(file, "PNG")
        encoded.append(file.getvalue())
    found = signature(encoded=tf.constant(encoded))["probs"].numpy()
    images = np.stack([read_image(content, Resizing((32, 40), fit)) for content in encoded])
    expected = CALIBRATIONS["multiclass"].apply(model.predict(images, verbose=0))
    assert np.ptp(expected, axis=0).max() > 0.2
    # TensorFlow rounds once while Pillow rounds twice, and it crops at whole pixels.
    np.testing.assert_allclose(found, expected, atol=0.05 if fit == "crop" else 0.02)


def test_encoded_pictures_of_16_bits_are_scaled_by_the_models_range():
    values = np.random.default_rng(0).integers(0, 5000, (32, 40)).astype(np.uint16)
    narrow = np.random.default_rng(1).integers(0, 256, (32, 40)).astype(np.uint8)
    settings = {"image_size": (32, 40), "fit": "stretch", "interpolation": "bilinear", "range": [0, 4095]}
    for pixels in (values, narrow):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        expected = read_image(file.getvalue(), Resizing(range=(0, 4095)))
        found = savedmodel._decode(file.getvalue(), settings).numpy()
        assert np.abs(found - expected).max() <= (1 if pixels is values else 0)
