"""Files are written whole or not at all, whatever happens meanwhile."""

import errno
import json
import os
import pathlib
import signal

import numpy as np
import pandas as pd
import pytest

from kmed import files, reading
from kmed.errors import RunError
from kmed.files import (
    clear_leftovers,
    exclusive,
    is_vacant,
    made,
    point_latest,
    replacing,
    temporary_folder,
    write_json,
    write_text,
)
from kmed.locks import try_lock


def full_disk(temporary):
    temporary.write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_target_of_a_link_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with replacing(tmp_path / "link") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_file_appears_whole(tmp_path):
    write_text(tmp_path / "deep" / "a.txt", "ä")
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "ä"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"]


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RunError, match="disk is full"), replacing(tmp_path / "a.txt") as temporary:
        full_disk(temporary)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_any_error_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "x").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_replaces_a_folder(tmp_path):
    for text in ("one", "two"):
        with replacing(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["two"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_parent_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "a")


def test_json_takes_numpy_and_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": np.float32(0.5), "y": [float("nan"), np.array([1, 2])], "z": np.nan})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.5, "y": [None, [1, 2]], "z": None}


def test_a_link_itself_can_be_replaced(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with replacing(tmp_path / "latest", follow=False) as temporary:
            temporary.symlink_to(name)
    assert str((tmp_path / "latest").readlink()) == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "one", "two"]


def test_a_folder_that_another_process_puts_there_meanwhile_is_replaced(tmp_path):
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "mine").touch()
        write_text(tmp_path / "folder" / "theirs", "x")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "mine"]


# ----- what dead processes leave -----


def killed(work) -> None:
    """Calls `work` in a process that is killed there, or at the end of it."""
    process = os.fork()
    if process == 0:
        try:
            work()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def die(*arguments, **settings):
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(path: pathlib.Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half")
        die()


def forget(folder) -> None:
    """Lets the next write clear `folder`, as it would in a new process."""
    files._clear_once.cache_clear()


def test_the_next_write_clears_what_a_killed_process_left(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    killed(lambda: half_written(tmp_path / "a.txt"))
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    forget(tmp_path)
    write_text(tmp_path / "b.txt", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_what_a_living_process_writes_is_never_cleared(tmp_path):
    ready, go_on = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("theirs")
            os.write(ready[1], b".")
            os.read(go_on[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    clear_leftovers(tmp_path)
    write_text(tmp_path / "b.txt", "ours")
    assert not is_vacant(tmp_path)
    os.write(go_on[1], b".")
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert (tmp_path / "a.txt").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_a_folder_that_a_killed_process_moved_aside_comes_back(tmp_path, monkeypatch):
    write_text(tmp_path / "folder" / "old", "x")

    def replace():
        moved = pathlib.Path.replace

        def move(self, target):
            die() if self.parent.name == "new" else moved(self, target)

        pathlib.Path.replace = move
        with replacing(tmp_path / "folder") as temporary:
            temporary.mkdir()

    killed(replace)
    assert not (tmp_path / "folder").exists()
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "old"]


def test_a_temporary_folder_of_the_system_is_cleared_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))

    def make():
        with temporary_folder() as folder:
            (folder / "pictures.npy").write_text("x")
            die()

    killed(make)
    assert len(list(tmp_path.iterdir())) == 1
    forget(tmp_path)
    with temporary_folder() as folder:
        assert list(tmp_path.iterdir()) == [folder] and folder.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


OURS, THEIRS = f".kmed-{files._host()}-0123abcd.tmp", ".kmed-elsewhere-0123abcd.tmp"
DAY = 24 * 60 * 60
# What is there -> (its files, their age in seconds, what is there after a clearing).
LEFT = {
    "a file half written": ([f"{OURS}/lock", f"{OURS}/new/a.txt"], 0, []),
    "a folder half written": ([f"{OURS}/lock", f"{OURS}/new/a/b/c.txt"], 0, []),
    "killed before it had a lock": ([f"{OURS}/new/a.txt"], 0, []),
    "killed after the renaming": ([f"{OURS}/lock", "a.txt"], 0, ["a.txt"]),
    "moved aside": ([f"{OURS}/lock", f"{OURS}/old/a/b.txt", f"{OURS}/new/a/c.txt"], 0, ["a/b.txt"]),
    "moved aside and replaced": ([f"{OURS}/lock", f"{OURS}/old/a/b.txt", "a/c.txt"], 0, ["a/c.txt"]),
    "of another machine, new": ([f"{THEIRS}/lock", f"{THEIRS}/new/a"], 0, [f"{THEIRS}/lock", f"{THEIRS}/new/a"]),
    "of another machine, old": ([f"{THEIRS}/lock", f"{THEIRS}/new/a.txt"], 2 * DAY, []),
    "a lock file": ([".kmed-lock", ".rows.csv.kmed-lock", "rows.csv"], 0, ["rows.csv"]),
    "of kmed 0.1, new": ([".a.123.tmp.npz", ".a.123.old/b"], 0, [".a.123.old/b", ".a.123.tmp.npz"]),
    "of kmed 0.1, old": ([".a.1.tmp.npz", ".model.9.tmp.keras", ".a.12.old/b", "a", ".latest.9"], 2 * DAY, ["a"]),
    "moved aside by kmed 0.1": ([".a.123.old/b", ".a.123.tmp/b/c"], 2 * DAY, ["a/b"]),
    "a user's own": ([".a.tmp", ".kmed-notes", "a.123.tmp", ".cache/b"], 2 * DAY, None),
}


@pytest.mark.parametrize("name", LEFT)
def test_only_what_surely_is_left_is_cleared(tmp_path, name):
    there, age, expected = LEFT[name]
    for file in there:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("x")
    for path in tmp_path.rglob("*"):
        os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
    clear_leftovers(tmp_path)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == (sorted(there) if expected is None else expected)
    assert expected is None or not list(tmp_path.glob(".kmed-elsewhere*")) or age == 0


def test_what_another_machine_changed_today_or_locks_stays(tmp_path):
    write_text(tmp_path / THEIRS / "new" / "a.txt", "x")
    for path in (tmp_path / THEIRS / "new", tmp_path / THEIRS):
        os.utime(path, (0, 0))
    clear_leftovers(tmp_path)
    assert (tmp_path / THEIRS / "new" / "a.txt").exists()  # the file is new
    os.utime(tmp_path / THEIRS / "new" / "a.txt", (0, 0))
    lock = try_lock(tmp_path / THEIRS / "lock")
    os.utime(tmp_path / THEIRS, (0, 0))
    clear_leftovers(tmp_path)
    assert (tmp_path / THEIRS).exists()
    lock.release()
    os.utime(tmp_path / THEIRS, (0, 0))
    clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_with_the_name_of_a_temporary_folder_is_not_followed(tmp_path):
    write_text(tmp_path / "mine" / "a.txt", "x")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / OURS).symlink_to(tmp_path / "mine")
    clear_leftovers(tmp_path / "here")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["a.txt"]


def test_without_locks_only_the_age_decides(tmp_path, monkeypatch):
    def no_locks(file, wait):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("kmed.locks._lock", no_locks)
    write_text(tmp_path / "a.txt", "whole")  # writing works
    write_text(tmp_path / OURS / "new" / "a.txt", "x")
    clear_leftovers(tmp_path)
    assert (tmp_path / OURS / "new" / "a.txt").exists()
    for path in [*tmp_path.rglob(f"{OURS}/**/*"), tmp_path / OURS]:
        os.utime(path, (0, 0))
    clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_with_leftovers_only_is_vacant(tmp_path):
    assert is_vacant(tmp_path) and is_vacant(tmp_path / "new")
    killed(lambda: half_written(tmp_path / "a.txt"))
    assert is_vacant(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert not is_vacant(tmp_path) and not is_vacant(tmp_path / "notes.txt")


def test_one_process_at_a_time_is_in_a_folder(tmp_path):
    with exclusive(tmp_path, taken="busy"):
        with pytest.raises(RunError, match="busy"), exclusive(tmp_path, taken="busy"):
            pass
        clear_leftovers(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1  # the lock is held
    assert list(tmp_path.iterdir()) == []

    def hold():
        with exclusive(tmp_path, taken="busy"):
            die()

    killed(hold)
    with exclusive(tmp_path, taken="busy"):
        pass
    assert list(tmp_path.iterdir()) == []


NAMES = (
    b"plain.png", "gr\u00f6\u00dfe.png".encode(), b"gr\xf6sse.png", b"\xff\xfe", b"a\xe4b\xf6c", b"\x80", b"\xc3(",
    b"\xed\xa0\x80", "\u7ec6\u80de".encode() + b"\xb2", "\ufffd.png".encode(), "\ufffdsse".encode(), b"%F6", b"\\xf6",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_file_is_text_from_which_it_is_found_again(name, tmp_path):
    try:
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes no such name")
    (path,) = tmp_path.iterdir()
    text = files.name_as_text(path.name)
    assert text.encode() and os.fsencode(files.text_as_name(text)) == name
    files.write_text(tmp_path / "out.txt", path.name)
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == text
    files.write_json(tmp_path / "out.json", {"name": path.name})
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == {"name": text}
    files.write_frame(tmp_path / "out.csv", pd.DataFrame({"reason": [f"{path.name} is damaged"]}))
    assert (tmp_path / "out.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "cell", ["plain", "two\nlines", "a\rreturn", "both\r\n", '"quoted"', "a,b", "\r", "\u2028", " "]
)
def test_each_text_is_read_back_from_a_csv(tmp_path, cell):
    frame = pd.DataFrame({"name": [cell, "x"], f"prob_{cell}": ["0.1", "0.25"]})
    files.write_frame(tmp_path / "out.csv", frame.astype({f"prob_{cell}": float}))
    pd.testing.assert_frame_equal(reading.read_csv(tmp_path / "out.csv"), frame, check_dtype=False)


def test_the_digest_of_a_file_is_its_sha_256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # from FIPS 180-2
    assert files.digest_of(tmp_path / "abc") == known


def test_a_folder_that_was_made_in_vain_is_removed_but_for_what_it_holds(tmp_path):
    with pytest.raises(RunError, match="in vain"), made(tmp_path / "a" / "b"):
        raise RunError("in vain")
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunError, match="in vain"), made(tmp_path / "a" / "b"):
        write_text(tmp_path / "a" / "kept", "")
        raise RunError("in vain")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]
    expected = pytest.raises(RunError, match="kept cannot be created: File exists. Choose another --out")
    with expected, made(tmp_path / "a" / "kept"):
        pass


def test_latest_is_the_newest_and_a_folder_of_that_name_stays(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        point_latest(tmp_path / name)
        assert (tmp_path / "latest").resolve() == tmp_path / name
    point_latest(tmp_path / "latest")  # as --resume names it
    assert (tmp_path / "latest").resolve() == tmp_path / "two"
    assert len(list(tmp_path.iterdir())) == 3
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    point_latest(tmp_path / "one")
    assert not (tmp_path / "latest").is_symlink()
