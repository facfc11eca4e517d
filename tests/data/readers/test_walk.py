"""Every picture is found once, behind links too; what is hidden is no data; a folder that cannot be opened is named."""

import os

import pytest
from PIL import Image

from kmed.data.readers.walk import is_hidden, is_image, subfolders, walk
from kmed.errors import DataError

DICOM = b"\0" * 128 + b"DICM" + b"\0" * 20


def write(root, *paths, content=b"picture"):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


@pytest.fixture
def root(tmp_path):
    """A folder of two pictures in two classes; tests add to it, and to its sibling `store`."""
    write(tmp_path / "set", "A/1.png", "B/2.JPG")
    write(tmp_path / "store", "3.png", "more/4.png")
    return tmp_path / "set"


def link(path, target):
    path.symlink_to(target, target_is_directory=True)


def test_all_that_a_folder_holds(root):
    write(root, "read me.txt", "A/Thumbs.db", "A/._1.png")
    (root / "empty").mkdir()
    found = walk(root)
    assert found.pictures == ["A/1.png", "B/2.JPG"]
    assert found.folders == ["A", "B", "empty"]
    assert found.others == ["read me.txt"]
    assert found.hidden == ["A/._1.png", "A/Thumbs.db"]
    assert found.notes() == ["Hidden files and folders are left out (1): A/._1.png."]


HIDDEN = (".ipynb_checkpoints", "__MACOSX", ".Trash", ".Trash-1000", "@eaDir", ".git", ".AppleDouble", "$RECYCLE.BIN")
HIDDEN += ("#recycle", "System Volume Information", "lost+found", "__pycache__", "@tmp")


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_folders_are_no_data(root, name):
    write(root, f"A/{name}/1-checkpoint.png", f"{name}/A/1.png")
    found = walk(root)
    assert found.pictures == ["A/1.png", "B/2.JPG"] and found.folders == ["A", "B"]
    assert any(f"A/{name}/" in note for note in found.notes())
    assert [folder.name for folder in subfolders(root)] == ["A", "B"]


def test_a_hidden_folder_may_itself_be_the_data(tmp_path):
    write(tmp_path, ".cache/set/A/1.png")
    assert walk(tmp_path / ".cache" / "set").pictures == ["A/1.png"]


@pytest.mark.parametrize("name", ["__x", "#1", "@home", "mask", "trash", "thumbs", "0", "a.b", " a", "ä", ".x"])
def test_only_known_names_are_hidden(name):
    assert is_hidden(name) == name.startswith(".")
    assert is_image(f"{name}.png") == (not name.startswith("."))


def test_linked_folders_and_files_are_followed(root):
    link(root / "A" / "more", root.parent / "store")
    (root / "B" / "5.png").symlink_to(root.parent / "store" / "3.png")
    found = walk(root)
    assert found.pictures == ["A/1.png", "A/more/3.png", "A/more/more/4.png", "B/2.JPG", "B/5.png"]
    assert found.links == ["A/more"] and found.notes() == ["Linked folders are followed (1): A/more."]
    assert found.repeated(found.pictures) == {"B/5.png": "A/more/3.png"}
    assert found.repeated(["B/5.png"]) == {}


def test_a_file_counts_where_it_lies_and_not_where_it_is_linked(root):
    link(root / "A" / "all", root / "B")
    found = walk(root)
    assert found.repeated(found.pictures) == {"A/all/2.JPG": "B/2.JPG"}


def test_the_folder_itself_may_be_a_link(root):
    link(root.parent / "link", root)
    assert walk(root.parent / "link").pictures == walk(root).pictures
    assert walk(root.parent / "link").real == {}


@pytest.mark.parametrize(
    ("path", "target"), [("A/up", ".."), ("A/up", "../.."), ("A/self", "."), ("A/root", "/"), ("A/b/up", "../../..")]
)
def test_links_that_lead_back_are_not_followed(root, path, target):
    (root / path).parent.mkdir(exist_ok=True)
    link(root / path, target)
    found = walk(root)
    assert found.pictures == ["A/1.png", "B/2.JPG"] and found.back == [path]
    assert found.notes() == [f"Links to a folder that is read already are not followed (1): {path}."]


def test_links_between_linked_folders_end(root):
    """Twelve folders outside that all link to each other would otherwise be read in 12! ways."""
    for number in range(12):
        write(root.parent, f"ring/{number}/{number}.png")
        for other in range(12):
            link(root.parent / "ring" / str(number) / f"to{other}", root.parent / "ring" / str(other))
    link(root / "A" / "ring", root.parent / "ring" / "0")
    found = walk(root)
    real = {found.real[path] for path in found.pictures if path in found.real}
    assert len(real) == 12 and len(found.pictures) == 2 + 12


def test_links_that_lead_nowhere_are_named(root):
    link(root / "A" / "gone", "nowhere")
    (root / "B" / "loop.png").symlink_to("loop.png")
    found = walk(root)
    assert found.pictures == ["A/1.png", "B/2.JPG"] and found.broken == ["A/gone", "B/loop.png"]
    assert found.notes() == ["Links that lead nowhere are left out (2): A/gone, B/loop.png."]


@pytest.mark.parametrize("name", ["IM000001", "1.2.840.113619.2.5", "I0000001.IMA", "scan.2", "00001"])
def test_dicom_without_a_suffix_is_known_by_its_bytes(root, name):
    write(root, f"A/{name}", content=DICOM)
    write(root, "A/DICOMDIR", "A/report.txt", content=DICOM)
    write(root, "A/README", "B/1.2.3")
    found = walk(root)
    assert found.pictures == sorted(["A/1.png", f"A/{name}", "B/2.JPG"]) and found.unnamed == [f"A/{name}"]
    assert found.others == ["A/DICOMDIR", "A/README", "A/report.txt", "B/1.2.3"]
    assert found.notes() == [
        f"Files without a suffix are read as pictures, since they start as pictures do (1): A/{name}."
    ]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF"])
@pytest.mark.parametrize("name", ["scan", "1.2.840.113619", "00012"])
def test_pictures_without_a_suffix_are_known_by_their_bytes(root, name, kind):
    Image.new("L", (4, 4)).save(root / "A" / name, kind)
    write(root, "A/LICENSE", content=b"BSD")
    found = walk(root)
    assert found.unnamed == [f"A/{name}"] and f"A/{name}" in found.pictures and found.others == ["A/LICENSE"]


def test_names_that_are_not_utf_8(root):
    name = os.fsdecode(b"A/caf\xe9.png")
    try:
        write(root, name)
    except OSError:
        pytest.skip("this file system holds only names in UTF-8")
    assert walk(root).pictures == ["A/1.png", name, "B/2.JPG"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_no_picture(root):
    os.mkfifo(root / "A" / "pipe.png")
    os.mkfifo(root / "A" / "pipe")
    assert walk(root).pictures == ["A/1.png", "B/2.JPG"]


def test_a_folder_that_cannot_be_opened(root, monkeypatch):
    whole = os.scandir
    locked = PermissionError(13, "Permission denied")

    def scandir(path):
        if os.fspath(path).endswith("B"):
            raise locked
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"The folder .*set/B cannot be opened \(Permission denied\). Allow it"):
        walk(root)
