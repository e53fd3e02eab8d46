"""Two reshapes in a row are one."""

from __future__ import annotations

import onnx_ir as ir


class MergeReshapes(ir.passes.InPlacePass):
    """Only the last of a chain of reshapes matters (no shape here uses 0, "copy the dimension").

    Before::

        a = Reshape(x, s);   y = Reshape(a, t)

    After::

        y = Reshape(x, t)
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        changed = False
        for node in model.graph:
            producer = node.inputs[0].producer() if node.inputs and node.inputs[0] else None
            if node.op_type == "Reshape" and producer is not None and producer.op_type == "Reshape":
                node.replace_input_with(0, producer.inputs[0])
                changed = True
        return ir.passes.PassResult(model, modified=changed)
