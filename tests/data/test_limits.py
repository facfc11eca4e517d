"""Small files that claim a lot are refused before they are decoded; large ones within the limit are read in turn."""

import contextlib
import json
import pathlib
import subprocess
import sys

import bombs
import pytest
from PIL import Image

from kmed.data.images import read_image
from kmed.data.limits import admit, max_bytes, max_pixels
from kmed.errors import DataError

pytest.importorskip("pydicom", reason="pip install kmed[dicom]")
MAX_PIXELS = 2**21  # instead of Pillow's, so that the largest pictures are made in little time
READABLE = {"dicom_rle_frames.dcm", "large_16_bits.png", "large_grey.png", "large_rle.dcm", "large_transparent.png",
            "tiff_frames.tif"}  # fmt: skip


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What came of each file in a process of its own, and how much memory that took."""
    folder = tmp_path_factory.mktemp("bombs")
    made = bombs.make(folder, MAX_PIXELS)
    assert all(len(content) < 8 * 10**6 for content in made.values())
    script = pathlib.Path(bombs.__file__)
    command = [sys.executable, str(script), str(folder), str(MAX_PIXELS)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=script.parents[2])
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_each_bomb_is_one_line_and_the_largest_pictures_are_read(outcome):
    came = outcome["came"]
    assert len(came) > 25 and {name for name, text in came.items() if text == "read"} == READABLE
    refused = {name: text for name, text in came.items() if name not in READABLE}
    assert not [text for text in refused.values() if "\n" in text or text.startswith("FOREIGN")]
    claimed = [name for name in refused if name.endswith(("size.png", "claims.dcm", "size.jpg", "deflated.dcm"))]
    assert len(claimed) == 5 and all("4 million pixels" in refused[name] for name in claimed), refused


def test_no_bomb_takes_much_memory(outcome):
    """Within Pillow's own limit, 43 times as many pixels, the same files take less than 2 GB."""
    assert outcome["bytes"] < 200e6


def test_the_limit_is_pillows(monkeypatch):
    assert max_pixels() == 2 * Image.MAX_IMAGE_PIXELS and max_bytes() == 6 * Image.MAX_IMAGE_PIXELS
    with pytest.raises(DataError, match=r"^a\.png has more than 178 million pixels"), contextlib.ExitStack() as held:
        admit("a.png", 20000, 20000, held)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert max_pixels() is None and max_bytes() is None
    with contextlib.ExitStack() as held:
        admit("a.png", 20000, 20000, held)


def test_a_large_picture_is_released_after_it_was_read(monkeypatch):
    monkeypatch.setattr("kmed.data.limits.LARGE", 4)
    content = bombs.png(8, 8, bombs.zlib.compress(bytes(72)))
    for _ in range(2):
        assert read_image(content).shape == (8, 8, 3)
        with pytest.raises(DataError):
            read_image(content[:-30])
    from kmed.data import limits

    assert limits._ALONE.acquire(blocking=False)
    limits._ALONE.release()
