"""L4: what `try_rows` concludes from executors whose rows depend on each other in known ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from otter_export import engine_io
from otter_export.runtime.engine import FloatArray
from otter_export.runtime.executor import RowRule, StepInputs
from otter_export.runtime.memory.host import HostBlock
from otter_export.runtime.row_trial import try_rows

#: Added to a row's logits, of the index of its sequence and the step's ``(B, S)``.
Rounding = Callable[[int, int, int], float]


class RoundingExecutor:
    """Outputs are the sum of a token's prefix, and a little more where ``rounding`` says so."""

    cache_form = engine_io.READ_ONLY
    row_rule = RowRule(pairs=False, even_steps=False)
    max_batch_size = 8

    def __init__(self, rounding: Rounding, output: str) -> None:
        self.rounding, self.output = rounding, output

    def accepts(self, batch: int, step: int, kept: int) -> bool:
        return True

    def slots(self, needed: int, held: int = 0) -> int:
        return 4

    def blocks(self, places: int, slots: int, *, zeroed: bool = True) -> tuple[HostBlock, ...]:
        return (HostBlock(np.zeros((2, places, 1, slots, 3), np.float32)),)

    def run(self, blocks: Any, inputs: StepInputs, rows: Any = None) -> Mapping[str, FloatArray]:
        batch, step, kept = inputs.shape
        seen = inputs.arrays["attention_mask"]
        assert seen[:, :, :4].all() and (seen[:, :, 4:] == np.eye(step)).all()
        prefix = blocks[0].array.sum(axis=(0, 2, 3, 4))[:batch]
        assert prefix.all() and kept == step and rows[0].shape[1] == batch
        outputs = {
            "logits": np.tile(prefix[:, None, None], (1, step, 5)),
            "reward": np.tile(prefix[:, None], (1, step)),
        }
        for b in range(batch):
            outputs[self.output][b] += np.float32(self.rounding(b, batch, step))
        return outputs


@pytest.mark.parametrize("output", ["logits", "reward"])
@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        # Nothing depends on the other rows.
        (lambda b, batch, step: 0.0, RowRule(pairs=False, even_steps=False)),
        # A single row has a kernel of its own.
        (lambda b, batch, step: batch * step == 1, RowRule(pairs=True, even_steps=True)),
        # An odd last row has: the first two of three are as in a pair.
        (
            lambda b, batch, step: batch * step % 2 and b == batch - 1,
            RowRule(pairs=True, even_steps=True),
        ),
        # One token has, in each sequence by itself: attention without shared keys.
        (lambda b, batch, step: step == 1, RowRule(pairs=False, even_steps=True)),
        # Three have.
        (lambda b, batch, step: step == 3, RowRule(pairs=False, even_steps=True)),
    ],
)
def test_any_difference_is_found(rounding: Rounding, output: str, expected: RowRule) -> None:
    assert try_rows(RoundingExecutor(rounding, output)) == expected


def test_what_is_no_number_is_no_proof() -> None:
    rule = try_rows(RoundingExecutor(lambda b, batch, step: np.nan, "logits"))
    assert rule == RowRule(pairs=True, even_steps=True)
