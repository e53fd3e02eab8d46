"""``q_value``: one score for each token that can follow, so guidance costs one row."""

from __future__ import annotations

from otter_export.signals.kind import Scores, SignalKind
from otter_export.signals.signal import Signal


class QValue(SignalKind):
    """The reward of the text so far with each next token behind it."""

    name = "q_value"
    predicts = "one score for each next token"
    activations = ("tanh", "sigmoid", "identity")
    objectives = ("regression", "pairwise", "distill")
    scores = Scores.NEXT

    def head_dims(self, signal: Signal, vocab_size: int) -> tuple[int, ...]:
        """V rows."""
        return (vocab_size,)


Q_VALUE = QValue()
