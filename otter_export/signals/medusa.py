"""``medusa``: logits of the tokens after the next one, which a request may draft from."""

from __future__ import annotations

from otter_export.signals.kind import SignalKind
from otter_export.signals.signal import Signal


class Medusa(SignalKind):
    """Head i of n drafts the token i places after the next one (Medusa, arXiv 2401.10774)."""

    name = "medusa"
    predicts = "logits of n later tokens, of all or of V' that `signals.NAME.token_ids` names"
    drafts = True
    objectives = ("drafts",)
    has_heads = True

    def head_dims(self, signal: Signal, vocab_size: int) -> tuple[int, ...]:
        """N heads of V' rows."""
        return (signal.heads, signal.draft_vocab or vocab_size)


MEDUSA = Medusa()
