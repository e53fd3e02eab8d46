"""The Hugging Face directory of target ``trtllm``: config.json, and shards of all tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from otter_export.checkpoint import Checkpoint, expected_tensors
from otter_export.converters.engine_files import token_ids
from otter_export.converters.tensorrt_llm_config import (
    ARCHITECTURE,
    DTYPES,
    norm_epsilon,
    rotary,
)
from otter_export.converters.tensorrt_llm_weights import Part, tensor_bytes
from otter_export.safetensors_io import PlannedTensor, TensorStore, write_safetensors
from otter_export.targets import Progress

Shard = Sequence[PlannedTensor]
#: Files are read in parallel by TensorRT-LLM; this is transformers' own size.
SHARD_BYTES = 5 * 1000**3


def hub_config(checkpoint: Checkpoint, precision: str) -> dict[str, Any]:
    """The base's config.json with this architecture, and what its model has to know in ``otter``.

    Head counts stay the base's: transformers checks them against the hidden size. The model adds
    the channel's, for as many ranks as there are, before the KV cache is made. Rotary settings are
    in the form that transformers 4 and 5 both read.
    """
    base, config = checkpoint.base, checkpoint.config
    d, turning = base.dimensions, rotary(checkpoint.base)
    _, eos = token_ids(checkpoint)
    dropped = ("rope_parameters", "dtype", "auto_map", "transformers_version")
    first = f"{base.family.layers}.0"
    return {
        **{key: value for key, value in base.data.items() if key not in dropped},
        "architectures": [ARCHITECTURE],
        "torch_dtype": DTYPES[precision][0],
        "num_key_value_heads": d.num_key_value_heads,
        "head_dim": d.head_dim,
        "rms_norm_eps": norm_epsilon(base),
        "rope_theta": turning.theta,
        "rope_scaling": None if turning.scaling is None else dict(turning.scaling),
        "tie_word_embeddings": d.tie_word_embeddings,
        "eos_token_id": list(eos) if len(eos) > 1 else next(iter(eos), None),
        "otter": {
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "base_attention_heads": d.num_attention_heads,
            "base_key_value_heads": d.num_key_value_heads,
            "qkv_bias": base.has(f"{first}.self_attn.q_proj.bias"),
            "dense_bias": base.has(f"{first}.self_attn.o_proj.bias"),
            "mlp_bias": base.has(f"{first}.mlp.gate_proj.bias"),
            "embedding": config.embedding,
            "signals": config.to_json()["signals"],
        },
    }


def hub_shards(
    checkpoint: Checkpoint, dtype: str, shard_bytes: int = SHARD_BYTES
) -> tuple[Shard, ...]:
    """All tensors, base and inserted, in files of at most ``shard_bytes`` (or one tensor)."""
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in _tensors(checkpoint, dtype):
        if shards[-1] and size + tensor_bytes(tensor) > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor_bytes(tensor)
    return tuple(shards)


def write_shards(directory: Path, shards: Sequence[Shard], progress: Progress | None) -> list[str]:
    """Write the shards, one tensor in memory at a time, and their index; returns the names."""
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(directory / name, shard, {"format": "pt"}, progress)
    weight_map = {t.name: n for n, shard in zip(names, shards, strict=True) for t in shard}
    total = sum(tensor_bytes(tensor) for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    index_name = "model.safetensors.index.json"
    (directory / index_name).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return [*names, index_name]


def _tensors(checkpoint: Checkpoint, dtype: str) -> Iterator[PlannedTensor]:
    base = checkpoint.base
    for name in _base_names(checkpoint):
        stored = base.stored_name(name)
        assert stored is not None, name  # Checkpoint.open has listed what is missing
        yield _planned(base.weights, stored, name, dtype)
    for name in expected_tensors(checkpoint.config, base):
        yield _planned(checkpoint.tensors, name, name, dtype)


def _base_names(checkpoint: Checkpoint) -> Iterator[str]:
    """The base's tensors, as the model reads them; a copy of a tied head is left out."""
    base = checkpoint.base
    stems = [name for name, _ in base.sites.embeddings]
    stems += [site.parameter for site in base.sites.projections]
    stems += base.sites.norms
    if not base.dimensions.tie_word_embeddings:
        stems.append(base.family.output_head)
    for stem in stems:
        yield f"{stem}.weight"
        if base.has(f"{stem}.bias"):
            yield f"{stem}.bias"


def _planned(store: TensorStore, stored: str, name: str, dtype: str) -> PlannedTensor:
    part = Part(store, stored, tuple(slice(None) for _ in store[stored].shape))
    return PlannedTensor(name, dtype, part.shape, lambda: part.bits(dtype))
