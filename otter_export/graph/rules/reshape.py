"""Reshape: heads apart, or together again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from otter_export.errors import UnsupportedError
from otter_export.graph.rule import Rule, Widening


def _apply(node: ir.Node, state: Widening) -> Sequence[ir.Value | None]:
    """Reshape(x, [0, 0, -1, e]) or Reshape(x, [0, 0, -1]) => the same of x'."""
    x, shape = node.inputs[0], node.inputs[1]
    assert x is not None and shape is not None
    wanted = None if shape.const_value is None else np.ravel(shape.const_value.numpy()).tolist()
    size, channel = state.config.head_dim, state.channel[x]
    leading = [] if channel.shape is None else list(channel.shape)
    if wanted == [0, 0, -1, size] and len(leading) == 3:
        after = [*leading[:2], int(leading[2]) // size, size]  # type: ignore[arg-type]
    elif wanted == [0, 0, -1] and len(leading) == 4:
        after = [*leading[:2], int(leading[2]) * size]  # type: ignore[arg-type]
    else:
        raise UnsupportedError(
            f"node {node.name!r}: Reshape of the widened state to {wanted}; only splitting into "
            "heads and joining them has a rule"
        )
    name = f"{node.outputs[0].name}.otter"
    return [state.emitter(node).op("Reshape", [channel, shape], name, shape=after)]


RULE = Rule("Reshape", _apply, "H'*e -> H', e and back")
