"""Rotary tables: cos and sin of every position, from transformers' own modules.

mobius-onnx computes tables of its own, for some scalings and mostly one for all layers; these take
their place.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from otter_export.base_model import BaseModel
from otter_export.boundary import errors_as
from otter_export.engine_io import POSITION_IDS
from otter_export.errors import CheckpointError, UnsupportedError
from otter_export.graph.attention import layer_of
from otter_export.graph.emit import Emitter, add_initializer, lazy_tensor
from otter_export.layer_attention import LayerAttention, completed_config
from otter_export.safetensors_io import FloatArray


def set_rotations(
    model: ir.Model,
    base: BaseModel,
    layers: Sequence[LayerAttention],
    dtype: ir.DataType,
    positions: int,
) -> set[str]:
    """Let queries and keys of every layer rotate by its table, or not at all; in place.

    Args:
        model: A hub graph; what reads its own tables is rewired.
        base: Whose rotations these are.
        layers: The attention of each layer.
        dtype: Of the tables: that of the activations, to which transformers rounds them too.
        positions: Rows of the tables.

    Returns:
        Names of mends: ``unrotated_layers``, ``interleaved_rotation``. That all tables are replaced
        is none.

    Raises:
        UnsupportedError: The graph does not rotate where the base does.
    """
    graph = model.graph
    rows: dict[str, list[ir.Value]] = {}
    mends = set()
    for attention in [n for n in graph if n.op_type == "Attention"]:
        table = layers[layer_of(attention.inputs[4])].rotary
        for value in attention.inputs[:2]:
            rotation = None if value is None else value.producer()
            if rotation is None or rotation.op_type != "RotaryEmbedding":
                if table is not None:
                    raise UnsupportedError(
                        f"{base.directory}: node {attention.name!r} of the base graph does not "
                        "rotate its queries and keys, as the base does"
                    )
            elif table is None:
                ir.convenience.replace_all_uses_with(rotation.outputs[0], rotation.inputs[0])  # type: ignore[arg-type]
                graph.remove(rotation, safe=True)
                mends.add("unrotated_layers")
            else:
                if table not in rows:
                    rows[table] = _rows(graph, base, table, dtype, positions)
                if _rotate_by(rotation, rows[table], base):
                    mends.add("interleaved_rotation")
    return mends


def rotary_table(base: BaseModel, table: str, positions: int) -> tuple[FloatArray, FloatArray]:
    """Cos and sin, ``[positions, half of what is rotated of a head]`` each, float32.

    transformers makes them in float32 from inverse frequencies (its ``ROPE_INIT_FUNCTIONS``), and
    holds every value twice: for both halves of a head, or for neighbours.

    Raises:
        CheckpointError: transformers cannot make them.
    """
    import torch

    with errors_as(CheckpointError, f"transformers has no rotary table for {base.directory}"):
        module = _rotary_module(completed_config(base))
        names = inspect.signature(module.forward).parameters
        kind = {"layer_type": table} if "layer_type" in names else {}
        ids = torch.arange(positions)[None]
        both = [part[0].numpy() for part in module(torch.zeros(1, 1, 1), ids, **kind)]
    cos, sin = (_once(part) for part in both)
    return cos, sin


def _rotary_module(config: Any) -> Any:
    """The rotary embedding of a configuration's model; it holds no weights."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    source = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__module__]
    kinds = [v for n, v in vars(source).items() if n.endswith("RotaryEmbedding")]
    return next(kind for kind in kinds if kind.__module__ == source.__name__)(config)


def _once(values: FloatArray) -> FloatArray:
    """Each value of a table once. GLM and ERNIE have halves already."""
    half = values.shape[-1] // 2
    if np.array_equal(values[:, :half], values[:, half:]):
        return np.ascontiguousarray(values[:, :half])
    if np.array_equal(values[:, ::2], values[:, 1::2]):
        return np.ascontiguousarray(values[:, ::2])
    raise ValueError("a rotary table of neither halves nor neighbours")


def _rows(
    graph: ir.Graph, base: BaseModel, table: str, dtype: ir.DataType, positions: int
) -> list[ir.Value]:
    """The rows of a table's cos and sin at the positions of a step, ``[batch, step, half]``."""
    made = functools.cache(functools.partial(rotary_table, base, table, positions))
    half = made()[0].shape[1]
    ids = next(v for v in graph.inputs if v.name == POSITION_IDS)
    e = Emitter(graph, graph[0], before=True)
    rows = []
    for index, name in enumerate(("cos", "sin")):
        stem = f"rotary.{table}.{name}"
        make = functools.partial(lambda index: made()[index], index)
        tensor = lazy_tensor(f"{stem}_cache", dtype, (positions, half), make)
        cache = add_initializer(graph, f"{stem}_cache", tensor)
        rows.append(e.op("Gather", [cache, ids], stem, shape=["batch", "step", half]))
    return rows


def _rotate_by(rotation: ir.Node, rows: Sequence[ir.Value], base: BaseModel) -> bool:
    """Set tables, size and order of a rotation; whether the order was another."""
    for index, value in enumerate(rows, 1):
        rotation.replace_input_with(index, value)
    assert rows[0].shape is not None
    rotated = 2 * int(rows[0].shape[2])  # type: ignore[arg-type]
    whole = rotated == base.dimensions.head_dim
    rotation.attributes["rotary_embedding_dim"] = ir.AttrInt64(
        "rotary_embedding_dim", 0 if whole else rotated
    )
    order = rotation.attributes.get("interleaved")
    rotation.attributes["interleaved"] = ir.AttrInt64("interleaved", int(base.family.interleaved))
    return base.family.interleaved != (order is not None and bool(order.as_int()))
