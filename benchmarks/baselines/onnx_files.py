"""The graphs that `OnnxModel` runs: the base alone, and a reward model of its size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from otter_export import engine_io
from otter_export.checkpoint import Checkpoint
from otter_export.converters.external_data import save_model
from otter_export.graph.base import base_graph
from otter_export.graph.pipeline import lower, onnxruntime, run_passes
from otter_export.precision import choose_precision


def write_base(
    checkpoint: Checkpoint, precision: str, directory: Path, positions: int | None = None
) -> None:
    """Write the base alone, lowered as an engine's is, for sequences of at most ``positions``."""
    graph = lower(checkpoint, onnxruntime(), precision, widened=False, positions=positions)
    save_model(graph, directory)


def write_reward_model(
    checkpoint: Checkpoint, precision: str, directory: Path, positions: int | None = None
) -> None:
    """Write the base's decoder under a random head of one row: a reward model of the base's size.

    Its weights are its own, as those of a separate reward model are.
    """
    pipeline = onnxruntime()
    chosen = choose_precision(pipeline.precisions, precision, pipeline.where)
    model = base_graph(checkpoint.base, chosen.dtype.hub, positions)
    _replace_head(model, checkpoint.base.dimensions.hidden_size)
    save_model(run_passes(model, pipeline.passes(checkpoint.base, chosen)), directory)


def _replace_head(model: ir.Model, width: int) -> None:
    """Let the logits be one number: the product with the head takes another weight."""
    (logits,) = (value for value in model.graph.outputs if value.name == engine_io.LOGITS)
    node = logits.producer()
    assert node is not None and node.op_type == "MatMul", node
    head = np.random.default_rng(0).standard_normal((width, 1)).astype(np.float32) * width**-0.5
    weight = ir.Value(name="reward.weight", const_value=ir.tensor(head, name="reward.weight"))
    weight.dtype, weight.shape = ir.DataType.FLOAT, ir.Shape(head.shape)
    model.graph.register_initializer(weight)
    node.replace_input_with(1, weight)
    assert logits.shape is not None
    logits.shape = ir.Shape([*logits.shape[:-1], 1])
