"""Damaged metadata lose no picture, every error is one line, and the check finds exactly what reading refuses."""

import io
import random
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kmed.data.decoding import decoded, read_header
from kmed.data.images import read_image
from kmed.data.readable import check_readable, facts_table, inspect
from kmed.data.table import Table
from kmed.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


def encoded(image, kind, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation=6) -> Image.Exif:
    made = Image.Exif()
    made[0x0112], made[0x010F], made[0x011A], made[0x0132] = orientation, "Maker", 72.0, "2020:01:01 00:00:00"
    made.get_ifd(0x8769)[0x829A] = 0.01
    made.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    return made


def with_exif(kind) -> tuple[bytes, int, int]:
    """Returns a picture with EXIF, and where in the file its EXIF block begins and ends."""
    image = Image.fromarray(PIXELS)
    further = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    content = encoded(image, kind, exif=exif(), **further)
    marker, skipped = {"PNG": (b"eXIf", 4), "WEBP": (b"EXIF", 8)}.get(kind, (b"Exif\0\0", 6))
    start = content.index(marker) + skipped
    size = len(exif().tobytes()) - 6
    return content, start, start + size


def mutated(content: bytes, start: int, end: int, seed: int) -> bytes:
    draw, damaged = random.Random(seed), bytearray(content)
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(start, end - 4)
        width = draw.choice((1, 1, 1, 2, 4))
        damaged[place : place + width] = draw.choice((draw.randbytes(width), b"\0" * width, b"\xff" * width))
    return bytes(damaged)


def with_checksum(content: bytes) -> bytes:
    """Returns a PNG file whose EXIF chunk has the checksum of its present content."""
    place = content.index(b"eXIf")
    end = place + 4 + int.from_bytes(content[place - 4 : place], "big")
    return content[:end] + struct.pack(">I", zlib.crc32(content[place:end])) + content[end + 4 :]


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP"])
def test_a_damaged_exif_block_loses_no_picture(kind):
    content, start, end = with_exif(kind)
    upright = read_image(content)
    turned = 0
    for seed in range(300):
        damaged = mutated(content, start, end, seed)
        pixels = read_image(with_checksum(damaged) if kind == "PNG" else damaged)
        turned += pixels.shape == upright.shape and (pixels == upright).all()
        assert sorted(pixels.shape) == sorted(upright.shape)
    assert 100 < turned < 300  # most keep their orientation, some lose it


def test_make_stored_as_a_number_keeps_the_orientation():
    entries = struct.pack("<HHIfHHIHH", 0x010F, 11, 1, 1.5, 0x0112, 3, 1, 6, 0)
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + b"\0" * 4
    assert read_image(encoded(Image.fromarray(PIXELS), "JPEG", exif=block)).shape == (16, 12, 3)


@pytest.mark.parametrize("orientation", range(10))
def test_orientations(orientation):
    pixels = read_image(encoded(Image.fromarray(PIXELS), "PNG", exif=exif(orientation)))
    turned = {
        2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1], 5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, 3), 7: np.rot90(PIXELS, 2).transpose(1, 0, 2), 8: np.rot90(PIXELS, 1),
    }  # fmt: skip
    np.testing.assert_array_equal(pixels, turned.get(orientation, PIXELS))


def test_a_tiff_whose_further_directory_is_damaged_is_read():
    content = bytearray(encoded(Image.fromarray(PIXELS), "TIFF", tiffinfo={0x8769: {0x829A: 0.5}}))
    place = content.index(struct.pack("<H", 0x8769), 8) + 8
    content[place : place + 4] = struct.pack("<I", len(content) - 3)
    np.testing.assert_array_equal(read_image(bytes(content)), PIXELS)


def refused_files(folder):
    """Writes files that reading refuses, and returns their names."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8))
    negative = Image.fromarray(rng.integers(-1024, 2000, (8, 8)).astype(np.int32))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    contents = {
        "negative.tif": encoded(negative, "TIFF"),
        "wide.tif": encoded(Image.new("I", (8, 8), 70000), "TIFF"),
        "float.tif": encoded(Image.new("F", (8, 8)), "TIFF"),
        "cut.jpg": encoded(image, "JPEG")[:-300],
        "cut.png": encoded(image, "PNG")[:-300],
        "cut.gif": encoded(image, "GIF")[:-300],
        "cut.bmp": encoded(image, "BMP")[:-300],
        "cut.webp": encoded(image, "WEBP")[:-300],
        "cut.tif": encoded(image, "TIFF")[: 64 * 64],
        "lzw.tif": encoded(image, "TIFF", compression="tiff_lzw")[:-3000],
        "empty.png": b"",
        "text.png": b"no picture",
        "program.png": eps,
        "huge.png": encoded(image, "PNG")[:16] + struct.pack(">II", 60000, 60000) + encoded(image, "PNG")[24:],
        "nothing.dcm": b"\0" * 128 + b"DICM",
        "cut.dcm": b"\x08\0\x05\0CS\x0a\0ISO_IR 100",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return list(contents)


def test_the_check_finds_what_reading_refuses_and_nothing_else(tmp_path):
    pytest.importorskip("pydicom", reason="pip install kmed[dicom]")
    names = refused_files(tmp_path)
    for kind in ("JPEG", "MPO", "PNG", "WEBP"):
        names.append(f"good.{kind.lower()}")
        content, start, end = with_exif(kind)
        (tmp_path / names[-1]).write_bytes(content)
    refused = set()
    for name in names:
        try:
            read_image(tmp_path / name)
        except DataError as error:
            refused.add(name)
            assert "\n" not in str(error) and name in str(error)
    assert refused == {name for name in names if not name.startswith("good")}
    rows = pd.DataFrame({"path": names, "group": names, "cluster": names, "split": ""})
    table = Table(rows, np.eye(2, dtype=np.float32)[np.arange(len(names)) % 2], ("a", "b"), "multiclass", "x", tmp_path)
    kept, bad = check_readable(table, skip_unreadable=True)
    assert set(bad["path"]) == refused and not set(kept.rows["path"]) & refused
    facts = facts_table(table, [inspect(file)[0] for file in table.files]).set_index("path")
    assert set(facts.index[facts["reason"] != ""]) == refused
    assert facts.loc["cut.jpg", ["height", "width", "mode"]].tolist() == [64, 64, "RGB"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP"])
def test_the_reduced_check_agrees_with_reading(kind):
    content = encoded(Image.fromarray(np.kron(PIXELS, np.ones((8, 8, 1), np.uint8))), kind)
    outcomes = {True: 0, False: 0}
    for seed in range(150):
        damaged = mutated(content, 2, len(content), seed)
        damaged = damaged[: random.Random(seed).randrange(9, len(damaged))] if seed % 5 == 0 else damaged
        found = []
        for reduction in (None, lambda height, width: 8):
            try:
                with decoded(damaged, reduction=reduction):
                    found.append(True)
            except DataError as error:
                found.append(False)
                assert "\n" not in str(error)
        assert found[0] == found[1], seed
        outcomes[found[0]] += 1
    assert min(outcomes.values()) > 5


def test_any_error_of_a_decoder_is_one_line(monkeypatch):
    content = encoded(Image.fromarray(PIXELS), "PNG")
    errors = [RuntimeError("a\nb"), zlib.error("bad"), KeyError("x"), TypeError(), AttributeError("y"), OverflowError()]
    for error in (*errors, MemoryError(), RecursionError(), ZeroDivisionError("z"), AssertionError()):
        monkeypatch.setattr("kmed.data.decoding._load", lambda _, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(DataError, match="cannot be read as a picture: ") as caught:
            read_image(content)
        assert "\n" not in str(caught.value) and "picture: ." not in str(caught.value)


def test_the_header_of_a_damaged_file_is_still_read(tmp_path):
    content = encoded(Image.fromarray(PIXELS), "PNG")
    assert read_header(content[:-40]) == ((12, 16), "RGB") and read_header(b"none") == ((0, 0), "")
    assert read_header(tmp_path / "absent") == ((0, 0), "")
