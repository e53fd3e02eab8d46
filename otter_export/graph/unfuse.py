"""Fused projections taken apart: every later step sees one logical projection a MatMul."""

from __future__ import annotations

import onnx_ir as ir

from otter_export.base_model import BaseModel
from otter_export.family import ProjectionSite
from otter_export.graph.emit import Emitter
from otter_export.graph.weights import drop_unused, multiplied_weight


def unfuse(model: ir.Model, base: BaseModel) -> None:
    """``Split(MatMul(x, W))`` => one ``MatMul(x, W_i)`` for each part that the family names.

    In place, before weights are attached: each part reads its rows of the fused parameter.
    """
    parts: dict[str, list[ProjectionSite]] = {}
    for site in base.sites.projections:
        if site.part is not None:
            parts.setdefault(f"{site.parameter}.weight", []).append(site)
    for split in [n for n in model.graph if n.op_type == "Split"]:
        product = None if split.inputs[0] is None else split.inputs[0].producer()
        weight = multiplied_weight(product)
        found = [] if weight is None else parts.get(str(weight.name), [])
        if product is None or weight is None or len(found) != len(split.outputs):
            continue
        for site, output in zip(found, split.outputs, strict=True):
            part = _product(model.graph, product, weight, site, base)
            ir.convenience.replace_all_uses_with(output, part)
        transposed = product.inputs[1]
        model.graph.remove([split, product], safe=True)
        drop_unused(model.graph, transposed, weight)


def _product(
    graph: ir.Graph, fused: ir.Node, weight: ir.Value, site: ProjectionSite, base: BaseModel
) -> ir.Value:
    """``MatMul(x, Transpose(W_i))``, in front of the fused product."""
    x, name = fused.inputs[0], f"{site.graph_name}.weight"
    assert x is not None
    rows, columns = base.dimensions.width(site.writes), base.dimensions.width(site.reads)
    part = ir.Value(name=name, shape=ir.Shape([rows, columns]), type=weight.type)
    graph.initializers.add(part)
    e = Emitter(graph, fused, before=True)
    transposed = e.op("Transpose", [part], f"{name}_t", perm=[1, 0])
    leading = [] if x.shape is None else list(x.shape)[:-1]
    return e.op("MatMul", [x, transposed], site.graph_name, shape=[*leading, rows])
