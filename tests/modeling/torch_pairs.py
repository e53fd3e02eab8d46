"""Checkpoints as they decode in torch on the CPU, beside their fp32 ONNX engines.

Tolerances, in units of the largest value: 2e-5 in fp32, where the same numbers are summed in
another order; half precision against fp32: 2e-2 in fp16, 1e-1 in bf16 (8 bits, some 30 roundings).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from otter_export import load_engine
from otter_export.checkpoint import Checkpoint
from otter_export.modeling.torch_engine import TorchOptions, torch_engine
from otter_export.runtime.engine import Engine, Step
from tests import built, tiny
from tests.runtime.fake_engine import ByteTokenizer

TOLERANCE = {"fp32": 2e-5, "fp16": 2e-2, "bf16": 1e-1}
FAMILIES = list(tiny.CONFIGS)


@dataclasses.dataclass
class Pair:
    checkpoint: Checkpoint
    onnx: Engine
    torch: Engine


def make_pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """One for each family."""
    made = {}
    for i, family in enumerate(FAMILIES):
        root = tmp_path_factory.mktemp(family)
        checkpoint = built.random_checkpoint(
            root / "ck", family, signals=(tiny.REWARD, tiny.NEXT), seed=i
        )
        made[family] = make_pair(checkpoint, root / "onnx")
    return made


def make_pair(checkpoint: Checkpoint, directory: Path) -> Pair:
    """A checkpoint with both engines; the ONNX one is built into a new directory."""
    onnx = load_engine(built.build(checkpoint, directory), threads=1)
    onnx.__dict__["tokenizer"] = ByteTokenizer()
    # Short steps run in parts, so that those are tested too.
    options = TorchOptions(device="cpu", max_step=16)
    return Pair(checkpoint, onnx, make_engine(checkpoint, options))


def make_engine(checkpoint: Checkpoint, options: TorchOptions) -> Engine:
    engine = torch_engine(checkpoint, options)
    engine.__dict__["tokenizer"] = ByteTokenizer()
    return engine


def close(found: Step, expected: Step, tolerance: float) -> None:
    assert built.relative(found.logits, expected.logits) < tolerance
    assert found.signals.keys() == expected.signals.keys()
    for name, values in expected.signals.items():
        assert found.signals[name].dtype == np.float32
        assert np.abs(found.signals[name] - values).max() < tolerance
