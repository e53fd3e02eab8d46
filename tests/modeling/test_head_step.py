"""L2: heads with a row for each token move through the base's rows of those tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from otter_export.checkpoint import Checkpoint
from otter_export.modeling.head_step import HeadStep
from otter_export.modeling.learner import Task
from otter_export.modeling.otter_model import OtterModel, load_reference
from otter_export.safetensors_io import FloatArray
from tests import tiny
from tests.modeling.reference import widths
from tests.modeling.test_joint_training import AHEAD, DRAFTS, SHORT, TONE, make

#: Of float32 sums of 32 terms, a step each.
ROUNDING = 1e-5


def stored(path: Path, signal: str) -> FloatArray:
    return Checkpoint.open(path).float32(f"signals.{signal}.weight")


@pytest.mark.parametrize("task", [TONE, DRAFTS], ids=lambda task: task.signal)
def test_a_head_moves_within_the_rows_of_the_base(tmp_path: Path, task: Task) -> None:
    trainer = make(tmp_path / "ck", [task], config=SHORT)
    assert trainer.run()
    rows = trainer.model.base.get_output_embeddings().weight.detach().numpy()
    weight = trainer.model.head(task.signal).weight.detach().numpy()
    moved = (weight - stored(tmp_path / "ck", task.signal)).reshape(-1, *weight.shape[-2:])
    for part in moved:
        assert np.abs(part).max() > 1e-3
        solution, *_ = np.linalg.lstsq(rows, part, rcond=None)
        assert np.abs(rows @ solution - part).max() <= ROUNDING * np.abs(part).max()
    assert len(rows) > rows.shape[1], "every matrix would be within reach"


def model_and_checkpoint(tmp_path: Path) -> tuple[OtterModel, Checkpoint]:
    make(tmp_path / "ck", [DRAFTS])
    checkpoint = Checkpoint.open(tmp_path / "ck")
    return load_reference(checkpoint), checkpoint


def test_the_gradient_is_that_of_the_step(tmp_path: Path) -> None:
    """By the chain rule of ``weight + rows @ step``, as autograd has it."""
    model, checkpoint = model_and_checkpoint(tmp_path)
    head = HeadStep.of(model, checkpoint, AHEAD)
    channel = torch.randn(5, head.weight.shape[-1], generator=torch.Generator().manual_seed(0))

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bd,nvd->bnv", channel, weight).log_softmax(-1)[..., 3].sum()

    step = torch.zeros_like(head.step, requires_grad=True)
    loss(head.weight.detach() + head.rows @ step).backward()
    loss(head.weight).backward()
    head.pull()
    assert head.weight.grad is None and step.grad is not None and head.step.grad is not None
    torch.testing.assert_close(head.step.grad, step.grad, rtol=1e-4, atol=1e-6)


def test_a_step_is_taken_once(tmp_path: Path) -> None:
    model, checkpoint = model_and_checkpoint(tmp_path)
    head = HeadStep.of(model, checkpoint, AHEAD)
    before = head.weight.detach().clone()
    torch.nn.init.ones_(head.step)
    expected = before + head.rows @ head.step.detach()
    head.push()
    head.push()
    assert torch.equal(head.weight, expected)


def test_rows_are_those_of_the_drafted_tokens(tmp_path: Path) -> None:
    few = dataclasses.replace(AHEAD, draft_vocab=5)
    tiny.write_checkpoint(tmp_path / "ck", signals=(few,), **widths("llama"))
    checkpoint = Checkpoint.open(tmp_path / "ck")
    ids = checkpoint.token_ids(few)
    assert ids is not None
    model = load_reference(checkpoint)
    rows = HeadStep.of(model, checkpoint, few).rows
    assert torch.equal(rows, model.base.get_output_embeddings().weight[ids.tolist()])
