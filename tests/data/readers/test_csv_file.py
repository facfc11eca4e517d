"""A CSV is read whatever its encoding and its delimiter; notes say what is unusual; damage is refused."""

import csv
import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmed.data.readers.csv_file import read_csv
from kmed.errors import DataError

ROWS = [["image", "label", "size"], ["\u00e4 1.png", "Mass, left", "0,5"], ["b.png", 'a "quoted" word', ""]]


def write(path, rows, delimiter=",", encoding="utf-8", **options):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, **options).writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding))
    return path


def cells(frame):
    return [list(frame.columns), *frame.to_numpy().tolist()]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_every_delimiter_in_every_encoding(tmp_path, delimiter, encoding):
    notes = []
    path = write(tmp_path / "t.csv", ROWS, delimiter, encoding)
    assert cells(read_csv(path, notes)) == ROWS
    assert any("separated by" in note for note in notes) == (delimiter != ",")
    assert any("is read as" in note for note in notes) == (not encoding.startswith("utf-8"))
    assert all(note.startswith("t.csv is ") for note in notes)


CELLS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=6)


@given(st.data(), st.sampled_from(",;\t|"), st.integers(2, 5))
def test_the_delimiter_is_found_whatever_the_cells_hold(tmp_path_factory, data, delimiter, width):
    rows = data.draw(
        st.lists(
            st.lists(CELLS, min_size=width, max_size=width).filter(lambda row: any("".join(row).split())), max_size=6
        )
    )
    header = [f"column {index}" for index in range(width)]
    path = write(tmp_path_factory.mktemp("csv") / "t.csv", [header, *rows], delimiter)
    assert cells(read_csv(path)) == [header, *rows]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image;label\na.png;Mass, Nodule\n", [["image", "label"], ["a.png", "Mass, Nodule"]]),
        ("image;x\na.png;0,5\nb.png;1,5\n", [["image", "x"], ["a.png", "0,5"], ["b.png", "1,5"]]),
        ('image,label\na.png,"Mass;Nodule"\n', [["image", "label"], ["a.png", "Mass;Nodule"]]),
        ("image,label\na,Mass|Nodule\nb,x|y\n", [["image", "label"], ["a", "Mass|Nodule"], ["b", "x|y"]]),
        ('"image, file";label\na;b\n', [["image, file", "label"], ["a", "b"]]),
        ("image\na.png\n", [["image"], ["a.png"]]),
        ("sep=;\nimage;label,x\na;b\n", [["image", "label,x"], ["a", "b"]]),
        ("\ufeffimage , label\r\na,b\r\n\r\n", [["image", "label"], ["a", "b"]]),
        ("image,label,\na,b,\n", [["image", "label"], ["a", "b"]]),
        (",image\n0,a\n1,b\n", [["Unnamed: 0", "image"], ["0", "a"], ["1", "b"]]),
        ("image,label,age\na,b\n", [["image", "label", "age"], ["a", "b", ""]]),
        ('image,label\na,"two\nlines"\n', [["image", "label"], ["a", "two\nlines"]]),
        ("image,label\rold,mac\r", [["image", "label"], ["old", "mac"]]),
    ],
)  # fmt: skip
def test_what_does_not_mislead(tmp_path, text, expected):
    (tmp_path / "t.csv").write_bytes(text.encode())
    assert cells(read_csv(tmp_path / "t.csv")) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,label\na.png,Mass,Nodule\n", "line 2 has 3 cells, but the header has 2.*must be quoted"),
        (b'image,label\na.png,"Mass\nb.png,x\n', "cannot be read as a CSV \\(line 3: unexpected end of data"),
        (b"image,label,label \na,b,c\n", "has several columns named 'label'"),
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (b"PK\x03\x04rest", "it is an Excel workbook or another archive; save it as CSV"),
        (b"\xd0\xcf\x11\xe0rest", "an old Excel workbook"),
        (b"image,label\n" + b"a\0b,x\n", "zero bytes"),
        (b"\x1f\x8bno gzip", "cannot be read as a CSV"),
        ("image,label\n".encode("utf-16")[:-1], "cannot be read as a CSV"),
        (b"image,label\na," + b"x" * 200_000, "field larger"),
    ],
)
def test_what_is_no_csv(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_csv(tmp_path / "t.csv")


def test_a_folder_and_nothing(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(DataError, match="cannot be read as a CSV|There is no file"):
            read_csv(path)


def test_gzip_and_the_first_rows(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"image,label\na,b\nc,d\n"))
    assert cells(read_csv(tmp_path / "t.csv.gz", max_rows=1)) == [["image", "label"], ["a", "b"]]
