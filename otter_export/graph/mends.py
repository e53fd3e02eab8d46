"""Mends: what mobius-onnx builds otherwise than transformers computes, put right.

Each mend has a name, which ``engine.json`` lists where it changed something. docs/upstream.md has
a reproduction of each fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from otter_export.base_model import BaseModel
from otter_export.graph.emit import add_initializer, static_shape
from otter_export.graph.weights import multiplied_weight

Mend = Callable[[ir.Graph, BaseModel], bool]


def mend(model: ir.Model, base: BaseModel) -> tuple[str, ...]:
    """Apply all mends to a hub graph without weights; the names of those that changed it."""
    return tuple(name for name, apply in _MENDS.items() if apply(model.graph, base))


def _missing_biases(graph: ir.Graph, base: BaseModel) -> bool:
    """``MatMul(x, W)`` => ``Add(MatMul(x, W), b)`` where the base has b (Llama's ``mlp_bias``)."""
    missing = {
        f"{site.graph_name}.weight": f"{site.graph_name}.bias"
        for site in base.sites.projections
        if f"{site.parameter}.bias" in base.tensors
        and f"{site.graph_name}.bias" not in graph.initializers
    }
    nodes = [(n, multiplied_weight(n)) for n in graph]
    found = [(n, w) for n, w in nodes if w is not None and w.name in missing]
    for node, weight in found:
        name, product = missing[str(weight.name)], node.outputs[0]
        shape = ir.Shape([static_shape(weight)[0]])
        bias = ir.Value(name=name, shape=shape, type=weight.type)
        graph.initializers[name] = bias
        added = ir.node("Add", [product, bias], name=f"{node.name}_bias")
        added.outputs[0].name = f"{product.name}_biased"
        added.outputs[0].shape, added.outputs[0].type = product.shape, product.type
        ir.convenience.replace_all_uses_with(product, added.outputs[0])
        added.replace_input_with(0, product)
        graph.insert_after(node, added)
    return bool(found)


def _phantom_biases(graph: ir.Graph, base: BaseModel) -> bool:
    """``Add(y, b)`` => ``y`` where the base has no such b (GLM's output projection)."""
    absent = {
        f"{site.graph_name}.bias"
        for site in base.sites.projections
        if f"{site.parameter}.bias" not in base.tensors
    }
    found = [n for n in graph if n.op_type == "Add" and str(n.inputs[1].name) in absent]  # type: ignore[union-attr]
    for node in found:
        product, bias = node.inputs
        assert product is not None and bias is not None
        ir.convenience.replace_all_uses_with(node.outputs[0], product)
        graph.remove(node, safe=True)
        del graph.initializers[str(bias.name)]
    return bool(found)


def _embedding_scale(graph: ir.Graph, base: BaseModel) -> bool:
    """The factor of Gemma's embeddings, which is rounded: to two decimals, or to float16.

    transformers rounds the square root of the width to float32, then to the embedding's dtype.
    """
    if not base.family.scaled_embedding:
        return False
    scale = np.float32(math.sqrt(base.dimensions.hidden_size))
    changed = False
    for node in graph:
        if node.op_type != "Gather" or str(node.inputs[0].name) != base.embedding_name:  # type: ignore[union-attr]
            continue
        for use in [u for u in node.outputs[0].uses() if u.node.op_type == "Mul"]:
            old = use.node.inputs[1 - use.idx]
            assert old is not None
            dtype = node.outputs[0].dtype or ir.DataType.FLOAT
            exact = np.asarray(scale, dtype.numpy())
            if old.const_value is None or old.const_value.numpy() != exact:
                tensor = ir.tensor(exact, dtype=dtype, name="otter.embedding_scale")
                value = add_initializer(graph, "otter.embedding_scale", tensor)
                use.node.replace_input_with(1 - use.idx, value)
                changed = True
    return changed


def _attention_scale(graph: ir.Graph, base: BaseModel) -> bool:
    """The scale of scores that Gemma 2 and 3 have in ``query_pre_attn_scalar``."""
    key = "query_pre_attn_scalar"
    scalar: Any = base.data.get(key, base.family.defaults.get(key))
    if key not in base.family.settings or scalar is None:
        return False
    scale = float(scalar) ** -0.5
    changed = False
    for node in [n for n in graph if n.op_type == "Attention"]:
        attribute = node.attributes.get("scale")
        own = base.dimensions.head_dim**-0.5 if attribute is None else attribute.as_float()
        if not math.isclose(own, scale, rel_tol=1e-6):
            node.attributes["scale"] = ir.AttrFloat32("scale", scale)
            changed = True
    return changed


_MENDS: dict[str, Mend] = {
    "missing_biases": _missing_biases,
    "phantom_biases": _phantom_biases,
    "embedding_scale": _embedding_scale,
    "attention_scale": _attention_scale,
}
