"""The tensors of a TensorRT-LLM checkpoint, one rank at a time, made when they are written.

Names follow TensorRT-LLM's own Llama (``transformer.layers.N.attention.qkv.weight``); what the
channel adds lies beside them. Stacked weights read the base state once: ``[W; A]``, rows of the
base first. For attention that is ``[Wq; Wk; Wv; Aq; Ak; Av]``, each the rank's own part. Which
inserted tensors there are is the channel's shape: a layer below its first one is Llama's own.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.channel import channel_sites
from otter_export.checkpoint import Checkpoint
from otter_export.converters.tensorrt_llm.layout import Layout
from otter_export.errors import CheckpointError
from otter_export.family import ProjectionSite
from otter_export.safetensors_io import (
    PlannedTensor,
    TensorStore,
    from_float32,
    rounded,
    to_float32,
)
from otter_export.signals import Signal, kind_of

Bits = npt.NDArray[Any]
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Part:
    """Some rows and columns of one stored tensor."""

    store: TensorStore
    name: str
    index: Index

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is selected."""
        full = self.store[self.name].shape
        return tuple(len(range(*s.indices(n))) for s, n in zip(self.index, full, strict=True))

    def bits(self, dtype: str) -> Bits:
        """The values in ``dtype``; a view of the file where it already has that dtype.

        Raises:
            CheckpointError: A finite value is beyond the range of ``dtype``.
        """
        raw, stored = self.store.raw(self.name)[self.index], self.store[self.name].dtype
        if stored == dtype:
            return raw
        values = to_float32(raw, stored)
        with np.errstate(over="ignore"):
            made = from_float32(values, dtype)
        if dtype == "F16" and bool((np.isinf(made) & np.isfinite(values)).any()):
            raise CheckpointError(
                f"tensor {self.name} has values beyond the range of fp16 (65504); "
                "use --precision bf16"
            )
        return made


@dataclasses.dataclass(frozen=True)
class RankTensors:
    """The tensors of one rank, in the order of the model's forward pass.

    Args:
        checkpoint: What is converted.
        layout: Who holds what.
        rank: Which rank.
        dtype: safetensors name of the dtype of all tensors.
    """

    checkpoint: Checkpoint
    layout: Layout
    rank: int
    dtype: str

    def __iter__(self) -> Iterator[PlannedTensor]:
        base, config = self.checkpoint.base, self.checkpoint.config
        embedding = base.sites.embeddings[0][0]
        yield self._whole("transformer.vocab_embedding.weight", self._base(f"{embedding}.weight"))
        yield self._start()
        for layer in range(base.dimensions.num_hidden_layers):
            yield from self._layer(layer)
        yield from self._norm("transformer.ln_f", base.family.final_norm)
        yield self._output_head()
        for i, signal in enumerate(config.signals):
            rows = math.prod(kind_of(signal).output_dims(signal, base.dimensions.vocab_size))
            for part, shape in (("weight", (rows, config.hidden_size)), ("bias", (rows,))):
                head = functools.partial(self._head, signal, part, shape)
                yield PlannedTensor(f"signals.{i}.{part}", self.dtype, shape, head)

    def _head(self, signal: Signal, part: str, shape: tuple[int, ...]) -> Bits:
        """What an engine multiplies with of a signal's head."""
        name = f"signals.{signal.name}.{part}"
        head = kind_of(signal).engine_head(self.checkpoint.float32(name)).reshape(shape)
        return rounded(name, head, self.dtype, "use --precision bf16")

    def _start(self) -> PlannedTensor:
        """What the channel begins with, where it begins."""
        base, config = self.checkpoint.base, self.checkpoint.config
        (stem,) = channel_sites(config, base.sites).starts
        places = {0: "channel_embedding", base.dimensions.num_hidden_layers: "channel_start"}
        place = places.get(config.first_layer, f"layers.{config.first_layer}.channel_start")
        inserted = self._inserted(f"{stem}.otter.{config.embedding}")
        return self._whole(f"transformer.{place}.weight", inserted)

    def _layer(self, layer: int) -> Iterator[PlannedTensor]:
        """One decoder layer."""
        sites = self.checkpoint.base.sites
        target, source = f"transformer.layers.{layer}", sites.layers[layer]
        named = {
            s.name.removeprefix(f"{source}."): s for s in sites.projections if s.layer == layer
        }
        attention = [named[f"self_attn.{name}_proj"] for name in "qkv"]
        is_stored = self.layout.heads_stored and layer >= self.checkpoint.config.first_layer
        yield from self._norm(f"{target}.input_layernorm", f"{source}.input_layernorm")
        yield from self._column(
            f"{target}.attention.qkv", attention, again=attention[:2] if is_stored else ()
        )
        yield from self._row(f"{target}.attention.dense", named["self_attn.o_proj"])
        yield from self._norm(f"{target}.post_layernorm", f"{source}.post_attention_layernorm")
        yield from self._column(f"{target}.mlp.fc", [named["mlp.gate_proj"]])
        yield from self._column(f"{target}.mlp.gate", [named["mlp.up_proj"]])
        yield from self._row(f"{target}.mlp.proj", named["mlp.down_proj"])

    def _norm(self, target: str, source: str) -> Iterator[PlannedTensor]:
        yield self._whole(f"{target}.weight", self._base(f"{source}.weight"))
        name = f"{source}.otter.weight"
        if name in self.checkpoint.tensors:
            yield self._whole(f"{target}.channel_weight", self._inserted(name))

    def _column(
        self,
        target: str,
        sites: Sequence[ProjectionSite],
        again: Sequence[ProjectionSite] = (),
    ) -> Iterator[PlannedTensor]:
        """Projections whose outputs are divided: rows of W, A and B, and their biases.

        Of those in ``again`` the base's rows are stored a second time, for the channel's heads.
        """
        rows = [(s, self.layout.base_part(s.writes, self.rank)) for s in sites]
        rows += [(s, self.layout.channel_part(s.writes, self.rank)) for s in again]
        extra = [
            (s, self.layout.channel_part(s.writes, self.rank)) for s in sites if self._widened(s)
        ]
        yield self._joined(
            f"{target}.weight",
            [self._base(f"{s.name}.weight", r) for s, r in rows]
            + [self._inserted(f"{s.name}.otter.from_base", e) for s, e in extra],
        )
        if self.checkpoint.base.has(f"{sites[0].name}.bias"):
            yield self._joined(
                f"{target}.bias",
                [self._base(f"{s.name}.bias", r) for s, r in rows]
                + [self._inserted(f"{s.name}.otter.bias", e) for s, e in extra],
            )
        if extra:
            yield self._joined(
                f"{target}.channel.weight",
                [self._inserted(f"{s.name}.otter.from_channel", e) for s, e in extra],
            )

    def _row(self, target: str, site: ProjectionSite) -> Iterator[PlannedTensor]:
        """A projection whose inputs are divided: columns of W, A and B; its bias is whole."""
        columns = (slice(None), self.layout.base_part(site.reads, self.rank))
        weight = self._base(f"{site.name}.weight", *columns)
        has_bias = self.checkpoint.base.has(f"{site.name}.bias")
        if not self._widened(site):
            yield self._whole(f"{target}.weight", weight)
            if has_bias:
                yield self._whole(f"{target}.bias", self._base(f"{site.name}.bias"))
            return
        inserted = self._inserted(f"{site.name}.otter.from_base", *columns)
        yield self._joined(f"{target}.weight", [weight, inserted])
        extra = (slice(None), self.layout.channel_part(site.reads, self.rank))
        part = self._inserted(f"{site.name}.otter.from_channel", *extra)
        yield self._whole(f"{target}.channel.weight", part)
        if has_bias:
            yield self._joined(
                f"{target}.output_bias",
                [self._base(f"{site.name}.bias"), self._inserted(f"{site.name}.otter.bias")],
            )

    def _widened(self, site: ProjectionSite) -> bool:
        return f"{site.name}.otter.from_base" in self.checkpoint.tensors

    def _output_head(self) -> PlannedTensor:
        """The rank's rows of the language model head; rows that pad the vocabulary are zero."""
        base = self.checkpoint.base
        rows = self.layout.vocabulary_rows // self.layout.tp_size
        part = self._base(base.head_name, slice(rows * self.rank, rows * (self.rank + 1)))
        shape = (rows, base.dimensions.hidden_size)

        def make() -> Bits:
            bits = part.bits(self.dtype)
            missing = rows - bits.shape[0]
            return np.pad(bits, ((0, missing), (0, 0))) if missing else bits

        return PlannedTensor("lm_head.weight", self.dtype, shape, make)

    def _base(self, name: str, *index: slice) -> Part:
        stored = self.checkpoint.base.stored_name(name)
        assert stored is not None, name  # Checkpoint.open has listed what is missing
        return _part(self.checkpoint.base.weights, stored, index)

    def _inserted(self, name: str, *index: slice) -> Part:
        return _part(self.checkpoint.tensors, name, index)

    def _whole(self, name: str, part: Part) -> PlannedTensor:
        return PlannedTensor(name, self.dtype, part.shape, lambda: part.bits(self.dtype))

    def _joined(self, name: str, parts: Sequence[Part]) -> PlannedTensor:
        """Parts with equal columns, one below the other."""
        rows = sum(part.shape[0] for part in parts)

        def make() -> Bits:
            return np.concatenate([part.bits(self.dtype) for part in parts])

        return PlannedTensor(name, self.dtype, (rows, *parts[0].shape[1:]), make)


def _part(store: TensorStore, name: str, index: Sequence[slice]) -> Part:
    whole = tuple(slice(None) for _ in store[name].shape[len(index) :])
    return Part(store, name, (*index, *whole))


def tensor_row(tensor: PlannedTensor, prefix: str = "") -> tuple[str, str, tuple[int, ...], int]:
    """A planned tensor as `otter_export.converters.target.BuildPlan` has it."""
    name = f"{prefix}{tensor.name}"
    return name, tensor.dtype.lower(), tensor.shape, tensor.nbytes
