"""Every kind of broken file is found with its reason, and nothing else is."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kmed.data import decoding
from kmed.data.readable import check_readable, facts_table, find_unreadable, inspect
from kmed.data.table import Table
from kmed.errors import DataError


def make_table(root, names):
    rows = pd.DataFrame({"path": names, "group": names, "cluster": names, "split": "train"})
    labels = np.eye(2, dtype=np.float32)[np.arange(len(names)) % 2]
    return Table(rows, labels, ("a", "b"), "multiclass", "made", root=root)


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for name in ("good.jpeg", "good.png", "good.bmp", "good.gif", "good.tif", "good.webp"):
        image.save(tmp_path / name)
    image.convert("L").save(tmp_path / "grey.jpeg")
    image.save(tmp_path / "progressive.jpeg", progressive=True)
    for name in ("good.jpeg", "good.png", "progressive.jpeg"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"half_{name}").write_bytes(whole[: len(whole) // 2])
    whole = (tmp_path / "good.jpeg").read_bytes()
    (tmp_path / "tail.jpeg").write_bytes(whole[:-200])
    (tmp_path / "text.jpeg").write_text("this is not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    return tmp_path


BROKEN = {
    "half_good.jpeg": "truncated",
    "half_good.png": "",
    "half_progressive.jpeg": "truncated",
    "tail.jpeg": "truncated",
    "text.jpeg": "it is no picture",
    "empty.png": "the file is empty",
    "float.tif": "floating-point",
    "absent.png": "the file is missing",
}


def test_broken_files_are_found_with_their_reason(folder):
    names = sorted({path.name for path in folder.iterdir()} | {"absent.png"})
    found = find_unreadable(make_table(folder, names))
    assert list(found.columns) == ["path", "reason"]
    assert list(found["path"]) == sorted(BROKEN)
    for path, reason in found.itertuples(index=False):
        assert reason
        assert BROKEN[path] in reason


def test_good_files_pass_unchanged(folder):
    table = make_table(folder, [path.name for path in folder.glob("good.*")])
    kept, bad = check_readable(table)
    assert kept is table
    assert bad.empty


def test_unreadable_files_stop_the_run_or_are_left_out(folder):
    table = make_table(folder, ["empty.png", "good.png", "grey.jpeg", "text.jpeg"])
    message = r"2 of 4 pictures cannot be read: empty.png \(the file is empty\); text.jpeg \(it is no picture\)"
    with pytest.raises(DataError, match=message + r"\. Repair or remove them, or .*skip_unreadable"):
        check_readable(table)
    kept, bad = check_readable(table, skip_unreadable=True)
    assert list(kept.rows["path"]) == ["good.png", "grey.jpeg"]
    np.testing.assert_array_equal(kept.labels, table.labels[[1, 2]])
    assert list(bad["path"]) == ["empty.png", "text.jpeg"]
    assert kept.notes[-1].startswith("Left out: 2 of 4 pictures")
    with pytest.raises(DataError, match="Nothing is left"):
        check_readable(table.take([0, 3]), skip_unreadable=True)


def test_long_lists_are_cut(folder):
    table = make_table(folder, sorted(BROKEN))
    with pytest.raises(DataError) as caught:
        check_readable(table)
    assert str(caught.value).startswith(f"{len(BROKEN)} of {len(BROKEN)} pictures cannot be read: absent.png")
    assert "; ...." in str(caught.value)
    assert "text.jpeg" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_audit_decodes_a_dicom_file_once(folder, monkeypatch):
    def decode(source, name, held):
        decoded.append(name)
        if "broken" in name:
            raise DataError(f"{name} cannot be read as DICOM: it is damaged. Repair or remove the file.")
        return np.zeros((5, 7), np.uint8)

    decoded = []
    monkeypatch.setattr(decoding, "read_dicom", decode)
    for name in ("a.dcm", "broken.dcm"):
        (folder / name).write_bytes(b"not empty")
    (folder / "empty.dcm").write_bytes(b"")
    names = ["a.dcm", "absent.dcm", "broken.dcm", "empty.dcm", "good.png", "half_good.jpeg", "text.jpeg"]
    facts = facts_table(make_table(folder, names), [inspect(folder / name)[0] for name in names]).set_index("path")
    assert sorted(decoded) == [str(folder / "a.dcm"), str(folder / "broken.dcm")]
    assert facts.loc["a.dcm", ["reason", "height", "width", "mode", "bytes"]].tolist() == ["", 5, 7, "DICOM", 9]
    reason = "cannot be read as DICOM: it is damaged. Repair or remove the file."
    assert facts.loc["broken.dcm", ["reason", "height", "width", "mode"]].tolist() == [reason, 0, 0, ""]
    assert facts.loc["empty.dcm", ["reason", "height", "width", "mode"]].tolist() == ["the file is empty", 0, 0, ""]
    assert facts.loc["absent.dcm", ["reason", "bytes", "digest"]].tolist() == ["the file is missing", 0, ""]
    assert facts.loc["good.png", ["reason", "height", "width", "mode"]].tolist() == ["", 64, 96, "RGB"]
    assert "truncated" in facts.reason["half_good.jpeg"] and facts.width["half_good.jpeg"] == 96
    assert facts.reason["text.jpeg"] == "it is no picture" and facts.height["text.jpeg"] == 0
    decoded.clear()
    assert set(find_unreadable(make_table(folder, names[:4]))["path"]) == {"absent.dcm", "broken.dcm", "empty.dcm"}
    assert len(decoded) == 2


def test_pictures_in_memory_are_always_readable(folder):
    table = make_table(None, ["0", "1"]).replace(images=np.zeros((2, 4, 4, 3), np.uint8))
    assert find_unreadable(table).empty
