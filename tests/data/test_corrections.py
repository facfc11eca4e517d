"""Labels corrected by hand: what was edited replaces the labels of the data; what no longer fits is refused."""

import numpy as np
import pandas as pd
import pytest
from tiny_tables import table_of

import kmed
from kmed.data.corrections import apply_corrections
from kmed.data.prepare import open_table
from kmed.data.table import Table
from kmed.errors import DataError

CLASSES = ("Mass", "Edema", "No Finding")


def multilabel() -> Table:
    """Six pictures; p0 to p2 are of one patient, with one label; p3 and p4 of another, with two."""
    labels = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, np.nan, 1]], np.float32)
    clusters = ["a", "a", "a", "b", "b", "c"]
    rows = pd.DataFrame({"path": [f"p{n}" for n in range(6)], "group": clusters, "cluster": clusters, "split": ""})
    return Table(rows, labels, CLASSES, "multilabel", "made")


def write(folder, *rows):
    """Writes rows (label, given, cluster, pictures, path), and returns the path."""
    frame = pd.DataFrame(rows, columns=["label", "given", "cluster", "pictures", "path"])
    frame.assign(quality=0.1).to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


def test_a_row_of_several_pictures_is_for_the_cluster_and_one_of_one_for_the_picture(tmp_path):
    path = write(
        tmp_path,
        ("Edema|Mass", "Mass", "a", 3, "p0"),
        ("Edema", "No Finding", "b", 1, "p4"),
        ("Edema", "Edema", "b", 1, "p3"),
    )
    corrected = apply_corrections(multilabel(), path)
    expected = multilabel().labels.copy()
    expected[:3, 1], expected[4] = 1, [0, 1, 0]
    np.testing.assert_array_equal(corrected.labels, expected)
    assert corrected.notes == ("labels.csv: the labels of 4 pictures are corrected.",)


def test_unknown_labels_stay_unknown_unless_they_are_named(tmp_path):
    corrected = apply_corrections(multilabel(), write(tmp_path, ("Mass", "No Finding", "c", 1, "p5")))
    np.testing.assert_array_equal(corrected.labels[5], [1, np.nan, 0])
    corrected = apply_corrections(multilabel(), write(tmp_path, ("Edema", "No Finding", "c", 1, "p5")))
    np.testing.assert_array_equal(corrected.labels[5], [0, 1, 0])
    corrected = apply_corrections(multilabel(), write(tmp_path, ("", "No Finding", "c", 1, "p5")))
    np.testing.assert_array_equal(corrected.labels[5], [0, np.nan, 0])


def test_a_question_mark_leaves_pictures_out(tmp_path):
    corrected = apply_corrections(multilabel(), write(tmp_path, ("?", "Mass", "a", 3, "p0")))
    assert corrected.rows["path"].tolist() == ["p3", "p4", "p5"]
    assert corrected.notes[-1] == "labels.csv: the labels of 0 pictures are corrected, and 3 pictures are left out."


def test_a_file_that_was_not_edited_changes_nothing(tmp_path):
    corrected = apply_corrections(multilabel(), write(tmp_path, ("Mass", "Mass", "a", 3, "p0")))
    np.testing.assert_array_equal(corrected.labels, multilabel().labels)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("Edemma", "Mass", "a", 3, "p0"), "Received: 'Edemma'. Did you mean 'Edema'?"),
        (
            ("Edema", "No Finding", "a", 3, "p0"),
            "p0 was given as No Finding, but the data now say Mass. Run kmed data labels",
        ),
        (("Edema", "Mass", "z", 3, "p0"), "corrects the cluster 'z', which is not in made"),
        (("Edema", "Mass", "a", 1, "p9"), "corrects the picture 'p9', which is not in made"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, row, message):
    with pytest.raises(DataError) as raised:
        apply_corrections(multilabel(), write(tmp_path, row))
    assert message in str(raised.value) and "labels.csv" in str(raised.value)


def test_other_files_and_doubled_rows_are_refused(tmp_path):
    twice = write(tmp_path, ("Edema", "Mass", "a", 3, "p0"), ("No Finding", "Mass", "a", 1, "p1"))
    with pytest.raises(DataError, match="corrects p1 twice"):
        apply_corrections(multilabel(), twice)
    (tmp_path / "other.csv").write_text("path,label\np0,Mass\n")
    with pytest.raises(DataError, match=r"is no CSV of `kmed data labels`: it has no column 'given'"):
        apply_corrections(multilabel(), tmp_path / "other.csv")
    with pytest.raises(DataError, match="There is no file"):
        apply_corrections(multilabel(), tmp_path / "nowhere.csv")


def test_the_setting_corrects_what_is_read(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        table_of(tmp_path / "pictures" / name)
    plain = open_table(kmed.load_config(overrides=[f"data.path={tmp_path / 'pictures'}"]))
    first = plain.rows["path"].iloc[0]
    cluster = plain.rows["cluster"].iloc[0]
    path = write(tmp_path, ("b", "a", cluster, 1, first))
    overrides = [f"data.path={tmp_path / 'pictures'}", f"data.corrections={path}"]
    corrected = open_table(kmed.load_config(overrides=overrides))
    assert corrected.labels[0].tolist() == [0, 1] and plain.labels[0].tolist() == [1, 0]
    np.testing.assert_array_equal(corrected.labels[1:], plain.labels[1:])
    (tmp_path / "later").mkdir()
    second = write(tmp_path / "later", ("a", "b", cluster, 1, first))  # made when the label had been corrected
    both = kmed.load_config(overrides=[overrides[0], f"data.corrections=[{path}, {second}]"])
    assert both.data.corrections == [str(path), str(second)]
    np.testing.assert_array_equal(open_table(both).labels, plain.labels)
    with pytest.raises(DataError, match="was given as b, but the data now say a. Run kmed data labels again"):
        open_table(kmed.load_config(overrides=[overrides[0], f"data.corrections={second}"]))
    wrong = write(tmp_path, ("a|b", "a", cluster, 1, first))
    with pytest.raises(DataError, match="each label must name one class. Received: 'a|b'"):
        open_table(kmed.load_config(overrides=[overrides[0], f"data.corrections={wrong}"]))
