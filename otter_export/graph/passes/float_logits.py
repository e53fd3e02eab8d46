"""Logits in float32 whatever the model computes in."""

from __future__ import annotations

import onnx_ir as ir

from otter_export.engine_io import LOGITS
from otter_export.graph.emit import Emitter


class FloatLogits(ir.passes.InPlacePass):
    """Clients read float32 logits from every engine; scores are compared and summed there.

    Before (in a float16 graph)::

        logits = MatMul(n, W^T) float16

    After::

        logits = Cast(MatMul(n, W^T)) float32
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        index = next(i for i, v in enumerate(graph.outputs) if v.name == LOGITS)
        old = graph.outputs[index]
        producer = old.producer()
        if producer is None or old.dtype in (None, ir.DataType.FLOAT):
            return ir.passes.PassResult(model, modified=False)
        old.name = f"{LOGITS}.narrow"
        e = Emitter(graph, producer)
        to = ir.DataType.FLOAT
        graph.outputs[index] = e.op("Cast", [old], LOGITS, dtype=to, shape=old.shape, to=to)
        return ir.passes.PassResult(model, modified=True)
