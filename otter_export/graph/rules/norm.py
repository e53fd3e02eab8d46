"""Norms: the channel is normalised by the statistics of the base part alone."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from otter_export.errors import UnsupportedError
from otter_export.family import NormSite
from otter_export.graph.emit import Emitter, attributes_of
from otter_export.graph.functions import DOMAIN, epsilon_of
from otter_export.graph.rule import Rule, Widening, parameter_stem

_FLOAT = ir.DataType.FLOAT


def _apply_rms(node: ir.Node, state: Widening) -> Sequence[ir.Value | None]:
    """Widen ``n = RMSNormalization(x, gamma)``.

    Gives ``r = InverseRms(x);  n' = (x' * r) * gamma'``, or, where each head is normalised by
    itself, ``n' = RMSNormalization(x', gamma')``: an extra head is a head like any other.
    """
    x, site = node.inputs[0], _site(node, state)
    assert x is not None
    e, stem = state.emitter(node), site.name
    if site.axis is not None:
        return [_like_any_head(e, state, node, stem)]
    r = e.op(
        "InverseRms",
        [x],
        f"{stem}.otter.inverse_rms",
        domain=DOMAIN,
        dtype=_FLOAT,
        epsilon=epsilon_of(node),
    )
    scaled = e.op("Mul", [_wide(e, state.channel[x], stem), r], f"{stem}.otter.scaled")
    return [_affine(e, state, node, site, scaled)]


def _apply_layer(node: ir.Node, state: Widening) -> Sequence[ir.Value | None]:
    """Widen ``n = LayerNormalization(x, gamma, beta)``.

    Gives ``mean, r = MeanInverseStd(x);  n' = (x' - mean) * r * gamma' + beta'``.
    """
    x, site = node.inputs[0], _site(node, state)
    assert x is not None
    e, stem = state.emitter(node), site.name
    if site.axis is not None:
        return [_like_any_head(e, state, node, stem)]
    mean, r = e.nodes(
        "MeanInverseStd",
        [x],
        [f"{stem}.otter.mean", f"{stem}.otter.inverse_std"],
        domain=DOMAIN,
        dtype=_FLOAT,
        epsilon=epsilon_of(node),
    )
    r.type = ir.TensorType(_FLOAT)
    centred = e.op("Sub", [_wide(e, state.channel[x], stem), mean], f"{stem}.otter.centred")
    scaled = e.op("Mul", [centred, r], f"{stem}.otter.scaled")
    return [_affine(e, state, node, site, scaled)]


def _like_any_head(e: Emitter, state: Widening, node: ir.Node, stem: str) -> ir.Value:
    """The base's own norm of the extra heads, with gamma' (and beta')."""
    inputs = [state.channel[node.inputs[0]], state.tensor(f"{stem}.otter.weight", node.outputs[0])]  # type: ignore[index]
    if state.has_tensor(f"{stem}.otter.bias"):
        inputs.append(state.tensor(f"{stem}.otter.bias", node.outputs[0]))
    name, shape = f"{node.outputs[0].name}.otter", inputs[0].shape
    return e.op(node.op_type, inputs, name, shape=shape, **attributes_of(node))


def _affine(
    e: Emitter, state: Widening, node: ir.Node, site: NormSite, scaled: ir.Value
) -> ir.Value:
    """Back to the stream's dtype, times gamma', plus beta' where there is one."""
    output, stem = node.outputs[0], site.name
    if output.dtype is not None and output.dtype != _FLOAT:
        scaled = e.op("Cast", [scaled], f"{stem}.otter.narrow", dtype=output.dtype, to=output.dtype)
    gamma = state.tensor(f"{stem}.otter.weight", output)
    shape = state.shape(output, site.channel_size(state.config))
    n = e.op("Mul", [scaled, gamma], f"{stem}.otter.norm", shape=shape)
    if state.has_tensor(f"{stem}.otter.bias"):
        beta = state.tensor(f"{stem}.otter.bias", output)
        n = e.op("Add", [n, beta], f"{stem}.otter.shifted", shape=shape)
    return n


def _wide(e: Emitter, value: ir.Value, stem: str) -> ir.Value:
    if value.dtype in (None, _FLOAT):
        return value
    return e.op("Cast", [value], f"{stem}.otter.wide", dtype=_FLOAT, to=_FLOAT)


def _site(node: ir.Node, state: Widening) -> NormSite:
    stem = parameter_stem(node.inputs[1])
    site = state.norm(stem)
    if site is None:
        raise UnsupportedError(f"node {node.name!r}: {stem!r} is none of the family's norms")
    return site


RMS_RULE = Rule("RMSNormalization", _apply_rms, "d' -> d', statistics of d")
LAYER_RULE = Rule("LayerNormalization", _apply_layer, "d' -> d', statistics of d")
