"""The names of classes in other data: what they stand for, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from kmed.data.class_map import apply_class_map, read_class_map
from kmed.data.table import Table
from kmed.errors import ConfigError, DataError


def table_of(labels, names, task="multilabel"):
    labels = np.array(labels, np.float32)
    paths = [f"{row}.png" for row in range(len(labels))]
    rows = pd.DataFrame({"path": paths, "group": paths, "cluster": paths, "split": ""})
    return Table(rows, labels, tuple(names), task, "theirs")


def test_texts_files_and_mappings_say_the_same(tmp_path):
    file = tmp_path / "map.yaml"
    file.write_text("Normal: No Finding\nOther: null\n7: Mass\n")
    expected = {"Normal": "No Finding", "Other": None, "7": "Mass"}
    assert read_class_map(["Normal=No Finding", "Other=", "7=Mass"]) == expected
    assert read_class_map(file) == read_class_map([str(file)]) == expected
    assert read_class_map({"Normal": "No Finding", "Other": None, 7: "Mass"}) == expected
    assert read_class_map() == {}


@pytest.mark.parametrize("text", ["- Normal\n", "Normal: [a, b]\n", "Normal: true\n", "just text"])
def test_a_file_that_is_no_map_is_refused(tmp_path, text):
    file = tmp_path / "map.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="map.yaml must map each name to one class or to null"):
        read_class_map(file)


def test_a_file_that_is_no_yaml_is_refused(tmp_path):
    file = tmp_path / "map.yaml"
    file.write_text("a: [\n")
    with pytest.raises(ConfigError, match="map.yaml cannot be read .line"):
        read_class_map(file)


def test_several_names_for_one_finding_join_by_or_and_keep_what_is_unknown():
    nan = np.nan
    table = table_of([[1, 0, 0], [nan, 1, 1], [nan, 0, 0], [0, 0, nan]], ["Mass", "Tumour", "Oddity"])
    mapped = apply_class_map(table, {"Tumour": "Mass", "Oddity": None}, ["Edema", "Mass"], "multilabel")
    np.testing.assert_array_equal(mapped.labels, [[nan, 1], [nan, 1], [nan, nan], [nan, 0]])
    assert mapped.class_names == ("Edema", "Mass") and len(mapped) == 4
    assert "Class names: Tumour -> Mass." in mapped.notes
    assert any("lacks findings of the model (1)" in note and "Edema" in note for note in mapped.notes)


def test_pictures_of_no_class_are_left_out_where_classes_exclude_each_other():
    table = table_of(np.eye(3)[[0, 1, 2, 1]], ["a", "b", "c"], "multiclass")
    mapped = apply_class_map(table, {"b": None}, ["c", "a", "d"], "multiclass")
    assert mapped.rows["path"].tolist() == ["0.png", "2.png"]
    np.testing.assert_array_equal(mapped.labels, [[0, 1, 0], [1, 0, 0]])
    with pytest.raises(DataError, match="No picture in theirs is left"):
        apply_class_map(table, dict.fromkeys("abc"), ["c", "a"], "multiclass")


def test_one_class_per_picture_gives_findings_but_not_the_other_way():
    folders = table_of(np.eye(2)[[0, 1]], ["NORMAL", "PNEUMONIA"], "multiclass")
    mapping = {"NORMAL": "No Finding", "PNEUMONIA": "Pneumonia"}
    mapped = apply_class_map(folders, mapping, ["Mass", "No Finding", "Pneumonia"], "multilabel")
    np.testing.assert_array_equal(mapped.labels, [[np.nan, 1, 0], [np.nan, 0, 1]])
    assert mapped.task == "multilabel"
    with pytest.raises(DataError, match="The model gives each picture one class"):
        apply_class_map(table_of([[1, 1]], ["a", "b"]), {}, ["a", "b"], "multiclass")


def test_all_unknown_names_are_listed():
    with pytest.raises(DataError, match="class names that the model does not know .2.: b, c. Its classes are a"):
        apply_class_map(table_of(np.eye(3), "abc", "multiclass"), {}, ["a"], "multiclass")
