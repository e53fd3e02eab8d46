"""Caches that the model writes where they lie: what both forms of ``in_place`` graphs do."""

from __future__ import annotations

import onnx_ir as ir

from otter_export.engine_io import INPUT_IDS, POSITION_IDS, WRITE_INDICES
from otter_export.graph.attention import replace_mask
from otter_export.graph.emit import Emitter

_SEQUENCE_AXIS = -2


def in_place_inputs(graph: ir.Graph, capacity: int | str) -> tuple[ir.Value, ir.Value]:
    """A mask in the place of the padding mask, and the slot of each sequence's first new row.

    Returns:
        bool ``[B, 1, S, C]`` and int64 ``[B]``, two inputs of the graph.
    """
    mask = replace_mask(graph, ["batch", 1, "step", capacity])
    for value in graph.inputs:
        if value.name in (INPUT_IDS, POSITION_IDS):
            value.shape = ir.Shape(["batch", "step"])
    indices = ir.Value(
        name=WRITE_INDICES, shape=ir.Shape(["batch"]), type=ir.TensorType(ir.DataType.INT64)
    )
    graph.inputs.insert(list(graph.inputs).index(mask) + 1, indices)
    return mask, indices


def updated(
    e: Emitter,
    past: ir.Value | None,
    rows: ir.Value,
    indices: ir.Value,
    capacity: int | str,
    name: str,
) -> ir.Value:
    """A cache ``[B, Hkv, C, e]`` with new rows ``[B, Hkv, S, e]`` in the slots from an index on.

    Where past and present are bound to one memory, TensorRT and ONNX Runtime's CPU copy nothing
    else. The cache must be a graph input and its update a graph output.
    """
    assert past is not None and past.shape is not None
    past.shape = ir.Shape(["batch", past.shape[1], capacity, past.shape[3]])
    options = {"axis": _SEQUENCE_AXIS, "mode": "linear", "shape": past.shape}
    return e.op("TensorScatter", [past, rows, indices], name, **options)


def slot_positions(
    e: Emitter, slots: ir.Value, positions: ir.Value, indices: ir.Value, capacity: int | str
) -> ir.Value:
    """Positions of the keys in every slot, int64 ``[B, C]``.

    Slot i of a prefix holds position i, a new row that of its token. Slots behind the new rows get
    a value, which the mask hides.

    Args:
        e: Where to emit.
        slots: int64 ``[1, C]``: 0, 1, ...
        positions: int64 ``[B, S]``: of the new rows.
        indices: Of `in_place_inputs`.
        capacity: C.
    """
    name = "otter.key_positions"
    first = e.op("Unsqueeze", [indices, e.constant([1], "otter.slot_axis")], f"{name}.first")
    rows = e.op("Sub", [slots, first], f"{name}.rows", shape=["batch", capacity])
    zero = e.constant(0, "otter.zero")
    is_prefix = e.op("Less", [rows, zero], f"{name}.is_prefix", dtype=ir.DataType.BOOL)
    step = e.op("Shape", [positions], f"{name}.step", start=1, end=2)
    last = e.op("Sub", [step, e.constant([1], "otter.one")], f"{name}.last")
    index = e.op("Max", [e.op("Min", [rows, last], f"{name}.capped"), zero], f"{name}.index")
    new = e.op("GatherElements", [positions, index], f"{name}.new", axis=1)
    return e.op("Where", [is_prefix, slots, new], name, dtype=ir.DataType.INT64)
