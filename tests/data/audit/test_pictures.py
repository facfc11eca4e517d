"""Each picture is decoded once, by any number of processes, and not again after an interruption."""

import contextlib
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("cv2", reason="OpenCV is not installed")
from drawn_scenes import draw_scene, looked_at, memory_table, turn

from kmed.data.audit import pictures as pictures_module
from kmed.data.audit.alignment import Least
from kmed.data.audit.fingerprints import Variant, fingerprint, shrink
from kmed.data.audit.pictures import describe_sources, find_repeats
from kmed.data.audit.store import LINES
from kmed.data.audit.visual_words import Vocabulary
from kmed.data.table import Table
from kmed.errors import RunError


def drawn(number):
    return draw_scene(number, 120, 160)


def table_of(folder, names):
    rows = pd.DataFrame({"path": names, "group": names, "cluster": names, "split": ""})
    return Table(rows, np.ones((len(names), 1), np.float32), ("a",), "multilabel", "drawn", root=folder)


@pytest.fixture
def files(tmp_path):
    for number in range(3):
        Image.fromarray(drawn(number)).save(tmp_path / f"{number}.png")
    Image.fromarray(turn(drawn(1), angle=8)).save(tmp_path / "3.png")
    (tmp_path / "4.png").write_bytes((tmp_path / "0.png").read_bytes()[:500])
    return table_of(tmp_path, [f"{number}.png" for number in range(5)] + ["absent.png"])


@pytest.fixture
def decoded(monkeypatch):
    """The sources that were looked at."""
    seen = []
    inspect = pictures_module.inspect
    monkeypatch.setattr(pictures_module, "inspect", lambda source, *rest: seen.append(source) or inspect(source, *rest))
    return seen


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_made_of_a_picture_is_read_back_as_it_was(files, tmp_path, jobs):
    with looked_at(files, tmp_path / "store", jobs) as pictures:
        for row in range(3):
            made = fingerprint(shrink(drawn(row)))
            for name in ("grey", "inside", "points", "descriptors"):
                np.testing.assert_array_equal(getattr(pictures[row], name), getattr(made, name))
            assert pictures.num_features(row) == len(made.points)
        assert [pictures.facts[row][0] for row in (0, 5)] == ["", "the file is missing"]
        assert "truncated" in pictures.facts[4][0]
        assert pictures.facts[0][2:5] == (120, 160, "RGB")


def everything(pictures):
    """Assigns words, compares some pairs, and returns all that is known then."""
    pictures.assign_words([0, 1, 2, 3], Vocabulary([pictures[row].descriptors for row in range(4)], 4))
    lists = [[(1, 3, Variant.PLAIN), (0, 1, Variant.PLAIN)], [(0, 2, Variant.MIRRORED), (1, 2, Variant.PLAIN)]]
    pictures.compare(lists, Least(), stop=bool)
    words = {row: found.tolist() for row, found in pictures.words.items()}
    aligned = {
        pair: found and (found.inliers, found.agreement, found.drift, [one.tolist() for one in found.outlines])
        for pair, found in pictures.compared.items()
    }
    return pictures.facts, words, aligned


def test_after_an_interruption_nothing_is_done_twice(files, tmp_path, decoded, monkeypatch):
    with looked_at(files, tmp_path / "store") as pictures:
        whole = everything(pictures)
    assert len(decoded) == 6
    assert set(whole[2]) == {(1, 3, Variant.PLAIN), (0, 2, Variant.MIRRORED), (1, 2, Variant.PLAIN)}  # one list stopped
    decoded.clear()
    for name in ("look", "assign_words", "compare"):
        monkeypatch.setattr(pictures_module, name, None)  # calling it would be an error
    with looked_at(files, tmp_path / "store") as pictures:
        assert everything(pictures) == whole
    assert decoded == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_wherever_it_is_cut_the_rest_is_done(files, tmp_path, jobs):
    with looked_at(files, tmp_path / "whole") as pictures:
        whole = everything(pictures)
    lines = (tmp_path / "whole" / LINES).read_bytes()
    for number, cut in enumerate([0.3, 0.7, 0.99] if jobs == 1 else [0.5]):
        folder = tmp_path / f"cut{number}"
        folder.mkdir()
        (folder / "arrays.bin").write_bytes((tmp_path / "whole" / "arrays.bin").read_bytes())
        (folder / LINES).write_bytes(lines[: int(cut * len(lines))])
        with looked_at(files, folder, jobs) as pictures:
            found = everything(pictures)
        assert [dict(sorted(each.items(), key=str)) for each in found] == [
            dict(sorted(each.items(), key=str)) for each in whole
        ]


def test_a_record_that_makes_no_sense_is_one_line(files, tmp_path):
    with looked_at(files, tmp_path / "store"):
        pass
    with (tmp_path / "store" / LINES).open("a") as file:
        file.write(json.dumps({"pairs": [[1, 2, 99]]}) + "\n")
    with (
        pytest.raises(RunError, match="store is damaged. Remove it and start again"),
        looked_at(files, tmp_path / "store"),
    ):
        pass


def test_a_picture_of_more_than_8_bits_waits_for_its_range(tmp_path, decoded):
    deep = (np.arange(120 * 160).reshape(120, 160) % 4000).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(drawn(1)).save(tmp_path / "plain.png")
    with looked_at(table_of(tmp_path, []), tmp_path / "store") as pictures:
        pictures.table = table_of(tmp_path, ["deep.png", "plain.png"])
        pictures.look([0, 1], None, "Reading")
        assert pictures.facts[0][:2] == ("", 3999)
        with pytest.raises(KeyError):
            pictures[0]
        pictures.look([0, 1], (0, 4095), "Reading")
        assert pictures[0].grey.max() > 200  # it would be 15 at most with the range of 16 bits
        assert [path.name for path in decoded] == ["deep.png", "plain.png", "deep.png"]


def test_repeats_are_found_by_their_bytes(files, tmp_path):
    (tmp_path / "copy.png").write_bytes((tmp_path / "1.png").read_bytes())
    names = ["0.png", "1.png", "copy.png", "absent.png", "2.png", "gone.png"]
    assert find_repeats(table_of(tmp_path, names)) == {2: 1}
    assert find_repeats(memory_table([drawn(0), drawn(1), drawn(0)])) == {2: 0}


def test_a_plan_knows_its_pictures(files, tmp_path):
    before = describe_sources(files)
    assert describe_sources(files) == before
    with contextlib.suppress(OSError):
        (tmp_path / "2.png").write_bytes(b"another")
    assert describe_sources(files) != before
    first, second = (describe_sources(memory_table([drawn(seed)])) for seed in (0, 1))
    assert first != second
