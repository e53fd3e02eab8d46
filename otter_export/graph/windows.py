"""Windows: how far each Attention of a graph looks back, noted beside it until a cache form has it.

The cache forms replace the mask that mobius-onnx built, so all that a mask says must be known: that
a token sees those before it, and, by the note, how many of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from otter_export.errors import UnsupportedError
from otter_export.graph.attention import layer_of
from otter_export.graph.emit import Emitter
from otter_export.layer_attention import LayerAttention

_WINDOW = "otter.window"
#: What masks of causality, padding and windows are made of. Others (ALiBi: a slope times a
#: distance) have sums and products of scores.
_MASK_OPS = frozenset(
    [
        *("Cast", "Unsqueeze", "Squeeze", "Shape", "Concat", "Expand", "CumSum", "Sub", "Slice"),
        *("Range", "Gather", "Constant", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
        *("And", "Where"),
    ]
)


def set_windows(model: ir.Model, layers: Sequence[LayerAttention]) -> None:
    """Note the window of every layer; in place.

    Raises:
        UnsupportedError: A mask is made of what no cache form computes.
    """
    checked: set[ir.Value] = set()
    for node in [n for n in model.graph if n.op_type == "Attention"]:
        _check_mask(node, node.inputs[3], checked)
        window = layers[layer_of(node.inputs[4])].window
        if window is not None:
            node.metadata_props[_WINDOW] = str(window)


def window_of(node: ir.Node) -> int | None:
    """How many positions an Attention sees, a query's own included; None: all."""
    text = node.metadata_props.get(_WINDOW)
    return None if text is None else int(text)


def near(e: Emitter, mask: ir.Value, queries: ir.Value, keys: ir.Value, window: int) -> ir.Value:
    """A mask narrowed to the keys that are less than ``window`` positions before the query.

    Args:
        e: Where to emit.
        mask: bool ``[B, 1, S, K]``: what is seen at all.
        queries: int64 ``[B, S]``: their positions.
        keys: int64 ``[B, K]``: theirs; any value where the mask is False.
        window: Positions, the query's own included.
    """
    name = f"otter.last{window}"
    column = e.op("Unsqueeze", [queries, e.constant([1, 3], "otter.query_axes")], f"{name}.queries")
    row = e.op("Unsqueeze", [keys, e.constant([1, 2], "otter.key_axes")], f"{name}.keys")
    distance = e.op("Sub", [column, row], f"{name}.distance")
    limit = e.constant(window, f"{name}.limit")
    boolean = ir.DataType.BOOL
    within = e.op("Less", [distance, limit], f"{name}.within", dtype=boolean)
    return e.op("And", [mask, within], f"{name}.mask", dtype=boolean, shape=mask.shape)


def _check_mask(attention: ir.Node, value: ir.Value | None, checked: set[ir.Value]) -> None:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        producer = None if value is None else value.producer()
        if producer is None or value is None or value in checked:
            continue
        checked.add(value)
        if producer.op_type not in _MASK_OPS:
            raise UnsupportedError(
                f"node {attention.name!r}: its mask has a {producer.op_type}; only causal masks "
                "and windows are built, no biases of positions (ALiBi)"
            )
        waiting += producer.inputs
