"""A Llama as a GGUF file in float32, from which llama.cpp makes its other types."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np

from otter_export.base_model import BaseModel
from otter_export.safetensors_io import FloatArray

#: Name of a tensor in a Llama's GGUF file, by its name in transformers.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OTHERS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(base: BaseModel, path: Path, tokenizer: Path | None = None) -> None:
    """Write a Llama base.

    Args:
        base: The base.
        path: The file.
        tokenizer: A GGUF file of a model with the same tokenizer.
    """
    size = base.dimensions
    config = json.loads((base.directory / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(size.num_hidden_layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(size.hidden_size)
    writer.add_feed_forward_length(size.intermediate_size)
    writer.add_head_count(size.num_attention_heads)
    writer.add_head_count_kv(size.num_key_value_heads)
    writer.add_rope_dimension_count(size.head_dim)
    writer.add_vocab_size(size.vocab_size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    # transformers 5 puts it among the rotary settings.
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    writer.add_rope_freq_base(theta)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if tokenizer is not None:
        _copy_tokenizer(gguf.GGUFReader(tokenizer), writer)
    for name in base.tensors:
        heads = {"q_proj": size.num_attention_heads, "k_proj": size.num_key_value_heads}
        rotated = heads.get(name.split(".")[-2])
        values = base.float32(name)
        writer.add_tensor(_name(name), values if rotated is None else _paired(values, rotated))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str:
    if name in OTHERS:
        return OTHERS[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _paired(weight: FloatArray, heads: int) -> FloatArray:
    """Rows in llama.cpp's order: it rotates neighbours, where transformers rotates halves."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def _copy_tokenizer(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    """The fields of a file's tokenizer, as they are."""
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
