"""The tree inputs of an engine with k candidates a step (TensorRT-LLM's MEDUSA mode); numpy only.

In its generation phase such an engine takes, per sequence, ``[root, c1 .. ck]``: the token chosen
last, and the candidates for the position after it. Each candidate sees the prefix, the root and
itself. The rows of ``logits`` and of every signal come in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
_BITS = 32


def tree_inputs(candidates: Sequence[Sequence[int]], roots: Sequence[int]) -> Mapping[str, Int32]:
    """Engine inputs of one step.

    Args:
        candidates: Candidate tokens of each sequence; all sequences need the same number k.
        roots: The token chosen last, of each sequence.

    Returns:
        By input name, int32: ``input_ids`` ``[B (k+1)]``, ``spec_decoding_generation_lengths``
        ``[B]``, ``spec_decoding_position_offsets`` ``[B, k+1]``, ``spec_decoding_packed_mask``
        ``[B (k+1), words]`` with 32 tokens a word, lowest bit first, ``spec_decoding_use`` ``[1]``,
        ``last_token_ids`` ``[B (k+1)]`` (1-based, all rows).

    Raises:
        ValueError: Sequences have different numbers of candidates, or none.
    """
    counts = {len(c) for c in candidates}
    if len(counts) != 1 or 0 in counts or len(candidates) != len(roots):
        raise ValueError(
            f"{len(roots)} roots with {sorted(counts)} candidates: every sequence needs a root and "
            "the same number of candidates, at least one; fill up with any token"
        )
    batch, width = len(roots), counts.pop() + 1
    tokens = np.array([[r, *c] for r, c in zip(roots, candidates, strict=True)], np.int32)
    mask = packed_mask(width)
    return {
        "input_ids": tokens.reshape(-1),
        "spec_decoding_generation_lengths": np.full(batch, width, np.int32),
        "spec_decoding_position_offsets": np.tile(position_offsets(width), (batch, 1)),
        "spec_decoding_packed_mask": np.tile(mask, (batch, 1)),
        "spec_decoding_use": np.ones(1, np.int32),
        "last_token_ids": np.arange(1, batch * width + 1, dtype=np.int32),
    }


def position_offsets(width: int) -> Int32:
    """``[0, 1, .., 1]``: all candidates stand at the position after the root; ``[width]``."""
    offsets = np.ones(width, np.int32)
    offsets[0] = 0
    return offsets


def packed_mask(width: int) -> Int32:
    """Row i sees the root and itself: ``1 | 1 << i``, in words of 32 bits; ``[width, words]``."""
    rows = np.arange(width)
    mask = np.zeros((width, -(-width // _BITS)), np.uint32)
    mask[:, 0] = 1
    mask[rows, rows // _BITS] |= np.uint32(1) << (rows % _BITS).astype(np.uint32)
    return mask.view(np.int32)
