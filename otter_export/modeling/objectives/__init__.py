"""Training objectives: losses, and the metrics that judge them.

A new one is one file here, one line below, its name in the kinds of signals that it trains
(`otter_export.signals.SignalKind.objectives`), a line in ``data.py`` and one test.
"""

from __future__ import annotations

from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.modeling.objectives.objective import Objective
from otter_export.modeling.training_config import TrainingConfig
from otter_export.registry import Registry
from otter_export.signals import Signal, kind_of

__all__ = ["OBJECTIVES", "Objective", "check_objective", "objective_for"]

OBJECTIVES: Registry[type[Objective]] = Registry("objective", expected=type)
OBJECTIVES.register("regression", "otter_export.modeling.objectives.regression:Regression")
OBJECTIVES.register("pairwise", "otter_export.modeling.objectives.pairwise:Pairwise")
OBJECTIVES.register("distill", "otter_export.modeling.objectives.distill:Distill")
OBJECTIVES.register("experts", "otter_export.modeling.objectives.experts:Experts")
OBJECTIVES.register("drafts", "otter_export.modeling.objectives.drafts:Drafts")


def check_objective(name: str, signal: Signal) -> type[Objective]:
    """The objective of that name, which must be one for the signal's kind.

    Raises:
        UnsupportedError: It is unknown, or trains other kinds of signals.
    """
    objective = OBJECTIVES.load(name)
    accepted = kind_of(signal).objectives
    if name not in accepted:
        raise UnsupportedError(
            f"objective {name!r} does not train signal {signal.name!r}, which is of kind "
            f"{signal.kind!r}; accepted: {', '.join(accepted)}"
        )
    return objective


def objective_for(
    name: str, checkpoint: Checkpoint, config: TrainingConfig, signal: Signal
) -> Objective:
    """The objective of that name for one signal of a checkpoint.

    Raises:
        UnsupportedError: It does not train this signal of this checkpoint.
    """
    return check_objective(name, signal).of(checkpoint, config, signal)
