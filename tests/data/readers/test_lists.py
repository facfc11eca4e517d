"""Lists of pictures: what is read of a text file, and where its paths lead."""

import pytest

from kmed.data.readers.lists import describe_missing, place_paths, read_list
from kmed.errors import DataError


def test_lines_are_stripped_and_empty_ones_do_not_count(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf a.png\r\n\r\n  sub/b.png  \n\xff.png")
    assert read_list(tmp_path / "list.txt") == ["a.png", "sub/b.png", "\udcff.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "list.txt lists no pictures. Give one path per line, or a CSV with a column path."),
        (b" \n\n", "list.txt lists no pictures"),
        (b"\x89PNG\r\n\x1a\n\0\0", "list.txt is not a list of pictures: it is not text"),
        (None, "list.txt cannot be read: No such file"),
    ],
)
def test_a_file_that_lists_nothing_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_list(tmp_path / "list.txt")
    assert "\n" not in str(caught.value)


def test_paths_are_relative_to_the_list_and_one_file_has_one_place(tmp_path, monkeypatch):
    root, other = tmp_path / "set", tmp_path / "other.png"
    (root / "sub").mkdir(parents=True)
    for file in (root / "a.png", root / "sub" / "b.png", other):
        file.touch()
    values = ["a.png", "./sub/../a.png", str(root / "a.png"), "sub/b.png", "../other.png", "gone.png", "sub"]
    expected = ["a.png", "a.png", "a.png", "sub/b.png", other.as_posix(), "gone.png", "sub"]
    assert place_paths(values, root) == (expected, ["gone.png", "sub"])
    monkeypatch.chdir(tmp_path)
    assert place_paths(values, root.relative_to(tmp_path))[0] == expected
    message = describe_missing(["gone.png", "sub"], root / "list.txt", 7)
    assert message.startswith("2 of 7 pictures that list.txt lists do not exist: gone.png, sub.")
