"""An executor without a model (L4): a slot holds the digest of what its token could see.

It computes what `FakeEngine` does, from nothing but the mask, the slots and the memory that
`InPlaceEngine` gives it. So one wrong mask bit, slot or move changes everything after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from otter_export.manifest import EngineManifest
from otter_export.runtime.backends.executor import StepInputs
from otter_export.runtime.backends.host_slots import HostSlots
from otter_export.runtime.backends.in_place import InPlaceEngine
from otter_export.runtime.engine import FloatArray
from tests.runtime.fake_engine import ByteTokenizer, FakeEngine

LAYERS, HEADS = 2, (2, 1)


class DigestExecutor:
    """See the module's docstring.

    Args:
        fake: Gives logits and signals for a digest.
        batch, step, kept: The largest that a run may have.
        capacity: Slots of a cache; None grows in blocks of 8 slots.
    """

    def __init__(
        self,
        fake: FakeEngine,
        *,
        batch: int = 64,
        step: int = 256,
        kept: int = 256,
        capacity: int | None = None,
    ) -> None:
        self.fake = fake
        self.max_batch_size, self.step, self.kept = batch, step, kept
        self.capacity = capacity
        self.shapes: list[tuple[int, int, int]] = []

    def accepts(self, batch: int, step: int, kept: int) -> bool:
        return batch <= self.max_batch_size and step <= self.step and kept <= self.kept

    def slots(self, needed: int) -> int:
        return -(-needed // 8) * 8 if self.capacity is None else self.capacity

    def blocks(self, places: int, slots: int) -> tuple[HostSlots, ...]:
        dtype = np.dtype(np.uint64)
        return tuple(HostSlots((2 * LAYERS, places, heads, slots, 1), dtype) for heads in HEADS)

    def run(self, blocks: tuple[HostSlots, ...], inputs: StepInputs) -> Mapping[str, FloatArray]:
        batch, step, kept = inputs.shape
        assert self.accepts(batch, step, kept)
        assert inputs.attention_mask.shape == (batch, 1, step, blocks[0].shape[3])
        assert all(array.flags.c_contiguous for array in inputs.arrays().values())
        self.shapes.append((batch, step, kept))
        digests = [[self._token(blocks, inputs, b, i) for i in range(step)] for b in range(batch)]
        chosen = [[digests[b][i] for i in inputs.kept_rows[b]] for b in range(batch)]
        logits = [[self.fake._logits(digest) for digest in row] for row in chosen]
        signals = {s.name: self.fake._signal(s, chosen) for s in self.fake.manifest.signals}
        return {"logits": np.array(logits, np.float32), **signals}

    def _token(self, blocks: tuple[HostSlots, ...], inputs: StepInputs, b: int, i: int) -> bytes:
        """Compute one token's digest and write it into all its slots."""
        slot = int(inputs.write_indices[b]) + i
        mask = inputs.attention_mask[b, 0, i]
        assert mask[slot], "a token must see itself"
        seen = [int(s) for s in np.flatnonzero(mask) if s != slot]
        rows = blocks[0].array[0, b, 0, seen]
        for block in blocks:
            # A row moves as a whole, or not at all.
            assert (block.array[:, b][:, :, seen, 0] == rows[:, 0]).all()
        fed = f"{inputs.input_ids[b, i]},{inputs.position_ids[b, i]}"
        text = b"".join(sorted(int(row).to_bytes(8, "little") for row in rows[:, 0]))
        digest = hashlib.blake2b(text + fed.encode(), digest_size=8).digest()
        for block in blocks:
            block.array[:, b, :, slot] = int.from_bytes(digest, "little")
        return digest


def make_engine(
    manifest: EngineManifest | None = None, **limits: int | None
) -> tuple[InPlaceEngine, FakeEngine, DigestExecutor]:
    """The engine, the one that it must equal, and its executor."""
    fake = FakeEngine(manifest)
    executor = DigestExecutor(fake, **limits)  # type: ignore[arg-type]
    engine = InPlaceEngine(Path("nowhere"), fake.manifest, executor)
    engine.__dict__["tokenizer"] = ByteTokenizer()
    return engine, fake, executor
