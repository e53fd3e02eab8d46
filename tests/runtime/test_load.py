"""L4: how many threads a forward pass takes when nobody says."""

from __future__ import annotations

import pytest

from otter_export.runtime import load


@pytest.mark.parametrize(
    ("value", "threads"),
    [("1", 1), ("16", 16), ("", None), ("0", None), ("many", None), ("99999", None), ("-2", None)],
)
def test_omp_num_threads_is_heeded(
    monkeypatch: pytest.MonkeyPatch, value: str, threads: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert load.checked_threads(None, None) == threads
