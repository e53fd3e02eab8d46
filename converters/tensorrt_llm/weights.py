"""The tensors of a TensorRT-LLM checkpoint, one rank at a time, made when they are written.

Names follow TensorRT-LLM's own Llama (``transformer.layers.N.attention.qkv.weight``); what the
channel adds lies beside them. Stacked weights read the base state once: ``[W; A]``, rows of the
base first. For attention that is ``[Wq; Wk; Wv; Aq; Ak; Av]``, each the rank's own part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.checkpoint import Checkpoint
from otter_export.converters.tensorrt_llm.layout import Layout
from otter_export.errors import CheckpointError
from otter_export.family import ProjectionSite
from otter_export.safetensors_io import (
    PlannedTensor,
    TensorStore,
    from_float32,
    to_float32,
)

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
            rounded = from_float32(values, dtype)
        if dtype == "F16" and bool((np.isinf(rounded) & np.isfinite(values)).any()):
            raise CheckpointError(
                f"tensor {self.name} has values beyond the range of fp16 (65504); "
                "use --precision bf16"
            )
        return rounded


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
        kind = "projection" if config.embedding == "projection" else "table"
        inserted = self._inserted(f"{embedding}.otter.{kind}")
        yield self._whole("transformer.channel_embedding.weight", inserted)
        for layer in range(base.dimensions.num_hidden_layers):
            yield from self._layer(f"transformer.layers.{layer}", f"{base.family.layers}.{layer}")
        yield from self._norm("transformer.ln_f", base.family.final_norm)
        yield self._output_head()
        for i, signal in enumerate(config.signals):
            for part in ("weight", "bias"):
                stored = self._inserted(f"signals.{signal.name}.{part}")
                yield self._whole(f"signals.{i}.{part}", stored)

    def _layer(self, target: str, source: str) -> Iterator[PlannedTensor]:
        """One decoder layer; ``source`` is its Hugging Face path."""
        sites = {
            s.name.removeprefix(f"{source}."): s
            for s in self.checkpoint.base.sites.projections
            if s.name.startswith(f"{source}.")
        }
        attention = [sites[f"self_attn.{name}_proj"] for name in "qkv"]
        yield from self._norm(f"{target}.input_layernorm", f"{source}.input_layernorm")
        yield from self._column(f"{target}.attention.qkv", attention)
        yield from self._row(f"{target}.attention.dense", sites["self_attn.o_proj"])
        yield from self._norm(f"{target}.post_layernorm", f"{source}.post_attention_layernorm")
        yield from self._column(f"{target}.mlp.fc", [sites["mlp.gate_proj"]])
        yield from self._column(f"{target}.mlp.gate", [sites["mlp.up_proj"]])
        yield from self._row(f"{target}.mlp.proj", sites["mlp.down_proj"])

    def _norm(self, target: str, source: str) -> Iterator[PlannedTensor]:
        yield self._whole(f"{target}.weight", self._base(f"{source}.weight"))
        yield self._whole(f"{target}.channel_weight", self._inserted(f"{source}.otter.weight"))

    def _column(self, target: str, sites: Sequence[ProjectionSite]) -> Iterator[PlannedTensor]:
        """Projections whose outputs are divided: rows of W, A and B, and their biases."""
        rows = [self.layout.base_part(s.writes, self.rank) for s in sites]
        extra = [self.layout.channel_part(s.writes, self.rank) for s in sites]
        named = list(zip(sites, rows, extra, strict=True))
        yield self._joined(
            f"{target}.weight",
            [self._base(f"{s.name}.weight", r) for s, r, _ in named]
            + [self._inserted(f"{s.name}.otter.from_base", e) for s, _, e in named],
        )
        if self.checkpoint.base.has(f"{sites[0].name}.bias"):
            yield self._joined(
                f"{target}.bias",
                [self._base(f"{s.name}.bias", r) for s, r, _ in named]
                + [self._inserted(f"{s.name}.otter.bias", e) for s, _, e in named],
            )
        yield self._joined(
            f"{target}.channel.weight",
            [self._inserted(f"{s.name}.otter.from_channel", e) for s, _, e in named],
        )

    def _row(self, target: str, site: ProjectionSite) -> Iterator[PlannedTensor]:
        """A projection whose inputs are divided: columns of W, A and B; its bias is whole."""
        columns = (slice(None), self.layout.base_part(site.reads, self.rank))
        extra = (slice(None), self.layout.channel_part(site.reads, self.rank))
        yield self._joined(
            f"{target}.weight",
            [
                self._base(f"{site.name}.weight", *columns),
                self._inserted(f"{site.name}.otter.from_base", *columns),
            ],
        )
        part = self._inserted(f"{site.name}.otter.from_channel", *extra)
        yield self._whole(f"{target}.channel.weight", part)
        if self.checkpoint.base.has(f"{site.name}.bias"):
            yield self._joined(
                f"{target}.output_bias",
                [self._base(f"{site.name}.bias"), self._inserted(f"{site.name}.otter.bias")],
            )

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
