"""Pictures of every kind against values worked out by hand, and the store that gathers them by row."""

import io

import numpy as np
import pytest
from PIL import Image
from tiny_tables import table_of

from kmed.config import load_config
from kmed.data import images
from kmed.data.images import Resizing, read_image, read_row, resize_array
from kmed.data.pictures import Pictures
from kmed.errors import DataError

SMALL = Resizing((5, 5))


def encoded(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def palette_with_hole() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    return image


# ----- modes -----

GREY16 = np.array([[0, 128, 129, 32896, 65535]], np.uint16)


@pytest.mark.parametrize(
    "source, expected",
    [
        (encoded(Image.fromarray(np.array([[0, 7, 255]], np.uint8))), [[0] * 3, [7] * 3, [255] * 3]),
        (encoded(Image.fromarray(np.array([[True, False]]))), [[255] * 3, [0] * 3]),
        (encoded(Image.new("RGB", (1, 1), (1, 2, 3))), [[1, 2, 3]]),
        # Half-transparent (200, 100, 0) on black: 128 / 255 of each.
        (encoded(Image.new("RGBA", (1, 1), (200, 100, 0, 128))), [[100, 50, 0]]),
        (encoded(Image.new("RGBA", (1, 1), (200, 100, 50, 0))), [[0, 0, 0]]),
        (encoded(Image.new("LA", (1, 1), (200, 255))), [[200] * 3]),
        (encoded(palette_with_hole()), [[10, 20, 30], [200, 100, 50]]),
        (encoded(palette_with_hole(), transparency=1), [[10, 20, 30], [0, 0, 0]]),
        (encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [[255, 0, 0]]),
        # 65535 / 255 = 257: 128 is nearer to 0, 129 to 257, 32896 is 128 * 257.
        (encoded(Image.fromarray(GREY16)), [[0] * 3, [0] * 3, [1] * 3, [128] * 3, [255] * 3]),
        (encoded(Image.fromarray(GREY16), "TIFF"), [[0] * 3, [0] * 3, [1] * 3, [128] * 3, [255] * 3]),
        (encoded(Image.fromarray(GREY16.astype(np.int32)), "TIFF"), [[0] * 3, [0] * 3, [1] * 3, [128] * 3, [255] * 3]),
    ],
    ids=[
        "grey",
        "bilevel",
        "rgb",
        "half",
        "clear",
        "grey-alpha",
        "palette",
        "palette-hole",
        "cmyk",
        "16-png",
        "16-tiff",
        "32-tiff",
    ],
)
def test_modes(source, expected):
    pixels = read_image(source)
    assert pixels.dtype == np.uint8 and pixels.flags.writeable
    np.testing.assert_array_equal(pixels, [expected])


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn a quarter clockwise to see it upright"
    stored = np.array([[[255, 0, 0], [0, 255, 0]]], np.uint8)  # 1 high, 2 wide
    pixels = read_image(encoded(Image.fromarray(stored), exif=exif))
    np.testing.assert_array_equal(pixels, [[[255, 0, 0]], [[0, 255, 0]]])


def test_path_and_bytes_agree(tmp_path):
    path = tmp_path / "a.jpeg"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)).save(path)
    small = Resizing((16, 16))
    np.testing.assert_array_equal(read_image(path, small), read_image(path.read_bytes(), small))
    np.testing.assert_array_equal(read_image(str(path)), np.asarray(Image.open(path)))


# ----- geometry -----

WIDE = np.full((10, 40), 200, np.uint8)  # 10 high, 40 wide


def test_pad_centres_the_whole_picture_on_black():
    pixels = resize_array(WIDE, Resizing((20, 20), fit="pad"))  # scaled by 1/2 to 5 x 20, 7 rows above, 8 below
    np.testing.assert_array_equal(pixels[7:12], 200)
    assert pixels.sum() == 5 * 20 * 3 * 200


def test_crop_takes_the_middle():
    ramp = np.repeat(np.arange(40, dtype=np.uint8)[None], 10, axis=0)
    pixels = resize_array(ramp, Resizing((10, 10), fit="crop", interpolation="nearest"))
    np.testing.assert_array_equal(pixels[:, :, 0], np.repeat(np.arange(15, 25)[None], 10, axis=0))


def test_stretch_averages_what_it_shrinks():
    ramp = np.repeat(np.arange(0, 40, dtype=np.uint8)[None], 10, axis=0)
    pixels = resize_array(ramp, Resizing((5, 10), fit="stretch", interpolation="box"))
    # Means of 0..3, 4..7, ...: 1.5, 5.5, ..., rounded up.
    np.testing.assert_array_equal(pixels[:, :, 0], np.repeat(np.arange(2, 40, 4)[None], 5, axis=0))


@pytest.mark.parametrize("fit", images.FITS)
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (7, 13)])
@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (11, 17)])
def test_every_fit_gives_the_size_asked_for(fit, size, shape):
    pixels = resize_array(np.full(shape, 9, np.uint8), Resizing(size, fit))
    assert pixels.shape == (*size, 3)
    assert set(np.unique(pixels)) <= ({0, 9} if fit == "pad" else {9})
    assert 9 in pixels


def test_array_shapes_and_depths_agree():
    grey = np.random.default_rng(2).integers(0, 256, (9, 7), np.uint8)
    expected = np.repeat(grey[..., None], 3, axis=2)
    for array in (grey, grey[..., None], expected, grey.astype(np.uint16) * 257):
        np.testing.assert_array_equal(resize_array(array), expected)
    of_file = read_image(encoded(Image.fromarray(grey)), Resizing((5, 5)))
    np.testing.assert_array_equal(resize_array(grey, Resizing((5, 5))), of_file)


# ----- errors -----


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda path: read_image(path / "no.png"), ["There is no picture", "no.png"]),
        (lambda path: read_image(path), ["cannot be read"]),
        (lambda path: read_image(b"not a picture"), ["a picture of 13 bytes", "cannot be read"]),
        (lambda path: read_image(encoded(Image.new("F", (2, 2)), "TIFF")), ["floating-point"]),
        (lambda path: read_image(encoded(Image.new("I", (2, 2), 70000), "TIFF")), ["70000 to 70000", "0 to 65535"]),
        (lambda path: Resizing((0, 5)), ["image_size", "(0, 5)"]),
        (lambda path: Resizing(224), ["(height, width)", "224"]),
        (lambda path: Resizing((8, 8), "padd"), ["pad, crop, stretch", "Did you mean 'pad'?"]),
        (lambda path: Resizing((8, 8), "pad", "bicubik"), ["Did you mean 'bicubic'?"]),
        (lambda path: Pictures(table_of(path), Resizing()), ["(height, width)", "image_size=None"]),
        (lambda path: resize_array(np.zeros((4, 4), np.float32)), ["uint8 or uint16", "float32"]),
        (lambda path: resize_array(np.zeros((4, 4, 2), np.uint8)), ["(4, 4, 2)"]),
    ],
)
def test_errors_say_what_came_and_what_is_legal(tmp_path, call, words):
    with pytest.raises(DataError) as caught:
        call(tmp_path)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / "cut.jpeg"
    path.write_bytes(
        encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")[:900]
    )
    with pytest.raises(DataError, match=r"cut\.jpeg cannot be read.*truncated"):
        read_image(path)


# ----- rows and settings -----


def test_a_row_is_read_as_its_file(tmp_path):
    table = table_of(tmp_path)
    np.testing.assert_array_equal(read_row(table, 3), read_image(tmp_path / "3.png"))
    np.testing.assert_array_equal(read_row(table, 3, SMALL), read_image(tmp_path / "3.png", SMALL))


def test_a_resizing_is_what_the_settings_say():
    data = load_config(overrides=["data.image_size=8x10", "data.fit=crop", "data.interpolation=box"]).data
    assert Resizing.from_settings(data) == Resizing((8, 10), "crop", "box")
    assert Resizing.from_settings(data).common_size == (8, 10)
