"""The contract of a widening rule, and the state of the walk that applies them (see widen.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from otter_export.channel import channel_sites, expected_tensors
from otter_export.checkpoint import Checkpoint
from otter_export.family import NormSite, ProjectionSite
from otter_export.graph.emit import Emitter, add_initializer, lazy_tensor
from otter_export.graph.weights import source_initializer
from otter_export.safetensors_io import FloatArray
from otter_export.signals import token_ids_name


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
        starts: Stems of the places where the channel starts.
        final_state: Channel value that the heads read (after the final norm), once seen.
    """

    def __init__(self, model: ir.Model, checkpoint: Checkpoint) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self.config = checkpoint.config
        self.channel: dict[ir.Value, ir.Value] = {}
        self.final_state: ir.Value | None = None
        self._shapes = expected_tensors(checkpoint.config, checkpoint.base)
        self.starts = channel_sites(checkpoint.config, checkpoint.base.sites).starts
        self._sites = {s.graph_name: s for s in checkpoint.base.sites.projections}
        self._norms = {norm.name: norm for norm in checkpoint.base.sites.norms}

    def emitter(self, node: ir.Node) -> Emitter:
        """An emitter that inserts after ``node``."""
        return Emitter(self.model.graph, node)

    def site(self, stem: str) -> ProjectionSite | None:
        """The projection whose parameters have this stem in the graph."""
        return self._sites.get(stem)

    def is_embedding(self, stem: str) -> bool:
        """Whether a stem names an embedding at which the channel starts."""
        return not self.config.first_layer and stem in self.starts

    def norm(self, stem: str) -> NormSite | None:
        """The norm whose parameters have this stem."""
        return self._norms.get(stem)

    def is_output_head(self, stem: str) -> bool:
        """Whether a stem names the language model head (or the embedding tied to it)."""
        return stem in (
            self.checkpoint.base.family.output_head,
            self.checkpoint.base.family.embeddings[0][0],
        )

    def tensor(
        self,
        name: str,
        like: ir.Value,
        shape: tuple[int, ...] | None = None,
        part: Callable[[FloatArray], FloatArray] = np.asarray,
    ) -> ir.Value:
        """The inserted tensor ``name`` as an initializer of ``like``'s dtype; made on first use.

        Args:
            name: Its name.
            like: Gives the dtype.
            shape: Of what is wanted of it; None is all of it.
            part: What is wanted of it.
        """
        dtype = like.dtype or ir.DataType.FLOAT
        wanted = self._shapes[name] if shape is None else shape

        def make() -> FloatArray:
            return part(self.checkpoint.float32(name)).reshape(wanted)

        tensor = lazy_tensor(name, dtype, wanted, make)
        return add_initializer(self.model.graph, name, tensor)

    def shape(self, base: ir.Value, width: int) -> list[int | str | ir.SymbolicDim | None]:
        """The shape of a channel value beside ``base``: the same but for the last dimension."""
        leading = [] if base.shape is None else list(base.shape)[:-1]
        return [*leading, width]

    def unused_tensors(self) -> list[str]:
        """Inserted tensors that no rule and no head has asked for; a runtime reads token ids."""
        known = {*self.model.graph.initializers, *map(token_ids_name, self.config.signals)}
        return [name for name in self._shapes if name not in known]

    def has_tensor(self, name: str) -> bool:
        """Whether the checkpoint has an inserted tensor of this name."""
        return name in self._shapes


def parameter_stem(value: ir.Value | None) -> str:
    """``P`` of an initializer ``P.weight``/``P.bias``, seen through a Transpose; else ``""``."""
    value = source_initializer(value)
    if value is None or value.name is None:
        return ""
    return value.name.rpartition(".")[0]
