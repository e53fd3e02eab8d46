"""Engines that several files test; each is built once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from otter_export.checkpoint import Checkpoint
from otter_export.graph.pipeline import lower, onnxruntime
from otter_export.modeling.otter_model import load_reference
from tests import built, tiny

Array = np.ndarray[Any, Any]


@dataclasses.dataclass
class Built:
    """A checkpoint, its fp32 engine, the unwidened graph lowered alike, and the torch reference."""

    checkpoint: Checkpoint
    engine: Path
    graph: built.Graph
    base: built.Graph
    reference: Any

    @classmethod
    def make(cls, root: Path, checkpoint: Checkpoint) -> Built:
        """Build an engine under ``root``."""
        engine = built.build(checkpoint, root / "engine")
        base = lower(checkpoint, onnxruntime(), "fp32", widened=False)
        return cls(
            checkpoint,
            engine,
            built.Graph.load(engine),
            built.Graph.of(base, root / "base-graph"),
            load_reference(checkpoint),
        )

    def torch(self, ids: Array) -> dict[str, Array]:
        """Logits and signals of the torch reference for whole sequences."""
        with torch.no_grad():
            output = self.reference(torch.from_numpy(ids))
        return {"logits": output.logits.numpy()} | {
            name: signal.numpy() for name, signal in output.signals.items()
        }


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    """A random channel with a value and a q_value signal over each family."""
    result = {}
    for i, family in enumerate(tiny.CONFIGS):
        root = tmp_path_factory.mktemp(family)
        checkpoint = built.random_checkpoint(
            root / "ck", family, signals=(tiny.REWARD, tiny.NEXT), seed=i
        )
        result[family] = Built.make(root, checkpoint)
    return result


def tokens(batch: int, length: int, seed: int = 0) -> Array:
    """Random ids of the tiny vocabulary."""
    return np.random.default_rng(seed).integers(3, 128, (batch, length))
