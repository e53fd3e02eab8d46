"""Kinds of signals. A new kind is one file here, one line below and one test."""

from __future__ import annotations

from otter_export.registry import Registry
from otter_export.signals.kind import Scores, SignalKind
from otter_export.signals.signal import (
    Signal,
    are_token_ids,
    block_name,
    is_token_ids,
    token_ids_name,
)

__all__ = [
    "SIGNALS",
    "Scores",
    "Signal",
    "SignalKind",
    "are_token_ids",
    "block_name",
    "is_token_ids",
    "kind_of",
    "token_ids_name",
]

SIGNALS: Registry[SignalKind] = Registry("signal kind", expected=SignalKind)
SIGNALS.register("value", "otter_export.signals.value:VALUE")
SIGNALS.register("q_value", "otter_export.signals.q_value:Q_VALUE")
SIGNALS.register("expert", "otter_export.signals.expert:EXPERT")
SIGNALS.register("medusa", "otter_export.signals.medusa:MEDUSA")


def kind_of(signal: Signal) -> SignalKind:
    """What a signal's kind says of it."""
    return SIGNALS.load(signal.kind)
