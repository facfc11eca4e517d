"""The run folder: its row of results as text, and the split that speaks for it."""

import os
import signal

import pandas as pd
import pytest

from kmed.errors import RunError
from kmed.files import write_text
from kmed.runs import Run, claimed, clear_run, has_ended, held, judged_split, open_run, written_whole


def test_the_row_of_results_is_read_as_text(tmp_path):
    row = {"model": "vit", "accuracy": 0.1 + 0.2, "note": 'a "b", c\nd', "empty": "", "known": "nan", "learnt": True}
    pd.DataFrame([row]).to_csv(tmp_path / "result.csv", index=False)
    read = Run(tmp_path).read_result()
    assert list(read) == list(row)
    assert read == {key: str(value) for key, value in row.items()}
    assert pd.read_csv(tmp_path / "result.csv", dtype=str, keep_default_na=False).iloc[0].to_dict() == read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: .*No such file"),
        (b"", "cannot be read: it is empty"),
        (b"model,task\n", "is not one row of results"),
        (b"model,task\nvit,multiclass\nvit,multiclass\n", "is not one row of results"),
        (b"model,task\nvit\n", "has 1 cells in row 1, but 2 columns"),
        (b"model,task\nvit,multiclass,more\n", "has 3 cells in row 1, but 2 columns"),
        (b"model,task\n\xff\xfe,x\n", "cannot be read"),
        (b'model,task\n"vit,x\n', "cannot be read"),
    ],
)
def test_a_damaged_row_of_results_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "result.csv").write_bytes(content)
    with pytest.raises(RunError, match=f"{message}.*The run folder is damaged") as caught:
        Run(tmp_path).read_result()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("splits", "expected"), [({"train", "val", "test"}, "test"), (["val"], "val"), ({}, "val")])
def test_the_test_split_speaks_for_a_run(splits, expected):
    assert judged_split(splits) == expected


# ----- who may write into a folder -----


def test_a_folder_is_claimed_by_one_process_at_a_time(tmp_path):
    with claimed(tmp_path / "run") as run:
        write_text(run.config, "")
        with (
            pytest.raises(RunError, match="Another process is training .*run. Wait for it, or stop it first."),
            held(run),
        ):
            pass
        with pytest.raises(RunError, match="holds another run"), claimed(tmp_path / "run"):
            pass
    assert [path.name for path in run.folder.iterdir()] == ["config.yaml"]


def test_what_a_killed_process_left_before_its_run_began_is_no_obstacle(tmp_path):
    process = os.fork()
    if process == 0:
        try:
            with claimed(tmp_path / "run"):
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert list((tmp_path / "run").iterdir())  # the lock file
    with pytest.raises(RunError, match="run is empty: no training has begun in it. Begin one with: kmed train --out"):
        open_run(tmp_path / "run")
    with claimed(tmp_path / "run") as run:
        write_text(run.config, "")


@pytest.mark.parametrize("name", ["notes.txt", "splits.csv", "environment.json", ".hidden"])
def test_a_users_files_are_never_taken_for_an_unfinished_run(tmp_path, name):
    write_text(tmp_path / "run" / name, "mine")
    with pytest.raises(RunError, match="is not empty"), claimed(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / name).read_text() == "mine"


def test_a_run_is_written_whole_or_not_at_all(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RunError, match="in the middle"), written_whole(out) as run:
        write_text(run.config, "half")
        raise RunError("in the middle")
    assert not list(tmp_path.iterdir())
    with written_whole(out) as run:
        write_text(run.config, "whole")
        assert not out.exists()
        with pytest.raises(RunError, match="Another process is writing .*run. Wait for it"), written_whole(out):
            pass
    assert (out / "config.yaml").read_text() == "whole" and list(tmp_path.iterdir()) == [out]
    with pytest.raises(RunError, match="holds another run"), written_whole(out):
        pass


def test_a_run_has_ended_when_its_checkpoints_are_gone(tmp_path):
    run = Run(tmp_path)
    assert not has_ended(run)
    run.checkpoints.mkdir()
    write_text(run.result, "")
    assert not has_ended(run)
    run.checkpoints.rmdir()
    assert has_ended(run)


def test_a_run_is_cleared_below_and_beside_it(tmp_path):
    left = ".kmed-elsewhere-0123abcd.tmp"
    folders = [tmp_path, tmp_path / "run", tmp_path / "run" / "figures", tmp_path / "run" / "export" / "a" / "b"]
    for folder in folders:
        write_text(folder / left / "new" / "x", "")
        write_text(folder / "kept", "")
        for path in (folder / left / "new" / "x", folder / left / "new", folder / left):
            os.utime(path, (0, 0))
    clear_run(Run(tmp_path / "run"))
    assert [(folder / left).exists() for folder in folders] == [False] * 4
    assert all((folder / "kept").exists() for folder in folders)
