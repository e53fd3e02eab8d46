"""The channel beside a model of vLLM's own: hooks on its modules, a rule for each kind of them.

The base's modules, forward functions, kernels and shards stay vLLM's. Whenever a norm, a projection
or an attention of the base has run, its hook computes the channel's part of the same step from what
that module read: the order is the base's own, so layers with one norm, with two or with four, with
and without rotation, in a row or side by side need no code of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention

from otter_export.base_model import BaseModel
from otter_export.channel import base_heads, channel_sites
from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.family import ProjectionSite, channel_width
from otter_export.plugins.vllm.bases import ACTIVATIONS, MERGED, PASSES_RESIDUAL
from otter_export.plugins.vllm.layer import (
    Columns,
    LayerSites,
    Norm,
    Read,
    Rows,
    SharedHeads,
    copy,
    parameter,
    twin,
)


class Channel(nn.Module):
    """The channel of one model; `final` is n' of the last forward pass, ``[T, d']``.

    Args:
        model: vLLM's causal language model; hooks are put on its modules.
        checkpoint: The channel.
        cache_config: vLLM's.
    """

    final: Tensor

    def __init__(self, model: nn.Module, checkpoint: Checkpoint, cache_config: Any) -> None:
        super().__init__()
        base, config = checkpoint.base, checkpoint.config
        d, sites = base.dimensions, channel_sites(config, base.sites)
        self.first = config.first_layer
        is_table = config.embedding == "table"
        rows = (d.vocab_size, config.hidden_size) if is_table else (config.hidden_size, 0)
        self.start = parameter(rows[0], rows[1] or d.hidden_size)
        self.start_name = f"{sites.starts[0]}.otter.{config.embedding}"
        self.factor = _embedding_factor(base) if is_table else None
        layers: Any = model.get_submodule(base.family.layers)
        self.layers = nn.ModuleList(
            ChannelLayer(self, layers[i], i, checkpoint, cache_config)
            for i in range(self.first, d.num_hidden_layers)
        )
        final = model.get_submodule(base.family.final_norm)
        bias = f"{base.family.final_norm}.bias" in base.tensors
        self.norm = _norm(base, final, config.hidden_size, bias=bias)
        self.norm_name = base.family.final_norm
        self.passes_residual = base.family.name in PASSES_RESIDUAL
        self._ids: Tensor | None = None
        self._state: Tensor | None = None
        final.register_forward_hook(self._finish)

    def reset(self, input_ids: Tensor | None) -> None:
        """Forget the last pass; to be called before a forward of the base."""
        if self.factor is not None and input_ids is None:
            raise ValueError("a channel with an embedding table needs token ids, not embeddings")
        self._ids, self._state = input_ids, None

    def state(self, index: int, base: Tensor) -> Tensor:
        """X' where ``base`` is the state x that enters a layer; the channel may begin there."""
        if self._state is None:
            assert index == self.first
            if self.factor is None:
                self._state = functional.linear(base, self.start)
            else:
                assert self._ids is not None
                self._state = functional.embedding(self._ids, self.start) * self.factor
        return self._state

    def add(self, value: Tensor) -> None:
        """Add what a layer writes to x'."""
        assert self._state is not None
        self._state = self._state + value

    def source(self, arguments: Sequence[Any], output: Any) -> Tensor:
        """The state that a norm of the base has normalised.

        A norm that gets a residual beside it adds the two, which is the state, and returns it
        second; families in `PASSES_RESIDUAL` have norms that hand it through.
        """
        is_added = isinstance(output, tuple) and not self.passes_residual
        found: Tensor = output[1] if is_added else arguments[0]
        return found

    def load(self, read: Read) -> None:
        """Read every inserted tensor but the signals'."""
        copy(self.start, read(self.start_name))
        self.norm.load(self.norm_name, read)
        for layer in self.layers:
            layer.load(read)  # type: ignore[operator]

    def _finish(self, _: nn.Module, arguments: Any, output: Any) -> None:
        source = self.source(arguments, output)
        index = self.first + len(self.layers)
        self.final = self.norm(self.state(index, source), source)


class ChannelLayer(nn.Module):
    """The channel in one layer, with the rules of the layer's modules.

    Args:
        channel: What it belongs to.
        layer: vLLM's decoder layer.
        index: Its number.
        checkpoint: The channel.
        cache_config: vLLM's.
    """

    def __init__(
        self, channel: Channel, layer: Any, index: int, checkpoint: Checkpoint, cache_config: Any
    ) -> None:
        super().__init__()
        base, config, family = checkpoint.base, checkpoint.config, checkpoint.base.family
        sites = channel_sites(config, base.sites)
        self.sites = LayerSites.of(index, sites.projections, sites.norms)
        self._channel = (channel,)  # no submodule: it is the other way round
        self.index, self.prefix = index, f"{family.layers}.{index}."
        self.multiplier = float(getattr(layer, "residual_multiplier", 1.0))
        own = self.sites.attention
        self.columns = _columns(checkpoint, own)
        self.inner = _columns(checkpoint, self.sites.inner)
        after_attention, after_inner = (
            _rows(checkpoint, site, f"otter.{index}.{n}") for n, site in enumerate(self.sites.back)
        )
        self.after_attention, self.after_inner = after_attention, after_inner
        self.norms = nn.ModuleDict()
        for norm in self.sites.norms:
            module = _module(layer, norm.name.removeprefix(self.prefix))
            bias = f"{norm.name}.bias" in base.tensors
            size = norm.channel_size(config)
            self.norms[_key(norm.name)] = _norm(base, module, size, bias=bias)
        self._put_hooks(layer, checkpoint)
        (attention,) = (m for m in layer.modules() if isinstance(m, Attention))
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        name = f"otter.layers.{index}.attn"
        self.attention = twin(attention, heads, kv_heads, cache_config, name)
        self.shared = nn.ModuleList()
        if config.attention == "shared":
            d, ranks = base.dimensions, get_tensor_model_parallel_world_size()
            chosen = torch.from_numpy(base_heads(config, d))
            for which, total in (
                (chosen, d.num_attention_heads),
                (torch.arange(kv_heads), d.num_key_value_heads),
            ):
                self.shared.append(SharedHeads(which, d.head_dim, total, ranks))
        attention.register_forward_hook(self._attend)
        self.head_norms = {n.space: _key(f"{self.prefix}{n.path}") for n in family.head_norms}
        self._rotation: tuple[nn.Module, Tensor] | None = None
        # What one rule leaves for the next.
        self._read = self._parts = self._attended = self._pending = torch.empty(0)

    @property
    def channel(self) -> Channel:
        """What it belongs to."""
        return self._channel[0]

    def load(self, read: Read) -> None:
        """Read this layer's tensors."""
        self.columns.load(self.sites.attention, read)
        self.inner.load(self.sites.inner, read)
        for module, site in zip(
            (self.after_attention, self.after_inner), self.sites.back, strict=True
        ):
            module.load(site, read)
        for norm in self.sites.norms:
            self.norms[_key(norm.name)].load(norm.name, read)  # type: ignore[operator]

    def _put_hooks(self, layer: Any, checkpoint: Checkpoint) -> None:
        family = checkpoint.base.family
        posts = set(family.post_norms.values())
        self.has_norm = bool(set(family.norms) - posts)
        for path in family.norms:
            rule: Any = self._normed_back if path in posts else self._normed
            module = _module(layer, path)
            module.register_forward_hook(_bound(rule, _key(f"{self.prefix}{path}")))
        path = self._path(self.sites.attention[-1])
        _module(layer, path).register_forward_hook(self._project)
        self.parent = (_module(layer, path.rpartition(".")[0]),)
        for module in {m for n, m in layer.named_modules() if n.endswith("rotary_emb")}:
            module.register_forward_hook(self._rotate)
        _module(layer, self._path(self.sites.inner[0])).register_forward_hook(self._enter)
        self.activation = (_module(layer, family.activations[0], ACTIVATIONS),)
        rules: tuple[Any, ...] = (self._after_attention, self._after_inner)
        for site, rule in zip(self.sites.back, rules, strict=True):
            own_path = self._path(site)
            is_normed = own_path in family.post_norms
            _module(layer, own_path).register_forward_hook(_bound(rule, is_normed))

    def _path(self, site: ProjectionSite) -> str:
        return site.parameter.removeprefix(self.prefix)

    # The rules, in the order in which a layer's modules run.

    def _normed(self, key: str, arguments: Any, output: Any) -> None:
        """A norm that projections read."""
        source = self.channel.source(arguments, output)
        self._read = self.norms[key](self.channel.state(self.index, source), source)

    def _project(self, _: nn.Module, arguments: Any, output: Any) -> None:
        """Queries, keys and values."""
        base = arguments[0]
        if not self.has_norm:
            self._read = self.channel.state(self.index, base)
        self._parts = self.columns(base, self._read)
        self._rotation = None

    def _rotate(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """Whether this layer rotates, and by which positions; layers share the module."""
        self._rotation = (module, arguments[0])

    def _attend(self, _: nn.Module, arguments: Any, output: Any) -> None:
        """The extra heads, at the same positions and with the same mask and scale."""
        if self.shared:
            query, key = (pick(own) for pick, own in zip(self.shared, arguments[:2], strict=True))
            value = self._parts
        else:
            query, key, value = torch.split(self._parts, self.columns.rows, -1)
            query, key = self._turned(query, key)
        self._attended = self.attention(query.contiguous(), key.contiguous(), value.contiguous())

    def _turned(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of the extra heads, normalised by head, rotated and scaled."""
        both = []
        for rows, site in zip((query, key), self.sites.attention[:2], strict=True):
            if (name := self.head_norms.get(site.writes)) is not None:
                by_head = rows.reshape(len(rows), -1, self.attention.head_size)
                rows = self.norms[name](by_head, by_head).flatten(-2)
            both.append(rows.contiguous())
        query, key = both
        if self._rotation is not None:
            module, positions = self._rotation
            query, key = module.forward(positions, query, key)
            parent = self.parent[0]
            if getattr(parent, "do_llama_4_scaling", False):
                scale = parent._get_llama_4_attn_scale(positions)
                query = (query * scale).to(query.dtype)
        return query, key

    def _after_attention(self, is_normed: bool, arguments: Any, output: Any) -> None:
        """The attention's projection back."""
        self._write(self.after_attention(arguments[0], self._attended), is_normed)

    def _enter(self, _: nn.Module, arguments: Any, output: Any) -> None:
        """The feed-forward's neurons."""
        base = arguments[0]
        if not self.has_norm:
            self._read = self.channel.state(self.index, base)
        activation = self.activation[0]
        apply = getattr(activation, "forward_native", activation.forward)
        self._parts = apply(self.inner(base, self._read))

    def _after_inner(self, is_normed: bool, arguments: Any, output: Any) -> None:
        """The feed-forward's projection back."""
        self._write(self.after_inner(arguments[0], self._parts), is_normed)

    def _normed_back(self, key: str, arguments: Any, output: Any) -> None:
        """A norm of what a projection writes, before it is added."""
        self.channel.add(self.multiplier * self.norms[key](self._pending, arguments[0]))

    def _write(self, value: Tensor, is_normed: bool) -> None:
        if is_normed:
            self._pending = value
        else:
            self.channel.add(value if self.multiplier == 1 else self.multiplier * value)


def _bound(rule: Any, first: Any) -> Any:
    """A hook that gives its rule something else than the module."""
    return lambda _, arguments, output: rule(first, arguments, output)


def _module(layer: Any, path: str, others: Sequence[str] = MERGED) -> Any:
    """A module of vLLM's by Hugging Face's path, or by one of vLLM's names in its place.

    Raises:
        UnsupportedError: vLLM's layer has none.
    """
    names = dict(layer.named_modules())
    parent = path.rpartition(".")[0]
    for name in (path, *(f"{parent}.{other}" for other in others)):
        if name in names:
            return names[name]
    raise UnsupportedError(
        f"vLLM's {type(layer).__name__} has no {path}: this release of vLLM differs from those "
        "that the plugin supports"
    )


def _columns(checkpoint: Checkpoint, sites: Sequence[ProjectionSite]) -> Columns:
    config, d = checkpoint.config, checkpoint.base.dimensions
    rows = [channel_width(config, site.writes) for site in sites]
    reads = (d.width(sites[0].reads), channel_width(config, sites[0].reads))
    return Columns(rows, reads, bias=_has_bias(checkpoint.base, sites[0]))


def _rows(checkpoint: Checkpoint, site: ProjectionSite, prefix: str) -> Rows:
    config, d = checkpoint.config, checkpoint.base.dimensions
    reads = (d.width(site.reads), channel_width(config, site.reads))
    rows = channel_width(config, site.writes)
    return Rows(rows, reads, prefix, bias=_has_bias(checkpoint.base, site))


def _has_bias(base: BaseModel, site: ProjectionSite) -> bool:
    return f"{site.parameter}.bias" in base.tensors


def _norm(base: BaseModel, module: Any, size: int, *, bias: bool) -> Norm:
    name = "variance_epsilon" if hasattr(module, "variance_epsilon") else "eps"
    epsilon = float(getattr(module, name))
    return Norm(size, epsilon, centred=base.family.layer_norm, bias=bias)


def _embedding_factor(base: BaseModel) -> float:
    """What the family multiplies embeddings by; a table's rows are multiplied too."""
    if base.family.scaled_embedding:
        return math.sqrt(base.dimensions.hidden_size)
    return float(base.data.get("embedding_multiplier", 1.0))


def _key(name: str) -> str:
    """Module dictionaries take no dots."""
    return name.replace(".", "_")
