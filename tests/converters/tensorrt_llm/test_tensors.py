"""L0: the tensors of a TensorRT-LLM checkpoint; its ranks make up the original, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from otter_export.checkpoint import Checkpoint
from otter_export.errors import CheckpointError
from otter_export.safetensors_io import TensorStore, from_float32
from tests import tiny
from tests.built import random_checkpoint
from tests.converters.tensorrt_llm.build import WIDE, built, planned

Array = np.ndarray[Any, Any]
LAYER = "transformer.layers.0"
BIASES = {**WIDE, "attention_bias": True, "mlp_bias": True}


def ranks_of(checkpoint: Checkpoint, directory: Path, tp: int) -> list[dict[str, Array]]:
    engine = built(checkpoint, directory, tp) / "checkpoint"
    return [load_file(engine / f"rank{rank}.safetensors") for rank in range(tp)]


def test_names_and_shapes_of_one_rank(tmp_path: Path) -> None:
    signals = (tiny.REWARD, tiny.NEXT)
    checkpoint = random_checkpoint(tmp_path / "ck", base=BIASES, heads=2, signals=signals)
    (tensors,) = ranks_of(checkpoint, tmp_path / "engine", 1)
    # d 64, m 96, q 64, kv 32, V 128; d' 16, m' 24, q' 16, kv' 8.
    layer = {
        "input_layernorm.weight": (64,),
        "input_layernorm.channel_weight": (16,),
        "attention.qkv.weight": (128 + 32, 64),
        "attention.qkv.bias": (128 + 32,),
        "attention.qkv.channel.weight": (32, 16),
        "attention.dense.weight": (64 + 16, 64),
        "attention.dense.channel.weight": (16, 16),
        "attention.dense.output_bias": (64 + 16,),
        "post_layernorm.weight": (64,),
        "post_layernorm.channel_weight": (16,),
        "mlp.fc.weight": (96 + 24, 64),
        "mlp.fc.bias": (96 + 24,),
        "mlp.fc.channel.weight": (24, 16),
        "mlp.gate.weight": (96 + 24, 64),
        "mlp.gate.bias": (96 + 24,),
        "mlp.gate.channel.weight": (24, 16),
        "mlp.proj.weight": (64 + 16, 96),
        "mlp.proj.channel.weight": (16, 24),
        "mlp.proj.output_bias": (64 + 16,),
    }
    expected = {f"transformer.layers.{i}.{n}": s for i in range(2) for n, s in layer.items()}
    expected |= {
        "transformer.vocab_embedding.weight": (128, 64),
        "transformer.channel_embedding.weight": (16, 64),
        "transformer.ln_f.weight": (64,),
        "transformer.ln_f.channel_weight": (16,),
        "lm_head.weight": (128, 64),
        "signals.0.weight": (1, 16),
        "signals.0.bias": (1,),
        "signals.1.weight": (128, 16),
        "signals.1.bias": (128,),
    }
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("channel_heads", [2, 4, 8])
def test_ranks_reassemble_bit_for_bit(tp: int, channel_heads: int, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck", base=BIASES, heads=channel_heads)
    ranks = ranks_of(checkpoint, tmp_path / "engine", tp)
    base, channel = stored(checkpoint)
    divided = (channel_heads // 2) % tp == 0
    found: dict[str, Array] = {}
    for layer in range(2):
        to, source = f"transformer.layers.{layer}", f"model.layers.{layer}"
        found |= attention(ranks, to, source, channel_heads, divided)
        for name, theirs in (("fc", "gate"), ("gate", "up")):
            stem = f"{source}.mlp.{theirs}_proj"
            for part in ("weight", "bias"):
                rows = [np.split(r[f"{to}.mlp.{name}.{part}"], [96 // tp]) for r in ranks]
                found[f"{stem}.{part}"] = np.concatenate([w for w, _ in rows])
                suffix = {"weight": "from_base", "bias": "bias"}[part]
                found[f"{stem}.otter.{suffix}"] = np.concatenate([a for _, a in rows])
            parts = [r[f"{to}.mlp.{name}.channel.weight"] for r in ranks]
            found[f"{stem}.otter.from_channel"] = np.concatenate(parts)
        found |= columns(ranks, f"{to}.mlp.proj", f"{source}.mlp.down_proj", True)
        for ours, theirs in (("input", "input"), ("post", "post_attention")):
            found |= same(
                ranks, f"{to}.{ours}_layernorm.weight", f"{source}.{theirs}_layernorm.weight"
            )
            name = f"{source}.{theirs}_layernorm.otter.weight"
            found |= same(ranks, f"{to}.{ours}_layernorm.channel_weight", name)
    found |= same(ranks, "transformer.vocab_embedding.weight", "model.embed_tokens.weight")
    name = "model.embed_tokens.otter.projection"
    found |= same(ranks, "transformer.channel_embedding.weight", name)
    found |= same(ranks, "transformer.ln_f.weight", "model.norm.weight")
    found |= same(ranks, "transformer.ln_f.channel_weight", "model.norm.otter.weight")
    for part in ("weight", "bias"):
        found |= same(ranks, f"signals.0.{part}", f"signals.reward.{part}")
    assert set(found) == {*base, *channel}
    for name, values in {**base, **channel}.items():
        assert found[name].tobytes() == values.tobytes(), name
    head = np.concatenate([r["lm_head.weight"] for r in ranks])
    assert head.tobytes() == base["model.embed_tokens.weight"].tobytes()  # tied


def stored(checkpoint: Checkpoint) -> tuple[dict[str, Array], dict[str, Array]]:
    """The original tensors, base and inserted."""
    stores = (checkpoint.base.weights, checkpoint.tensors)
    base, channel = ({name: np.asarray(s.raw(name)) for name in s} for s in stores)
    return base, channel


def attention(
    ranks: list[dict[str, Array]], to: str, source: str, channel_heads: int, divided: bool
) -> dict[str, Array]:
    """Undo ``[Wq; Wk; Wv; Aq; Ak; Av]`` by rank; heads of size 8, 8 query over 4 key/value."""
    tp, found = len(ranks), {}
    own = tp if divided else 1
    base = [64 // tp, 32 // tp, 32 // tp]
    extra = [8 * channel_heads // own, 4 * channel_heads // own, 4 * channel_heads // own]
    cuts = np.cumsum(base + extra)[:-1]
    used = ranks if divided else ranks[:1]
    for i, letter in enumerate("qkv"):
        stem = f"{source}.self_attn.{letter}_proj"
        for part, suffix in (("weight", "from_base"), ("bias", "bias")):
            name = f"{to}.attention.qkv.{part}"
            found[f"{stem}.{part}"] = np.concatenate([np.split(r[name], cuts)[i] for r in ranks])
            rows = [np.split(r[name], cuts)[3 + i] for r in used]
            found[f"{stem}.otter.{suffix}"] = np.concatenate(rows)
        name = f"{to}.attention.qkv.channel.weight"
        rows = [np.split(r[name], np.cumsum(extra)[:-1])[i] for r in used]
        found[f"{stem}.otter.from_channel"] = np.concatenate(rows)
    return found | columns(ranks, f"{to}.attention.dense", f"{source}.self_attn.o_proj", divided)


def columns(ranks: list[dict[str, Array]], to: str, source: str, divided: bool) -> dict[str, Array]:
    """Undo a projection whose inputs are divided: 64 rows of W over those of A."""
    joined = np.concatenate([r[f"{to}.weight"] for r in ranks], axis=1)
    used = ranks if divided else ranks[:1]
    channel = np.concatenate([r[f"{to}.channel.weight"] for r in used], axis=1)
    found = same(ranks, f"{to}.output_bias", "bias")["bias"]
    return {
        f"{source}.weight": joined[:64],
        f"{source}.otter.from_base": joined[64:],
        f"{source}.otter.from_channel": channel,
        f"{source}.bias": found[:64],
        f"{source}.otter.bias": found[64:],
    }


def same(ranks: list[dict[str, Array]], ours: str, theirs: str) -> dict[str, Array]:
    """A tensor that is the same on all ranks."""
    for other in ranks[1:]:
        assert other[ours].tobytes() == ranks[0][ours].tobytes(), ours
    return {theirs: ranks[0][ours]}


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "F16"), ("bf16", "BF16")])
def test_every_tensor_has_the_dtype_of_the_precision(
    precision: str, dtype: str, tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck")
    engine = built(checkpoint, tmp_path / "engine", 1, precision) / "checkpoint"
    store = TensorStore.open(engine, "rank0")
    assert {info.dtype for info in store.values()} == {dtype}
    name = f"{LAYER}.mlp.proj.channel.weight"
    original = checkpoint.float32("model.layers.0.mlp.down_proj.otter.from_channel")
    assert store.raw(name).tobytes() == from_float32(original, dtype).tobytes()
    config = json.loads((engine / "config.json").read_text())
    assert config["dtype"] == {"fp16": "float16", "bf16": "bfloat16"}[precision]


def test_a_stored_half_precision_is_copied_without_rounding(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base")
    values = {n: t.astype(np.float16) for n, t in load_file(base / "model.safetensors").items()}
    save_file(values, base / "model.safetensors", {"format": "pt"})
    tiny.write_checkpoint(tmp_path / "ck", base=base)
    engine = built(Checkpoint.open(tmp_path / "ck"), tmp_path / "engine", 1, "fp16")
    tensors = load_file(engine / "checkpoint/rank0.safetensors")
    name = "transformer.vocab_embedding.weight"
    assert tensors[name].tobytes() == values["model.embed_tokens.weight"].tobytes()


def test_a_value_beyond_fp16_is_one_clear_line(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck")
    path = tmp_path / "ck/otter.safetensors"
    tensors = load_file(path)
    tensors["signals.reward.bias"][0] = 1e5
    save_file(tensors, path, {"format": "pt"})
    checkpoint = Checkpoint.open(tmp_path / "ck")
    (tmp_path / "engine").mkdir()
    with pytest.raises(CheckpointError, match=r"signals\.reward\.bias.*beyond the range.*bf16"):
        planned(checkpoint, 1, "fp16").write(tmp_path / "engine", None)


@pytest.mark.parametrize("tp", [1, 2])
def test_the_plan_names_what_is_written(tp: int, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck", base=WIDE)
    plan = planned(checkpoint, tp, "fp16")
    advanced: list[int] = []
    (tmp_path / "engine").mkdir()
    plan.write(tmp_path / "engine", advanced.append)
    found = {}
    for rank in range(tp):
        store = TensorStore.open(tmp_path / "engine/checkpoint", f"rank{rank}")
        found |= {
            f"rank{rank}/{name}": (info.dtype.lower(), info.shape, info.nbytes)
            for name, info in store.items()
        }
    assert {name: (dtype, shape, size) for name, dtype, shape, size in plan.weights} == found
    assert sum(advanced) == plan.total_bytes
