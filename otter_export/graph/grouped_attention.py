"""Attention in products of groups of heads: what both cache forms for ONNX Runtime write out."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from otter_export.engine_io import INPUT_IDS, POSITION_IDS
from otter_export.graph.attention import (
    MASKED,
    capped_scores,
    head_counts,
    replace_attention,
    scale_of,
    split_heads,
)
from otter_export.graph.emit import Emitter
from otter_export.graph.windows import near, window_of

#: Emits the positions of the keys that a mask is over, int64 ``[B, K]``.
KeyPositions = Callable[[Emitter, ir.Value], ir.Value]


class GroupedAttention:
    """The steps of an attention that do not depend on where its keys are.

    The G = H / Hkv query heads that share a key head are rows of one product: ``[B, Hkv, G*S, e]``.
    What all layers use alike, masks and shapes, is made once.

    Args:
        e: At the head of the graph.
        past_key: A cache of the graph, ``[B, Hkv, P, e]``.
        mask: bool ``[B, 1, S, K]``: which keys a token sees; windows narrow it.
        key_positions: Of those keys, given the positions of the queries; any value where the mask
            is False. Called if there is a window.

    Attributes:
        batch, step: int64 ``[1]``: B and S, as values.
        size: e, the head size.
    """

    def __init__(
        self, e: Emitter, past_key: ir.Value, mask: ir.Value, key_positions: KeyPositions
    ) -> None:
        self._emitter, self._mask, self._key_positions = e, mask, key_positions
        ids = next(v for v in e.graph.inputs if v.name == INPUT_IDS)
        self._keys: ir.Value | None = None
        self._dtype = past_key.dtype or ir.DataType.FLOAT
        self.batch = e.op("Shape", [ids], "otter.batch", dtype=ir.DataType.INT64, start=0, end=1)
        self.step = e.op("Shape", [ids], "otter.step", dtype=ir.DataType.INT64, start=1, end=2)
        self._biases: dict[tuple[int, int | None], ir.Value] = {}
        self._shapes: dict[tuple[int | str, ...], ir.Value] = {}
        self._ends: dict[tuple[int | None, int | None], list[ir.Value]] = {}
        assert past_key.shape is not None
        self.size = int(past_key.shape[3])  # type: ignore[arg-type]

    def heads(self, e: Emitter, value: ir.Value | None, count: int, name: str) -> ir.Value:
        """A layer's queries, keys or values by heads, ``[B, count, S, e]``."""
        assert value is not None
        dims = ("B", 1, "S", self.size) if count == 1 else ("B", "S", count, self.size)
        named: list[int | str] = ["batch", count, "step", self.size]
        return split_heads(e, value, self._shape(*dims), name, named, transpose=count > 1)

    def queries(self, e: Emitter, node: ir.Node) -> ir.Value:
        """Those of an Attention, ``[B, Hkv, G*S, e]``."""
        heads, kv_heads = head_counts(node)
        prefix = node.outputs[0].name
        query = self.heads(e, node.inputs[0], heads, f"{prefix}.q")
        if heads == kv_heads:
            return query
        shape = self._shape("B", kv_heads, -1, self.size)
        return e.op("Reshape", [query, shape], f"{prefix}.grouped")

    def scores(
        self, e: Emitter, node: ir.Node, query: ir.Value, keys: ir.Value | None, name: str
    ) -> ir.Value:
        """``scale q k^T``, ``[B, Hkv, G*S, K]``."""
        return e.op(
            "FusedMatMul",
            [query, keys],
            f"{node.outputs[0].name}.{name}",
            domain="com.microsoft",
            transB=1,
            alpha=scale_of(node, self.size),
        )

    def weights(self, e: Emitter, node: ir.Node, scores: ir.Value) -> ir.Value:
        """The softmax of an Attention's scores, capped and masked, ``[B, Hkv, G*S, K]``."""
        heads, kv_heads = head_counts(node)
        prefix = str(node.outputs[0].name)
        s = capped_scores(e, node, scores, prefix)
        bias = self._bias(heads // kv_heads, window_of(node))
        s = e.op("Add", [s, bias], f"{prefix}.masked")
        return e.op("Softmax", [s], f"{prefix}.weights", axis=-1)

    def of_first_heads(
        self, e: Emitter, twin: ir.Node, base: ir.Node, weights: ir.Value, name: str
    ) -> ir.Value:
        """Those of a base's weights that its twin reads: the first heads of the first groups."""
        (heads, kv_heads), (base_heads, base_kv_heads) = map(head_counts, (twin, base))
        group = heads // kv_heads
        ends = self._slice_ends(
            kv_heads if kv_heads < base_kv_heads else None,
            group if group < base_heads // base_kv_heads else None,
        )
        if not ends:
            return weights
        return e.op("Slice", [weights, *ends], f"{twin.outputs[0].name}.{name}")

    def replace(
        self,
        e: Emitter,
        node: ir.Node,
        y: ir.Value,
        presents: tuple[ir.Value | None, ir.Value | None],
    ) -> None:
        """Put ``y``, ``[B, Hkv, G*S, e]``, and presents in the place of what an Attention gives."""
        heads, kv_heads = head_counts(node)
        prefix = node.outputs[0].name
        if heads > kv_heads:
            y = e.op("Reshape", [y, self._shape("B", heads, "S", self.size)], f"{prefix}.heads")
        if heads > 1:
            y = e.op("Transpose", [y], f"{prefix}.turned", perm=[0, 2, 1, 3])
        width = heads * self.size
        joined = ["batch", "step", width]
        y = e.op("Reshape", [y, self._shape("B", "S", width)], f"{prefix}.joined", shape=joined)
        replace_attention(e.graph, node, y, presents)

    def _bias(self, group: int, window: int | None) -> ir.Value:
        """The additive mask ``[B, 1, G*S, K]``, repeated for each head of a group."""
        if (group, window) not in self._biases:
            e, name = self._emitter, "otter.bias" if window is None else f"otter.bias.last{window}"
            if group == 1:
                zero = e.constant(0.0, "otter.visible", self._dtype.numpy())
                low = e.constant(MASKED[self._dtype], "otter.masked", self._dtype.numpy())
                bias = e.op("Where", [self._seen(window), zero, low], name, dtype=self._dtype)
            else:
                repeats = e.constant([1, 1, group, 1], f"otter.repeats.{group}")
                bias = e.op("Tile", [self._bias(1, window), repeats], f"{name}.{group}")
            self._biases[group, window] = bias
        return self._biases[group, window]

    def _seen(self, window: int | None) -> ir.Value:
        """The mask, narrowed to a window."""
        if window is None:
            return self._mask
        queries = next(v for v in self._emitter.graph.inputs if v.name == POSITION_IDS)
        if self._keys is None:
            self._keys = self._key_positions(self._emitter, queries)
        return near(self._emitter, self._mask, queries, self._keys, window)

    def _shape(self, *dims: int | str) -> ir.Value:
        """A shape vector; B and S stand for the batch and step sizes."""
        if dims not in self._shapes:
            e, symbols = self._emitter, {"B": self.batch, "S": self.step}
            parts = [
                symbols[d] if isinstance(d, str) else e.constant([d], f"otter.dim.{d}")
                for d in dims
            ]
            name = "otter.shape." + "_".join(str(d) for d in dims)
            self._shapes[dims] = e.op("Concat", parts, name, axis=0, dtype=ir.DataType.INT64)
        return self._shapes[dims]

    def _slice_ends(self, kv_heads: int | None, group: int | None) -> list[ir.Value]:
        """The inputs of a Slice of weights ``[B, Hkv, G*S, K]`` to fewer heads; none for None."""
        if (kv_heads, group) not in self._ends:
            e = self._emitter
            ends = {} if kv_heads is None else {1: e.constant([kv_heads], f"otter.dim.{kv_heads}")}
            if group is not None:
                factor = e.constant([group], f"otter.dim.{group}")
                ends[2] = e.op("Mul", [self.step, factor], f"otter.group.{group}")
            end = list(ends.values())
            if len(end) > 1:
                end = [e.op("Concat", end, f"otter.heads.{kv_heads}.{group}", axis=0)]
            first = e.constant([0] * len(ends), f"otter.firsts.{len(ends)}")
            axes = e.constant([*ends], "otter.axes." + ".".join(map(str, ends)))
            self._ends[kv_heads, group] = [first, *end, axes] if ends else []
        return self._ends[kv_heads, group]
