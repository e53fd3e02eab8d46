"""A graph of the ``in_place`` cache form, run step by step: ONNX Runtime, or ONNX's own evaluator.

This is what a client does, with nothing of the runtime: static caches, a mask over the capacity,
and the rows that come out copied to the input of the next step.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from otter_export.converters.external_data import save_model
from otter_export.engine_io import is_cache, present_of

Array = np.ndarray[Any, Any]
Caches = dict[str, Array]


@dataclasses.dataclass
class InPlaceGraph:
    """A lowered model and what runs it."""

    model: ir.Model
    session: Any

    @classmethod
    def of(
        cls, model: ir.Model, directory: Path, *, evaluator: bool = False, optimize: bool = True
    ) -> InPlaceGraph:
        """Save a model and load it.

        Args:
            model: Lowered.
            directory: Where; it is made.
            evaluator: Take ONNX's own evaluator, which knows bfloat16.
            optimize: Let ONNX Runtime fuse what it can.
        """
        directory.mkdir(parents=True, exist_ok=True)
        save_model(model, directory)
        path = str(directory / "model.onnx")
        if evaluator:
            return cls(model, ReferenceEvaluator(onnx.load(path)))
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return cls(model, ort.InferenceSession(path, options))

    @property
    def capacity(self) -> int:
        """Rows of every cache."""
        return next(int(v.shape[2]) for v in self._cache_inputs())

    def _cache_inputs(self) -> list[ir.Value]:
        return [v for v in self.model.graph.inputs if is_cache(v.name)]

    def new_caches(self, batch: int, garbage: float = 0.0) -> Caches:
        """Caches in which every slot holds random values of this size."""
        generator = np.random.default_rng(9)
        caches = {}
        for value in self._cache_inputs():
            _, heads, rows, size = value.shape
            noise = garbage * generator.standard_normal((batch, heads, rows, size))
            caches[str(value.name)] = noise.astype(value.dtype.numpy())
        return caches

    def __call__(
        self,
        ids: Array,
        caches: Caches | None = None,
        lengths: Array | None = None,
        *,
        tree: Array | None = None,
        depths: Array | None = None,
        kept: Array | None = None,
    ) -> tuple[dict[str, Array], Caches]:
        """Run one step.

        Args:
            ids: ``[B, S]``.
            caches: As the step before left them; None for empty ones.
            lengths: ``[B]``: rows of the committed prefixes, behind which the step is written.
            tree: ``[B, S, S]``: which rows of the step each sees; None is causal.
            depths: ``[B, S]``: position of each row behind its prefix; None counts up.
            kept: ``[B, K]``: rows that come out; None takes all.

        Returns:
            Logits and signals by name, and the caches after the step.
        """
        batch, step = ids.shape
        caches = self.new_caches(batch) if caches is None else caches
        lengths = np.zeros(batch, np.int64) if lengths is None else np.asarray(lengths)
        tree = (
            np.broadcast_to(np.tri(step, dtype=bool), (batch, step, step)) if tree is None else tree
        )
        depths = np.broadcast_to(np.arange(step), (batch, step)) if depths is None else depths
        mask = np.broadcast_to(
            np.arange(self.capacity) < lengths[:, None, None, None], (batch, 1, step, self.capacity)
        ).copy()
        for b, length in enumerate(lengths):
            mask[b, 0, :, length : length + step] = tree[b]
        feed = {
            "input_ids": ids.astype(np.int64),
            "position_ids": (lengths[:, None] + depths).astype(np.int64),
            "attention_mask": mask,
            "write_indices": lengths.astype(np.int64),
            "kept_rows": np.tile(np.arange(step), (batch, 1)) if kept is None else kept,
            **caches,
        }
        names = [str(v.name) for v in self.model.graph.outputs]
        found = dict(zip(names, self.session.run(None, feed), strict=True))
        after = {name: found[present_of(name)] for name in caches}
        return {name: v for name, v in found.items() if not is_cache(name)}, after
