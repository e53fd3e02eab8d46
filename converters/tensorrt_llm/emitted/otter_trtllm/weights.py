"""From the tensors of a Hugging Face directory to the parameters of one rank.

The base's projections are divided among the ranks; the channel is whole on each of them. ``W`` and
``A`` are put together only here, so each is divided in its own right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Source:
    """The stored tensors, and which of them were used.

    Args:
        weights: Name to tensor, or to what gives one when it is sliced.
        rank, ranks: Which part of a divided tensor is wanted.
    """

    def __init__(self, weights: Mapping[str, Any], rank: int, ranks: int) -> None:
        self._weights, self._left = weights, set(weights.keys())
        self._rank, self._ranks = rank, ranks

    def take(self, name: str) -> Tensor:
        """A whole tensor.

        Raises:
            ValueError: It is missing.
        """
        if name not in self._left:
            raise ValueError(f"tensor {name} is missing from the model's directory")
        self._left.remove(name)
        value: Tensor = self._weights[name][:]
        return value

    def part(self, name: str, axis: int) -> Tensor:
        """The rank's part of a tensor along ``axis``."""
        return self.own(self.take(name), axis)

    def own(self, whole: Tensor, axis: int) -> Tensor:
        """The rank's part of ``whole`` along ``axis``."""
        return whole.chunk(self._ranks, axis)[self._rank]

    def linear(self, stem: str) -> dict[str, Tensor]:
        """A linear layer's weight, and its bias where it has one."""
        found = {"weight": self.take(f"{stem}.weight")}
        if f"{stem}.bias" in self._left:
            found["bias"] = self.take(f"{stem}.bias")
        return found

    def check_used(self) -> None:
        """Raise ValueError if a tensor was not used."""
        if self._left:
            names = ", ".join(sorted(self._left)[:5])
            raise ValueError(
                f"{len(self._left)} tensors that OtterForCausalLM has no use for: {names}"
            )


def load(model: Any, weights: Mapping[str, Any]) -> None:
    """Fill an `otter_trtllm.model.OtterForCausalLM`.

    Raises:
        ValueError: A tensor is missing, left over, or has the wrong shape.
    """
    mapping = model.model_config.mapping
    source = Source(weights, mapping.tp_rank, mapping.tp_size)
    inner = model.model
    # TensorRT-LLM's own modules divide and pad the vocabulary themselves.
    inner.embed_tokens.load_weights([{"weight": source.take("model.embed_tokens.weight")}])
    first = inner.first_layer
    places = {0: "embed_tokens", len(inner.layers): "norm"}
    kind = "table" if inner.is_table else "projection"
    start = f"model.{places.get(first, f'layers.{first}')}.otter.{kind}"
    _copy(inner.channel_start, source.take(start))
    for i, layer in enumerate(inner.layers):
        (_base_layer if i < first else _layer)(source, layer, f"model.layers.{i}")
    _norm(source, inner.norm, "model.norm")
    if not model.config.tie_word_embeddings:
        model.lm_head.load_weights([{"weight": source.take("lm_head.weight")}])
    for signal, head in zip(model.config.otter["signals"], model.signals, strict=True):
        for parameter, part in ((head.weight, "weight"), (head.bias, "bias")):
            stored = source.take(f"signals.{signal['name']}.{part}")
            # An expert and an anti-expert guide by their difference.
            _copy(parameter, stored[0] - stored[1] if signal["kind"] == "expert" else stored)
    source.check_used()


def _base_layer(source: Source, layer: Any, stem: str) -> None:
    """A layer below the channel; TensorRT-LLM's own modules divide what they are given."""
    for norm in ("input_layernorm", "post_attention_layernorm"):
        _copy(getattr(layer, norm).weight, source.take(f"{stem}.{norm}.weight"))
    for module, names in (
        (layer.self_attn.qkv_proj, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        (layer.self_attn.o_proj, ("self_attn.o_proj",)),
        (layer.mlp.gate_up_proj, ("mlp.gate_proj", "mlp.up_proj")),
        (layer.mlp.down_proj, ("mlp.down_proj",)),
    ):
        module.load_weights([source.linear(f"{stem}.{name}") for name in names])


def _layer(source: Source, layer: Any, stem: str) -> None:
    """A layer with a channel."""
    _norm(source, layer.input_layernorm, f"{stem}.input_layernorm")
    attention = [f"{stem}.self_attn.{letter}_proj" for letter in "qkv"]
    _columns(source, layer.self_attn.qkv_proj, attention)
    _rows(source, layer.self_attn.o_proj, f"{stem}.self_attn.o_proj")
    _norm(source, layer.post_attention_layernorm, f"{stem}.post_attention_layernorm")
    _columns(source, layer.mlp.gate_up_proj, [f"{stem}.mlp.{n}_proj" for n in ("gate", "up")])
    _rows(source, layer.mlp.down_proj, f"{stem}.mlp.down_proj")


def _norm(source: Source, module: Any, stem: str) -> None:
    _copy(module.weight, source.take(f"{stem}.weight"))
    _copy(module.channel_weight, source.take(f"{stem}.otter.weight"))


def _columns(source: Source, module: Any, stems: Sequence[str]) -> None:
    """``[W1; W2; ..; A1; A2; ..]``, their biases, and ``[B1; B2; ..]``.

    Of a channel that shares the base's attention only the last, v, has A and B; the base's first
    rows of the others come again where the module has a place for them. A channel has the base's
    proportion of query to key/value heads, so these are the heads that its own stand for.
    """
    widened = stems[-len(module.extras) :]
    again = module.bases[len(stems) :]
    for part, inserted in (("weight", "from_base"), ("bias", "bias")):
        parameter = getattr(module, part)
        if parameter is not None:
            whole = [source.take(f"{stem}.{part}") for stem in stems]
            rows = [source.own(tensor, 0) for tensor in whole]
            rows += [tensor[:count] for tensor, count in zip(whole, again, strict=False)]
            rows += [source.take(f"{stem}.otter.{inserted}") for stem in widened]
            _copy(parameter, torch.cat(rows))
    _copy(module.channel, torch.cat([source.take(f"{s}.otter.from_channel") for s in widened]))


def _rows(source: Source, module: Any, stem: str) -> None:
    """``[W; A]`` by columns, its whole bias, and B."""
    own = (source.part(f"{stem}.weight", 1), source.part(f"{stem}.otter.from_base", 1))
    _copy(module.weight, torch.cat(own))
    if module.bias is not None:
        bias = (source.take(f"{stem}.bias"), source.take(f"{stem}.otter.bias"))
        _copy(module.bias, torch.cat(bias))
    _copy(module.channel, source.take(f"{stem}.otter.from_channel"))


def _copy(parameter: Any, value: Tensor) -> None:
    if tuple(parameter.shape) != tuple(value.shape):
        raise ValueError(
            f"a tensor of shape {tuple(value.shape)}, expected {tuple(parameter.shape)}"
        )
    parameter.data.copy_(value)
