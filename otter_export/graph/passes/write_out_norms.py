"""Norms as arithmetic over statistics that base and channel share."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from otter_export.graph.emit import Emitter
from otter_export.graph.functions import DOMAIN, epsilon_of, register_functions

_FLOAT = ir.DataType.FLOAT
#: By what is normalised, how, and epsilon: the mean, if there is one, and 1/sigma.
_Known = dict[tuple[ir.Value, str, float], Sequence[ir.Value]]
#: Norm to the function of com.otter that computes its statistics in float32.
_STATISTICS = {"RMSNormalization": "InverseRms", "LayerNormalization": "MeanInverseStd"}


class WriteOutNorms(ir.passes.InPlacePass):
    """One reduction serves both streams, in float32 whatever a builder does with norms.

    Before::

        n = RMSNormalization(x, gamma);   r = com.otter.InverseRms(x)   (for the channel)

    After::

        r = com.otter.InverseRms(x);   n = Mul(Cast(Mul(Cast(x, float), r)), gamma)

    LayerNormalization likewise: ``n = Cast((x - mean) * r) * gamma + beta``. The product is rounded
    before gamma, as transformers does. Two norms of one state (a parallel residual) share as well.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        nodes = [n for n in model.graph if n.op_type in _STATISTICS]
        if nodes:
            register_functions(model)  # an unwidened base has none yet
        known: _Known = {}
        for node in nodes:
            _write_out(model.graph, node, known)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _write_out(graph: ir.Graph, node: ir.Node, known: _Known) -> None:
    x, gamma, beta = (*node.inputs, None)[:3]
    assert x is not None
    stem = str(node.outputs[0].name)
    e = Emitter(graph, node, before=True)
    key = (x, node.op_type, epsilon_of(node))
    if key not in known:
        known[key] = _statistics(e, node, x, stem)
    *mean, r = known[key]
    wide = x if x.dtype == _FLOAT else e.op("Cast", [x], f"{stem}.wide", dtype=_FLOAT, to=_FLOAT)
    if mean:
        wide = e.op("Sub", [wide, *mean], f"{stem}.centred")
    n = e.op("Mul", [wide, r], f"{stem}.scaled", shape=x.shape)
    if x.dtype not in (None, _FLOAT):
        n = e.op("Cast", [n], f"{stem}.narrow", dtype=x.dtype, shape=x.shape, to=x.dtype)
    n = e.op("Mul", [n, gamma], f"{stem}.gained", shape=x.shape)
    if beta is not None:
        n = e.op("Add", [n, beta], f"{stem}.shifted", shape=x.shape)
    ir.convenience.replace_all_uses_with(node.outputs[0], n)
    graph.remove(node, safe=True)


def _statistics(e: Emitter, node: ir.Node, x: ir.Value, stem: str) -> Sequence[ir.Value]:
    """The mean, if there is one, and 1/sigma, which the channel's norm then reads too."""
    function, epsilon = _STATISTICS[node.op_type], epsilon_of(node)
    names = [f"{stem}.inverse_rms"]
    if function == "MeanInverseStd":
        names = [f"{stem}.mean", f"{stem}.inverse_std"]
    values = e.nodes(function, [x], names, domain=DOMAIN, dtype=_FLOAT, epsilon=epsilon)
    for value in values:
        value.type = ir.TensorType(_FLOAT)
    for use in list(x.uses()):
        twin = use.node
        ours = twin.op_type == function and twin is not values[0].producer()
        if ours and epsilon_of(twin) == epsilon:
            ir.convenience.replace_all_uses_with(twin.outputs, values)
            e.graph.remove(twin, safe=True)
    return values
