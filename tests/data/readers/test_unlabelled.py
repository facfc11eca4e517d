"""Pictures without labels: the ways in which they are given, and when data count as such."""

import numpy as np
import pytest
from PIL import Image

from kmed.data.readers.load import load_table
from kmed.data.readers.source import DataSource
from kmed.data.readers.unlabelled import why_unlabelled
from kmed.errors import DataError

CLASSES = ["red", "green", "No Finding"]
PLACES = ("1.png", "2023/a/1.png", "2023/a/2.png", "2024/1.png")


@pytest.fixture
def folder(tmp_path):
    """Four pictures in nested folders, whose names are those of no class."""
    return draw(tmp_path / "plain", PLACES)


def draw(root, places):
    rng = np.random.default_rng(0)
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / place)
    return root


def load(path, **changes):
    return load_table(path, **{"unlabelled": True, "task": "multiclass", "class_names": CLASSES, **changes})


def why(path, **settings):
    return why_unlabelled(DataSource(path, **settings), CLASSES)


def test_a_folder_gives_all_pictures_below_it(folder):
    (folder / "a.csv").write_text("path,age\n1.png,3\n")
    (folder / "2024" / "1_mask.png").write_bytes((folder / "1.png").read_bytes())
    (folder / "2024" / "again.png").symlink_to(folder / "1.png")
    table = load(folder)
    assert tuple(table.rows["path"]) == PLACES and not table.grouped
    assert table.labels.shape == (4, 3) and np.isnan(table.labels).all()
    assert table.class_names == tuple(CLASSES) and table.task == "multiclass"
    notes = "\n".join(table.notes)
    assert "4 pictures without labels in" in notes and "No group is given" in notes
    assert "CSV files beside them are not read: a.csv" in notes
    assert "Masks of other pictures are left out, as their names say (1): 2024/1_mask.png" in notes
    assert "Pictures that are there again behind a link count once (1): 2024/again.png is 1.png" in notes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "\n".join(("2024/1.png", *PLACES[:3], "./1.png"))),
        ("list", "\r\n".join(PLACES)),
        ("list.csv", "\n".join(("id,path", *(f"{n},{place}" for n, place in enumerate(PLACES))))),
        ("list.csv", "image;age\n1;70\n2024/1;71\n2023/a/1;72\n2023/a/2;73"),
        ("list.csv", "path,label\n" + "\n".join(f"{place}," for place in PLACES)),
    ],
)
def test_a_list_and_a_csv_give_the_same_pictures_as_the_folder(folder, name, text):
    (folder / name).write_text(text)
    assert why(folder / name)
    table, whole = load(folder / name), load(folder)
    assert table.rows["path"].tolist() == whole.rows["path"].tolist()
    assert [path.resolve() for path in table.files] == [path.resolve() for path in whole.files]
    assert np.isnan(table.labels).all() and any("without labels" in note for note in table.notes)


def test_a_list_may_be_elsewhere_and_name_a_picture_twice(folder, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "list.txt").write_text(f"{folder}/1.png\n../plain/1.png\n../plain/2024/1.png\n")
    table = load(tmp_path / "here" / "list.txt")
    assert table.files == [folder / "1.png", folder / "2024/1.png"]
    assert "3 rows name 2 pictures, each of which counts once." in table.notes


def test_groups_and_metadata_are_those_of_the_csv(folder):
    rows = [f"{place},{number // 2},{number},{number % 2},1" for number, place in enumerate(PLACES)]
    (folder / "list.csv").write_text("\n".join(["path,patient,age,smoker,male", *rows]))
    assert "list.csv has no column of labels" in why(folder / "list.csv")
    table = load(folder / "list.csv")
    assert table.rows["group"].tolist() == ["0", "0", "1", "1"] and table.grouped
    assert table.rows["age"].tolist() == ["0", "1", "2", "3"]
    assert load(folder, labels_csv="list.csv").rows.equals(table.rows)
    by_pattern = load(folder, group="regex:([0-9])\\.png")
    assert by_pattern.rows["group"].tolist() == ["1", "1", "2", "1"]


def test_folders_of_patients_are_groups(tmp_path):
    places = [f"patient{number:04d}/study/{view}.png" for number in range(3) for view in "ab"]
    table = load(draw(tmp_path / "set", places))
    assert table.rows["group"].nunique() == 3 and table.grouped
    assert "No folder in" in why(tmp_path / "set")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "empty").mkdir() or folder / "empty", "empty holds no pictures"),
        (lambda folder: folder / "1.png", "1.png, which is one picture"),
        (lambda folder: written(folder / "a.npz", b"PK"), "a.npz, which is an .npz file, which holds labels"),
        (lambda folder: written(folder / "a.txt", b"1.png\ngone.png\n2.png"), "2 of 3 pictures that a.txt lists do"),
        (lambda folder: written(folder / "a.xlsx", b"PK\x03\x04\0"), "a.xlsx is not a list of pictures"),
        (lambda folder: written(folder / "a.csv", b"path\n"), "a.csv has no rows"),
        (lambda folder: written(folder / "a.csv", b"age,size\n1,2\n"), "a.csv has no column with a usual name"),
        (lambda folder: written(folder / "a.csv", b"path\ngone.png\n"), "1 of 1 pictures named in the CSV are not in"),
        (lambda folder: folder / "gone", "There is no data at"),
    ],
)
def test_what_cannot_be_read_is_one_line(folder, make, message):
    with pytest.raises(DataError, match=message) as caught:
        load(make(folder))
    assert "\n" not in str(caught.value)


def written(file, content):
    file.write_bytes(content)
    return file


def test_it_needs_the_classes_of_a_model(folder):
    for missing in ({"task": None}, {"class_names": None}):
        with pytest.raises(DataError, match="data.unlabelled needs the task and the classes of a finished run"):
            load(folder, **missing)


# ---- Whether data have labels -----------------------------------------------------------------------


def test_folders_that_are_named_like_a_class_are_labels(folder):
    assert "No folder in" in why(folder) and "(2023, 2024, a)" in why(folder) and "--map THEIRS=OURS" in why(folder)
    assert why_unlabelled(DataSource(folder), [*CLASSES, "2023"]) == ""  # the user maps it
    (folder / "2023").rename(folder / "NO FINDING")
    assert why(folder) == ""
    assert why(folder, unlabelled=True).endswith("is read without labels, since data.unlabelled is true.")


def test_a_folder_without_folders_has_no_labels(tmp_path):
    folder = draw(tmp_path / "flat", ["1.png", "2.png"])
    assert "flat has no class folders and no CSV of labels" in why(folder)
    (folder / "labels.csv").write_text("path,label\n1.png,red\n2.png,blue\n")
    assert why(folder) == ""
    assert why(folder, labels_csv="labels.csv") == "" and why(folder / "labels.csv") == ""


@pytest.mark.parametrize(
    ("text", "labelled"),
    [
        ("path,diagnosis\n1.png,anything\n", True),  # which has to be mapped
        ("path,diagnosis\n1.png,NaN\n", False),
        ("path,Red,age\n1.png,0,3\n", True),
        ("path,smoker,male\n1.png,0,1\n", False),
    ],
)
def test_columns_are_labels_by_their_name(folder, text, labelled):
    (folder / "table.csv").write_text(text)
    assert (why(folder / "table.csv") == "") == labelled
    assert why(folder / "table.csv", label_column="age") == ""  # the user says so


def test_what_cannot_be_without_labels_is_left_to_the_readers_of_labels(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.npz").touch()
    for path in (tmp_path / "empty", tmp_path / "a.npz", tmp_path / "gone", folder / "1.png"):
        assert why(path) == ""
