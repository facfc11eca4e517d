"""The token comes from a file or the environment, and is compared whole."""

import hmac

import pytest
from services import TOKEN

from kmed.deployment.service import tokens
from kmed.deployment.service.tokens import VARIABLE, is_token, read_token
from kmed.errors import ConfigError


def test_it_is_read_from_one_place(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    file = tmp_path / "token.txt"
    file.write_text(f"{TOKEN}\n")
    assert read_token() is None and read_token(file) == TOKEN
    monkeypatch.setenv(VARIABLE, TOKEN + "2")
    assert read_token() == TOKEN + "2"
    with pytest.raises(ConfigError, match="given twice, in KMED_TOKEN and in"):
        read_token(file)


@pytest.mark.parametrize("content", [b"", b"short", b"\n", b"with a space " * 3, b"tab\there" * 3, b"\x00" * 20])
def test_one_that_is_no_token_is_one_line_without_it(tmp_path, monkeypatch, content):
    monkeypatch.delenv(VARIABLE, raising=False)
    file = tmp_path / "token.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="at least 16 ASCII characters and no spaces") as caught:
        read_token(file)
    assert not content.strip() or content.decode() not in str(caught.value)


def test_an_empty_variable_is_not_no_token(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(ConfigError, match="The token in KMED_TOKEN must have"):
        read_token()


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="No such file"):
        read_token(tmp_path / "none.txt")
    (tmp_path / "token.txt").write_bytes(b"\xff" * 20)
    with pytest.raises(ConfigError, match="it is not ASCII"):
        read_token(tmp_path / "token.txt")


def test_the_comparison_takes_the_same_time_for_every_header(monkeypatch):
    compared = []

    def compare(one, other):
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(tokens, "hmac", type("", (), {"compare_digest": staticmethod(compare)}))
    headers = [f"Bearer {TOKEN}", f"bearer {TOKEN}", TOKEN, "", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}"]
    assert [is_token(header.encode(), TOKEN) for header in headers] == [True, True, *[False] * 5]
    assert not is_token(b"Bearer \xff\xfe", TOKEN)
    assert compared == [(32, 32)] * 8
