"""Two-dimensional activations outside attention."""

from __future__ import annotations

import onnx_ir as ir

from otter_export.engine_io import INPUT_IDS, KEPT_ROWS, LOGITS_TO_KEEP
from otter_export.graph.emit import Emitter

#: Ops that work on each token's row alone, so that they do not care about the leading dimensions.
_TOKENWISE = {
    "MatMul", "Add", "Mul", "Sub", "Div", "Sigmoid", "Gelu", "Relu", "Tanh", "Swish", "Erf", "Cast",
    "RMSNormalization", "LayerNormalization", "InverseRms", "MeanInverseStd", "Identity", "Split",
    "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization",
}  # fmt: skip


class FlattenTokens(ir.passes.InPlacePass):
    """Carry hidden states as ``[tokens, d]``: MatMul + bias becomes Gemm only in two dimensions.

    Before::

        x = Gather(E, ids) [B, S, d];   q = MatMul(x, W) [B, S, H*e];   RotaryEmbedding(q, ...)

    After::

        x = Gather(E, Reshape(ids, [-1]));   q = MatMul(x, W) [T, H*e]
        RotaryEmbedding(Reshape(q, [B, S, H*e]), ...)

    Ops that look at positions (RotaryEmbedding, the attention's head split, Slice) and graph
    outputs get three dimensions back; token-wise ops get two.
    """

    def __init__(self, embeddings: frozenset[str]) -> None:
        """``embeddings``: names of the initializers that token or position ids index."""
        super().__init__()
        self._embeddings = embeddings

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        layout = _Layout(model.graph)
        for node in list(model.graph):
            if node.op_type == "Gather" and str(node.inputs[0].name) in self._embeddings:  # type: ignore[union-attr]
                layout.flatten_ids(node)
            elif node.op_type in _TOKENWISE:
                layout.tokenwise(node)
            else:
                layout.structural(node)
        layout.restore_outputs()
        _forget_shapes(model.graph)
        return ir.passes.PassResult(model, modified=True)


def _forget_shapes(graph: ir.Graph) -> None:
    """Drop the shapes of inner values that no longer hold; runtimes infer them anew."""
    outputs = set(graph.outputs)
    for node in graph:
        for value in node.outputs:
            if value not in outputs and value.shape is not None and len(value.shape) != 2:
                value.shape = None


class _Layout:
    """Which values are flat, and the reshapes that were already made."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.flat: dict[ir.Value, str] = {}  # value -> its second dimension: "step" or "kept"
        self._restored: dict[ir.Value, ir.Value] = {}
        self._flattened: dict[ir.Value, ir.Value] = {}
        e = Emitter(graph, graph[0], before=True)
        ids = next(v for v in graph.inputs if v.name == INPUT_IDS)
        self._all = e.constant([-1], "otter.dim.-1")
        self._batch = e.op("Shape", [ids], "otter.rows.batch", start=0, end=1)
        step = e.op("Shape", [ids], "otter.rows.step", start=1, end=2)
        self._second = {"step": step}
        for value in graph.inputs:
            if value.name == LOGITS_TO_KEEP:
                self._second["kept"] = value
            elif value.name == KEPT_ROWS:
                kept = e.op("Shape", [value], "otter.rows.kept", start=1, end=2)
                self._second["kept"] = kept
        self._shapes = {
            name: e.op("Concat", [self._batch, second, self._all], f"otter.rows.{name}3", axis=0)
            for name, second in self._second.items()
        }

    def flatten_ids(self, node: ir.Node) -> None:
        ids = node.inputs[1]
        assert ids is not None
        if ids not in self._flattened:
            e = Emitter(self.graph, node, before=True)
            self._flattened[ids] = e.op("Reshape", [ids, self._all], f"{ids.name}.flat")
        node.replace_input_with(1, self._flattened[ids])
        self.flat[node.outputs[0]] = "step"
        _set_rank_two(node.outputs[0])

    def tokenwise(self, node: ir.Node) -> None:
        """Flatten every three-dimensional state among the inputs."""
        second = next((self.flat[v] for v in node.inputs if v in self.flat), None)
        for index, value in enumerate(node.inputs):
            if value is None or value in self.flat or not _is_state(value):
                continue
            second = second or _second_dimension(value)
            node.replace_input_with(index, self._flatten(value, node))
        if second is not None:
            for output in node.outputs:
                self.flat[output] = second
                _set_rank_two(output)

    def structural(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value in self.flat:
                assert value is not None
                node.replace_input_with(index, self._restore(value, node))

    def restore_outputs(self) -> None:
        outputs = self.graph.outputs
        for index, value in enumerate(outputs):
            if value in self.flat:
                producer = value.producer()
                assert producer is not None and value.shape is not None
                name, value.name = value.name, f"{value.name}.flat"
                e = Emitter(self.graph, producer)
                shape = self._shapes[self.flat[value]]
                restored = e.op("Reshape", [value, shape], str(name), shape=_three(value, self))
                outputs[index] = restored

    def _flatten(self, value: ir.Value, node: ir.Node) -> ir.Value:
        if value not in self._flattened:
            e = Emitter(self.graph, node, before=True)
            assert value.shape is not None
            width = value.shape[-1]
            shape = e.constant([-1, int(width)], f"otter.rows.{width}")  # type: ignore[arg-type]
            flat = e.op("Reshape", [value, shape], f"{value.name}.flat", shape=["tokens", width])
            self.flat[flat] = _second_dimension(value)
            self._flattened[value] = flat
        return self._flattened[value]

    def _restore(self, value: ir.Value, node: ir.Node) -> ir.Value:
        if value not in self._restored:
            e = Emitter(self.graph, node, before=True)
            shape = self._shapes[self.flat[value]]
            self._restored[value] = e.op(
                "Reshape", [value, shape], f"{value.name}.rows", shape=_three(value, self)
            )
        return self._restored[value]


def _is_state(value: ir.Value) -> bool:
    """A hidden state that is not flat: ``[batch, step | kept, width]``."""
    if value.is_initializer() or value.shape is None or len(value.shape) != 3:
        return False
    return isinstance(value.shape[2], int)


def _second_dimension(value: ir.Value) -> str:
    assert value.shape is not None
    return "kept" if str(value.shape[1]) == "kept" else "step"


def _three(value: ir.Value, layout: _Layout) -> list[int | str | ir.SymbolicDim | None] | None:
    if value.shape is None:
        return None
    return ["batch", layout.flat[value], value.shape[-1]]


def _set_rank_two(value: ir.Value) -> None:
    if value.shape is not None and len(value.shape) == 3:
        value.shape = ir.Shape(["tokens", value.shape[2]])
