"""The result of one check of `otter-export verify`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

#: Findings of one kind that a check lists.
SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a measured number may not exceed, and why that much."""

    value: float
    reason: str


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """One line of the report: many numbers, one of which decides.

    Args:
        name: The check.
        passed: None if the check was not run; ``notes`` say why.
        what: What was measured, in words.
        measured: The number that decides.
        limit: The most that it may be.
        numbers: Further numbers, for information.
        notes: Findings in words: near-ties, files that differ.
        seconds: What the check took.
    """

    name: str
    passed: bool | None
    what: str = ""
    measured: float | None = None
    limit: Limit | None = None
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For ``--json``; a number that is not finite becomes null, which JSON has."""
        data = dataclasses.asdict(self)
        limit = data.pop("limit")
        return {
            **data,
            "measured": _finite(self.measured),
            "limit": limit and limit["value"],
            "reason": limit and limit["reason"],
            "numbers": {name: _finite(value) for name, value in self.numbers.items()},
            "notes": list(self.notes),
        }


def decide(
    name: str,
    what: str,
    measured: float,
    limit: Limit,
    numbers: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
) -> CheckResult:
    """A result that passes if ``measured`` is at most the limit; NaN fails."""
    passed = bool(measured <= limit.value)
    return CheckResult(name, passed, what, measured, limit, numbers or {}, tuple(notes))


def none_may_differ(
    name: str, what: str, wrong: Sequence[str], reason: str, **numbers: float
) -> CheckResult:
    """A result that passes if the list of what is wrong is empty."""
    return decide(name, what, len(wrong), Limit(0, reason), numbers, shortened(wrong))


def not_run(name: str, why: str) -> CheckResult:
    """A result of a check that does not apply."""
    return CheckResult(name, None, notes=(why,))


def shortened(lines: Sequence[str]) -> tuple[str, ...]:
    """The first few lines, and how many there are more."""
    rest = len(lines) - SHOWN
    return (*lines[:SHOWN], *([f"and {rest} more"] if rest > 0 else []))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
