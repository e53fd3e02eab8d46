"""``config.json`` of a TensorRT-LLM checkpoint, and what of a base can be expressed in it.

Also used by target ``trtllm``, whose attention kernels are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from otter_export.base_model import BaseModel
from otter_export.checkpoint import Checkpoint
from otter_export.config import OtterConfig
from otter_export.converters.tensorrt_llm.layout import Layout
from otter_export.errors import UnsupportedError
from otter_export.precision import TENSORRT_LLM, Precision, choose_precision
from otter_export.signals import kind_of

#: Families of Llama's modules; biases are optional in the emitted models.
FAMILIES = ("llama", "mistral", "qwen2")
#: Rotary scalings that TensorRT-LLM computes from config.json's own fields.
SCALINGS = ("default", "linear", "llama3")
ARCHITECTURE = "OtterForCausalLM"


@dataclasses.dataclass(frozen=True)
class Rotary:
    """A base's rotary embedding: base frequency, and scaling as config.json has it, or None."""

    theta: float
    scaling: Mapping[str, Any] | None


def check_supported(checkpoint: Checkpoint, precision: str, where: str) -> Precision:
    """The precision of that name; refuses what the emitted models do not compute.

    Args:
        checkpoint: To be converted.
        precision: As given.
        where: Target or builder, for the message.

    Raises:
        UnsupportedError: Names the setting and what is accepted.
    """
    chosen = choose_precision(TENSORRT_LLM, precision, where)
    check_model(checkpoint.base, checkpoint.config, where)
    return chosen


def check_model(base: BaseModel, config: OtterConfig, where: str = "target trtllm") -> None:
    """Refuse what the emitted models do not compute; reads nothing more of the base.

    Raises:
        UnsupportedError: Names the setting and what is accepted.
    """
    source = base.directory / "config.json"
    if base.family.name not in FAMILIES:
        raise UnsupportedError(
            f"{source}: family {base.family.name} has no emitted model for {where}; "
            f"available: {', '.join(FAMILIES)}. Use target onnx or another builder"
        )
    if base.window is not None:
        raise UnsupportedError(
            f"{source}: sliding_window = {base.window} is not supported by {where}, whose "
            "attention sees all tokens; use target onnx or trt"
        )
    kind = rotary_kind(base)
    if kind not in SCALINGS:
        raise UnsupportedError(
            f"{source}: rotary scaling {kind!r} is not supported by {where}; accepted: "
            f"{', '.join(SCALINGS)}"
        )
    activation = base.data.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedError(
            f"{source}: hidden_act = {activation!r} is not supported by {where}; accepted: 'silu'"
        )
    d = base.dimensions
    is_probe = config.first_layer == d.num_hidden_layers  # whose heads no layer has
    if not is_probe and config.num_attention_heads * d.num_key_value_heads != (
        d.num_attention_heads * config.num_key_value_heads
    ):
        raise UnsupportedError(
            f"the channel has {config.num_attention_heads} query heads over "
            f"{config.num_key_value_heads} key/value heads; {where} computes base and channel in "
            f"one attention, so it needs the base's proportion, {d.num_attention_heads} over "
            f"{d.num_key_value_heads}"
        )
    for signal in config.signals:
        if kind_of(signal).drafts:
            raise UnsupportedError(
                f"signal {signal.name!r} of kind {signal.kind!r} drafts tokens; {where} has no "
                "step that takes drafts. Use target onnx or trt"
            )


def rotary(base: BaseModel) -> Rotary:
    """The rotary embedding's settings, in transformers' old and new form."""
    settings, kind = _rotary_settings(base), rotary_kind(base)
    theta = settings.get("rope_theta", base.data.get("rope_theta", 10000.0))
    if kind == "default":
        return Rotary(theta, None)
    scaling = {k: v for k, v in settings.items() if k not in ("rope_theta", "type", "rope_type")}
    return Rotary(theta, {"type": kind, "rope_type": kind, **scaling})


def rotary_kind(base: BaseModel) -> str:
    """Name of the rotary scaling."""
    settings = _rotary_settings(base)
    return str(settings.get("rope_type", settings.get("type", "default")))


def _rotary_settings(base: BaseModel) -> Mapping[str, Any]:
    found = base.data.get("rope_parameters") or base.data.get("rope_scaling") or {}
    return dict(found)


def checkpoint_config(
    checkpoint: Checkpoint, layout: Layout, precision: Precision, max_candidates: int
) -> dict[str, Any]:
    """``config.json`` of the checkpoint; one for all ranks.

    ``max_candidates`` is 0 for an engine without tree inputs.
    Head counts are the base's; ``num_kv_heads_per_layer``, which sizes the KV cache, has those of
    base and channel. What the emitted model file needs to know of the channel is in ``otter``.
    """
    base, config = checkpoint.base, checkpoint.config
    d, turning = base.dimensions, rotary(checkpoint.base)
    first = f"{base.family.layers}.0"
    return {
        "architecture": ARCHITECTURE,
        "dtype": precision.dtype.name,
        "logits_dtype": "float32",
        "vocab_size": d.vocab_size,
        "hidden_size": d.hidden_size,
        "intermediate_size": d.intermediate_size,
        "num_hidden_layers": d.num_hidden_layers,
        "num_attention_heads": d.num_attention_heads,
        "num_key_value_heads": d.num_key_value_heads,
        "num_kv_heads_per_layer": [
            layout.key_value_heads if layer >= config.first_layer else d.num_key_value_heads
            for layer in range(d.num_hidden_layers)
        ],
        "head_size": d.head_dim,
        "hidden_act": "silu",
        "norm_epsilon": norm_epsilon(base),
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": d.max_position_embeddings,
        "rotary_base": turning.theta,
        "rotary_scaling": None if turning.scaling is None else dict(turning.scaling),
        "attn_bias": base.has(f"{first}.self_attn.q_proj.bias"),
        "mlp_bias": base.has(f"{first}.mlp.gate_proj.bias"),
        "use_parallel_embedding": False,
        "mapping": {"world_size": layout.tp_size, "tp_size": layout.tp_size, "pp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        **({"max_draft_len": max_candidates} if max_candidates else {}),
        "otter": {
            **channel_shape(config),
            "heads_divided": layout.heads_divided,
            "inner_divided": layout.inner_divided,
            "heads_stored": layout.heads_stored,
            "dense_bias": base.has(f"{first}.self_attn.o_proj.bias"),
            "signals": [
                {"name": s.name, "kind": s.kind, "activation": s.activation} for s in config.signals
            ],
        },
    }


def channel_shape(config: OtterConfig) -> dict[str, Any]:
    """The channel's widths, where it begins, and whose attention it has."""
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "embedding": config.embedding,
        "first_layer": config.first_layer,
        "attention": config.attention,
    }


def norm_epsilon(base: BaseModel) -> float:
    """The norms' epsilon; transformers' default for the supported families is 1e-6."""
    return float(base.data.get("rms_norm_eps", 1e-6))
