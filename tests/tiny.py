"""Tiny random base models and checkpoints, written with numpy alone: no torch, no network.

The directories are real Hugging Face ones: transformers loads them, and so does `BaseModel.open`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from otter_export import insert
from otter_export.channel_options import ChannelOptions
from otter_export.safetensors_io import PlannedTensor, TensorStore, from_float32, write_safetensors
from otter_export.signals import Signal, kind_of

#: 4 heads over 2, of 16; the tokens are those of `write_tokenizer`.
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA: dict[str, Any] = {
    **SIZES,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
QWEN2: dict[str, Any] = {
    **{key: value for key, value in LLAMA.items() if key != "head_dim"},
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "vocab_size": 128,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_new",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {"llama": LLAMA, "gpt2": GPT2, "qwen2": QWEN2}

REWARD = Signal("reward")
NEXT = Signal("next", "q_value")
TONE = Signal("tone", "expert", "identity", None)
DRAFTS = Signal("drafts", "medusa", "identity", None, heads=3, draft_vocab=40)
#: One of each kind in one channel.
ALL_KINDS = (REWARD, NEXT, TONE, DRAFTS)


def base_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a base, written out family by family."""
    if config["model_type"] == "gpt2":
        return _gpt2_shapes(config)
    d, m, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    e = config.get("head_dim") or d // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * e, config["num_key_value_heads"] * e
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, d)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (d,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (d,)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, d)
            if config["model_type"] == "qwen2" or config.get("attention_bias"):
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (d, q)
        if config.get("attention_bias"):
            shapes[f"{layer}.self_attn.o_proj.bias"] = (d,)
        for name, (rows, columns) in {"gate": (m, d), "up": (m, d), "down": (d, m)}.items():
            shapes[f"{layer}.mlp.{name}_proj.weight"] = (rows, columns)
            if config.get("mlp_bias"):
                shapes[f"{layer}.mlp.{name}_proj.bias"] = (rows,)
    shapes["model.norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
    return shapes


def _gpt2_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d, m = config["n_embd"], config.get("n_inner") or 4 * config["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (config["vocab_size"], d),
        "transformer.wpe.weight": (config["n_positions"], d),
    }
    for i in range(config["n_layer"]):
        layer = f"transformer.h.{i}"
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{layer}.{norm}.weight": (d,), f"{layer}.{norm}.bias": (d,)}
        # Conv1D: [in, out].
        linears = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d)}
        linears |= {"mlp.c_fc": (d, m), "mlp.c_proj": (m, d)}
        for name, shape in linears.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[1:]}
    return shapes | {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,)}


def base_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, large enough that every part of the model shows in its output."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, shape in base_shapes(config).items():
        values = generator.standard_normal(shape) * (0.1 if len(shape) == 1 else 0.2)
        if len(shape) == 1 and name.endswith("weight"):
            values += 1.0  # norms
        tensors[name] = values.astype(np.float32)
    return tensors


def write_base(
    directory: Path, family: str = "llama", *, shards: int = 1, seed: int = 0, **overrides: Any
) -> Path:
    """Write a base model directory.

    Args:
        directory: Where; it is made.
        family: ``llama``, ``gpt2`` or ``qwen2``.
        shards: Number of weight files; more than one come with an index.
        seed: Of the weights.
        overrides: Fields of config.json.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = {**CONFIGS[family], **overrides}
    (directory / "config.json").write_text(json.dumps(config))
    write_tokenizer(directory, config["vocab_size"])
    tensors = base_tensors(config, seed)
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return directory
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in list(tensors)[i::shards]}
        save_file(part, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    """A safetensors file of zeros that takes no space on the disk, whatever its size."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = (4 if dtype == "F32" else 2) * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)


def write_sparse_base(directory: Path, **overrides: Any) -> Path:
    """A Llama base of bfloat16 zeros, of any size."""
    directory.mkdir(parents=True)
    config = {**LLAMA, **overrides}
    (directory / "config.json").write_text(json.dumps(config))
    write_sparse(directory / "model.safetensors", base_shapes(config), "BF16")
    write_tokenizer(directory, 128)
    return directory


def write_tokenizer(directory: Path, vocab_size: int) -> None:
    """A tokenizer of words ``w3 w4 …``; 0 is <unk>, 1 <s>, 2 </s>."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, vocab_size)}
    special = [
        {"id": i, "content": token, "special": True, "single_word": False, "lstrip": False}
        | {"rstrip": False, "normalized": False}
        for token, i in list(vocab.items())[:3]
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def write_checkpoint(
    directory: Path,
    family: str = "llama",
    *,
    signals: tuple[Signal, ...] = (REWARD,),
    initialization: str = "normal",
    base: Path | None = None,
    adapter: bool = False,
    **channel: Any,
) -> Path:
    """Write a checkpoint over a tiny base, which is made beside it when none is given.

    Heads that would start at zero are drawn: zeros would make comparisons of nothing.
    """
    if base is None:
        base = write_base(directory.with_name(directory.name + "-base"), family)
    options = ChannelOptions(
        hidden_size=channel.pop("hidden_size", 16),
        intermediate_size=channel.pop("intermediate_size", 24),
        initialization=initialization,
        signals=signals,
        **channel,
    )
    insert.plan(str(base), directory, options, adapter=adapter).write()
    names = [f"signals.{s.name}.weight" for s in signals if kind_of(s).starts_at_zero]
    if names:
        _draw(directory / "otter.safetensors", names)
    return directory


def _draw(path: Path, names: list[str]) -> None:
    """Draw tensors of a file anew, in the dtype that they have."""
    store, generator = TensorStore.open(path.parent, path.stem), np.random.default_rng(7)
    plan = []
    for name, info in store.items():
        values = np.array(store.raw(name))
        if name in names:
            drawn = (generator.standard_normal(info.shape) * 0.2).astype(np.float32)
            values = from_float32(drawn, info.dtype)
        plan.append(PlannedTensor(name, info.dtype, info.shape, lambda values=values: values))  # type: ignore[misc]
    write_safetensors(path, plan, {"format": "pt"})
