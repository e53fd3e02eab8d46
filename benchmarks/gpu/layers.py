"""Shapes of the fused projections of known models, and the bytes that each has to move."""

from __future__ import annotations

import dataclasses

from otter_export.plugins.tiles import Widths

#: Bytes of float16 and bfloat16.
VALUE_BYTES = 2


@dataclasses.dataclass(frozen=True)
class Model:
    """Sizes of a base; the channel has the default widths of `otter-export insert`."""

    name: str
    hidden: int
    inner: int
    heads: int
    key_value_heads: int
    head_size: int
    channel_hidden: int = 64

    @property
    def channel_inner(self) -> int:
        """m': the base's proportion, in steps of 64."""
        return -(-self.channel_hidden * self.inner // self.hidden // 64) * 64

    def projections(self) -> dict[str, Widths]:
        """Each different projection of a decoder layer."""
        query, key_value = (n * self.head_size for n in (self.heads, self.key_value_heads))
        # One key/value head of the channel, and the query heads that share it.
        channel_key_value = self.head_size
        channel_query = self.heads // self.key_value_heads * self.head_size
        hidden = (self.hidden, self.channel_hidden)
        return {
            "q": Widths(*hidden, query, channel_query),
            "k, v": Widths(*hidden, key_value, channel_key_value),
            "o": Widths(query, channel_query, *hidden),
            "gate, up": Widths(*hidden, self.inner, self.channel_inner),
            "down": Widths(self.inner, self.channel_inner, *hidden),
        }


MODELS = {
    "135M": Model("SmolLM2-135M", 576, 1536, 9, 3, 64),
    "1B": Model("Llama-3.2-1B", 2048, 8192, 32, 8, 64),
    "7B": Model("Llama-2-7B", 4096, 11008, 32, 32, 128),
    "70B": Model("Llama-3.1-70B", 8192, 28672, 64, 8, 128),
}


def weight_bytes(widths: Widths) -> int:
    """Bytes of W, A and B."""
    return VALUE_BYTES * widths.weight_values


def moved_bytes(widths: Widths, rows: int) -> int:
    """Bytes that must be read and written: the weights, x and x', y and y'; each once."""
    return weight_bytes(widths) + VALUE_BYTES * rows * sum(dataclasses.astuple(widths))


def floor_microseconds(widths: Widths, rows: int, bytes_per_second: float) -> float:
    """Least time of a projection on a memory of this bandwidth."""
    return 1e6 * moved_bytes(widths, rows) / bytes_per_second
