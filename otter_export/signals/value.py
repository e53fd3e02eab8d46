"""``value``: one score for the prefix that ends at a row."""

from __future__ import annotations

from typing import Any

from otter_export.signals.kind import Scores, SignalKind
from otter_export.signals.signal import Signal


class Value(SignalKind):
    """A reward of the text so far (Otter, arXiv 2408.10764; ARGS, arXiv 2402.01694)."""

    name = "value"
    predicts = "one score for the prefix"
    activations = ("tanh", "sigmoid", "identity")
    objectives = ("regression", "pairwise")
    scores = Scores.PREFIX

    def head_dims(self, signal: Signal, vocab_size: int) -> tuple[int, ...]:
        """One row."""
        return (1,)

    def output_dims(self, signal: Signal, vocab_size: int) -> tuple[int, ...]:
        """None: ``[B, R]``."""
        return ()

    def engine_head(self, tensor: Any) -> Any:
        """That row."""
        return tensor[0]

    def output(self, head: Any) -> Any:
        """That row's output."""
        return head[..., 0]


VALUE = Value()
