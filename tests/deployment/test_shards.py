"""Predicting in parts: which pictures a part has, and how the parts are joined to the file of one command."""

import itertools

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import kmed
from kmed.cli.main import main
from kmed.deployment import shards
from kmed.errors import ConfigError, DataError


def predict(*arguments):
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


@pytest.fixture
def pictures(tmp_path):
    """Seven pictures, one of which cannot be read, and a manifest of them beside their folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(7):
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), np.uint8)).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"no picture")
    (tmp_path / "list.txt").write_text("".join(f"pictures/{number}.png\n" for number in range(7)))
    return folder


@given(st.integers(0, 40), st.integers(1, 12))
def test_all_parts_are_the_whole_and_equal_in_size(count, number):
    paths = [str(row) for row in range(count)]
    parts = [shards.take_shard(paths, f"{index}/{number}") for index in range(1, number + 1)]
    assert list(itertools.chain(*parts)) == paths
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("form", ["--csv", "--json"])
def test_joined_parts_are_the_file_of_one_command(short_run, pictures, tmp_path, form):
    whole = predict(short_run.folder, pictures, form, "--out", tmp_path / "whole.txt")
    for index in (2, 1, 3):
        part = predict(short_run.folder, pictures, form, "--shard", f"{index}/3", "--out", tmp_path / "joined.txt")
        assert (part.exit_code, f"joined-{index}-of-3.txt" in part.output) == (int(index == 2), True), part.output
    merged = predict("--merge", tmp_path / "joined.txt")
    assert (whole.exit_code, merged.exit_code) == (1, 0), merged.output
    # Two parts predict in other batches, so the last digits may differ.
    lines = [(tmp_path / name).read_text().splitlines() for name in ("whole.txt", "joined.txt")]
    assert [line.split(",")[0] for line in lines[0]] == [line.split(",")[0] for line in lines[1]]
    assert len(lines[0]) == 7 + (form == "--csv")


def test_a_manifest_gives_the_same_pictures(short_run, pictures, tmp_path):
    expected = [answer.path for answer in kmed.classify_files(short_run.folder, [pictures])]
    (tmp_path / "list.csv").write_text("id,path\n" + "".join(f"{n},pictures/{n}.png\n" for n in range(7)))
    for name in ("list.txt", "list.csv"):
        answers = list(kmed.classify_files(short_run.folder, manifest=tmp_path / name))
        assert [answer.path for answer in answers] == expected
    part = list(kmed.classify_files(short_run.folder, manifest=tmp_path / "list.txt", shard="7/8"))
    assert [answer.path for answer in part] == [expected[5]]
    assert list(kmed.classify_files(short_run.folder, manifest=tmp_path / "list.txt", shard="1/8")) == []


def test_a_picture_of_a_manifest_that_does_not_exist_is_named(short_run, pictures, tmp_path):
    (tmp_path / "list.txt").write_text(f"pictures/0.png\n\n{tmp_path}/gone.png\n")
    answers = list(kmed.classify_files(short_run.folder, manifest=tmp_path / "list.txt"))
    assert [bool(answer.error) for answer in answers] == [False, True] and "gone.png" in answers[1].error


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3/5"])
def test_a_shard_is_i_of_n(shard):
    with pytest.raises(ConfigError, match="shard must be I/N"):
        shards.parse_shard(shard)


def test_mistakes_are_one_line(short_run, pictures, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "other.csv").write_text("file\nx.png\n")
    for arguments, message in (
        ([], "Give the folder of a run"),
        ([short_run.folder], "nothing to predict"),
        ([short_run.folder, pictures, "--shard", "1/3"], "--shard needs --out"),
        ([short_run.folder, pictures, "--shard", "1/3", "--by", "folder", "--out", "x"], "--by needs all pictures"),
        ([short_run.folder, "--manifest", tmp_path / "gone.txt"], "gone.txt cannot be read"),
        ([short_run.folder, "--manifest", tmp_path / "empty.txt"], "lists no pictures"),
        ([short_run.folder, "--manifest", tmp_path / "other.csv"], "no column 'path'"),
        (["--merge", tmp_path / "whole.csv", "--csv"], "Received, too: as_csv"),
        ([short_run.folder, "--merge", tmp_path / "whole.csv"], "Received, too: run_folder"),
        (["--merge", tmp_path / "whole.csv"], "There are no parts of"),
    ):
        result = predict(*arguments)
        assert result.exit_code in (1, 2) and message in result.output, result.output
        assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)


def write_parts(folder, number, header="path,found,x", left_out=()):
    for index in range(1, number + 1):
        if index not in left_out:
            (folder / f"a-{index}-of-{number}.csv").write_text(f"{header}\n{index}.png,red,1\n")


def test_parts_that_do_not_fit_are_refused(tmp_path):
    write_parts(tmp_path, 3, left_out=(2,))
    with pytest.raises(DataError, match=r"a-2-of-3.csv is missing\. Make it"):
        kmed.merge_shards(tmp_path / "a.csv")
    write_parts(tmp_path, 3)
    (tmp_path / "a-3-of-3.csv").write_text("path,found,y\n3.png,red,1\n")
    with pytest.raises(DataError, match="a-1-of-3.csv and .*a-3-of-3.csv have different columns"):
        kmed.merge_shards(tmp_path / "a.csv")
    write_parts(tmp_path, 2)
    with pytest.raises(DataError, match="parts of 2 and of 3"):
        kmed.merge_shards(tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()


def test_ten_parts_are_joined_in_their_order(tmp_path):
    write_parts(tmp_path, 11)
    joined = kmed.merge_shards(tmp_path / "a.csv")
    assert [line.split(".")[0] for line in joined.read_text().splitlines()[1:]] == [str(n) for n in range(1, 12)]
