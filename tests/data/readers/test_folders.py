"""Class folders on disk: patients are groups unless others are given, and the notes say what was left out."""

import pytest
from PIL import Image

from kmed.data.readers.folders import has_images, read_class_folders
from kmed.data.readers.load import load_table
from kmed.errors import DataError


def draw(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(root / path)


@pytest.fixture
def patients(tmp_path):
    """Two classes of three patients, with two pictures each."""
    draw(
        tmp_path, *(f"{name}/{name[0]}{p}/{i}.png" for name in ("benign", "malignant") for p in range(3) for i in "12")
    )
    return tmp_path


def notes(table, start):
    return [note for note in table.notes if note.startswith(start)]


def test_patients_are_the_groups_and_a_note_says_so(patients):
    table = load_table(patients)
    assert table.class_names == ("benign", "malignant") and table.grouped
    assert sorted(set(table.rows["group"])) == ["b0", "b1", "b2", "m0", "m1", "m2"]
    assert list(table.rows["group"]) == [path.split("/")[1] for path in table.rows["path"]]
    assert table.notes[0] == f"Layout: CLASS/GROUP/picture in {patients}."
    assert "6 folders, such as b0" in notes(table, "Groups: ")[0]
    assert not notes(table, "No group is given")


def test_given_groups_come_before_those_of_folders(patients):
    table = load_table(patients, group=r"regex:(\d)/")
    assert sorted(set(table.rows["group"])) == ["0", "1", "2"] and not notes(table, "Groups: ")
    alone = load_table(patients, group="regex:(.*)")
    assert list(alone.rows["group"]) == list(alone.rows["path"])
    lines = [f"{path},all-{path[0]}" for path in alone.rows["path"]]
    (patients / "groups.csv").write_text("\n".join(["path,group", *lines]))
    listed = load_table(patients)
    assert sorted(set(listed.rows["group"])) == ["all-b", "all-m"] and notes(listed, "Groups are read from groups.csv")


def test_pictures_beside_patients_are_groups_of_their_own(patients):
    draw(patients, "benign/own.png")
    table = load_table(patients)
    assert table.rows["group"][table.rows["path"] == "benign/own.png"].tolist() == ["benign/own.png"]
    assert "1 pictures that are in no such folder are groups of their own" in notes(table, "Groups: ")[0]


def test_folders_that_are_no_patients_are_no_groups(tmp_path):
    draw(tmp_path, *(f"{name}/{kind}/{i}.png" for name, kind in ("bx", "by", "mz", "mw") for i in "123"))
    table = load_table(tmp_path)
    assert table.class_names == ("b", "m") and not table.grouped
    assert "(w, x, y, ...) are not used as groups" in notes(table, "The folders inside the classes")[0]


def test_what_is_left_out_is_counted(tmp_path):
    draw(tmp_path, *(f"{split}/{name}/{i}.png" for split in ("Train", "old", "TEST") for name in "ab" for i in "12"))
    draw(tmp_path, "Train/a/1_mask.png", "Train/loose.png", "Train/a/.ipynb_checkpoints/1.png", "cover.png")
    (tmp_path / "Train" / "a" / "notes.txt").write_text("")
    table = load_table(tmp_path)
    assert len(table) == 8 and set(table.rows["split"]) == {"train", "test"}
    assert table.notes[1:-1] == (
        f"Folders in {tmp_path.name}/ that are not splits are left out: old (4 pictures).",
        "Pictures outside the class folders are left out (2): Train/loose.png, cover.png.",
        "Masks of other pictures are left out, as their names say (1): Train/a/1_mask.png.",
        "Hidden files and folders are left out (1): Train/a/.ipynb_checkpoints/.",
        "1 file of another type is ignored (.txt).",
    )


@pytest.mark.parametrize("other", ["benign", "BENIGN ", " Benign", "be nign"])
def test_spellings_of_one_class_are_one(tmp_path, other):
    draw(tmp_path, "Train/Benign/1.png", "Train/Benign/2.png", "Train/malignant/1.png", f"Test/{other}/3.png")
    table = load_table(tmp_path)
    assert table.class_names == ("Benign", "malignant")
    assert len(notes(table, "Names that differ only in case, blanks")) == (other.strip() != "Benign")
    named = load_table(tmp_path, class_names=["malignant", "benign"])
    assert list(named.labels.sum(axis=0)) == [1, 3]


def test_one_file_counts_once_and_in_one_class(patients):
    (patients / "benign" / "b0" / "again.png").symlink_to(patients / "benign" / "b0" / "1.png")
    table = load_table(patients)
    assert len(table) == 12
    assert notes(
        table, "Pictures that are there again behind a link count once (1): benign/b0/again.png is benign/b0/1"
    )
    (patients / "malignant" / "m9").symlink_to(patients / "benign" / "b1")
    message = "benign/b1/1.png and malignant/m9/1.png are one file, by a link, but in two classes. Remove one of them."
    with pytest.raises(DataError, match=message):
        load_table(patients)


def test_links_from_splits_to_a_store_beside_them_are_used(tmp_path):
    draw(tmp_path, *(f"store/{name}/{i}.png" for name in "ab" for i in range(4)))
    for split, numbers in (("train", (0, 1)), ("test", (2, 3))):
        for name in "ab":
            (tmp_path / split / name).mkdir(parents=True)
            for number in numbers:
                (tmp_path / split / name / f"{number}.png").symlink_to(tmp_path / "store" / name / f"{number}.png")
    table = load_table(tmp_path)
    assert len(table) == 8 and notes(table, "Folders in ")[0].endswith("left out: store (8 pictures).")
    (tmp_path / "train" / "a" / "2.png").symlink_to(tmp_path / "store" / "a" / "2.png")
    with pytest.raises(DataError, match="test/a/2.png and train/a/2.png are one file, by a link, but in two splits"):
        load_table(tmp_path)


def test_a_class_of_a_single_patient_and_the_only_class(tmp_path):
    draw(tmp_path, "a/p1/1.png", "b/p2/1.png", "b/p3/1.png")
    assert load_table(tmp_path).rows["group"].tolist() == ["p1", "p2", "p3"]
    with pytest.raises(DataError, match=r"holds one class folder with pictures \(p1\)"):
        load_table(tmp_path / "a")
    assert read_class_folders(tmp_path / "a" / "p1") is None and has_images(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("imgs_part_1", "imgs_part_2"), ("part1", "part2"), ("x-part-01", "x-part-02"), ("batch 1", "batch 2"),
        ("chunk_0", "chunk_1"), ("a. Training Set", "b. Testing Set"), ("1_train", "2_val", "3_test"),
        ("ISIC_Train_Input", "ISIC_Test_Input"), ("train2017", "val2017"), ("images-train", "images-validation"),
    ],
)  # fmt: skip
def test_parts_of_a_set_are_no_classes(tmp_path, names):
    draw(tmp_path, *(f"{name}/{index}{i}.png" for index, name in enumerate(names) for i in "123"))
    with pytest.raises(DataError, match="look like parts of a data set"):
        load_table(tmp_path)
    assert load_table(tmp_path, class_names=names).class_names == names
    lines = [f"{index}{i},{'xy'[int(i) % 2]}" for index in range(len(names)) for i in "123"]
    (tmp_path / "labels.csv").write_text("\n".join(["img_id,diagnostic", *lines]))
    assert load_table(tmp_path).class_names == ("x", "y")


@pytest.mark.parametrize("names", [("test", "control"), ("part", "whole"), ("train", "car"), ("batch 1", "other")])
def test_words_of_parts_may_be_in_the_name_of_a_class(tmp_path, names):
    draw(tmp_path, *(f"{name}/{i}.png" for name in names for i in "123"))
    assert load_table(tmp_path).class_names == tuple(sorted(names))


def test_folders_that_only_sort_the_classes_are_no_groups(tmp_path):
    names = ["lung_aca", "lung_n", "colon_aca", "colon_n"]
    draw(tmp_path, *(f"{name.split('_')[0]}/{name}/{i}.png" for name in names for i in "123"))
    assert "if they are the classes, list them in class_names" in notes(load_table(tmp_path), "The folders inside")[0]
    table = load_table(tmp_path, class_names=names)
    assert not table.grouped and table.labels.sum(axis=0).tolist() == [3, 3, 3, 3]
    assert table.notes[0] == f"Layout: .../CLASS/picture in {tmp_path}."


def test_a_csv_beside_the_folders_is_said_unless_it_holds_groups(tmp_path):
    draw(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in "123"))
    start = "CSV files beside the class folders are not read as labels"
    assert not notes(load_table(tmp_path), start)
    (tmp_path / "info.csv").write_text("age,sex\n1,2\n")
    assert notes(load_table(tmp_path), start) == [f"{start}: info.csv."]
    (tmp_path / "info.csv").rename(tmp_path / "groups.csv")
    (tmp_path / "groups.csv").write_text("path,group\n" + "".join(f"{c}/{i}.png,{i}{c}\n" for c in "ab" for i in "123"))
    assert not notes(load_table(tmp_path), start)
