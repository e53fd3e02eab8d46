"""L0: values that callers give: numpy's numbers count, wrong ones have an error with their name."""

from __future__ import annotations

import fractions
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_export.arguments import flag, integer, number, path_argument
from otter_export.errors import RequestError


class Rude:
    def __index__(self) -> int:
        raise RuntimeError("no")

    def __float__(self) -> float:
        raise RuntimeError("no")

    def __fspath__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_integers_of_numpy_become_pythons(value: Any) -> None:
    found = integer("n", value, least=1)
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize(
    "value",
    [
        True,
        np.True_,
        3.0,
        np.float32(3),
        "3",
        None,
        [3],
        np.array([3]),
        Rude(),
        0,
        pytest.param(-(10**5000), id="digits"),
    ],
)
def test_other_values_are_no_integers(value: Any) -> None:
    with pytest.raises(RequestError, match=r"^n must be an integer of at least 1, got "):
        integer("n", value, least=1)


def test_an_integer_of_many_digits_has_a_message() -> None:
    with pytest.raises(
        RequestError, match="of at most 9223372036854775807, got an integer of about"
    ):
        integer("n", 10**5000, least=1)


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.float16(0.5), fractions.Fraction(1, 2), np.array(0.5)]
)
def test_numbers_of_numpy_become_pythons(value: Any) -> None:
    found = number("x", value, above=0, maximum=1)
    assert (found, type(found)) == (0.5, float)


@pytest.mark.parametrize(
    "value",
    [
        True,
        "0.5",
        None,
        0,
        1.5,
        float("nan"),
        np.float32("inf"),
        pytest.param(10**5000, id="digits"),
        1j,
        [0.5],
        Rude(),
    ],
)
def test_other_values_are_no_numbers(value: Any) -> None:
    with pytest.raises(
        RequestError, match=r"^x must be a finite number above 0 and at most 1, got "
    ):
        number("x", value, above=0, maximum=1)


def test_flags() -> None:
    assert flag("f", np.True_) is True
    with pytest.raises(RequestError, match="f must be true or false, got 1"):
        flag("f", 1)


def test_paths() -> None:
    assert path_argument("p", "a/b") == path_argument("p", Path("a/b")) == Path("a/b")
    for value in (3, None, b"a", "a\0b", "\ud800", "x" * 300, Rude()):
        with pytest.raises(RequestError, match=r"p must be a path, as text or pathlib.Path, got "):
            path_argument("p", value)
