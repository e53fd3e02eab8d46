"""How a step runs on a static cache: its parts, and the inputs of each; pure functions.

The step's own rows lie behind the committed prefix, token i of sequence b in slot
``lengths[b] + i``. So a step that is too long for the model runs in parts, each of which sees the
rows of the parts before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from otter_export.errors import EngineError
from otter_export.runtime.backends.executor import StepInputs
from otter_export.runtime.engine import BoolArray, FloatArray, IntArray


@dataclasses.dataclass(frozen=True)
class Part:
    """Tokens ``start`` to ``stop`` of a step, of which the last ``kept`` give logits."""

    start: int
    stop: int
    kept: int

    @property
    def step(self) -> int:
        """Tokens of the part."""
        return self.stop - self.start


def plan_parts(
    step: int, logits_to_keep: int, accepts: Callable[[int, int], bool]
) -> tuple[Part, ...]:
    """Divide a step into the longest parts that the model accepts.

    Args:
        step: S.
        logits_to_keep: R: the last R tokens give logits.
        accepts: Whether the model runs on so many tokens, keeping so many rows. It keeps at least
            one; what nobody asked for is dropped.

    Raises:
        EngineError: The model accepts not even one token.
    """
    first_kept = step - logits_to_keep
    parts = []
    start = 0
    while start < step:
        for stop in range(step, start, -1):
            kept = max(0, stop - max(start, first_kept))
            if accepts(stop - start, max(kept, 1)):
                parts.append(Part(start, stop, kept))
                start = stop
                break
        else:
            raise EngineError(
                "no optimisation profile of the engine accepts one token; build it again"
            )
    return tuple(parts)


def check_tree(tree: BoolArray, parts: Sequence[Part]) -> None:
    """Raise `EngineError` if a token sees one of a later part, whose row does not exist yet.

    Args:
        tree: ``[B, S, S]``.
        parts: From `plan_parts`.
    """
    for part in parts[:-1]:
        if tree[:, part.start : part.stop, part.stop :].any():
            raise EngineError(
                f"the step has {tree.shape[1]} tokens and runs in parts of {parts[0].step}; a "
                "token may see only tokens of its part and of those before: order the tree by depth"
            )


def part_inputs(
    part: Part,
    lengths: IntArray,
    slots: int,
    input_ids: IntArray,
    position_ids: IntArray,
    tree: BoolArray,
) -> StepInputs:
    """The inputs of one part.

    Args:
        part: Which.
        lengths: ``[B]``: committed tokens.
        slots: Slots per sequence of the cache.
        input_ids: ``[B, S]`` of the whole step.
        position_ids: ``[B, S]``.
        tree: ``[B, S, S]``.
    """
    tokens = slice(part.start, part.stop)
    kept = np.arange(part.step - max(part.kept, 1), part.step, dtype=np.int64)
    return StepInputs(
        input_ids=np.ascontiguousarray(input_ids[:, tokens]),
        position_ids=np.ascontiguousarray(position_ids[:, tokens]),
        attention_mask=attention_mask(lengths, tree[:, tokens, : part.stop], part.start, slots),
        write_indices=lengths + part.start,
        kept_rows=np.tile(kept, (len(lengths), 1)),
    )


def attention_mask(lengths: IntArray, tree: BoolArray, start: int, slots: int) -> BoolArray:
    """``[B, 1, S, slots]``: which slots each token of a part sees.

    Args:
        lengths: ``[B]``: committed tokens; every token sees all of them.
        tree: ``[B, S, start + S]``: which of the step's tokens each token of the part sees.
        start: Tokens of the step before this part.
        slots: Slots per sequence of the cache.
    """
    batch, step, seen = tree.shape
    mask = np.zeros((batch, 1, step, slots), np.bool_)
    rows = np.arange(step)
    for b, length in enumerate(lengths):
        mask[b, 0, :, :length] = True
        mask[b, 0, :, length : length + seen] = tree[b]
        # A softmax over nothing is NaN, and a padding row's NaN would spread through 0 * NaN.
        mask[b, 0, rows, length + start + rows] = True
    return mask


def join_outputs(
    parts: Sequence[Part], outputs: Sequence[dict[str, FloatArray]]
) -> dict[str, FloatArray]:
    """Outputs of a whole step from those of its parts, by name: ``[B, R]`` or ``[B, R, V]``."""
    pieces = [out for part, out in zip(parts, outputs, strict=True) if part.kept]
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([p[name] for p in pieces], axis=1) for name in pieces[0]}


@dataclasses.dataclass(frozen=True)
class Moves:
    """Slots to copy, ``[n]`` each: where to write and what to read, as `SlotBlock.put` takes it."""

    places: IntArray
    slots: IntArray
    source_places: IntArray
    source_slots: IntArray

    def __len__(self) -> int:
        return len(self.places)


def row_moves(
    starts: IntArray, rows: Sequence[Sequence[int]], source_starts: IntArray | None = None
) -> Moves:
    """How the kept rows of a step come to stand behind their prefixes.

    Args:
        starts: ``[B]``: committed tokens; the first slot to write of each sequence.
        rows: For each sequence the tokens of the step to keep, in order.
        source_starts: ``[B]``: slots of the step's first tokens in another block that they are read
            from; None when they lie in the cache itself, where they were computed.

    Returns:
        The moves of rows that do not lie in their slots already.
    """
    found = []
    for b, kept in enumerate(rows):
        first = int(starts[b] if source_starts is None else source_starts[b])
        for target, row in enumerate(kept):
            if source_starts is not None or row != target:
                found.append((b, int(starts[b]) + target, b, first + row))
    return _moves(found)


def sequence_moves(sequences: Sequence[tuple[int, int, int]]) -> Moves:
    """How whole sequences move.

    Args:
        sequences: ``(place to write, place to read, tokens)`` of each.
    """
    return _moves([(to, t, b, t) for to, b, count in sequences for t in range(count)])


def step_moves(lengths: IntArray, width: int) -> Moves:
    """How the rows of a step move to a block of ``width`` slots, from slot 0 on.

    Args:
        lengths: ``[B]``: committed tokens.
        width: S.
    """
    return _moves([(b, i, b, int(n) + i) for b, n in enumerate(lengths) for i in range(width)])


def _moves(found: Sequence[tuple[int, int, int, int]]) -> Moves:
    """Columns of ``(place, slot, source place, source slot)``."""
    return Moves(*np.array(found, np.int64).reshape(-1, 4).T.copy())
