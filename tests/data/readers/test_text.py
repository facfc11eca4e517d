"""Blanks and invisible characters do not make another name, and two spellings of a class are one class."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmed.data.readers.text import plain, spelling_key, spelt_as, unite_spellings

BLANKS = st.text(" \t\n\u00a0\u2003\u3000\u200b\u200d\ufeff\u2060", max_size=4)
WORDS = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=8).map(
    lambda word: unicodedata.normalize("NFC", word)
)


@given(BLANKS, WORDS, BLANKS, st.sampled_from(["NFC", "NFD"]))
def test_blanks_around_a_name_are_not_part_of_it(before, word, after, form):
    assert plain(before + unicodedata.normalize(form, word) + after) == word


@given(WORDS, st.text(" \t\u00a0\u2003", min_size=1, max_size=4), WORDS)
def test_blanks_inside_a_name_are_one_space(first, blanks, last):
    assert plain(first + blanks + last) == f"{first} {last}"
    assert plain(plain(first + blanks + last)) == f"{first} {last}"


@pytest.mark.parametrize(
    ("written", "other"),
    [
        ("Benign", "benign"),
        ("No Finding", "no finding"),
        ("No Finding", "No\u00a0Finding"),
        ("Ground glass", "Groundglass"),
        ("Mass", "\ufeffMass"),
        ("Mass", "Mass\u200b"),
        ("Mass", "mass."),
        ("0", "0.0"),
        ("-1", "-1.00"),
        ("M\u00e9lanome", "ME\u0301LANOME"),
    ],
)
def test_two_spellings_are_one_class(written, other):
    assert spelling_key(written) == spelling_key(other)
    united, notes = unite_spellings([other, written, written])
    assert set(united.values()) == {written}
    assert bool(notes) == (plain(other) != written)


@pytest.mark.parametrize(("one", "other"), [("1", "1.5"), ("12", "0012"), ("10", "1.0"), ("T1.0", "T1"), (".", "..")])
def test_other_numbers_are_other_names(one, other):
    assert spelling_key(one) != spelling_key(other)


@pytest.mark.parametrize("other", ["Pleural Thickening", "Pleural-Thickening", "Pleural_Thickening_"])
def test_underscores_and_hyphens_are_part_of_a_name(other):
    united, notes = unite_spellings(["Pleural_Thickening", other])
    assert united == {"Pleural_Thickening": "Pleural_Thickening", other: other} and notes == ()


def test_the_spelling_of_most_images_is_kept_and_a_note_says_so():
    united, (note,) = unite_spellings(["benign", "Benign", "Benign", "other"])
    assert united == {"benign": "Benign", "Benign": "Benign", "other": "other"}
    assert "'benign' is read as 'Benign'" in note and "class_names" in note
    assert unite_spellings(["b", "B"])[0] == unite_spellings(["B", "b"])[0] == {"b": "B", "B": "B"}


def test_class_names_decide_the_spelling_and_may_keep_two_apart():
    united, notes = unite_spellings(["Benign", "Benign", "x"], ["benign", "malignant"])
    assert united == {"Benign": "benign", "x": "x"} and len(notes) == 1
    assert unite_spellings(["a", "A", "a "], ["a", "A"]) == ({"a": "a", "A": "A", "a ": "a"}, ())


def test_texts_are_spelt_as_those_that_are_known():
    known = ["a/e\u0301.png", "b 1.png"]
    assert spelt_as(["a/\u00e9.png ", "b\u00a01.png", "c.png", "b 1.png"], known) == [*known, "c.png", "b 1.png"]
