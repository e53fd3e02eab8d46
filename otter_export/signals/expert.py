"""``expert``: an expert and an anti-expert as offsets to the base's logits; zero changes nothing.

``z+ = z + o+`` and ``z- = z + o-``; decoding by ``z + a (z+ - z-)`` (DExperts, arXiv 2105.03023)
needs ``o+ - o-`` alone, which is one head of V rows in an engine.
"""

from __future__ import annotations

from typing import Any

from otter_export.signals.kind import Scores, SignalKind
from otter_export.signals.signal import Signal


class Expert(SignalKind):
    """Two language models as offsets to the base."""

    name = "expert"
    predicts = "logit offsets of an expert and of an anti-expert; an engine gives their difference"
    scores = Scores.NEXT
    objectives = ("experts",)
    starts_at_zero = True

    def head_dims(self, signal: Signal, vocab_size: int) -> tuple[int, ...]:
        """The expert's V rows, and the anti-expert's."""
        return (2, vocab_size)

    def output_dims(self, signal: Signal, vocab_size: int) -> tuple[int, ...]:
        """V: the difference."""
        return (vocab_size,)

    def engine_head(self, tensor: Any) -> Any:
        """``o+ - o-``."""
        return tensor[0] - tensor[1]

    def output(self, head: Any) -> Any:
        """``o+ - o-``."""
        return head[..., 0, :] - head[..., 1, :]


EXPERT = Expert()
