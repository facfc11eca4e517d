"""The scores as text: one line per class, in columns of equal width."""

import pytest

from kmed.evaluation.summary import aligned


@pytest.mark.parametrize("name", ["two\nlines", "carriage\rreturn", "one\u2028more", "a\ttab", "\x1b[31mred"])
def test_a_row_is_one_line_whatever_the_name_of_its_class(name):
    lines = aligned([("class", "recall"), (name, "0.5"), ("plain", "0.25")])
    assert len(lines) == len("\n".join(lines).splitlines()) == 3
    assert {line.rindex("0.") for line in lines[1:]} == {lines[0].index("recall")}
    assert all(line.isprintable() for line in lines)
