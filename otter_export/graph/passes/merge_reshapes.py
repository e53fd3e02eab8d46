"""Two reshapes in a row are one."""

from __future__ import annotations

import onnx_ir as ir


class MergeReshapes(ir.passes.InPlacePass):
    """Only the last of a chain of reshapes matters, unless its 0 copies a dimension of the first.

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
            if node.op_type != "Reshape" or _copies_dimensions(node):
                continue
            if producer is not None and producer.op_type == "Reshape":
                node.replace_input_with(0, producer.inputs[0])
                changed = True
        return ir.passes.PassResult(model, modified=changed)


def _copies_dimensions(node: ir.Node) -> bool:
    shape = node.inputs[1]
    return shape is not None and shape.const_value is not None and 0 in shape.const_value.numpy()
