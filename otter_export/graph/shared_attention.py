"""Attention that the channel shares with the base: its values under the weights of base heads.

In the hub graph that is an Attention on the base's own queries and keys of those heads. The cache
forms have the base's attention at hand where they lower its twin, and take what it computed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from otter_export.channel import base_heads, rows_of_heads
from otter_export.graph.emit import Emitter
from otter_export.graph.rule import Widening

_BASE = "otter.shares_with"


def share(e: Emitter, node: ir.Node, state: Widening) -> list[ir.Value]:
    """Queries, keys and past keys of the base heads whose weights the extra heads read.

    Args:
        e: Where to emit.
        node: The base's Attention, with queries, keys and a past.
        state: The walk.
    """
    queries, keys, past = node.inputs[0], node.inputs[1], node.inputs[4]
    config, name = state.config, f"{node.outputs[0].name}.shared"
    size = config.head_dim
    heads = base_heads(config, state.checkpoint.base.dimensions)
    kv_heads = np.arange(config.num_key_value_heads)
    assert queries is not None and keys is not None and past is not None
    return [
        take(e, queries, rows_of_heads(heads, size), 2, f"{name}.q"),
        take(e, keys, rows_of_heads(kv_heads, size), 2, f"{name}.k"),
        take(e, past, kv_heads, 1, f"{name}.past"),
    ]


def note_base(twin: ir.Node, base: ir.Node) -> None:
    """Note beside an Attention whose queries and keys it reads."""
    twin.metadata_props[_BASE] = str(base.name)


def base_of(node: ir.Node) -> str | None:
    """The name of the Attention whose queries and keys this one reads; None: it has its own."""
    return node.metadata_props.get(_BASE)


def take(
    e: Emitter, value: ir.Value, rows: npt.NDArray[np.int64], axis: int, name: str
) -> ir.Value:
    """Rows of an axis of known size: all, a Slice of the first ones, or any."""
    assert value.shape is not None
    shape = [*value.shape]
    total, count = shape[axis], len(rows)
    shape[axis] = count
    first = np.arange(count)
    if not np.array_equal(rows, first):
        index = e.constant(rows, f"{name}.rows")
        return e.op("Gather", [value, index], name, shape=shape, axis=axis)
    if total == count:
        return value
    start, end = e.constant([0], "otter.first"), e.constant([count], f"otter.dim.{count}")
    axes = e.constant([axis], f"otter.dim.{axis}")
    return e.op("Slice", [value, start, end, axes], name, shape=shape)
