"""L0: a short form of the fuzz suite, `make fuzz`: ours are the only errors, within limits."""

from __future__ import annotations

import pytest

from tests.fuzz.kinds import KINDS
from tests.fuzz.runner import fuzz

#: Cases of each kind: a minute of processor time, most of it for the import of libraries.
_CASES = {kind: 40 for kind in KINDS} | {"api": 600, "prompts": 200, "requests": 150}
_CASES |= {"engines": 20, "benchmarks": 20}


@pytest.mark.parametrize("kind", KINDS)
def test_only_our_errors_within_limits(kind: str) -> None:
    figures = fuzz(kind, range(_CASES[kind]))
    assert figures.right, figures
    assert figures.accepted + figures.refused == _CASES[kind]
    # A kind that is always refused at once, or never, tests little.
    assert figures.refused
