"""`Model` on ONNX Runtime, with this project's graph: the base alone, or under another head.

So methods can be compared on the same kernels, in the same precision: the base is the graph that
``build`` makes without the channel, and a reward model is that graph with a head of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.baselines.model import Array, Cache
from otter_export import engine_io
from otter_export.checkpoint import Checkpoint
from otter_export.converters.onnx import MODEL_FILE, save_model
from otter_export.engine_io import is_cache, present_of
from otter_export.graph.base import base_graph
from otter_export.graph.passes.tie_embedding import TieEmbedding
from otter_export.graph.pipeline import lower, onnxruntime, run_passes
from otter_export.precision import choose_precision
from otter_export.runtime.executors.onnxruntime import open_session

#: Slots by which a cache grows.
SLOTS = 32


def write_base(checkpoint: Checkpoint, precision: str, directory: Path) -> None:
    """Write the base alone, lowered as an engine's is."""
    save_model(lower(checkpoint, onnxruntime(), precision, widened=False), directory)


def write_reward_model(checkpoint: Checkpoint, precision: str, directory: Path) -> None:
    """Write the base's decoder under a random head of one row: a reward model of the base's size.

    Its weights are its own, as those of a separate reward model are.
    """
    pipeline = onnxruntime()
    chosen = choose_precision(pipeline.precisions, precision, pipeline.where)
    model = base_graph(checkpoint.base, chosen.dtype.hub)
    _replace_head(model, checkpoint.base.dimensions.hidden_size)
    # The embedding is no head's any more.
    passes = [
        one for one in pipeline.passes(checkpoint.base, chosen) if not isinstance(one, TieEmbedding)
    ]
    save_model(run_passes(model, passes), directory)


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


@dataclasses.dataclass(frozen=True)
class Rows:
    """Keys and values ``[B, heads, slots, e]`` by input name; ``length`` slots are full."""

    caches: dict[str, Array]
    length: int


class OnnxModel:
    """A graph of `write_base` or `write_reward_model`.

    Args:
        directory: Where it is.
        threads: Of one step.
        scalar: Whether the output is one number, not one for each token.
    """

    def __init__(self, directory: Path, threads: int, *, scalar: bool) -> None:
        self._session = open_session(directory / MODEL_FILE, "cpu", threads)
        self._scalar = scalar
        self._inputs = {v.name: v for v in self._session.get_inputs()}
        self._outputs = [v.name for v in self._session.get_outputs()]

    def read(self, cache: Cache | None, ids: Sequence[Sequence[int]]) -> tuple[Array, Cache]:
        """See `Model.read`."""
        tokens = np.array(ids, np.int64)
        batch, step = tokens.shape
        held = self._empty(batch) if cache is None else cache
        end = held.length + step
        slots = next(iter(held.caches.values())).shape[2]
        seen = np.concatenate((np.arange(slots) < held.length, np.ones(step, np.bool_)))
        mask = np.tile(seen, (batch, step, 1))
        mask[:, :, slots:] = np.tri(step, dtype=np.bool_)
        feed = {
            engine_io.INPUT_IDS: tokens,
            engine_io.POSITION_IDS: np.tile(np.arange(held.length, end), (batch, 1)),
            engine_io.ATTENTION_MASK: mask,
            engine_io.LOGITS_TO_KEEP: np.array([1], np.int64),
            **held.caches,
        }
        found = self._session.run(None, {name: feed[name] for name in self._inputs})
        outputs = dict(zip(self._outputs, found, strict=True))
        logits = outputs[engine_io.LOGITS][:, -1]
        return logits[:, 0] if self._scalar else logits, _extended(held, outputs, end)

    def rows(self, cache: Cache, chosen: Sequence[int]) -> Cache:
        """See `Model.rows`."""
        picked = np.array(chosen)
        return Rows({name: held[picked] for name, held in cache.caches.items()}, cache.length)

    def _empty(self, batch: int) -> Rows:
        shapes = {name: v.shape for name, v in self._inputs.items() if is_cache(name)}
        return Rows({n: np.zeros((batch, s[1], 0, s[3]), np.float32) for n, s in shapes.items()}, 0)


def _extended(held: Rows, outputs: dict[str, Array], end: int) -> Rows:
    """The cache with the new rows behind the old; in its own memory while there is room."""
    caches = {}
    for name, old in held.caches.items():
        kept = old
        if end > old.shape[2]:
            slots = -(-end // SLOTS) * SLOTS
            kept = np.zeros((*old.shape[:2], slots, old.shape[3]), old.dtype)
            kept[:, :, : held.length] = old[:, :, : held.length]
        kept[:, :, held.length : end] = outputs[present_of(name)]
        caches[name] = kept
    return Rows(caches, end)
