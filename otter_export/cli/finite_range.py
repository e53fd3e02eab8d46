"""Numbers of options: a range without NaN, which no comparison refuses, and without infinity."""

from __future__ import annotations

import math
from typing import Any

import click


class FiniteRange(click.FloatRange):
    """`click.FloatRange`, of finite numbers only."""

    def convert(self, value: Any, param: Any, ctx: click.Context | None) -> float:
        """Parse one value."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number
