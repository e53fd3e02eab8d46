"""One copy of a tied embedding."""

from __future__ import annotations

import onnx_ir as ir

from otter_export.graph.emit import Emitter


class TieEmbedding(ir.passes.InPlacePass):
    """A head tied to the embedding shares its data: tokens are gathered from the head's columns.

    Before::

        x = Gather(E [V, d], ids [T]);   logits = MatMul(n, E_t [d, V])

    After::

        x = Transpose(Gather(E_t, ids, axis=1));   logits = MatMul(n, E_t)
    """

    def __init__(self, embedding: str, head: str) -> None:
        """``embedding`` and ``head``: names of the two initializers, ``[V, d]`` and ``[d, V]``."""
        super().__init__()
        self._names = (embedding, head)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        table, head = (graph.initializers.get(name) for name in self._names)
        gathers = [u.node for u in table.uses()] if table is not None else []
        flat = all(
            g.op_type == "Gather"
            and g.outputs[0].shape is not None
            and len(g.outputs[0].shape) == 2
            for g in gathers
        )
        if table is None or head is None or not gathers or not flat:
            return ir.passes.PassResult(model, modified=False)
        for gather in gathers:
            output = gather.outputs[0]
            e = Emitter(graph, gather, before=True)
            columns = e.op("Gather", [head, gather.inputs[1]], f"{output.name}.columns", axis=1)
            rows = e.op("Transpose", [columns], f"{output.name}.rows2", perm=[1, 0])
            rows.shape = output.shape
            ir.convenience.replace_all_uses_with(output, rows)
            graph.remove(gather, safe=True)
        del graph.initializers[str(table.name)]
        return ir.passes.PassResult(model, modified=True)
