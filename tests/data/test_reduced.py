"""JPEG files decoded at a part of their size: which part, that nothing moves, and that one rule serves everywhere."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from tiny_tables import table_of

from kmed.config import load_config
from kmed.data.decoding import decoded
from kmed.data.images import FITS, Resizing, read_image
from kmed.data.pictures import Pictures
from kmed.data.readers.load import load_table
from kmed.data.readers.npz import pack
from kmed.errors import DataError, RunError
from kmed.runs import Run, write_classes


def smooth(height: int, width: int) -> np.ndarray:
    """Returns uint8 (H, W, 3) without edges, whose corners differ."""
    y, x = np.mgrid[:height, :width] / [[[max(height - 1, 1)]], [[max(width - 1, 1)]]]
    return np.stack([255 * x, 255 * y, 127.5 * (1 + np.sin(5 * x * y))], axis=-1).round().astype(np.uint8)


def encoded(pixels: np.ndarray, kind="JPEG", turn: int | None = None, mode="RGB") -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    if turn is not None:
        exif[0x0112] = turn
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(pixels).convert(mode).save(file, kind, exif=exif, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "size, fit, picture, factor",
    [
        ((120, 160), "pad", (240, 320), 2),  # just enough
        ((120, 160), "pad", (239, 319), 1),
        ((120, 161), "stretch", (240, 320), 1),
        ((60, 80), "pad", (240, 320), 4),
        ((30, 40), "pad", (2400, 3200), 8),  # not smaller
        ((100, 100), "pad", (400, 100), 4),  # fills 100 x 25
        ((100, 100), "crop", (400, 100), 1),
        ((100, 100), "crop", (400, 200), 2),
        ((100, 50), "stretch", (400, 200), 4),
        ((480, 640), "pad", (240, 320), 1),
    ],
)
def test_the_smallest_size_that_is_enough_is_decoded(size, fit, picture, factor):
    resizing = Resizing(size, fit, decode="reduced")
    assert resizing.reduction(*picture) == factor
    assert Resizing(size, fit).reduction(*picture) == Resizing(decode="reduced").reduction(*picture) == 1
    with decoded(encoded(smooth(*picture)), reduction=resizing.reduction) as found:
        assert found.reduction == factor and found.size == picture
        assert (found.image.height, found.image.width) == tuple(-(-side // factor) for side in picture)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("turn", [None, *range(1, 9)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_reduced_picture_lies_where_the_whole_one_does(fit, turn, mode):
    # Sides that leave a part of a pixel over at every reduction, on the side that the orientation says.
    content = encoded(smooth(203, 331), turn=turn, mode=mode)
    for size in ((60, 60), (40, 50), (20, 12)):
        whole, part = (read_image(content, Resizing(size, fit, decode=decode)) for decode in ("full", "reduced"))
        assert (whole == 0).all(axis=-1).sum() == (part == 0).all(axis=-1).sum() or fit != "pad"  # the same borders
        difference = np.abs(whole.astype(int) - part)
        assert difference.max() <= 8 and difference.mean() < 1


def test_what_is_no_jpeg_or_keeps_its_size_is_the_same():
    pixels = smooth(80, 96)
    for kind in ("PNG", "TIFF", "BMP"):
        content = encoded(pixels, kind)
        np.testing.assert_array_equal(
            read_image(content, Resizing((20, 24), decode="reduced")), read_image(content, Resizing((20, 24)))
        )
    content = encoded(pixels)
    np.testing.assert_array_equal(read_image(content, Resizing(decode="reduced")), read_image(content))
    tiny = encoded(smooth(3, 2))
    assert read_image(tiny, Resizing((1, 1), decode="reduced")).shape == (1, 1, 3)


def test_a_cut_file_is_refused_at_every_size():
    content = encoded(smooth(160, 160))
    with pytest.raises(DataError, match="cannot be read"):
        read_image(content[: len(content) // 2], Resizing((20, 20), decode="reduced"))


def test_training_packs_and_caches_decode_alike(tmp_path):
    (tmp_path / "pictures").mkdir()
    table = table_of(tmp_path / "pictures", 3)
    for path in table.files:
        path.write_bytes(encoded(np.random.default_rng(len(path.name)).integers(0, 256, (32, 40, 3), np.uint8)))
    settings = ["data.decode=reduced", "data.image_size=16x20"]
    resizing = Resizing.from_settings(load_config(overrides=settings).data)
    assert resizing.decode == "reduced" and Resizing.from_settings(load_config().data).decode == "full"
    expected = np.stack([read_image(path, resizing) for path in table.files])
    full = Resizing((16, 20))
    assert (expected != np.stack([read_image(path, full) for path in table.files])).any()
    for cache in ("memory", "disk", "none"):
        for each in (full, resizing):  # the same folder, so the name of a cache must tell them apart
            found = Pictures(table, each, cache, tmp_path / "cache").gather(np.arange(3))
            assert (found == expected).all() == (each is resizing)
    np.testing.assert_array_equal(load_table(pack(table, tmp_path / "set.npz", resizing)).images, expected)


def test_a_run_keeps_its_decoding_and_one_without_the_setting_decodes_whole(tmp_path):
    run = Run(tmp_path)
    config = load_config(overrides=["task=multiclass", "data.decode=reduced"])
    config.write(run.config)
    write_classes(run, config, ("a", "b"))
    assert run.read_classes().decode == "reduced" and Resizing.from_settings(run.read_config().data).decode == "reduced"
    run.config.write_text(run.config.read_text().replace("  decode: reduced\n", ""))  # as an earlier kmed wrote it
    with pytest.raises(RunError, match="decode is 'reduced', but .* says 'full'"):
        run.read_classes()
    config = run.read_config()
    write_classes(run, config, ("a", "b"))
    assert "decode" not in json.loads(run.classes.read_text())  # so other versions read it
    assert run.read_classes().decode == "full" and Resizing.from_settings(config.data).decode == "full"


def test_an_unknown_decoding_is_refused():
    with pytest.raises(DataError, match="Did you mean 'reduced'"):
        Resizing((8, 8), decode="reducd")
