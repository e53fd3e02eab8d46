"""L4: what trials conclude from executors whose rows depend on each other in known ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from otter_export import engine_io
from otter_export.runtime.engine import FloatArray
from otter_export.runtime.executor import RowRule, StepInputs
from otter_export.runtime.memory.host import HostBlock
from otter_export.runtime.row_trial import try_chains, try_rows

#: Added to a row's logits, of the index of its sequence and the step's ``(B, S)``.
Rounding = Callable[[int, int, int], float]


class RoundingExecutor:
    """Outputs are the sum of a token's prefix, and a little more where ``rounding`` says so."""

    row_rule = RowRule(pairs=False, even_steps=False)
    chains_alike = False
    max_batch_size = 8

    def __init__(self, rounding: Rounding, output: str, cache_form: str) -> None:
        self.rounding, self.output, self.cache_form = rounding, output, cache_form

    def accepts(self, batch: int, step: int, kept: int) -> bool:
        return True

    def slots(self, needed: int, held: int = 0) -> int:
        return -(-needed // 8) * 8

    def blocks(self, places: int, slots: int, *, zeroed: bool = True) -> tuple[HostBlock, ...]:
        return (HostBlock(np.zeros((2, places, 1, slots, 3), np.float32)),)

    def run(self, blocks: Any, inputs: StepInputs, rows: Any = None) -> Mapping[str, FloatArray]:
        batch, step, kept = inputs.shape
        seen, slots = inputs.arrays["attention_mask"], blocks[0].shape[3]
        in_place = self.cache_form == engine_io.IN_PLACE
        lengths = [int(row.sum()) - 1 for row in (seen[:, 0, 0] if in_place else seen[:, 0])]
        assert min(lengths) > 0 and kept == step and (rows is None) == in_place
        for b, length in enumerate(lengths):
            visible = seen[b, 0] if in_place else seen[b]
            first = length if in_place else slots
            assert visible[:, :length].all() and visible.sum() == step * (length + 1)
            assert (visible[:, first : first + step] == np.eye(step)).all()
            assert not in_place or inputs.arrays["write_indices"][b] == length
        prefix = np.array([blocks[0].array[:, b, :, :n].sum() for b, n in enumerate(lengths)])
        assert prefix.all()
        outputs = {
            "logits": np.tile(prefix[:, None, None], (1, step, 5)),
            "reward": np.tile(prefix[:, None], (1, step)),
        }
        for b in range(batch):
            outputs[self.output][b] += np.float32(self.rounding(b, batch, step))
        return outputs


@pytest.mark.parametrize("cache_form", [engine_io.READ_ONLY, engine_io.IN_PLACE])
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
def test_any_difference_is_found(
    rounding: Rounding, output: str, cache_form: str, expected: RowRule
) -> None:
    assert try_rows(RoundingExecutor(rounding, output, cache_form)) == expected


def test_what_is_no_number_is_no_proof() -> None:
    rule = try_rows(RoundingExecutor(lambda b, batch, step: np.nan, "logits", engine_io.IN_PLACE))
    assert rule == RowRule(pairs=True, even_steps=True)


class ChainExecutor:
    """A token's row is what it sees and its id; ``rounding`` of a step's width is added to outputs.

    ``spoiled`` is a width whose last row is stored otherwise; the numbers of rows must be even if
    the rule says pairs.
    """

    cache_form = engine_io.IN_PLACE
    chains_alike = False
    max_batch_size = 8

    def __init__(self, rule: RowRule, rounding: Callable[[int], float], spoiled: int = 0) -> None:
        self.row_rule, self.rounding, self.spoiled = rule, rounding, spoiled

    def accepts(self, batch: int, step: int, kept: int) -> bool:
        return True

    def slots(self, needed: int, held: int = 0) -> int:
        return -(-needed // 32) * 32

    def blocks(self, places: int, slots: int, *, zeroed: bool = True) -> tuple[HostBlock, ...]:
        return (HostBlock(np.zeros((2, places, 1, slots, 3), np.float32)),)

    def run(self, blocks: Any, inputs: StepInputs, rows: Any = None) -> Mapping[str, FloatArray]:
        batch, step, _ = inputs.shape
        assert not self.row_rule.pairs or batch * step % 2 == 0
        logits = np.zeros((batch, step, 5), np.float32)
        for b, first in enumerate(inputs.arrays["write_indices"].tolist()):
            for i in range(step):
                cache = blocks[0].array[:, b, 0]
                seen = inputs.arrays["attention_mask"][b, 0, i].copy()
                seen[first + i] = False  # its own
                row = np.tanh(cache[:, seen].sum(axis=1) + inputs.arrays["input_ids"][b, i])
                cache[:, first + i] = row + (i + 1 == step == self.spoiled)
                logits[b, i] = row.sum() + np.float32(self.rounding(step))
        return {"logits": logits}


ALL, EVEN, PAIRS = RowRule(False, False), RowRule(False, True), RowRule(True, True)


@pytest.mark.parametrize(
    ("rule", "rounding", "spoiled", "expected"),
    [
        *((rule, lambda step: 0.0, 0, True) for rule in (ALL, EVEN, PAIRS)),
        *((rule, lambda step: step == 8, 0, False) for rule in (ALL, EVEN, PAIRS)),
        (ALL, lambda step: step == 5, 0, False),
        # Nobody feeds an odd number of tokens where rows of even steps alone are alike.
        (EVEN, lambda step: step % 2 and step > 1, 0, True),
        (ALL, lambda step: np.nan, 0, False),
        # Outputs are as they should be; what is kept for later tokens is not.
        (EVEN, lambda step: 0.0, 8, False),
    ],
)
def test_chains_are_alike_if_outputs_and_rows_are(
    rule: RowRule, rounding: Callable[[int], float], spoiled: int, expected: bool
) -> None:
    assert try_chains(ChainExecutor(rule, rounding, spoiled)) == expected
