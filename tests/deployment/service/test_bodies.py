"""What is in the body of a request: a form or one picture, and everything that is neither."""

import pytest
from services import picture

from kmed.deployment.service.bodies import MOST_SCANS, RAW_NAME, Upload, check_kind, split_body
from kmed.deployment.service.limits import Limits, Refusal
from kmed.errors import DataError

TYPE = "multipart/form-data; boundary=edge"


def part(content=b"content", name='name="file"; filename="1.png"', more=b"") -> bytes:
    return b"--edge\r\nContent-Disposition: form-data; " + name.encode() + b"\r\n" + more + b"\r\n" + content + b"\r\n"


def split(body, content_type=TYPE, **limits):
    return split_body(content_type, body, Limits(**limits))


def test_a_form_gives_its_files_byte_for_byte():
    contents = [bytes(range(256)) * 9, b"\r\n--edg\r\n", b"\r\n--edge-not"]
    body = b"".join(part(content, f'name="f"; filename="{n}.png"') for n, content in enumerate(contents))
    assert split(body + b"--edge--\r\n") == [Upload(f"{n}.png", content) for n, content in enumerate(contents)]


@pytest.mark.parametrize(
    ("written", "name"),
    [('filename="smear 1.png"', "smear 1.png"), ('filename="Größe.png"', "Größe.png"), ('filename=""', RAW_NAME),
     ('filename="a..b.png"', "a..b.png")],
)  # fmt: skip
def test_the_name_of_a_file_is_kept(written, name):
    assert split(part(name=f'name="f"; {written}') + b"--edge--")[0].name == name


@pytest.mark.parametrize(
    "filename",
    ["../../etc/passwd", "/etc/passwd", "a/b.png", "..", ".", "a\\\\b.png", "a\tb.png", "a\x7f.png", "x" * 256],
)
def test_a_path_is_no_name(filename):
    with pytest.raises(Refusal, match="plain name") as caught:
        split(part(name=f'name="f"; filename="{filename}"') + b"--edge--")
    assert caught.value.status == 400 and "etc" not in caught.value.message


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "breaks off|not a form"),
        (b"no form at all", 400, "not a form"),
        (b"--edge--\r\n", 400, "holds no picture|not a form"),
        (part(), 400, "breaks off"),
        (part()[:-20], 400, "breaks off"),
        (part(name='name="path"') + b"--edge--", 400, "must be a file"),
        (part(more=b"no header\r\n") + b"--edge--", 400, "not a form"),
        (part(more=b"X: " + b"x" * 100_000 + b"\r\n") + b"--edge--", 400, "not a form"),
        (part(more=b"X: x\r\n" * 1000) + b"--edge--", 400, "not a form"),
        (part(b"") + b"--edge--", 400, "empty file"),
        (part() * 3 + b"--edge--", 413, "may have 2 pictures"),
    ],
    ids=["nothing", "text", "no part", "no end", "cut", "field", "bad header", "long header", "many headers", "empty",
         "many"],
)  # fmt: skip
def test_a_form_that_is_none(body, status, message):
    with pytest.raises(Refusal, match=message) as caught:
        split(body, max_pictures=2)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("content_type", "status"),
    [("text/html", 415), ("application/json", 415), ("", 415), ("multipart/mixed; boundary=edge", 415),
     ("multipart/form-data", 400), (f"multipart/form-data; boundary={'x' * 1000}", 400)],
)  # fmt: skip
def test_another_type_of_body(content_type, status):
    with pytest.raises(Refusal) as caught:
        split(part() + b"--edge--", content_type)
    assert caught.value.status == status


def test_a_body_of_one_picture_whatever_the_case_of_its_type():
    assert split(b"bytes", "Image/PNG; charset=x") == [Upload(RAW_NAME, b"bytes")]


def test_only_four_kinds_of_files_are_decoded():
    for format in ("PNG", "JPEG", "TIFF"):
        check_kind(picture(format=format))
    check_kind(bytes(128) + b"DICM")
    for content in (picture(format="GIF"), picture(format="BMP"), b"%!PS-Adobe-3.0 EPSF-3.0", b"<svg/>", b"", b"P6 9"):
        with pytest.raises(DataError, match="not a JPEG, PNG, TIFF or DICOM file"):
            check_kind(content)


def test_a_jpeg_of_many_scans_is_not_decoded():
    content = picture(format="JPEG", progressive=True)
    check_kind(content)
    with pytest.raises(DataError, match=f"{MOST_SCANS} are decoded at most"):
        check_kind(content + b"\xff\xda" * MOST_SCANS)
