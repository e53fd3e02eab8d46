"""L0: tables, sizes and counts as people read them."""

from __future__ import annotations

import pytest

from otter_export.cli.table import human_bytes, human_count, table


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 K"),
        (18_348_289, "18.3 M"),
        (999_999, "1 M"),
        (70_553_706_496, "70.6 G"),
    ],
)
def test_counts(count: int, expected: str) -> None:
    assert human_count(count) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (538_060_032, "513.1 MiB"),
        (3 << 40, "3.0 TiB"),
    ],
)
def test_sizes(count: int, expected: str) -> None:
    assert human_bytes(count) == expected


def test_columns_of_numbers_are_set_to_the_right() -> None:
    assert table([["a", "1", "x1"], ["long", "23", ""]], ["name", "n", "text"]).splitlines() == [
        "name   n  text",
        "----  --  ----",
        "a      1  x1",
        "long  23",
    ]
    assert table([], ["only", "header"]).splitlines() == ["only  header", "----  ------"]
