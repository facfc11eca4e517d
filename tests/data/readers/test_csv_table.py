"""A CSV becomes one row per picture: ids, splits and classes as people mean them, contradictions refused."""

import numpy as np
import pytest

from kmed.data.readers.load import load_table
from kmed.errors import DataError

BLANKS = ["P1", "P1 ", " P1", "\tP1", "P1\u00a0", "\ufeffP1", "P1\u200b", "P\u200d1", "P1\u2003", "\u2060P1\r"]


@pytest.fixture
def make(tmp_path):
    """Returns a function that writes pictures and a CSV of them, and returns the CSV."""

    def files(header, rows, pictures="abcd"):
        for name in pictures:
            (tmp_path / f"{name}.png").write_text(name)
        lines = [header, *rows]
        (tmp_path / "t.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
        return tmp_path / "t.csv"

    return files


@pytest.mark.parametrize("before", BLANKS)
@pytest.mark.parametrize("column", ["patient_id", "cluster", "split", "label", "note"])
def test_blanks_are_not_part_of_any_text(make, before, column):
    header = ["image", "label", "patient_id", "cluster", "split", "note"]
    cells = ["a", "train", "train", "train", "train", "train"]
    cells[header.index(column)] = before.replace("P", "tra").replace("1", "in")
    rows = [",".join(f'"{cell}"' for cell in cells), "b,train,train,train,train,train", "c,other,P2,P2,train,"]
    table = load_table(make(",".join(header), rows, "abc"))
    assert table.class_names == ("other", "train")
    for name in ("group", "cluster", "split", "note"):
        assert table.rows[name].tolist()[:2] == ["train", "train"]


def test_a_row_per_box_is_one_picture(make):
    rows = ["a,1,x,P1", "a,2,x,P1", "b,3,y,P2", "c,4,y,P3", "c.png,5,y,P3"]
    table = load_table(make("image,box,label,patient", rows, "abc"))
    assert table.rows["path"].tolist() == ["a.png", "b.png", "c.png"]
    assert table.rows["box"].tolist() == ["1|2", "3", "4|5"]
    assert table.class_indices.tolist() == [0, 1, 1]
    assert "5 rows name 3 pictures: the labels of a picture's rows are united." in table.notes


def test_the_labels_of_a_pictures_rows_are_united(make):
    path = make("image,label", ["a,x", "a,y", "b,x", "c,y", "d,x|z"])
    np.testing.assert_array_equal(load_table(path).labels, [[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 1]])
    path = make("image,x,y", ["a,1,", "a,0,1", "b,,0", "b,,", "c,0,1", "d,1,1"])
    np.testing.assert_array_equal(load_table(path).labels, [[1, 1], [np.nan, 0], [0, 1], [1, 1]])


@pytest.mark.parametrize(
    ("header", "rows", "settings", "message"),
    [
        ("image,label", ["a,x", "a,y", "b,x"], {}, r"more than once in the CSV: a.png \(x, y\).*task=multilabel"),
        (
            "image,label",
            ["a,x", "a.png,y", "b,y"],
            {"task": "multiclass"},
            r"more than once in the CSV: a.png \(x, y\)",
        ),
        ("image,x,y", ["a,1,0", "a,0,1", "b,1,0"], {}, r"more than once in the CSV: a.png \(x, y\)"),
        ("image,label,patient", ["a,x,P1", "a,x,P2", "b,y,P3"], {}, r"different values of group: a.png \('P1', 'P2'\)"),
        ("image,label,split", ["a,x,train", "a,x,test", "b,y,train"], {}, r"different values of split: a.png"),
        ("image,label,cluster", ["a,x,1", "a,x,2", "b,y,3"], {}, r"different values of cluster: a.png"),
        ("image,label", ["a,No Finding", "a,x", "b,x"], {}, "both 'No Finding' and a finding, such as a "),
    ],
)
def test_rows_that_contradict_each_other(make, header, rows, settings, message):
    with pytest.raises(DataError, match=message):
        load_table(make(header, rows), **settings)


def test_ids_that_differ_in_case_count_as_two_and_a_note_says_so(make):
    table = load_table(make("image,label,patient", ["a,x,p1", "b,y,P1"]))
    assert table.rows["group"].tolist() == ["p1", "P1"]
    assert "'p1' and 'P1' in the column 'patient' differ only in case, and count as two." in table.notes


def test_folders_of_patients_are_groups(tmp_path):
    paths = [f"{split}/patient{number:05d}/study1/v.png" for split in ("train", "valid") for number in (1, 2)]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(path)
    (tmp_path / "t.csv").write_text(
        "Path,label\n" + "".join(f"{path},{index % 2}\n" for index, path in enumerate(paths))
    )
    table = load_table(tmp_path / "t.csv")
    assert table.grouped and table.rows["group"].tolist() == ["patient00001", "patient00002"] * 2
    assert "Groups are the folders of patients in the paths, such as patient00001." in table.notes
    assert (
        load_table(tmp_path / "t.csv", group=r"regex:(patient\d+)").rows["group"].tolist()
        == table.rows["group"].tolist()
    )


@pytest.mark.parametrize("name", ["train_val_list.txt", "train.txt", "TrainVal.txt"])
def test_lists_of_pictures_are_splits(make, tmp_path, name):
    path = make("image,label", ["a.png,x", "b.png,y", "c.png,x", "d.png,y"])
    (tmp_path / name).write_text("a.png\nb.png\u00a0\n")
    (tmp_path / "test_list.txt").write_text("c.png\nelsewhere.png\n")
    (tmp_path / "readme.txt").write_text("d.png\n")
    table = load_table(path)
    assert table.rows["split"].tolist() == ["train", "train", "test", ""]
    (tmp_path / "test_list.txt").write_text("a.png\n")
    with pytest.raises(DataError, match="a.png is in .*the list of another split"):
        load_table(path)


def test_files_named_after_splits_are_read_together(make, tmp_path):
    make("", [])
    for split, rows in (("train", "a.png,x\nb.png,y\n"), ("valid", "c.png,y\n"), ("test", "d.png,x\n")):
        (tmp_path / f"labels_{split}.csv").write_text("image,label\n" + rows)
    (tmp_path / "t.csv").unlink()
    table = load_table(tmp_path)
    assert table.rows["split"].tolist() == ["train", "train", "val", "test"]
    assert any(
        "labels_test.csv and labels_train.csv and labels_valid.csv are read together" in note for note in table.notes
    )
    (tmp_path / "labels_test.csv").write_text("image,label,more\nd.png,x,1\n")
    with pytest.raises(DataError, match="Several CSV files"):
        load_table(tmp_path)


def test_a_group_from_the_csv_beside_it(make, tmp_path):
    path = make("image,label", ["a,x", "b,y", "c,x", "d,y"])
    (tmp_path / "people.csv").write_text("image,patient_id,sex\n" + "".join(f"{name},P{name},f\n" for name in "dcba"))
    table = load_table(path)
    assert table.rows["group"].tolist() == ["Pa", "Pb", "Pc", "Pd"] and table.rows["sex"].tolist() == ["f"] * 4
    assert "patient_id, sex: taken from people.csv, which lists the same pictures." in table.notes
    (tmp_path / "people.csv").write_text("image,patient_id\na,P1\n")  # not all pictures: left alone
    assert not load_table(path).grouped


def test_groups_of_a_csv_whose_text_is_not_plain(make, tmp_path):
    path = make("image,label", ["a,x", "b,y", "c,x", "d,y"])
    groups = tmp_path / "more" / "g.csv"
    groups.parent.mkdir()
    groups.write_text("path;group\na.png ;P1\nb.PNG;P1\u00a0\n./c;P2\n" + f"{tmp_path}/d.png;P2\n./c;P2\nz.png;P9\n")
    table = load_table(path, group=str(groups))
    assert table.rows["group"].tolist() == ["P1", "P1", "P2", "P2"]
    assert "g.csv is separated by semicolons." in table.notes
    groups.write_text("path,group\na.png,P1\nb,P1\nc,P2\nd,P2\na,P2\n")
    with pytest.raises(DataError, match="names 1 pictures more than once, with different ids: a.png"):
        load_table(path, group=str(groups))
    groups.write_text("path,group\na.png,P1\nb,\nc,P2\nd,P2\n")
    with pytest.raises(DataError, match="names no group for 1 of 4 pictures: b.png"):
        load_table(path, group=str(groups))


def test_class_names_may_be_numbers_and_have_blanks(make):
    path = make("image,label", ["a,1", "b,0", "c,1", "d,0"])
    assert load_table(path, class_names=[1, 0]).class_names == ("1", "0")
    assert load_table(path, class_names=["0 ", "\u00a01"]).class_names == ("0", "1")
    with pytest.raises(DataError, match="class_names must differ"):
        load_table(path, class_names=["0 ", "0"])


@pytest.mark.parametrize(
    ("cell", "name"), [("12", "00012"), ("12.0", "12"), ("12.0", "0012"), ("a%20b", "a b"), ("A", "a"), ("a.jpg", "a")]
)
def test_a_picture_of_a_similar_name_is_shown_and_not_taken(make, cell, name):
    with pytest.raises(DataError, match=f"similar name is there, but is not taken for it: {name}.png"):
        load_table(make("image,label", [f"{cell},x", "z,y"], [name, "z"]))


@pytest.mark.parametrize("other", ["1.0", "1.00", " 1.0"])
def test_a_patient_whose_number_became_a_decimal_is_one_patient(make, other):
    table = load_table(make("image,label,patient", ["a,x,1", f"b,x,{other}", "c,y,2.0", "d,y,1.5"]))
    assert table.rows["group"].tolist() == ["1", "1", "2", "1.5"]


def test_leading_zeros_are_part_of_an_id_and_a_note_says_so(make):
    table = load_table(make("image,label,patient", ["a,x,003", "b,x,3", "c,y,P3"]))
    assert table.rows["group"].tolist() == ["003", "3", "P3"]
    assert "'003' and '3' in the column 'patient' differ only in leading zeros, and count as two." in table.notes


def test_columns_that_are_found_are_named_in_a_note(make):
    path, note = (
        make("image,sex,smoker,ill", ["a,M,1,0", "b,F,1,1", "c,F,0,1"]),
        "The labels are the columns of 0 and 1",
    )
    assert f"{note}: smoker, ill. label_columns names others." in load_table(path).notes
    assert not any(line.startswith(note) for line in load_table(path, label_columns=["smoker", "ill"]).notes)


def test_a_misspelt_name_that_is_no_finding_is_said(make):
    rows = ["a,1,0,0", "b,0,1,0", "c,0,1,1"]
    path, line = make("image,No Finding,Mass,Pacemaker", rows), "not_findings holds 'Pacemakr', which is no label here."
    assert any(note.startswith(line) for note in load_table(path, not_findings=["Pacemakr"]).notes)
    assert not any("not_findings" in note for note in load_table(path).notes)
    make("image,No Finding,Mass,Pacemaker", ["a,1,0,1", *rows[1:]])
    with pytest.raises(DataError, match=f"{line} Did you mean 'Pacemaker'"):
        load_table(path, not_findings=["Pacemakr"])
    load_table(path, not_findings=["pacemaker"])
