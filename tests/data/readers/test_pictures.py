"""A CSV's path is matched as a path, a name without a folder by name; what fits several files is refused."""

import os
import pathlib
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmed.data.readers.pictures import Pictures, find_pictures, locate
from kmed.errors import DataError


@pytest.fixture
def make(tmp_path):
    """Returns a function that makes files of different content and returns the root."""

    def files(*paths, root="set"):
        for path in paths:
            (tmp_path / root / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / root / path).write_text(path)
        return tmp_path / root

    return files


def located(root, *values, csv="labels.csv"):
    return locate(list(values), root, root / csv)[0]


SETS = {
    "flat": ["1.png", "2.png"],
    "below": ["a/1.png", "b/2.png"],
    "images": ["images/1.png", "images/2.png"],
    "deep": ["train/p1/s1/v.png", "train/p2/s1/v.png"],
}


@pytest.mark.parametrize("paths", SETS.values(), ids=SETS)
@pytest.mark.parametrize(
    "written",
    [
        "{path}", "./{path}", "{path} ", " \u00a0{path}\u200b", "{windows}", "set/{path}", "up/set/{path}",
        "{root}/{path}", "{root}/x/../{path}", "file://{root}/{path}", "{stem}", "{root}/{stem}", "{upper}",
        "set\\{windows}",
    ],
)  # fmt: skip
def test_spellings_of_a_path(make, paths, written):
    root = make(*paths, root="up/set")
    values = [
        written.format(
            path=path,
            root=root,
            stem=path.removesuffix(".png"),
            windows=path.replace("/", "\\"),
            upper=path[:-4] + ".PNG",
        )
        for path in paths
    ]
    assert located(root, *values) == paths


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_accents_in_one_piece_or_two(make, form, other):
    path = "M\u00fcller/Aufnahme \u00e9.png"
    root = make(unicodedata.normalize(form, path), "Muller/Aufnahme e.png")
    assert located(root, unicodedata.normalize(other, path)) == [unicodedata.normalize(form, path)]


def test_a_missing_picture_is_never_taken_from_another_folder(make):
    root = make("siteA/1.png", "siteA/2.png", "siteB/3.png", "siteB/1.png")
    with pytest.raises(DataError, match=r"1 of 3 pictures .*: siteA/3.png. A similar name is there.* siteB/3.png"):
        located(root, "siteA/1.png", "siteA/2.png", "siteA/3.png")
    with pytest.raises(DataError, match="2 of 2 pictures"):
        located(root, "siteC/1.png", "siteC/3")


@pytest.mark.parametrize(
    ("files", "value"),
    [
        (["a/1.png", "b/1.png"], "1.png"),
        (["a/1.png", "b/1.png"], "1"),
        (["a/1.png", "b/1.jpg"], "1"),
        (["1.png", "1.jpg"], "1"),
        (["a/1.png", "a/1.jpg"], "a/1"),
        (["x/a/1.png", "y/a/1.png"], "a/1.png"),
        (["a/1.png", "b/1.PNG"], "1.png"),
        (["images/a/1.png", "masks/1.png"], "1.png"),
        (["a/E\u0301.png", "b/\u00c9.png"], "\u00c9.png"),
        (["a/1 2.png", "b/1  2.png"], "1 2.png"),
    ],
)
def test_what_fits_several_files_is_refused_with_the_candidates(make, files, value):
    root = make(*files)
    with pytest.raises(
        DataError, match="1 pictures named in labels.csv fit several files.*Write their paths"
    ) as raised:
        located(root, value)
    assert all(unicodedata.normalize("NFC", file) in unicodedata.normalize("NFC", str(raised.value)) for file in files)


def test_the_place_at_which_all_are_found_is_meant(make):
    root = make("images/1.png", "images/2.png", "masks/1.png", "masks/2.png")
    paths, notes = locate(["1", "2"], root, root / "labels.csv")
    assert paths == ["images/1.png", "images/2.png"]
    assert any(
        "2 of 4 pictures in set are not listed in labels.csv" in note and "masks/1.png" in note for note in notes
    )
    assert located(root, "masks/1", "masks/2.png") == ["masks/1.png", "masks/2.png"]


def test_a_name_that_most_others_contradict_is_found_and_noted(make):
    root = make("1.png", "2.png", "3.png", "old/4.png")
    paths, notes = locate(["1", "2", "3", "4"], root, root / "labels.csv")
    assert paths == ["1.png", "2.png", "3.png", "old/4.png"]
    assert notes == ["1 pictures are found by their name in other folders: old/4.png."]


def test_files_of_one_content_count_as_one(make):
    root = make("part_1/1.png", "Part_1/1.png")
    for folder in ("part_1", "Part_1"):
        (root / folder / "1.png").write_text("the same")
    paths, notes = locate(["1"], root, root / "labels.csv")
    assert paths == ["Part_1/1.png"]
    assert "1 pictures are there more than once, with the same content" in notes[0]


def test_a_path_may_be_the_end_of_the_real_one_if_all_are(make):
    root = make("archive/CheX-small/train/p1/v.png", "archive/CheX-small/train/p2/v.png")
    values = ["CheX-small/train/p1/v.png", "CheX-small/train/p2/v.png"]
    paths, notes = locate(values, root, root / "labels.csv")
    assert paths == [f"archive/{value}" for value in values]
    assert "further below" in notes[0]
    with pytest.raises(DataError, match="1 of 2 pictures"):
        located(root, "archive/CheX-small/train/p1/v.png", "train/p2/v.png")


def test_paths_relative_to_a_csv_in_another_folder(make, tmp_path):
    root = make("scans/1.png", "scans/2.png", "meta/labels.csv")
    assert located(root, "../scans/1.png", csv="meta/labels.csv") == ["scans/1.png"]
    assert located(root, "scans/1.png", csv="meta/labels.csv") == ["scans/1.png"]
    (tmp_path / "tables").mkdir()
    assert located(root, "../set/scans/1.png", csv="../tables/labels.csv") == ["scans/1.png"]


def test_two_places_that_both_fit_are_refused(make):
    root = make("a/1.png", "meta/a/1.png", "a/2.png", "meta/a/3.png")
    with pytest.raises(DataError, match="fit several files, such as 'a/1.png': a/1.png, meta/a/1.png"):
        located(root, "a/1.png", "a/2.png", "a/3.png", csv="meta/labels.csv")


def test_links(make, tmp_path):
    root = make("a/1.png", "b/2.png")
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "3.png").write_text("3")
    link = tmp_path / "link"
    for start in (root, link):
        for before in (root, link):
            assert located(start, f"{before}/a/1.png", f"{before}/b/2.png") == ["a/1.png", "b/2.png"]
    (root / "linked").symlink_to(tmp_path / "store")
    assert located(link, "linked/3.png") == ["linked/3.png"]
    assert located(link, f"{tmp_path}/store/3.png", "a/1.png") == ["linked/3.png", "a/1.png"]


@pytest.mark.parametrize("value", ["../1.png", "a/../../1.png", "/etc/1.png", "C:\\data\\1.png", "~/1.png", "/1.png"])
def test_a_path_that_leaves_the_folder(make, value):
    with pytest.raises(DataError, match="leaves the data folder.*labels_csv"):
        located(make("1.png", "a/1.png"), value)


def test_home_and_web(make, monkeypatch, tmp_path):
    root = make("1.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert located(root, "~/set/1.png") == ["1.png"]
    with pytest.raises(DataError, match="names a web address, not a file: 'https://x.org/set/1.png'"):
        located(root, "https://x.org/set/1.png")


def test_an_empty_path(make):
    with pytest.raises(DataError, match="1 rows of labels.csv name no picture"):
        located(make("1.png"), "1.png", " \u200b")


NAMES = st.text(st.sampled_from("ab1 .\u00e9\u0301-"), min_size=1, max_size=5).filter(
    lambda name: name.strip(" .") == name
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: "/".join(parts) + ".png")


@settings(max_examples=200)
@given(st.lists(PATHS, min_size=1, max_size=8, unique=True), PATHS)
def test_a_path_with_a_folder_is_never_another_folders_picture(paths, value):
    """Whatever the names, what is found for a path ends with all its folders and its name."""
    pictures = Pictures(paths, None)
    found = find_pictures([value], pictures)
    for path in [*found.paths.values(), *(path for several in found.several.values() for path in several)]:
        expected = [unicodedata.normalize("NFC", " ".join(part.split())) for part in value.split("/")]
        parts = [unicodedata.normalize("NFC", " ".join(part.split())) for part in path.split("/")]
        assert parts[-len(expected) :] == expected
    assert set(found.paths) | set(found.several) | set(found.missing) == {value}
    for path in paths:  # each is found by its own path, unless another differs only in what nobody sees
        assert find_pictures([path], pictures).paths.get(path) == path or "/" not in path


def test_many_folders_above_may_stand_before_a_path(make, monkeypatch):
    root = make("p/1.png", root="one/two/three")
    monkeypatch.chdir(root.parent.parent)
    assert located(root, "one/two/three/p/1.png", "three/p/1.png") == ["p/1.png", "p/1.png"]
    assert located(pathlib.Path("two") / "three", "two/three/p/1.png") == ["p/1.png"]
    assert located(pathlib.Path(os.curdir) / "two" / "three", "three/p/1.png") == ["p/1.png"]
    with pytest.raises(DataError, match="1 of 1 pictures"):
        located(root, "two/p/1.png")
