"""An executor without a model (L4): a slot holds the digest of what its token could see.

It computes what `FakeEngine` does, from nothing but the mask, the slots and the memory that
`StepEngine` gives it, in both cache forms. So one wrong mask bit, slot or move changes everything
after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from otter_export import engine_io
from otter_export.manifest import EngineManifest
from otter_export.runtime.engine import FloatArray
from otter_export.runtime.executor import RowRule, StepInputs
from otter_export.runtime.memory.host import HostBlock
from otter_export.runtime.step_engine import StepEngine
from tests.runtime.fake_engine import ByteTokenizer, FakeEngine

LAYERS, HEADS = 2, (2, 1)


class DigestExecutor:
    """See the module's docstring.

    Args:
        fake: Gives logits and signals for a digest.
        batch, step, kept: The largest that a run may have.
        capacity: Slots of a cache; None grows in blocks of 8 slots.
        cache_form: Whether new rows lie in their slots or come out apart.
        pairs_rows: Whether a run must have an even number of rows.
    """

    def __init__(
        self,
        fake: FakeEngine,
        *,
        batch: int = 64,
        step: int = 256,
        kept: int = 256,
        capacity: int | None = None,
        cache_form: str = engine_io.IN_PLACE,
        pairs_rows: bool = False,
    ) -> None:
        self.fake = fake
        self.max_batch_size, self.step, self.kept = batch, step, kept
        self.capacity = capacity
        self.cache_form = cache_form
        self.row_rule = RowRule(pairs=pairs_rows, even_steps=True)
        self.shapes: list[tuple[int, int, int]] = []

    chains_alike = True

    def accepts(self, batch: int, step: int, kept: int) -> bool:
        return batch <= self.max_batch_size and step <= self.step and kept <= self.kept

    def slots(self, needed: int, held: int = 0) -> int:
        return -(-needed // 8) * 8 if self.capacity is None else self.capacity

    def blocks(self, places: int, slots: int, *, zeroed: bool = True) -> tuple[HostBlock, ...]:
        shapes = [(2 * LAYERS, places, heads, slots, 1) for heads in HEADS]
        # What need not be zero holds anything.
        return tuple(HostBlock(np.full(shape, 0 if zeroed else 77, np.uint64)) for shape in shapes)

    def run(self, blocks: Any, inputs: StepInputs, rows: Any = None) -> Mapping[str, FloatArray]:
        batch, step, kept = inputs.shape
        assert self.accepts(batch, step, kept)
        assert all(array.flags.c_contiguous for array in inputs.arrays.values())
        assert not self.row_rule.pairs or (batch * step % 2 == 0 and batch * kept % 2 == 0)
        assert blocks[0].shape[1] >= batch
        self.shapes.append((batch, step, kept))
        if self.cache_form == engine_io.IN_PLACE:
            return self._run_in_place(blocks, inputs)
        return self._run_apart(blocks, inputs, rows)

    def _run_in_place(
        self, blocks: tuple[HostBlock, ...], inputs: StepInputs
    ) -> Mapping[str, FloatArray]:
        batch, step, _ = inputs.shape
        mask = inputs.arrays["attention_mask"]
        assert mask.shape == (batch, 1, step, blocks[0].shape[3])
        digests: list[list[bytes]] = []
        for b in range(batch):
            first = int(inputs.arrays["write_indices"][b])
            digests.append([])
            for i in range(step):
                stored = [block.array[:, b] for block in blocks]
                digests[b].append(self._digest(stored, mask[b, 0, i], first + i, inputs, b, i))
        kept_rows = inputs.arrays["kept_rows"]
        return self._outputs([[digests[b][i] for i in kept_rows[b]] for b in range(batch)])

    def _run_apart(self, blocks: Any, inputs: StepInputs, rows: Any) -> Mapping[str, FloatArray]:
        batch, step, kept = inputs.shape
        mask, slots = inputs.arrays["attention_mask"], blocks[0].shape[3]
        assert mask.shape == (batch, step, slots + step)
        assert all(r.shape[1] == batch and r.shape[3] == step for r in rows)
        digests: list[list[bytes]] = []
        for b in range(batch):
            digests.append([])
            for i in range(step):
                both = zip(blocks, rows, strict=True)
                stored = [np.concatenate([c.array[:, b], r.array[:, b]], axis=2) for c, r in both]
                digests[b].append(self._digest(stored, mask[b, i], slots + i, inputs, b, i))
                for row, made in zip(rows, stored, strict=True):
                    row.array[:, b, :, i] = made[:, :, slots + i]
        assert inputs.arrays["logits_to_keep"].tolist() == [kept]
        return self._outputs([row[step - kept :] for row in digests])

    def _outputs(self, chosen: list[list[bytes]]) -> Mapping[str, FloatArray]:
        logits = [[self.fake._logits(digest) for digest in row] for row in chosen]
        signals = {s.name: self.fake._signal(s, chosen) for s in self.fake.manifest.signals}
        return {"logits": np.array(logits, np.float32), **signals}

    def _digest(
        self, stored: list[Any], mask: Any, slot: int, inputs: StepInputs, b: int, i: int
    ) -> bytes:
        """Compute one token's digest and write it into all its slots.

        Args:
            stored: ``[2 * layers, heads, slots, 1]`` of one sequence, for each block.
            mask: ``[slots]``.
            slot: The token's own.
            inputs: Of the run.
            b: Which sequence.
            i: Which token.
        """
        assert mask[slot], "a token must see itself"
        seen = [int(s) for s in np.flatnonzero(mask) if s != slot]
        rows = stored[0][0, 0, seen]
        for one in stored:
            # A row moves as a whole, or not at all.
            assert (one[:, :, seen, 0] == rows[:, 0]).all()
        arrays = inputs.arrays
        fed = f"{arrays['input_ids'][b, i]},{arrays['position_ids'][b, i]}"
        text = b"".join(sorted(int(row).to_bytes(8, "little") for row in rows[:, 0]))
        digest = hashlib.blake2b(text + fed.encode(), digest_size=8).digest()
        for one in stored:
            one[:, :, slot] = int.from_bytes(digest, "little")
        return digest


def make_engine(
    manifest: EngineManifest | None = None, **limits: Any
) -> tuple[StepEngine, FakeEngine, DigestExecutor]:
    """The engine, the one that it must equal, and its executor."""
    fake = FakeEngine(manifest)
    executor = DigestExecutor(fake, **limits)
    engine = StepEngine(Path("nowhere"), fake.manifest, executor)
    engine.__dict__["tokenizer"] = ByteTokenizer()
    return engine, fake, executor
