"""Labels joined in any way are several labels; names that hold a comma stay names; 0, 1 and unknown are columns."""

import pathlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmed.data.readers.csv_labels import Labels, check_contradictions, labels_of_columns, labels_of_words, split_words
from kmed.data.readers.source import DataSource
from kmed.errors import DataError

PAIR = {"Mass", "Nodule"}


@pytest.mark.parametrize("task", [None, "multilabel"])
@pytest.mark.parametrize(
    "form",
    [
        "{}|{}", "{} | {}", "{},{}", "{}, {}", "{};{}", "{} ;{}", "['{}', '{}']", '["{}", "{}"]', "[{}, {}]",
        "('{}', '{}')", "{{'{}', '{}'}}", "['{}' '{}']", "{};{};", "{},,{}",
    ],
)  # fmt: skip
def test_joined_labels(form, task):
    one = "['{}']" if form.startswith(("[", "(", "{{")) else "{}"
    cells = [form.format("Mass", "Nodule"), one.format("Mass"), one.format("Nodule")]
    words, notes = split_words(cells, task, None)
    assert [set(row) for row in words] == [PAIR, {"Mass"}, {"Nodule"}]
    assert len(notes) == (0 if "|" in form else 1)


NAMES = st.sampled_from(["Mass", "Edema", "Pleural_Thickening", "No Finding", "Ground glass", "T2-lesion"])


@given(st.lists(st.sets(NAMES, min_size=1), min_size=1), st.sampled_from("|;,"), st.sampled_from(["", " "]))
def test_any_sets_of_labels_come_back(sets, joint, blank):
    cells = [f"{joint}{blank}".join(sorted(row)) for row in sets]
    words, _ = split_words(cells, "multilabel", None)
    assert [set(row) for row in words] == sets


@given(st.lists(st.lists(NAMES, unique=True), min_size=1))
def test_any_python_lists_come_back(rows):
    words, _ = split_words([str(row) for row in rows], None, None)
    assert words == [list(row) for row in rows]


@pytest.mark.parametrize(
    ("cells", "task", "class_names"),
    [
        (["Carcinoma, invasive", "Carcinoma, in situ", "normal"], None, None),
        (["Carcinoma; invasive", "normal"], "multiclass", None),
        (["Mass, left", "Mass, right", "Mass"], "multilabel", ["Mass, left", "Mass, right", "Mass"]),
        (["Carcinoma, NOS|Edema", "Edema", "Mass"], "multilabel", None),
    ],
)
def test_a_comma_may_be_part_of_a_name(cells, task, class_names):
    words, notes = split_words(cells, task, class_names)
    assert {word for row in words for word in row} == {part for cell in cells for part in cell.split("|")}
    assert class_names or "and are one class each" in notes[0]


def test_class_names_say_what_is_joined():
    words, _ = split_words(["Mass, Edema", "Mass, Edema"], None, ["Mass", "Edema"])
    assert words == [["Mass", "Edema"]] * 2
    assert split_words(["no, sir"], None, ["yes", "no, sir"])[0] == [["no, sir"]]


def words(cells, **settings):
    names = pd.Series([f"{index}.png" for index in range(len(cells))])
    return labels_of_words(pd.Series(cells, name="label"), names, DataSource(pathlib.Path(), **settings))


def test_spellings_of_one_class():
    labels = words(["Benign", "benign ", "\u200bBenign", "malignant", "BENIGN"])
    assert labels.names == ("Benign", "malignant") and labels.task is None
    np.testing.assert_array_equal(labels.values[:, 0], [1, 1, 1, 0, 1])
    assert "'BENIGN' is read as 'Benign', 'benign' is read as 'Benign'" in labels.notes[0]
    assert words(["Benign", "benign"], class_names=["benign", "Benign"]).names == ("benign", "Benign")
    assert words(["Benign", "x"], class_names=["x", "benign"]).names == ("x", "benign")


def test_no_finding_in_lists():
    labels = words(["['mass', 'nodule']", "['No Finding']", "['none']", "[]"])
    assert labels.names == ("mass", "nodule", "No Finding") and labels.task == "multilabel"
    np.testing.assert_array_equal(labels.values, [[1, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    ("cells", "settings", "message"),
    [
        (
            ["Mass, Edema", "Mass", "Edema"],
            {"task": "multiclass"},
            "needs one label per picture, but 0.png has several",
        ),
        (["[]", "['a']"], {"task": "multiclass"}, "needs one label per picture, but 0.png has none"),
        (["[]", "[]"], {}, "No row of the CSV has a label in the column 'label'"),
        (["a", "\u00a0"], {}, "1 rows of the CSV have an empty label: 1.png"),
        (["a|b", "|"], {}, "1 rows of the CSV have an empty label: 1.png"),
        (["a, c", "b"], {"class_names": ["a", "b"]}, "Unknown label 'c' of 0.png"),
    ],
)
def test_words_that_cannot_be_used(cells, settings, message):
    with pytest.raises(DataError, match=message):
        words(cells, **settings)


def columns(frame, **settings):
    names = pd.Series([f"{index}.png" for index in range(len(frame))])
    return labels_of_columns(frame, names, DataSource(pathlib.Path(), **settings))


def test_columns_and_class_names_may_differ_in_case_and_blanks():
    frame = pd.DataFrame({"Lung Opacity": ["1", "0", "1"], "Edema": ["0 ", "\u00a01", "1.0"]})
    assert columns(frame, class_names=["edema", "lung  opacity"]).names == ("edema", "lung opacity")
    twins = pd.DataFrame({"Edema": ["1", "0"], "edema": ["0", "1"]})
    with pytest.raises(DataError, match="Two label columns differ only in case or blanks: 'Edema' and 'edema'"):
        columns(twins)


def test_a_one_hot_column_without_a_picture_is_no_class():
    labels = columns(pd.DataFrame({"a": ["1", "0"], "b": ["0", "1"], "unk": ["0", "0"]}))
    assert labels.names == ("a", "b") and labels.notes == ("The column 'unk' holds no 1, so it is no class here.",)
    assert columns(pd.DataFrame({"a": ["1", "1"], "b": ["0", "1"], "unk": ["0", "0"]})).names == ("a", "b", "unk")


def test_not_findings_may_stand_beside_no_finding():
    values = np.array([[1, 0, 1], [0, 1, 0], [1, np.nan, 0]], np.float32)
    labels = Labels(values, ("No Finding", "Mass", "Support Devices"), "multilabel")
    cells = ["a", "b", "c"]
    check_contradictions(labels, cells, ["support devices"])
    with pytest.raises(DataError, match=r"1 rows .* both 'No Finding' and a finding, such as a \(Support Devices\)"):
        check_contradictions(labels, cells, [])


@pytest.mark.parametrize("cell", ["", "nan", "NaN", "NULL", "null", "N/A", "NA", "<NA>", "#N/A", "-1", "-1.0"])
def test_what_programs_write_into_empty_cells_is_no_class(cell):
    cells, paths = pd.Series(["0", "1", cell]), pd.Series(["a", "b", "c"])
    with pytest.raises(DataError, match=f"1 rows of the CSV have an empty label: c.*{cell}"):
        labels_of_words(cells, paths, DataSource(pathlib.Path()))


@pytest.mark.parametrize("cells", [["-1", "1", "-1"], ["a", "NA", "na-ive"]])
def test_such_a_word_is_a_class_if_it_is_listed_or_is_not_beside_0(cells):
    names = None if "1" in cells else ["a", "NA", "na-ive"]
    labels = labels_of_words(pd.Series(cells), pd.Series(list("abc")), DataSource(pathlib.Path(), class_names=names))
    assert set(labels.names) == set(cells)


@pytest.mark.parametrize("yes", ["1", "1.0", "True", "true", "TRUE", "yes", "Yes", "y", "Y"])
@pytest.mark.parametrize("no", ["0", "False", "no", "N"])
def test_columns_that_are_named_may_hold_yes_and_no(yes, no):
    frame = pd.DataFrame({"x": [yes, no, "NULL"], "y": [no, yes, "nan"]})
    labels = labels_of_columns(frame, pd.Series(list("abc")), DataSource(pathlib.Path()))
    np.testing.assert_array_equal(labels.values, [[1, 0], [0, 1], [np.nan, np.nan]])
