"""Options that name a signal, its objective and a file: ``SIGNAL[:OBJECTIVE[:WEIGHT]]=FILE``."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import click

from otter_export.modeling.objectives import OBJECTIVES


@dataclasses.dataclass(frozen=True)
class TaskOption:
    """What was given.

    Args:
        signal: Its name; None: the checkpoint's first.
        objective: Its name; None: the default of the signal's kind.
        file: JSON lines.
        weight: Of the loss.
    """

    signal: str | None
    objective: str | None
    file: Path
    weight: float = 1.0


class TaskType(click.ParamType[TaskOption]):
    """Parses such an option.

    Args:
        weighted: Whether a weight may follow the objective.
    """

    def __init__(self, weighted: bool) -> None:
        self.form = f"SIGNAL[:OBJECTIVE{'[:WEIGHT]' * weighted}]=FILE"
        self.name, self._most = self.form, 3 if weighted else 2

    def convert(
        self, value: object, parameter: click.Parameter | None, context: click.Context | None
    ) -> TaskOption:
        """Parse one option; names of signals are compared with the checkpoint's later."""
        if isinstance(value, TaskOption):
            return value
        names, equals, file = str(value).partition("=")
        parts = names.split(":")
        if not (equals and file and all(parts) and len(parts) <= self._most):
            self.fail(f"{str(value)!r} is not {self.form}", parameter, context)
        signal, objective, weight = (*parts, None, None)[:3]
        assert signal is not None
        if objective is not None and objective not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            self.fail(f"unknown objective {objective!r}; accepted: {known}", parameter, context)
        return TaskOption(signal, objective, Path(file), self._weight(weight, parameter, context))

    def _weight(
        self, text: str | None, parameter: click.Parameter | None, context: click.Context | None
    ) -> float:
        if text is None:
            return 1.0
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            self.fail(f"the weight must be a number above 0, got {text!r}", parameter, context)
        return weight
