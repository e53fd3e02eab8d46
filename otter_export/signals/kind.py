"""`SignalKind`: the shape of a head, the engine's output, and how decoding reads it.

Tensors are whatever the caller has, numpy's or torch's: a kind indexes them and computes, and
imports neither.
"""

from __future__ import annotations

import abc
import enum
from typing import Any, ClassVar

from otter_export.signals.signal import Signal


class Scores(enum.Enum):
    """Which tokens a row of an engine's output scores, for a reward."""

    PREFIX = "prefix"
    """The text that ends with the row's token: candidates have to be fed to be scored."""
    NEXT = "next"
    """Each token that can follow: the next one is chosen from one row."""


class SignalKind(abc.ABC):
    """One kind of signal; its file is all that says what it is.

    A head is ``z = W n' + b`` over the channel's final state n', with W ``[*head_dims, d']``.

    Attributes:
        name: As in ``otter_config.json``.
        predicts: What, in a few words.
        activations: Those that it takes, the default first.
        objectives: Names of the training objectives for it, the default first.
        scores: What its output scores, or None if it is no reward.
        drafts: Whether it drafts later tokens.
        starts_at_zero: Whether an untrained head is zero; those of others are drawn.
        has_heads: Whether a signal has a number of ``heads``.
    """

    name: ClassVar[str]
    predicts: ClassVar[str]
    activations: ClassVar[tuple[str, ...]] = ("identity",)
    objectives: ClassVar[tuple[str, ...]] = ()
    scores: ClassVar[Scores | None] = None
    drafts: ClassVar[bool] = False
    starts_at_zero: ClassVar[bool] = False
    has_heads: ClassVar[bool] = False

    @property
    def has_token_rows(self) -> bool:
        """Whether a head has a row for each token, as the base's output embedding has."""
        return self.drafts or self.scores is Scores.NEXT

    @abc.abstractmethod
    def head_dims(self, signal: Signal, vocab_size: int) -> tuple[int, ...]:
        """The dimensions of ``signals.NAME.weight`` before its last, d'; those of the bias."""

    def weight_shape(self, signal: Signal, hidden_size: int, vocab_size: int) -> tuple[int, ...]:
        """``signals.NAME.weight`` of a channel of width ``hidden_size``."""
        return (*self.head_dims(signal, vocab_size), hidden_size)

    def output_dims(self, signal: Signal, vocab_size: int) -> tuple[int, ...]:
        """The dimensions of an engine's output behind those of its rows, ``[B, R, ...]``."""
        return self.head_dims(signal, vocab_size)

    def engine_head(self, tensor: Any) -> Any:
        """The part of a stored weight or bias that an engine has.

        Args:
            tensor: ``[*head_dims, d']`` or ``[*head_dims]``; what comes back begins with
                ``output_dims``.
        """
        return tensor

    def output(self, head: Any) -> Any:
        """An engine's output, ``[..., *output_dims]``, from the stored head's.

        Args:
            head: ``activation(W n' + b)``, ``[..., *head_dims]``.
        """
        return head
