"""`widen`: add the channel to a base graph, one rule per op.

The graph is walked once, in order, with a map *base value -> channel value*, as forward-mode
differentiation carries tangents. Base nodes are not touched, so base logits are unchanged by
construction. An op without a rule that the channel reaches is an error.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import onnx_ir as ir

from otter_export.checkpoint import Checkpoint, expected_tensors
from otter_export.config import Signal
from otter_export.errors import UnsupportedError
from otter_export.family import ProjectionSite
from otter_export.graph.emit import Emitter, add_initializer, lazy_tensor
from otter_export.graph.functions import register_functions
from otter_export.graph.signals import add_signal

_LAYER = re.compile(r"past_key_values\.(\d+)\.key")


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one op carries the channel.

    Args:
        op_type: The op, as ``Domain::Op`` outside the standard domain.
        apply: Emits the channel's nodes; returns one channel value (or None) per output.
        shape: What happens to the channel's last dimension, in words, for ``list rules``.
    """

    op_type: str
    apply: Callable[[ir.Node, Widening], Sequence[ir.Value | None]]
    shape: str


class Widening:
    """State of one walk, given to every rule.

    Attributes:
        model: The graph being widened.
        channel: Base value to channel value.
        final_state: Channel value that the heads read (after the final norm), once seen.
    """

    def __init__(self, model: ir.Model, checkpoint: Checkpoint) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.channel: dict[ir.Value, ir.Value] = {}
        self.final_state: ir.Value | None = None
        self._shapes = expected_tensors(checkpoint.config, checkpoint.base)
        self._sites = {s.graph_name: s for s in checkpoint.base.sites.projections}
        self._embeddings = {name for name, _ in checkpoint.base.sites.embeddings}
        self._norms = set(checkpoint.base.sites.norms)
        self.embedding_data: set[str] = set()

    def emitter(self, node: ir.Node) -> Emitter:
        """An emitter that inserts after ``node``."""
        return Emitter(self.model.graph, node)

    def site(self, stem: str) -> ProjectionSite | None:
        """The projection whose parameters have this stem in the graph."""
        return self._sites.get(stem)

    def is_embedding(self, stem: str) -> bool:
        """Whether a stem names an embedding at which the channel starts."""
        return stem in self._embeddings

    def is_norm(self, stem: str) -> bool:
        """Whether a stem names a widened norm."""
        return stem in self._norms

    def is_output_head(self, stem: str) -> bool:
        """Whether a stem names the language model head (or the embedding tied to it)."""
        return stem in (self.checkpoint.base.family.output_head, self.checkpoint.base.family.embeddings[0][0])

    def tensor(self, name: str, like: ir.Value) -> ir.Value:
        """The inserted tensor ``name`` as an initializer of ``like``'s dtype; made on first use."""
        existing = self.model.graph.initializers.get(name)
        if existing is not None:
            return existing
        dtype = like.dtype or ir.DataType.FLOAT
        shape = self._shapes[name]
        tensor = lazy_tensor(name, dtype, shape, lambda: self.checkpoint.float32(name))
        return add_initializer(self.model.graph, name, tensor)

    def shape(self, base: ir.Value, width: int) -> list[int | str | ir.SymbolicDim | None]:
        """The shape of a channel value beside ``base``: the same but for the last dimension."""
        leading = [] if base.shape is None else list(base.shape)[:-1]
        return [*leading, width]

    def has_tensor(self, name: str) -> bool:
        """Whether the checkpoint has an inserted tensor of this name."""
        return name in self._shapes


def widen(model: ir.Model, checkpoint: Checkpoint) -> ir.Model:
    """Add the channel and the signal outputs to a hub graph, in place.

    Args:
        model: From `otter_export.graph.base.base_graph`.
        checkpoint: Where the inserted tensors lie; they are read when the model is written.

    Raises:
        UnsupportedError: The channel reaches an op that has no rule.
    """
    from otter_export.graph.rules import RULES

    register_functions(model)
    state = Widening(model, checkpoint)
    for node in list(model.graph):
        key = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        starts = node.op_type == "Gather" and state.is_embedding(parameter_stem(node.inputs[0]))
        carried = any(v in state.channel for v in node.inputs if v is not None)
        if not (starts or carried):
            continue
        if key not in RULES:
            raise UnsupportedError(
                f"node {node.name!r}: op {key} carries the channel, but there is no widening rule for "
                f"it; rules exist for: {', '.join(RULES)}"
            )
        outputs = RULES.load(key).apply(node, state)
        for output, channel in zip(node.outputs, outputs, strict=False):
            if channel is not None:
                state.channel[output] = channel
    if state.final_state is None:
        raise UnsupportedError("the walk met no language model head: the heads have nothing to read")
    for signal in checkpoint.config.signals:
        add_signal(state, signal)
    return model


def signals_of(checkpoint: Checkpoint) -> tuple[Signal, ...]:
    """The signals, in the order of the graph's outputs."""
    return checkpoint.config.signals


def parameter_stem(value: ir.Value | None) -> str:
    """``P`` of an initializer ``P.weight``/``P.bias``, seen through a Transpose; else ``""``."""
    value = source_initializer(value)
    if value is None or value.name is None:
        return ""
    return value.name.rpartition(".")[0]


def source_initializer(value: ir.Value | None) -> ir.Value | None:
    """The initializer behind a value, seen through a Transpose; None if there is none."""
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose":
        value = producer.inputs[0]
    return value if value is not None and value.is_initializer() else None


def layer_of(past: ir.Value | None) -> int:
    """N of a graph input ``past_key_values.N.key``.

    Raises:
        UnsupportedError: The attention reads its past from elsewhere.
    """
    match = _LAYER.fullmatch(str(past.name) if past is not None else "")
    if match is None:
        raise UnsupportedError("an Attention without past_key_values.N inputs cannot be widened")
    return int(match[1])
