"""The inputs of a step, for both cache forms: padding, parts and masks; pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from otter_export import engine_io
from otter_export.errors import EngineError
from otter_export.runtime.engine import BoolArray, FloatArray, IntArray
from otter_export.runtime.executor import StepInputs


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What a step feeds, as `Engine.forward` takes it.

    Args:
        input_ids: ``[B, S]``.
        position_ids: ``[B, S]``.
        tree: ``[B, S, S]``.
        logits_to_keep: R: the last R tokens give logits.
    """

    input_ids: IntArray
    position_ids: IntArray
    tree: BoolArray
    logits_to_keep: int


@dataclasses.dataclass(frozen=True)
class Padding:
    """What is added to a step so that its numbers of rows are even; nobody sees it.

    Args:
        sequences: Sequences behind the last; the cache has room for one.
        tokens: Tokens behind the last of each sequence.
        kept: Rows of logits and signals, ``tokens`` at the end among them.
    """

    sequences: int = 0
    tokens: int = 0
    kept: int = 0

    @classmethod
    def to_pairs(cls, batch: int, step: int, kept: int) -> Padding:
        """The least that makes ``batch * step`` and ``batch * kept`` even."""
        if batch % 2 == 0:
            return cls()
        if step == 1:
            return cls(sequences=1)
        tokens = step % 2
        return cls(tokens=tokens, kept=tokens + (kept + tokens) % 2)

    def apply(self, array: IntArray) -> IntArray:
        """``[B, S]`` padded with its own last values."""
        if not self.sequences and not self.tokens:
            return np.ascontiguousarray(array)
        return np.pad(array, ((0, self.sequences), (0, self.tokens)), mode="edge")

    def first_slots(self, lengths: IntArray, start: int) -> IntArray:
        """``[B]``: slots of the tokens after ``start`` others; nobody's begins at 0."""
        first = np.zeros(len(lengths) + self.sequences, np.int64)
        first[: len(lengths)] = lengths + start
        return first

    def asked(self, batch: int, kept: int) -> tuple[slice, slice]:
        """Of the outputs' rows, those that were asked for."""
        first = self.kept - self.tokens
        return slice(0, batch), slice(first, first + kept)


# New rows that come out apart (`engine_io.READ_ONLY`): one run.


def read_only_inputs(tokens: Tokens, lengths: IntArray, slots: int, padding: Padding) -> StepInputs:
    """The inputs of a step whose caches hold the prefix.

    Args:
        tokens: What is fed.
        lengths: ``[B]``: committed tokens.
        slots: Slots per sequence of the cache.
        padding: Of `Padding.to_pairs`.
    """
    batch, step = tokens.input_ids.shape
    kept = tokens.logits_to_keep + padding.kept
    arrays: dict[str, IntArray | BoolArray] = {
        engine_io.INPUT_IDS: padding.apply(tokens.input_ids),
        engine_io.POSITION_IDS: padding.apply(tokens.position_ids),
        engine_io.ATTENTION_MASK: _prefix_mask(tokens.tree, lengths, slots, padding),
        engine_io.LOGITS_TO_KEEP: np.array([kept], np.int64),
    }
    return StepInputs(arrays, (batch + padding.sequences, step + padding.tokens, kept))


def _prefix_mask(tree: BoolArray, lengths: IntArray, slots: int, padding: Padding) -> BoolArray:
    """``[B, S, slots + S]``: which keys each new token sees; what pads sees itself at least."""
    batch, width, _ = tree.shape
    shape = (batch + padding.sequences, width + padding.tokens)
    mask = np.zeros((*shape, slots + shape[1]), np.bool_)
    prefix = np.arange(slots) < lengths[:, None]
    mask[:batch, :, :slots] = prefix[:, None, :]
    mask[:batch, :width, slots : slots + width] = tree
    # A softmax over nothing is NaN, and a padding row's NaN would spread through 0 * NaN. So every
    # token sees itself: token i is slot ``slots + i``, a row and a slot on from the one before.
    mask.reshape(shape[0], -1)[:, slots :: mask.shape[2] + 1] = True
    return mask


# New rows that the model writes (`engine_io.IN_PLACE`): token i of sequence b in slot
# ``lengths[b] + i``. So a step that is too long for the model runs in parts, each of which sees the
# rows of the parts before it.


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

    @property
    def rows(self) -> int:
        """Rows that come out: what nobody asked for too, since the model keeps at least one."""
        return max(self.kept, 1)


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


def in_place_inputs(
    tokens: Tokens, part: Part, lengths: IntArray, slots: int, padding: Padding
) -> StepInputs:
    """The inputs of one part of a step.

    Args:
        tokens: What the whole step feeds.
        part: Which part.
        lengths: ``[B]``: committed tokens.
        slots: Slots per sequence of the cache.
        padding: Of `Padding.to_pairs`; a sequence of nobody's begins at slot 0.
    """
    chosen = slice(part.start, part.stop)
    step, kept = part.step + padding.tokens, part.rows + padding.kept
    tree = tokens.tree[:, chosen, : part.stop]
    first = padding.first_slots(lengths, part.start)
    arrays: dict[str, IntArray | BoolArray] = {
        engine_io.INPUT_IDS: padding.apply(tokens.input_ids[:, chosen]),
        engine_io.POSITION_IDS: padding.apply(tokens.position_ids[:, chosen]),
        engine_io.ATTENTION_MASK: slot_mask(lengths, tree, part.start, slots, padding),
        engine_io.WRITE_INDICES: first,
        engine_io.KEPT_ROWS: np.tile(np.arange(step - kept, step), (len(first), 1)),
    }
    return StepInputs(arrays, (len(first), step, kept))


def slot_mask(
    lengths: IntArray, tree: BoolArray, start: int, slots: int, padding: Padding
) -> BoolArray:
    """``[B, 1, S, slots]``: which slots each token of a part sees; what pads sees itself at least.

    Args:
        lengths: ``[B]``: committed tokens; every token sees all of them.
        tree: ``[B, S, start + S]``: which of the step's tokens each token of the part sees.
        start: Tokens of the step before this part.
        slots: Slots per sequence of the cache.
        padding: What is added.
    """
    batch, step, seen = tree.shape
    shape = (batch + padding.sequences, 1, step + padding.tokens, slots)
    mask = np.zeros(shape, np.bool_)
    mask[:batch, 0] = (np.arange(slots) < lengths[:, None])[:, None]
    for b, length in enumerate(lengths.tolist()):
        mask[b, 0, :step, length : length + seen] = tree[b]
    # A softmax over nothing is NaN, and a padding row's NaN would spread through 0 * NaN.
    rows = np.arange(shape[2])
    first = padding.first_slots(lengths, start)
    mask[np.arange(shape[0])[:, None], 0, rows, first[:, None] + rows] = True
    return mask


def join_outputs(
    parts: Sequence[Part], outputs: Sequence[dict[str, FloatArray]]
) -> dict[str, FloatArray]:
    """Outputs of a whole step from those of its parts, by name: ``[B, R]`` or ``[B, R, V]``."""
    pieces = [out for part, out in zip(parts, outputs, strict=True) if part.kept]
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([p[name] for p in pieces], axis=1) for name in pieces[0]}
