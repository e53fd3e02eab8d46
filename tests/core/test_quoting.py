"""L0: foreign text in messages: quoted, cut, one line, nothing that a terminal obeys."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.errors import OtterError
from otter_export.quoting import listed, nearest, one_line, quoted


class Rude:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        (3, "3"),
        (None, "None"),
        ("a\0\x1b[31m\u202eb\n", r"'a\x00\x1b[31m\u202eb\n'"),
        ("\ud800", r"'\ud800'"),
        ("x" * 100, "'" + "x" * 80 + "'..."),
        (b"\xff", r"b'\xff'"),
        pytest.param(10**5000, "an integer of about 5001 digits", id="digits"),
        ([10**5000], "[an integer of about 5001 digits]"),
        (list(range(10**6)), "[0, 1, 2, 3, 4, 5, ...]"),
        ({"a": [1, "b"]}, "{'a': [1, 'b']}"),
    ],
)
def test_quoted(value: object, text: str) -> None:
    assert quoted(value) == text


def test_a_value_that_cannot_be_written_is_named_by_its_type() -> None:
    assert "Rude" in quoted(Rude())


@given(
    st.one_of(st.text(), st.binary(), st.lists(st.text()), st.dictionaries(st.text(), st.text()))
)
def test_quoted_is_short_and_visible(value: Any) -> None:
    text = quoted(value)
    assert text.isprintable()
    assert len(text) < 1000


@given(st.text(st.characters(), max_size=50))
def test_errors_are_one_visible_line(text: str) -> None:
    message = str(OtterError(text))
    assert message.isprintable()
    assert len(message) <= 10 * len(text)


def test_errors_are_cut() -> None:
    message = str(OtterError("begin " + "x" * 10**7 + " end"))
    assert len(message) == 4003
    assert message.startswith("begin xx") and message.endswith("xx end")


def test_texts_of_people_stay_as_they_are() -> None:
    assert one_line("Größe  ≤\n3 für «名»") == "Größe ≤ 3 für «名»"


def test_long_lists_are_cut() -> None:
    assert listed({"b", "a"}) == "a, b"
    assert listed(f"n{i:02}" for i in range(12)).endswith("n09, and 2 more")


def test_spelling_is_not_looked_at_in_what_is_no_name() -> None:
    assert nearest("temprature", ["temperature", "seed"]) == "temperature"
    started = time.perf_counter()
    assert nearest("temperature" * 10**6, ["temperature"]) is None
    assert time.perf_counter() - started < 1.0
