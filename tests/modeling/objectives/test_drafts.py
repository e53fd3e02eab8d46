"""L0: drafts learn what the base chooses later; by loops that are written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from otter_export.modeling.data import Batch, Item, Row, collate
from otter_export.modeling.objectives.drafts import Drafts
from otter_export.modeling.objectives.objective import Head
from otter_export.modeling.otter_model import OtterOutput
from otter_export.signals import Signal

V, HEADS = 7, 3
SIGNAL = Signal("ahead", "medusa", "identity", None, HEADS)
#: (start, length, domain): the last two rows have no draft of the later heads, or none at all.
ROWS = [(0, 6, "code"), (2, 7, "prose"), (1, 3, "code"), (3, 4, "")]


def data() -> Batch:
    return collate(
        [Item(i, (Row((1,) * length, start),), 0.0, d) for i, (start, length, d) in enumerate(ROWS)]
    )


def made(size: int) -> tuple[OtterOutput, torch.Tensor]:
    """An output whose channel names its row, and the logits of each row ``[4, 7, n, size]``."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(ROWS), 7, V, generator=generator)
    drafted = torch.randn(len(ROWS), 7, HEADS, size, generator=generator)
    channel = torch.arange(len(ROWS) * 7).reshape(len(ROWS), 7, 1)
    return OtterOutput(logits, {}, channel.float(), None), drafted


def head_of(drafted: torch.Tensor) -> Head:
    """A head that looks its logits up."""
    return lambda channel: drafted.flatten(0, 1)[channel[:, 0].long()]


def pairs(output: OtterOutput) -> list[tuple[int, int, int, int]]:
    """Row, position, head, and the token that the base chooses there."""
    best = output.logits.argmax(-1)
    return [
        (row, at, head, int(best[row, at + head + 1]))
        for row, (start, length, _) in enumerate(ROWS)
        for at in range(start, length)
        for head in range(HEADS)
        if at + head + 1 < length
    ]


@pytest.mark.parametrize("token_ids", [None, (0, 2, 3, 6)])
def test_loss_and_acceptance_are_those_of_the_definition(token_ids: tuple[int, ...] | None) -> None:
    names = tuple(range(V)) if token_ids is None else token_ids
    output, drafted = made(len(names))
    objective = Drafts(SIGNAL, None if token_ids is None else torch.tensor(token_ids))
    expected = pairs(output)
    costs = [
        -float(drafted[row, at, i].log_softmax(-1)[names.index(token)])
        for row, at, i, token in expected
        if token in names
    ]
    assert len(costs) == len(expected) or token_ids is not None
    loss = objective.loss(output, data(), head_of(drafted))
    assert float(loss) == pytest.approx(np.mean(costs), rel=1e-5)  # float32
    right = [
        (row, i, names[int(drafted[row, at, i].argmax())] == token)
        for row, at, i, token in expected
    ]
    metrics = objective.metrics(objective.judge(output, data(), head_of(drafted), ends=True))
    assert metrics["all"] == pytest.approx(np.mean([hit for *_, hit in right]))
    for i in range(HEADS):
        assert metrics[str(i + 1)] == pytest.approx(np.mean([h for _, j, h in right if j == i]))
    code = [hit for row, i, hit in right if ROWS[row][2] == "code" and i == 0]
    assert metrics["code 1"] == pytest.approx(np.mean(code))
    assert set(metrics) == {"all", "1", "2", "3", *(f"{d} {i}" for d in ("code", "prose")
                            for i in (1, 2, 3))}  # fmt: skip


def test_what_is_never_drafted_costs_nothing() -> None:
    output, drafted = made(1)
    unused = 3
    output.logits[..., unused] = -10.0
    objective = Drafts(SIGNAL, torch.tensor([unused]))
    assert float(objective.loss(output, data(), head_of(drafted))) == 0.0
    assert objective.metrics(objective.judge(output, data(), head_of(drafted), True))["all"] == 0.0
