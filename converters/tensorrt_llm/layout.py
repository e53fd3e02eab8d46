"""Division of a widened Llama among tensor-parallel ranks (TensorRT-LLM, both routes).

Base and channel are divided apart, block by block, and only then put side by side: a slice of the
joined ``[W; A]`` would give one rank rows of W alone. Norm statistics, the hidden states x and x',
and the signal heads are the same on all ranks.

A channel is small: by default it has one key/value head, which no two ranks can share. Where its
heads (or its inner neurons) cannot be divided evenly, every rank holds all of them, and adds their
part after the all-reduce instead of before.

A channel that shares the base's attention weights has the base's q and k in its extra heads. The
model repeats them where they lie on the rank of those heads; elsewhere their rows are stored again.
"""

from __future__ import annotations

import dataclasses

from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.family import BaseDimensions, Space, channel_width


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which part of each width one rank holds.

    Args:
        base: Sizes of the base.
        channel: Channel width of each space.
        tp_size: Number of ranks.
        heads_divided: The channel's heads are divided; else every rank holds all of them.
        inner_divided: The channel's inner neurons are divided; else every rank holds all of them.
        heads_stored: The channel shares the attention weights of base heads that some rank lacks,
            so that their rows of q and k are stored once more.
    """

    base: BaseDimensions
    channel: dict[Space, int]
    tp_size: int
    heads_divided: bool
    inner_divided: bool
    heads_stored: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint, tp_size: int) -> Layout:
        """Choose how to divide a checkpoint.

        Raises:
            UnsupportedError: The base's heads or neurons cannot be divided evenly.
        """
        d, config = checkpoint.base.dimensions, checkpoint.config
        _check_divisible(d, tp_size)
        channel = {space: channel_width(config, space) for space in Space}
        return cls(
            base=d,
            channel=channel,
            tp_size=tp_size,
            heads_divided=config.num_key_value_heads % tp_size == 0,
            inner_divided=config.intermediate_size % tp_size == 0,
            # The extra heads stand for the base's first ones: a rank has the same part of both
            # where there are as many of both, and all of both where it is the only one.
            heads_stored=config.attention == "shared"
            and tp_size > 1
            and config.num_key_value_heads != d.num_key_value_heads,
        )

    def channel_divided(self, space: Space) -> bool:
        """Whether each rank holds its own part of the channel's width of a space."""
        if space is Space.HIDDEN:
            return False
        return self.inner_divided if space is Space.INNER else self.heads_divided

    def base_part(self, space: Space, rank: int) -> slice:
        """The base rows or columns of a space that a rank holds."""
        width = self.base.width(space)
        return slice(0, width) if space is Space.HIDDEN else self._part(width, rank)

    def channel_part(self, space: Space, rank: int) -> slice:
        """The channel rows or columns of a space that a rank holds."""
        width = self.channel[space]
        return self._part(width, rank) if self.channel_divided(space) else slice(0, width)

    @property
    def key_value_heads(self) -> int:
        """Key/value heads of all ranks in a layer with a channel; what sizes its KV cache."""
        parts = (self.base_part(Space.VALUE, 0), self.channel_part(Space.VALUE, 0))
        width = sum(int(part.stop) - int(part.start) for part in parts)
        return width * self.tp_size // self.base.head_dim

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the language model head: V, padded to a multiple of the ranks."""
        return -(-self.base.vocab_size // self.tp_size) * self.tp_size

    def _part(self, width: int, rank: int) -> slice:
        size = width // self.tp_size
        return slice(rank * size, (rank + 1) * size)


def _check_divisible(d: BaseDimensions, tp_size: int) -> None:
    """Refuse a number of ranks that would split a head or leave ranks of unequal size."""
    if tp_size < 1:
        raise UnsupportedError(f"--tensor-parallel {tp_size}: choose 1 or more")
    counts = {
        "key/value heads": d.num_key_value_heads,
        "query heads": d.num_attention_heads,
        "inner neurons": d.intermediate_size,
    }
    bad = [f"{count} {what}" for what, count in counts.items() if count % tp_size]
    if bad:
        possible = [
            str(n)
            for n in range(1, d.num_key_value_heads + 1)
            if not any(count % n for count in counts.values())
        ]
        raise UnsupportedError(
            f"--tensor-parallel {tp_size} does not divide the base's {' or '.join(bad)}; "
            f"possible: {', '.join(possible)}"
        )
