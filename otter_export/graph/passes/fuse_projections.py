"""The widened projection as one node, which our TensorRT plugin computes in one launch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from otter_export.graph.emit import Emitter
from otter_export.graph.functions import BIAS, DOMAIN
from otter_export.graph.weights import multiplied_weight


class FuseProjections(ir.passes.InPlacePass):
    """Name the pattern ``y = W x + b;  y' = A x + B x' + b'``.

    Before::

        y = Add(MatMul(x, Transpose(W)), b)
        y' = Add(Add(MatMul(x, Transpose(A)), MatMul(x', Transpose(B))), b')

    After::

        y, y' = com.otter.OtterLinear(x, x', W, A, B, b, b')

    Without the biases: five inputs. The body of the model-local function of that name is the plain
    form, so ONNX Runtime runs the same file. A projection whose base weight is stored in codes
    stays plain: the kernel multiplies half precision only.
    """

    def __init__(self, base_weights: Mapping[str, str]) -> None:
        """``base_weights``: name of every ``A`` to the name of the ``W`` that it widens."""
        super().__init__()
        self._base_weights = base_weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        changed = False
        for node in list(graph):
            found = self._match(node) if node.op_type == "Add" else None
            if found is not None:
                _fuse(graph, found)
                changed = True
        return ir.passes.PassResult(model, modified=changed)

    def _match(self, add: ir.Node) -> _Projection | None:
        """The projection whose channel part is summed by ``add``."""
        from_base, from_channel = _product(add.inputs[0]), _product(add.inputs[1])
        if from_base is None or from_channel is None:
            return None
        name = self._base_weights.get(str(from_base.weight.name))
        x = from_base.node.inputs[0]
        if name is None or x is None:
            return None
        readers = (_product(use.node.outputs[0]) for use in x.uses() if use.idx == 0)
        base = next((r for r in readers if r is not None and r.weight.name == name), None)
        if base is None or not (_has_one_reader(from_base) and _has_one_reader(from_channel)):
            return None
        return _Projection(base, from_base, from_channel, add)


@dataclasses.dataclass(frozen=True)
class _Product:
    """``MatMul(x, Transpose(weight))``."""

    node: ir.Node
    weight: ir.Value


@dataclasses.dataclass(frozen=True)
class _Projection:
    """What a widened projection consists of."""

    base: _Product
    from_base: _Product
    from_channel: _Product
    add: ir.Node

    def outputs(self) -> tuple[list[ir.Node], list[ir.Value]]:
        """``(the nodes that give y and y', biases)``: past the bias Adds where both are there."""
        ends = [self.base.node, self.add]
        biased = [_bias(end) for end in ends]
        if biased[0] is None or biased[1] is None:
            return ends, []
        return [biased[0][0], biased[1][0]], [biased[0][1], biased[1][1]]


def _product(value: ir.Value | None) -> _Product | None:
    node = None if value is None else value.producer()
    weight = multiplied_weight(node)
    if node is None or weight is None or node.outputs[0].is_graph_output():
        return None
    return _Product(node, weight)


def _has_one_reader(product: _Product) -> bool:
    return len(product.node.outputs[0].uses()) == 1


def _bias(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """``(Add, bias)`` if the only reader of a node adds a vector to it."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    add = uses[0].node
    other = add.inputs[1 - uses[0].idx]
    if other is None or not other.is_initializer() or other.shape is None or len(other.shape) != 1:
        return None
    return add, other


def _fuse(graph: ir.Graph, found: _Projection) -> None:
    ends, biases = found.outputs()
    products = (found.base, found.from_base, found.from_channel)
    x, x_channel = found.base.node.inputs[0], found.from_channel.node.inputs[0]
    # x' lies right behind x, so both are there before the first reader of x.
    e = Emitter(graph, found.base.node, before=True)
    outputs = e.nodes(
        "OtterLinear",
        [x, x_channel, *(p.weight for p in products), *biases],
        [f"{end.outputs[0].name}.fused" for end in ends],
        domain=DOMAIN,
        # TensorRT's parser prefers a plugin to a model-local function where the node says so.
        plugin_namespace=DOMAIN,
        plugin_version="1",
    )
    for end, output in zip(ends, outputs, strict=True):
        output.type, output.shape = end.outputs[0].type, end.outputs[0].shape
    if biases:
        node = outputs[0].producer()
        assert node is not None
        node.overload = BIAS
    for end, output in zip(ends, outputs, strict=True):
        ir.convenience.replace_all_uses_with(end.outputs[0], output)
    dead = [*ends, found.add, *(p.node for p in products)]
    dead += [t for p in products if (t := p.node.inputs[1].producer()) is not None]  # type: ignore[union-attr]
    for node in dict.fromkeys(dead):
        if not any(value.uses() for value in node.outputs):
            graph.remove(node, safe=True)
