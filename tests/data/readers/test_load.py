"""Class folders, CSV files and .npz files are read as the table they hold; errors say what cannot be used."""

import numpy as np
import pandas as pd
import pytest
from conftest import real_data
from PIL import Image

from kmed.data.readers import load
from kmed.data.readers.blood_cells import load_map
from kmed.data.readers.folders import read_class_folders
from kmed.data.readers.load import Layout, load_table
from kmed.errors import DataError


def write_images(root, paths):
    for index, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 10 * index % 256, np.uint8)).save(root / path)


def write_csv(file_path, /, **columns):
    file_path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(file_path, index=False)
    return file_path


@pytest.fixture
def split_folders(tmp_path):
    """Two classes, split folders, a folder that is not a split, and files that are not pictures."""
    root = tmp_path / "cells"
    names = [f"{split}/{label}/{i}.png" for split in ("TRAIN", "TEST") for label in ("cat", "dog") for i in (2, 1, 10)]
    write_images(root / "deep" / "images", [*names, "TEST_SIMPLE/cat/1.png", "Leftovers/cat/1.png"])
    (root / "deep" / "images" / "TRAIN" / "cat" / "notes.txt").write_text("not a picture")
    (root / "deep" / "images" / "TRAIN" / "cat" / "._1.png").write_text("a macOS archive's shadow")
    return root


def test_split_folders_are_found_down_a_chain(split_folders):
    table = load_table(split_folders)
    assert table.name == "cells"
    assert table.task == "multiclass"
    assert table.class_names == ("cat", "dog")
    assert table.root == split_folders / "deep" / "images"
    assert table.rows.groupby("split").size().to_dict() == {"train": 6, "test": 6, "test_simple": 1}
    assert list(table.rows["path"]) == sorted(table.rows["path"])
    assert all(file.is_file() for file in table.files)
    expected = [path.split("/")[1] for path in table.rows["path"]]
    assert [table.class_names[index] for index in table.class_indices] == expected
    assert any("Leftovers" in note for note in table.notes)
    assert any("2 files" in note and ".txt" in note for note in table.notes)


def test_without_groups_each_file_is_its_own_and_a_note_says_so(split_folders):
    table = load_table(split_folders)
    assert not table.grouped
    assert list(table.rows["group"]) == list(table.rows["path"]) == list(table.rows["cluster"])
    assert sum(note.startswith("No group is given: each file is treated as independent.") for note in table.notes) == 1


@pytest.mark.parametrize("word", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("held", ["valid", "Validation", "VAL"])
def test_usual_spellings_of_splits(tmp_path, word, held):
    write_images(tmp_path, [f"{split}/{label}/1.png" for split in (word, held) for label in "ab"])
    assert set(load_table(tmp_path).rows["split"]) == {"train", "val"}


def test_split_folders_can_be_named(split_folders):
    table = load_table(split_folders, split_folders={"Leftovers": "val"})
    assert table.rows["split"][table.rows["path"] == "Leftovers/cat/1.png"].tolist() == ["val"]
    with pytest.raises(DataError, match="'Leftover'.*Did you mean 'Leftovers'"):
        load_table(split_folders, split_folders={"Leftover": "val"})
    with pytest.raises(DataError, match="'Train!'.*Did you mean 'train'"):
        load_table(split_folders, split_folders={"Leftovers": "Train!"})


def test_class_folders_without_splits(tmp_path):
    write_images(tmp_path / "set" / "inner", ["a/1.png", "b/1.png", "b/more/2.JPG"])
    table = load_table(tmp_path / "set")
    assert list(table.rows["path"]) == ["a/1.png", "b/1.png", "b/more/2.JPG"]
    assert set(table.rows["split"]) == {""}
    assert list(table.class_indices) == [0, 1, 1]


def test_class_names_give_the_order_and_the_legal_words(tmp_path):
    write_images(tmp_path, ["a/1.png", "b/1.png"])
    assert list(load_table(tmp_path, class_names=["b", "a"]).class_indices) == [1, 0]
    with pytest.raises(DataError, match="Unknown class folder 'b'.*Did you mean 'bb'"):
        load_table(tmp_path, class_names=["a", "bb"])


@pytest.mark.parametrize(
    ("paths", "settings", "message"),
    [
        ([], {}, "No data set is found"),
        (["1.png", "2.png"], {}, "There are pictures, but no class folders"),
        (["TRAIN/a/1.png", "TEST/a/1.png"], {}, "at least two classes"),
        (["TRAIN/ab/1.png", "TRAIN/b/1.png", "TEST/abc/1.png"], {}, "'abc' occurs only outside training.* mean 'ab'"),
        (["a/1.png", "b/1.png"], {"task": "multilabel"}, "does not fit class folders"),
        (["a/1.png", "b/1.png"], {"task": "multi-label"}, "Did you mean 'multilabel'"),
        (["a/1.png", "b/1.png"], {"split_folders": {"a": "train"}}, "split_folders does not apply"),
        (["x/a/1.png", "x/b/1.png", "y/a/1.png", "y/b/1.png"], {}, "Several folders .* hold class folders: x, y"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, paths, settings, message):
    write_images(tmp_path, paths)
    with pytest.raises(DataError, match=message):
        load_table(tmp_path, **settings)


def test_an_empty_class_folder_is_named(tmp_path):
    write_images(tmp_path, ["TRAIN/a/1.png", "TRAIN/b/1.png"])
    (tmp_path / "TRAIN" / "gone").mkdir()
    with pytest.raises(DataError, match="TRAIN/gone holds no pictures"):
        load_table(tmp_path)


def test_a_missing_folder_and_an_unknown_kind(tmp_path):
    (tmp_path / "blood").mkdir()
    with pytest.raises(DataError, match="There is no data at .*blod. Did you mean 'blood'"):
        load_table(tmp_path / "blod")
    (tmp_path / "data.xlsx").write_text("")
    with pytest.raises(DataError, match="a folder, a .csv or an .npz"):
        load_table(tmp_path / "data.xlsx")


def test_a_data_source_is_a_reader_and_a_row(tmp_path, monkeypatch):
    def read_list(source):
        assert (source.task, source.class_names) == ("multiclass", ["b", "a"])
        return read_class_folders(source.path.parent, class_names=source.class_names)

    def read_marked(source):
        return read_class_folders(source.path / "inside") if (source.path / "mark").exists() else None

    rows = (Layout("a .lst", read_list, ".lst"), Layout("folder with a mark", read_marked))
    monkeypatch.setattr(load, "LAYOUTS", (*rows, *load.LAYOUTS))
    write_images(tmp_path / "inside", ["a/1.png", "b/1.png"])
    write_images(tmp_path, ["c/1.png", "d/1.png"])
    (tmp_path / "inside" / "all.LST").write_text("")
    listed = load_table(tmp_path / "inside" / "all.LST", task="multiclass", class_names=["b", "a"])
    assert listed.class_names == ("b", "a") and listed.name == "inside"
    assert load_table(tmp_path).class_names == ("c", "d", "inside")
    (tmp_path / "mark").touch()
    assert load_table(tmp_path).class_names == ("a", "b")
    (tmp_path / "data.xlsx").write_text("")
    with pytest.raises(DataError, match="Data must be a folder, a .lst, a .csv or an .npz. Received: .*data.xlsx"):
        load_table(tmp_path / "data.xlsx")
    (tmp_path / "empty").mkdir()
    words = "There are no pictures, no folder with a mark and no class folders .* and no CSV with a column of paths"
    with pytest.raises(DataError, match=words):
        load_table(tmp_path / "empty")


def test_the_layouts_are_tried_in_their_order(tmp_path):
    """A CSV that names the pictures comes before folders, even before those called train; then come class folders."""
    write_images(tmp_path, ["a/1.png", "b/2.png"])
    assert load_table(tmp_path).class_names == ("a", "b")
    write_csv(tmp_path / "t.csv", path=["a/1.png", "b/2.png"], label=["x", "y"], kind=["u", "w"])
    assert load_table(tmp_path).class_names == ("x", "y")
    write_images(tmp_path, [f"{split}/{label}/{split}.png" for split in ("train", "test") for label in ("p", "q")])
    assert load_table(tmp_path).class_names == ("p", "q")  # the CSV names none of the pictures in the split folders
    assert load_table(tmp_path, labels_csv="t.csv").class_names == ("x", "y")
    assert load_table(tmp_path, label_column="kind").class_names == ("u", "w")
    files = ["train/p/train.png", "train/q/train.png", "test/p/test.png"]
    write_csv(tmp_path / "t.csv", path=files, label=["x", "y", "x"])
    table = load_table(tmp_path)
    assert table.class_names == ("x", "y") and list(table.rows["split"]) == ["test", "train", "train"]
    assert load_table(tmp_path, split_folders={"a": "val"}).class_names == ("p", "q")
    with pytest.raises(DataError, match="split_folders does not apply to data without split folders. Leave it out."):
        load_table(tmp_path, labels_csv="t.csv", split_folders={"a": "train"})


STATISTICS = [
    {"class": ["a", "b"], "count": ["2", "2"]},
    {"Image": ["0", "1"], "Category": ["a", "b"]},
    {"filename": ["elsewhere/7.png", "8.png"], "label": ["x", "y"]},
    {"patient_id": ["p1", "p2"], "diagnosis": ["x", "y"]},
    {"path": ["1.png"], "width": ["8"]},
]


@pytest.mark.parametrize("columns", STATISTICS, ids=lambda columns: "-".join(columns))
@pytest.mark.parametrize("start", ["", "train/"])
def test_a_csv_that_names_no_pictures_does_not_disturb_class_folders(tmp_path, columns, start):
    write_images(tmp_path, [f"{start}{name}/{index}.png" for name in "ab" for index in (11, 12)])
    write_csv(tmp_path / "about.csv", **columns)
    table = load_table(tmp_path)
    assert (table.class_names, len(table), set(table.rows["split"])) == (("a", "b"), 4, {start.rstrip("/")})


def test_csv_files_inside_the_classes_or_that_say_what_the_folders_say_do_not_disturb_them(tmp_path):
    names = [f"{split}/{label}/{split}-{label}.png" for split in ("train", "test") for label in "ab"]
    write_images(tmp_path, names)
    for label in "ab":
        write_csv(tmp_path / "train" / label / "boxes.csv", path=[f"train-{label}.png"], label=["x"])
    assert load_table(tmp_path).class_names == ("a", "b")
    write_csv(tmp_path / "all.csv", path=names, label=list("abab"))
    write_csv(tmp_path / "small.csv", path=names[:2], label=list("ab"))
    assert load_table(tmp_path).class_names == ("a", "b")
    write_csv(tmp_path / "small.csv", path=names[:2], label=list("xy"))
    with pytest.raises(DataError, match="Several CSV files .*all.csv, small.csv. Choose one with labels_csv"):
        load_table(tmp_path)


def test_a_column_names_the_only_csv(csv_folder):
    for name in ("one.csv", "two.csv"):
        write_csv(csv_folder / name, path=["a.png", "b.png"], kind=["x", "y"])
    with pytest.raises(DataError, match="label_column describes a CSV, but .* holds 2. Name it with labels_csv."):
        load_table(csv_folder, label_column="kind")


@pytest.mark.parametrize("name", ["t.csv", "t.npz"])
def test_settings_of_folders_do_not_apply_to_files(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=rf"split_folders, labels_csv does not apply to an? \{name[1:]} file. Leave it"):
        load_table(tmp_path / name, split_folders={"a": "train"}, labels_csv="other.csv")


@pytest.fixture
def csv_folder(tmp_path):
    write_images(tmp_path / "images", [f"{name}.png" for name in "abcd"])
    return tmp_path


def test_findings_joined_by_a_bar(csv_folder):
    write_csv(
        csv_folder / "sample_labels.csv",
        **{
            "Image Index": ["b.png", "a.png", "c.png", "d.png"],
            "Finding Labels": ["Mass|Edema", "No Finding", "Edema", "Mass"],
            "Patient ID": ["1", "1", "2", "3"],
        },
    )
    table = load_table(csv_folder)
    assert table.task == "multilabel"
    assert table.class_names == ("Edema", "Mass", "No Finding")
    assert list(table.rows["path"]) == [f"images/{name}.png" for name in "abcd"]
    np.testing.assert_array_equal(table.labels, [[0, 0, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0]])
    for settings in ({"no_finding": "empty"}, {"class_names": ["Edema", "Mass"]}):
        without = load_table(csv_folder, **settings)
        assert without.class_names == ("Edema", "Mass")
        np.testing.assert_array_equal(without.labels, table.labels[:, :2])
    assert table.grouped
    assert list(table.rows["group"]) == ["1", "1", "2", "3"]
    assert any("'Patient ID'" in note for note in table.notes)
    with pytest.raises(DataError, match="b.png has several"):
        load_table(csv_folder, task="multiclass")


def test_columns_of_zero_one_and_unknown(csv_folder):
    path = write_csv(
        csv_folder / "t.csv", file=["a", "b", "c", "d"], x=["1", "", "0", "1"], y=["0.0", "1.0", "-1", "1.0"]
    )
    table = load_table(path)
    assert table.task == "multilabel"
    np.testing.assert_array_equal(table.labels, [[1, 0], [np.nan, 1], [0, np.nan], [1, 1]])
    assert list(table.rows["path"]) == [f"images/{name}.png" for name in "abcd"]
    with pytest.raises(DataError, match="exactly one 1 per row, but 3 rows differ, such as b"):
        load_table(path, task="multiclass")
    assert load_table(path, label_columns=["y"], task="multilabel").class_names == ("y",)


def test_no_finding_as_a_column(csv_folder):
    columns = {"x": [1, 0, 0, 1], "No Finding": [0, 1, 0, 0], "y": [1, 0, "", 0]}
    path = write_csv(csv_folder / "t.csv", file=list("abcd"), **columns)
    assert load_table(path).class_names == ("x", "No Finding", "y")
    empty = load_table(path, no_finding="empty")
    assert empty.class_names == ("x", "y")
    np.testing.assert_array_equal(empty.labels, [[1, 1], [0, 0], [0, np.nan], [1, 0]])


def test_a_finding_beside_no_finding(csv_folder):
    findings = ["Mass", "No Finding|Mass", "No Finding", "Mass"]
    write_csv(csv_folder / "t.csv", **{"Image Index": list("abcd"), "Finding Labels": findings})
    with pytest.raises(DataError, match="1 rows of the CSV have both 'No Finding' and a finding, such as b"):
        load_table(csv_folder)


def test_a_finding_that_is_not_in_the_list(csv_folder):
    findings = ["Mass", "No Finding", "Efusion", "Mass"]
    write_csv(csv_folder / "t.csv", **{"Image Index": list("abcd"), "Finding Labels": findings})
    with pytest.raises(DataError, match="Unknown label 'Efusion' of c.*Did you mean 'Effusion'"):
        load_table(csv_folder, task="multilabel", class_names=["Effusion", "Mass", "No Finding"])


@pytest.mark.parametrize("settings", [{}, {"label_columns": ["x", "y"]}])
def test_a_label_that_is_neither_0_1_nor_empty(csv_folder, settings):
    write_images(csv_folder / "images", ["e.png"])
    path = write_csv(
        csv_folder / "t.csv", file=list("abcde"), x=[1, 0, 0, 1, 0], y=[0, 1, "maybe", "", 0], z=[0, 1, 1, 0, 0]
    )
    with pytest.raises(DataError, match="Column 'y' .*Received: 'maybe'"):
        load_table(path, task="multilabel", **settings)


def test_a_patient_column_that_is_missing(csv_folder):
    findings = ["Mass", "No Finding", "Mass", "Mass"]
    columns = {"Image Index": list("abcd"), "Finding Labels": findings, "Patient Age": ["060Y"] * 4}
    write_csv(csv_folder / "t.csv", **columns)
    with pytest.raises(DataError, match="group must be a column.*Received: group='Patient ID'.*Patient Age"):
        load_table(csv_folder, group="Patient ID")


def test_one_hot_columns_are_multiclass(csv_folder):
    path = write_csv(csv_folder / "t.csv", image=list("abcd"), NV=[1, 0, 0, 1], MEL=[0, 1, 1, 0])
    table = load_table(path)
    assert table.task == "multiclass"
    assert list(table.class_indices) == [0, 1, 1, 0]


def test_one_column_of_words_with_splits_and_metadata(csv_folder):
    write_csv(
        csv_folder / "t.csv",
        path=["images/a.png", "images/b.png", "images/c.png"],
        diagnosis=["x", "y", "y"],
        split=["Training", "", "valid"],
        group=["p", "q", "r"],
        cluster=["p1", "q1", "r1"],
        age=["3", "4", "5"],
    )
    table = load_table(csv_folder, cluster="cluster")
    assert table.task == "multiclass"
    assert list(table.rows["split"]) == ["train", "", "val"]
    assert list(table.rows["age"]) == ["3", "4", "5"]
    assert list(table.rows["group"]) == ["p", "q", "r"]
    assert list(table.rows["cluster"]) == ["p1", "q1", "r1"]


def test_a_single_label_column_may_be_named_as_the_only_label_columns(csv_folder):
    write_csv(csv_folder / "t.csv", path=["a.png", "b.png"], kind=["x", "y"])
    assert load_table(csv_folder, label_columns=["kind"]).class_names == ("x", "y")


def test_pictures_are_found_by_name_in_folders_below(tmp_path):
    write_images(tmp_path, ["images_001/images/a.png", "images_002/images/b.png"])
    write_csv(tmp_path / "Data_Entry.csv", **{"Image Index": ["a.png", "b.png"], "Finding Labels": ["x", "y|x"]})
    assert list(load_table(tmp_path).rows["path"]) == ["images_001/images/a.png", "images_002/images/b.png"]


def test_a_csv_that_lies_elsewhere(tmp_path):
    write_images(tmp_path / "pictures", ["a.png", "b.png"])
    path = write_csv(tmp_path / "elsewhere" / "t.csv", file=["a.png", "b.png"], label=["x", "y"])
    table = load_table(tmp_path / "pictures", labels_csv=path)
    assert all(file.is_file() for file in table.files)
    absolute = [str(tmp_path / "pictures" / name) for name in ("a.png", "b.png")]
    path = write_csv(tmp_path / "pictures" / "t.csv", file=absolute, label=["x", "y"])
    assert list(load_table(path).rows["path"]) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"path": ["a.png"], "label": ["x"]}, {"label_column": "labl"}, "no column 'labl'.*Did you mean 'label'"),
        ({"path": ["a.png"], "label": ["x"]}, {"path_column": "paths"}, "no column 'paths'.*Did you mean 'path'"),
        ({"path": ["a.png"], "label": ["x"]}, {"label_columns": ["x", "y"]}, "no column 'x'"),
        ({"path": ["a.png", "z.png"], "label": ["x", "y"]}, {}, "1 of 2 pictures named in the CSV .*z.png"),
        ({"path": ["../a.png", "b.png"], "label": ["x", "y"]}, {}, "leaves the data folder.*'../a.png'"),
        ({"path": ["/etc/a.png", "b.png"], "label": ["x", "y"]}, {}, "leaves the data folder.*'/etc/a.png'"),
        ({"path": ["a.png", "images/a.png"], "label": ["x", "y"]}, {}, "named more than once in the CSV: images/a.png"),
        ({"path": ["a.png", "b.png"], "label": ["x", ""]}, {}, "1 rows of the CSV have an empty label: b.png"),
        ({"path": ["a.png", "b.png"], "label": ["x", "w"]}, {"class_names": ["x", "ww"]}, "Unknown label 'w' of b.png"),
        ({"path": ["a.png"], "x": ["1"], "y": ["2"]}, {"label_columns": ["x", "y"]}, "'y'.*0, 1 or nothing.*'2'"),
        ({"path": ["a.png"], "size": ["7"]}, {}, "Name it with label_column"),
        ({"path": [], "label": []}, {}, "has no rows"),
        ({"path": ["a.png", "b.png"], "label": ["x", "y"], "patient": ["1", ""]}, {}, "'patient' .* empty in 1 rows"),
        ({"path": ["a.png", "b.png"], "label": ["x", "y"], "split": ["train", "test"]}, {}, "'y' occurs only outside"),
        (
            {"path": ["a.png", "b.png"], "label": ["x", "y"]},
            {"split_folders": {"a": "train"}},
            "split_folders does not",
        ),
        ({"path": ["a.png", "b.png"], "label": ["x", "y"]}, {"group": "patients"}, "group must be a column"),
    ],
)
def test_csv_files_that_cannot_be_used(csv_folder, columns, settings, message):
    path = write_csv(csv_folder / "t.csv", **columns)
    with pytest.raises(DataError, match=message):
        load_table(path, **settings)


def test_several_csv_files_are_not_guessed_between(csv_folder):
    for name in ("one.csv", "two.csv"):
        write_csv(csv_folder / name, path=["a.png", "b.png"], label=["x", "y"])
    with pytest.raises(DataError, match="one.csv, two.csv. Choose one with labels_csv"):
        load_table(csv_folder)
    assert len(load_table(csv_folder, labels_csv="two.csv")) == 2


def test_a_file_that_is_not_a_csv(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xff\xfe\x00path,label\n")
    with pytest.raises(DataError, match="t.csv cannot be read as a CSV"):
        load_table(path)


@pytest.fixture
def patients(tmp_path):
    write_images(tmp_path, [f"{label}/p{patient}_{i}.png" for label in "ab" for patient in (1, 2) for i in (1, 2)])
    return tmp_path


@pytest.mark.parametrize("spec", [r"regex:(p\d)_", r"(p\d)_\d"])
def test_groups_by_a_regular_expression(patients, spec):
    table = load_table(patients, group=spec, cluster=r"regex:/(p\d_\d)")
    assert table.grouped
    assert list(table.rows["group"]) == ["p1", "p1", "p2", "p2"] * 2
    assert list(table.rows["cluster"]) == ["p1_1", "p1_2", "p2_1", "p2_2"] * 2
    assert not any("independent" in note for note in table.notes)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (r"regex:(q\d)", r"does not match 8 of 8 paths: a/p1_1.png"),
        (r"regex:p\d", "one capture group"),
        (r"regex:(p", "not a valid regular expression"),
        ("nowhere.csv", "no file"),
    ],
)
def test_groups_that_cannot_be_used(patients, spec, message):
    with pytest.raises(DataError, match=message):
        load_table(patients, group=spec)


@pytest.mark.parametrize(("wide", "fine"), [("group", "cluster"), ("field", "source"), ("group", "photograph")])
def test_groups_of_a_csv(patients, tmp_path_factory, wide, fine):
    table = load_table(patients)
    names = [path.split("/")[1][:4] for path in table.rows["path"]]
    path = tmp_path_factory.mktemp("groups") / "g.csv"
    # Paths may start at a folder above the table's root.
    paths = [f"{patients.name}/{item}" for item in table.rows["path"]]
    frame = pd.DataFrame({"path": paths, fine: names, wide: [name[:2] for name in names]})
    frame.sample(frac=1, random_state=0).to_csv(path, index=False)
    table = load_table(patients, group=str(path))
    assert list(table.rows["group"]) == [name[:2] for name in names]
    assert list(table.rows["cluster"]) == names
    frame.iloc[1:].to_csv(path, index=False)
    with pytest.raises(DataError, match="names no group for 1 of 8 pictures: a/p1_1.png"):
        load_table(patients, group=str(path))
    frame.drop(columns=[wide, fine]).to_csv(path, index=False)
    with pytest.raises(DataError, match="must have the columns path and group"):
        load_table(patients, group=str(path))


def test_groups_csv_beside_the_pictures_is_used_and_noted(patients):
    table = load_table(patients)
    table.rows.assign(group=[path[2:4] for path in table.rows["path"]])[["path", "group"]].to_csv(
        patients / "groups.csv", index=False
    )
    table = load_table(patients)
    assert table.grouped
    assert set(table.rows["group"]) == {"p1", "p2"}
    assert any("groups.csv" in note for note in table.notes)


def test_a_cluster_may_not_cross_groups(patients):
    with pytest.raises(DataError, match="A cluster must lie inside one group.*'p1'"):
        load_table(patients, group=r"regex:/(p\d_\d)", cluster=r"regex:/(p\d)")


def test_clusters_alone_are_the_groups_too(patients):
    rows = load_table(patients, cluster=r"regex:/(p\d)").rows
    assert list(rows["group"]) == list(rows["cluster"]) == ["p1", "p1", "p2", "p2"] * 2


def write_blood_cells(root, every=400, rename=str):
    """Writes pictures under a part of the names of the real set, which the map knows."""
    names = {"train": [], "test": []}
    for path, entry in load_map().items():
        if path.split("/")[0] in names:
            names[path.split("/")[0]].append((path, entry))
    chosen = [item for split in names.values() for item in split[::every]]
    write_images(root, [rename(path) for path, _ in chosen])
    return {rename(path): entry for path, entry in chosen}


@pytest.mark.parametrize("rename", [str.upper, str.lower])
def test_a_part_of_the_blood_cells_is_recognised_by_its_names(tmp_path, rename):
    expected = write_blood_cells(tmp_path / "copy" / "images", rename=rename)
    table = load_table(tmp_path / "copy")
    assert table.name == "blood_cells"
    assert table.grouped
    assert {p: (c, g) for p, c, g in zip(*(table.rows[k] for k in ("path", "cluster", "group")))} == expected
    assert any("copies of" in note for note in table.notes)
    assert load_table(tmp_path / "copy", name="mine").name == "mine"


def test_own_groups_come_before_the_map(tmp_path):
    write_blood_cells(tmp_path / "images")
    table = load_table(tmp_path, group=r"regex:_(\d+)_")
    assert table.name != "blood_cells"
    assert all(value.isdigit() for value in table.rows["group"])


def test_other_pictures_of_these_classes_are_not_taken_for_the_blood_cells(tmp_path):
    names = ("eosinophil", "monocyte")
    write_images(
        tmp_path, [f"{split}/{name}/mine_{i}.png" for split in ("train", "test") for name in names for i in (1, 2)]
    )
    table = load_table(tmp_path)
    assert not table.grouped
    assert table.name != "blood_cells"


def test_the_map_holds_the_counts_that_were_measured():
    known = load_map()
    assert len(known) == 12_515
    assert len({source for source, _ in known.values()}) == 348
    sources = {
        source: {path.split("/")[1] for path, entry in known.items() if entry[0] == source}
        for source in ("BloodImage_00206",)
    }
    assert sources == {"BloodImage_00206": {"lymphocyte"}}


def test_the_real_blood_cells(blood_cells):
    table = load_table(blood_cells)
    counts = table.counts()
    assert counts["images"].to_dict() == {"train": 9957, "test": 2487, "test_simple": 71}
    assert counts["clusters"].to_dict() == {"train": 277, "test": 71, "test_simple": 69}
    photographs = table.split("train").rows["cluster"].groupby(table.split("train").class_indices).nunique()
    assert photographs.tolist() == [75, 27, 16, 159]


def test_the_real_chest_xrays():
    table = load_table(real_data("nih_cxr_sample"))
    assert table.task == "multilabel"
    assert len(table) == 5606
    assert table.rows["group"].nunique() == 1474
    sums = dict(zip(table.class_names, table.labels.sum(axis=0).astype(int)))
    assert len(sums) == 15
    assert (sums["Hernia"], sums["Infiltration"], sums["Effusion"], sums["No Finding"]) == (14, 753, 441, 3417)
    assert (table.labels.sum(axis=1) > 0).all()


def medmnist(path, shape=(8, 8), columns=1, **changes):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 12), ("val", 5), ("test", 6)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = (
            np.arange(count)[:, None] % 3 if columns == 1 else rng.integers(0, 2, (count, columns))
        ).astype(np.uint8)
    arrays.update(changes)
    np.savez(path, **arrays)
    return arrays


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_medmnist_multiclass(tmp_path, shape):
    arrays = medmnist(tmp_path / "pathmnist.npz", shape)
    table = load_table(tmp_path / "pathmnist.npz")
    assert (table.name, table.task, table.class_names) == ("pathmnist", "multiclass", ("0", "1", "2"))
    assert table.images.shape == (23, 8, 8, 3)
    assert table.images.dtype == np.uint8
    val = table.split("val")
    np.testing.assert_array_equal(val.images[..., 0], arrays["val_images"].reshape(5, 8, 8, -1)[..., 0])
    np.testing.assert_array_equal(val.class_indices, arrays["val_labels"][:, 0])
    assert load_table(tmp_path / "pathmnist.npz", class_names=["x", "y", "z"]).class_names == ("x", "y", "z")


def test_medmnist_multilabel(tmp_path):
    arrays = medmnist(tmp_path / "chestmnist.npz", columns=4)
    table = load_table(tmp_path / "chestmnist.npz")
    assert table.task == "multilabel"
    np.testing.assert_array_equal(table.split("test").labels, arrays["test_labels"])


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"val_labels": np.zeros((4, 1), np.uint8)}, {}, "val_labels with one row for each"),
        ({"train_images": np.zeros((12, 8, 8), np.float32)}, {}, "uint8"),
        ({"train_labels": np.full((12, 1), 0.5)}, {}, "class numbers from 0"),
        ({}, {"task": "multilabel"}, "one column per label"),
        ({}, {"class_names": ["a"]}, "3 classes. Received: 1"),
        ({}, {"path_column": "x"}, "path_column does not apply to an .npz"),
    ],
)
def test_medmnist_that_cannot_be_used(tmp_path, changes, settings, message):
    medmnist(tmp_path / "m.npz", **changes)
    with pytest.raises(DataError, match=message):
        load_table(tmp_path / "m.npz", **settings)


def test_npz_of_another_kind(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="Its keys: x"):
        load_table(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(DataError, match="b.npz cannot be read as .npz"):
        load_table(tmp_path / "b.npz")
