"""`Signal`: one trained output of a channel, as checkpoints and engines list it."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Signal:
    """One trained output of the channel.

    Args:
        name: Name of the engine's output: lower case letters, digits and underscores.
        kind: One of `otter_export.signals.SIGNALS`; it fixes the head's shape.
        activation: Applied to the head's output; one of those that its kind takes.
        bounds: ``(low, high)`` that the activation guarantees, or None.
        heads: Number of later tokens that a ``medusa`` signal drafts; 1 for the other kinds.
        draft_vocab: V', the tokens that a ``medusa`` signal can draft, named by the tensor
            ``signals.NAME.token_ids``; None: all of them. The other kinds have None.
        residual: Whether each head of a ``medusa`` signal reads ``h + SiLU(W h + b)`` of its own
            W and b, where h is the channel's final state, instead of h; other kinds never do.
    """

    name: str
    kind: str = "value"
    activation: str = "tanh"
    bounds: tuple[float, float] | None = (-1.0, 1.0)
    heads: int = 1
    draft_vocab: int | None = None
    residual: bool = False


def block_name(signal: Signal) -> str:
    """The stem of residual blocks' tensors: ``weight`` ``[n, d', d']``, ``bias`` ``[n, d']``."""
    return f"signals.{signal.name}.block"


def token_ids_name(signal: Signal) -> str:
    """The tensor, int32 ``[V']``, that names the tokens that a signal drafts."""
    return f"signals.{signal.name}.token_ids"


def is_token_ids(name: str) -> bool:
    """Whether an inserted tensor is one of those, and no weight."""
    return name.startswith("signals.") and name.endswith(".token_ids")


def are_token_ids(ids: Any, vocab_size: int) -> bool:
    """Whether integers ``[V']``, at least one, are ascending and in a vocabulary."""
    return bool(ids[0] >= 0 and ids[-1] < vocab_size and (ids[1:] > ids[:-1]).all())
