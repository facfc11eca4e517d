"""An audit of drawn pictures finds each planted mistake and nothing else, and its files report the same."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("cv2", reason="OpenCV is not installed")
from drawn_scenes import draw_scene, memory_table, save, turn

from kmed.cli.main import main
from kmed.data.audit.leaks import audit, choose_splits, groups_on_two_sides, must_differ
from kmed.data.audit.report import UNFINISHED, audit_data, join_given_groups, summarize, to_json, write_audit
from kmed.data.audit.sheet import MAX_PAIRS, caption, headline, worst_pairs
from kmed.data.audit.store import Store
from kmed.data.readers.load import load_table
from kmed.errors import DataError, RunError
from kmed.files import exclusive


def small(seed):
    return draw_scene(seed, 240, 320)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Split folders with one mistake of each kind."""
    root = tmp_path_factory.mktemp("audited") / "pictures"
    scene = draw_scene(50, 330, 440)
    for name, picture in {
        "TRAIN/a/alone.jpg": small(1),
        "TRAIN/a/leaked.jpg": small(2),
        "TEST/a/leaked_turned.jpg": turn(small(2), angle=14, flip=True),
        "TRAIN/a/corner_left.jpg": scene[:240, :320],
        "TEST/a/corner_right.jpg": scene[90:330, 120:440],
        "TRAIN/a/two_labels.jpg": small(3),
        "TRAIN/b/two_labels_turned.jpg": turn(small(3), angle=-10),
        "TEST/b/alone.jpg": small(4),
        "TEST_SIMPLE/b/simple.jpg": turn(small(4), angle=6),
        "TRAIN/b/large.jpg": draw_scene(5, 480, 640),
    }.items():
        save(picture, root / name)
    shutil.copy(root / "TEST/b/alone.jpg", root / "TEST/b/same_bytes.jpg")
    shutil.copy(root / "TRAIN/a/alone.jpg", root / "TRAIN/b/same_bytes_other_label.jpg")
    Image.fromarray(small(6)).convert("L").save(root / "TRAIN/b/grey.jpg")
    (root / "TRAIN/b/broken.jpg").write_bytes((root / "TRAIN/a/alone.jpg").read_bytes()[:3000])
    return root


@pytest.fixture(scope="module")
def found(folder):
    return audit(load_table(folder))


def names(found, pair):
    return {found.table.rows["path"].iloc[row] for row in (pair.first, pair.second)}


def test_leaks_between_the_sides(found):
    pairs = list(found.on_two_sides.values())
    assert [names(found, pair) for pair in sorted(pairs, key=lambda pair: pair.kind)] == [
        {"TEST/a/leaked_turned.jpg", "TRAIN/a/leaked.jpg"},
        {"TEST/a/corner_right.jpg", "TRAIN/a/corner_left.jpg"},
    ]
    assert all(pair.sides and not pair.labels and pair.alignment.inliers >= 16 for pair in pairs)


def test_contradictory_labels(found):
    assert {pair.kind: names(found, pair) for pair in found.contradictions} == {
        "identical files": {"TRAIN/a/alone.jpg", "TRAIN/b/same_bytes_other_label.jpg"},
        "one photograph": {"TRAIN/a/two_labels.jpg", "TRAIN/b/two_labels_turned.jpg"},
    }
    assert found.overlaps == []


def test_photographs_groups_and_files(found):
    path = found.table.rows["path"]
    photograph, group = dict(zip(path, found.photograph)), dict(zip(path, found.group))
    assert len(set(photograph.values())) == 9
    assert photograph["TRAIN/a/leaked.jpg"] == photograph["TEST/a/leaked_turned.jpg"]
    assert (
        photograph["TEST/b/alone.jpg"] == photograph["TEST/b/same_bytes.jpg"] == photograph["TEST_SIMPLE/b/simple.jpg"]
    )
    assert photograph["TRAIN/a/corner_left.jpg"] != photograph["TEST/a/corner_right.jpg"]
    assert group["TRAIN/a/corner_left.jpg"] == group["TEST/a/corner_right.jpg"]
    assert len(set(group.values())) == 8
    made = to_json(found)
    assert [entry["path"] for entry in made["unreadable"]["first"]] == ["TRAIN/b/broken.jpg"]
    assert made["byte_duplicates"]["count"] == 2
    assert made["sizes"] == {"240x320": 13, "480x640": 1}
    assert made["modes"] == {"RGB": 13, "L": 1}
    assert made["labels"] == {"a": 6, "b": 8}
    assert made["pictures"] == 14
    assert made["too_few_features"]["count"] == 0
    assert made["settings"]["same_agreement"] == 0.995
    assert made["told_groups"] is None


def test_the_files_report_it_and_training_takes_the_groups(found, folder, tmp_path):
    paths = write_audit(found, tmp_path / "out")
    assert [path.name for path in paths] == ["audit.json", "groups.csv", "pairs.csv", "worst_pairs.png"]
    saved = json.loads(paths[0].read_text())
    assert {tuple(sorted(entry["evidence"]["splits"])) for entry in saved["groups_on_two_sides"]} == {("test", "train")}
    listed = pd.read_csv(paths[2], keep_default_na=False)
    assert list(listed["problem"]) == ["contradiction"] * 2 + ["two sides"] * 2
    assert list(listed["verdict"]) == ["same"] * 4
    assert {"path_1", "path_2", "label_1", "detail_of_most_tiles", "drift", "inverted"} <= set(listed.columns)
    with Image.open(paths[3]) as sheet:
        assert sheet.width >= 1000
    table = load_table(folder, group=str(paths[1]))
    np.testing.assert_array_equal(table.rows["group"], found.group)
    np.testing.assert_array_equal(table.rows["cluster"], found.photograph)
    assert table.grouped
    again = write_audit(audit(load_table(folder)), tmp_path / "again")
    assert again[1].read_bytes() == paths[1].read_bytes()
    assert {**json.loads(again[0].read_text()), "seconds": 0} == {**saved, "seconds": 0}


def test_the_worst_come_first_and_say_why(found):
    pairs = worst_pairs(found)
    assert [pair.labels for pair in pairs] == [True, True, False, False]
    assert headline(pairs[0]) == "Two labels: identical files"
    assert headline(pairs[1]).startswith("Two labels: one photograph, ")
    assert headline(pairs[2]).startswith("Two sides: one photograph, ")
    assert "matches, agreement" in headline(pairs[2])
    assert caption(found, pairs[0].first) == "TRAIN/a/alone.jpg\ntrain: a"
    many = dataclasses.replace(
        found, contradictions=found.contradictions * 20, on_two_sides={str(i): pairs[2 + i % 2] for i in range(40)}
    )
    assert len(worst_pairs(many)) <= MAX_PAIRS
    assert {pair.labels for pair in worst_pairs(many)} == {True, False}


def test_every_kind_of_problem_has_a_place_on_the_sheet(found):
    def pairs(start, **changes):
        one = next(iter(found.on_two_sides.values()))
        return [dataclasses.replace(one, first=row, second=row + 1, **changes) for row in range(start, start + 60)]

    labels, sides, across = pairs(0, labels=True), pairs(100), pairs(200, groups=True)
    full = dataclasses.replace(
        found, contradictions=labels, on_two_sides=dict(enumerate(sides)), across_groups=across, doubts=pairs(300)
    )
    assert worst_pairs(full) == [*labels[:4], *sides[:4], *across[:4]]
    few = dataclasses.replace(full, contradictions=labels[:1], on_two_sides={}, across_groups=across[:2])
    assert worst_pairs(few) == [labels[0], *across[:2], *full.doubts[:9]]


def test_the_summary_is_for_people(found):
    text = summarize(found)
    assert "14 files show 9 photographs of 8 groups" in text
    assert "1 unreadable, 2 byte for byte the same as another" in text
    assert "2 groups on two sides" in text
    assert "2 pairs of copies or overlapping photographs contradict; 0 more may be copies (in doubt)" in text
    assert "Across groups" not in text
    assert "given groups" not in text.lower()


def test_given_groups_are_compared_and_joined(folder, tmp_path):
    pattern = r"regex:(?:TRAIN|TEST|TEST_SIMPLE)/(./[a-z]+)"
    table = load_table(folder, group=pattern)
    found = audit(table)
    compared = to_json(found)["told_groups"]
    assert compared["count"] == table.rows["group"].nunique()
    assert set(compared["on_two_sides"]["first"]) == {"a/corner", "a/leaked", "b/same"}
    assert {tuple(entry["told"]) for entry in compared["joined_by_the_pictures"]["first"]} == {
        ("a/two", "b/two"), ("b/alone", "b/simple"), ("b/alone", "b/same"), ("b/same", "b/simple"),
        ("a/alone", "b/same"),
    }  # fmt: skip
    assert found.contradictions == []
    assert len(found.across_groups) == 5
    assert "5 pairs of given groups" in summarize(found)
    assert compared["rand_index_of_groups"] < 1
    assert f"Given groups: {compared['count']}, 3 on two sides" in summarize(found)
    joined = join_given_groups(found)
    by_path = dict(zip(table.rows["path"], joined))
    assert by_path["TRAIN/a/two_labels.jpg"] == by_path["TRAIN/b/two_labels_turned.jpg"]
    assert by_path["TRAIN/a/alone.jpg"] == by_path["TRAIN/b/same_bytes_other_label.jpg"]
    assert len(set(zip(table.rows["group"], joined))) == table.rows["group"].nunique()
    paths = write_audit(found, tmp_path)
    assert [path.name for path in paths] == [
        "audit.json",
        "groups.csv",
        "groups_with_told.csv",
        "pairs.csv",
        "worst_pairs.png",
    ]
    assert load_table(folder, group=str(paths[2])).grouped


def test_a_clean_set_has_no_sheet(tmp_path):
    table = memory_table([small(seed) for seed in range(4)], [0, 1, 0, 1], ["train", "train", "test", "test"])
    found = audit(table)
    assert [path.name for path in write_audit(found, tmp_path)] == ["audit.json", "groups.csv"]
    assert "0 groups on two sides" in summarize(found)
    assert len(set(found.photograph)) == 4


def test_an_unknown_label_contradicts_nothing():
    table = memory_table([small(1), turn(small(1), angle=9)])
    unknown = table.replace(task="multilabel", labels=np.array([[1, np.nan], [np.nan, 0]], np.float32))
    assert audit(unknown).contradictions == []
    known = table.replace(task="multilabel", labels=np.array([[1, np.nan], [0, 0]], np.float32))
    assert len(audit(known).contradictions) == 1


def test_overlaps_with_two_labels_contradict_where_half_is_shared():
    scene = draw_scene(60, 260, 620)
    for offset, contradicting in ((100, 1), (220, 0)):
        table = memory_table([scene[:240, :320], scene[20:260, offset : offset + 320]], [0, 1])
        found = audit(table)
        assert (len(found.contradictions), len(found.overlaps)) == (contradicting, 1 - contradicting)


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        ("train", "test", True),
        ("val", "test_simple", True),
        ("train", "val", True),
        ("test", "test_simple", False),
        ("train", "train", False),
        ("train", "", False),
    ],
)
def test_which_splits_must_differ(first, second, differ):
    assert must_differ(first, second) is must_differ(second, first) is differ
    table = memory_table([small(1)] * 2, splits=[first, second])
    assert groups_on_two_sides(table, ["g", "g"]) == (["g"] if differ else [])


def test_splits_are_chosen_by_name(folder):
    table = load_table(folder)
    assert set(choose_splits(table, ["train", "test"]).rows["split"]) == {"train", "test"}
    with pytest.raises(
        DataError, match=r"no split 'tset'; the data have test, test_simple, train\. Did you mean 'test'"
    ):
        choose_splits(table, ["tset"])


def test_nothing_readable_is_an_error(tmp_path):
    for name in ("a/x.jpg", "b/y.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("no picture")
    with pytest.raises(DataError, match="None of the 2 pictures can be read"):
        audit(load_table(tmp_path))


def test_the_command(folder, tmp_path):
    out = tmp_path / "audited"
    arguments = ["data", "audit", str(folder), "--out", str(out), "--splits", "train, test"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "13 files show 9 photographs" in result.stdout
    assert f"Made: {out / 'worst_pairs.png'}" in result.stdout
    assert json.loads((out / "audit.json").read_text())["pictures"] == 13
    result = CliRunner().invoke(main, ["data", "audit", str(folder), "--splits", "dev"])
    assert result.exit_code == 1
    assert "no split 'dev'" in result.output


def all_but_time(out):
    """Returns the files of an audit, and what audit.json says without the seconds."""
    said = json.loads((out / "audit.json").read_text()) | {"seconds": 0}
    return said, *((out / name).read_bytes() for name in ("groups.csv", "pairs.csv"))


def audited(folder, out, jobs=1):
    audit_data(folder, out=out, jobs=jobs)
    return out


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """What an audit by one process finds that is not interrupted."""
    return all_but_time(audited(folder, tmp_path_factory.mktemp("whole") / "out"))


def test_several_processes_find_the_same_as_one(folder, whole, tmp_path):
    assert all_but_time(audited(folder, tmp_path / "out", jobs=2)) == whole
    assert whole[0]["pairs_compared"] > 10


def test_an_interrupted_audit_goes_on_where_it_was(folder, whole, tmp_path, monkeypatch, caplog):
    """It is stopped at every tenth record in turn, as by Ctrl-C, until one comes to its end."""
    add, counts = Store.add, []

    def stop(store, record, content=None):
        counts[-1] += 1
        if counts[-1] > 10:
            raise KeyboardInterrupt
        return add(store, record, content)

    monkeypatch.setattr(Store, "add", stop)
    caplog.set_level("INFO", "kmed")
    for _ in range(20):
        counts.append(0)
        try:
            audited(folder, tmp_path / "out")
            break
        except KeyboardInterrupt:
            assert [each.name for each in (tmp_path / "out").iterdir()] == [UNFINISHED]
    assert len(counts) > 2 and counts[-1] <= 10
    assert "the same command goes on from there" in caplog.text
    assert "Going on with an audit that was interrupted: 9 pictures and 0 pairs are done" in caplog.text
    assert all_but_time(tmp_path / "out") == whole
    assert not (tmp_path / "out" / UNFINISHED).exists()


def test_what_is_kept_of_other_pictures_is_not_used(folder, whole, tmp_path, caplog):
    out = tmp_path / "out"
    Store(out / UNFINISHED, "another plan").close()
    assert all_but_time(audited(folder, out)) == whole
    assert "of other pictures or another version: this one starts anew" in caplog.text


def test_mistakes_leave_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "x.jpg").write_text("no picture")
    for arguments, words in (
        (["bad"], "None of the 2 pictures can be read"),
        ([str(folder), "--jobs", "0"], "jobs must be the number of processes, 1 or more. Received: 0"),
        ([str(folder), "--splits", "dev"], "no split 'dev'"),
    ):
        result = CliRunner().invoke(main, ["data", "audit", *arguments, "--out", "out"])
        assert result.exit_code in (1, 2) and words in result.output and "Traceback" not in result.output
        assert not (tmp_path / "out").exists()


def test_two_audits_do_not_write_one_folder(folder, tmp_path):
    with exclusive(tmp_path / "out" / UNFINISHED), pytest.raises(RunError, match="Another audit is writing"):
        audited(folder, tmp_path / "out")


def test_real_blood_cells(blood_cells, tmp_path):
    """Four copies of each of 15 photographs, among them three fields on both sides and the pair with two labels."""
    known = pd.read_csv(blood_cells / "sources.csv", dtype=str)
    known = known[~known["path"].str.startswith("TEST_SIMPLE")]
    chosen = [206, 278, 204, 277, 230, 257, 364, 409, *range(1, 8)]
    known = known[known["source"].isin([f"BloodImage_{number:05d}" for number in chosen])].groupby("source").head(4)
    for path in known["path"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).symlink_to((blood_cells / "images" / path).resolve())
    found = audit(load_table(tmp_path))
    truth = known.set_index("path").loc[found.table.rows["path"]]
    for names_found, column in ((found.photograph, "source"), (found.group, "field")):
        assert len(set(zip(names_found, truth[column]))) == len(set(names_found)) == truth[column].nunique()
    crossing = {frozenset(truth.loc[list(names(found, pair)), "field"]) for pair in found.on_two_sides.values()}
    assert crossing == {frozenset({f"field_{number:05d}"}) for number in (204, 230, 364)}
    assert [set(truth.loc[list(names(found, pair)), "source"]) for pair in found.contradictions] == [
        {"BloodImage_00206", "BloodImage_00278"}
    ]
