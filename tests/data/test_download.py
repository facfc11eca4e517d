"""Downloads with Kaggle's client replaced: no test touches the network."""

import pathlib

import kagglehub
import pytest
import requests

from kmed.data.download import SOURCES, download_data
from kmed.errors import DataError


def answer(monkeypatch, function):
    monkeypatch.setattr(kagglehub, "dataset_download", function)


def test_the_data_arrive_after_size_and_licence_are_printed(tmp_path, monkeypatch):
    lines, printed = [], []

    def send(handle, output_dir):
        printed.append(" ".join(lines))
        (pathlib.Path(output_dir) / "images").mkdir()
        (pathlib.Path(output_dir) / "images" / "x.png").write_bytes(b"x")
        (pathlib.Path(output_dir) / ".complete").mkdir()
        return output_dir

    answer(monkeypatch, send)
    monkeypatch.setattr("kmed.data.download.say", lines.append)
    assert download_data("nih-sample", tmp_path / "nih") == tmp_path / "nih"
    source = SOURCES["nih-sample"]
    assert source.size in printed[0]
    assert source.licence in printed[0]
    assert source.handle in printed[0]
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "nih",
        "nih/images",
        "nih/images/x.png",
    ]


def http_error(status):
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} for url", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (requests.ConnectionError("Max retries exceeded"), "Kaggle cannot be reached: there is no network"),
        (requests.Timeout("slow"), "Kaggle cannot be reached"),
        (http_error(403), "sign in .403."),
        (http_error(500), "did not send .* .500 for url"),
        (OSError("strange\nmore"), "did not send paultimothymooney/blood-cells .strange.\\."),
    ],
)
def test_failures_are_reported_and_leave_nothing(tmp_path, monkeypatch, error, message):
    def fail(handle, output_dir):
        (pathlib.Path(output_dir) / "half").write_bytes(b"x")
        raise error

    answer(monkeypatch, fail)
    with pytest.raises(DataError, match=message) as caught:
        download_data("blood-cells", tmp_path / "cells")
    assert "https://www.kaggle.com/datasets/paultimothymooney/blood-cells" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_answer_is_a_failure(tmp_path, monkeypatch):
    answer(monkeypatch, lambda handle, output_dir: output_dir)
    with pytest.raises(DataError, match="sent no files"):
        download_data("blood-cells", tmp_path / "cells")
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_and_folders_in_use(tmp_path):
    with pytest.raises(DataError, match="Did you mean 'blood-cells'"):
        download_data("blood_cells", tmp_path / "x")
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="already exists and was left unchanged"):
        download_data("blood-cells", tmp_path)
