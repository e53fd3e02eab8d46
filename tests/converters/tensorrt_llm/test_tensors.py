"""L0: the tensors of a TensorRT-LLM checkpoint; its ranks make up the original, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from otter_export.checkpoint import Checkpoint
from otter_export.config import OtterConfig
from otter_export.errors import CheckpointError
from otter_export.safetensors_io import TensorStore, from_float32
from tests import tiny
from tests.built import random_checkpoint
from tests.converters.tensorrt_llm.build import WIDE, built, planned
from tests.converters.tensorrt_llm.shapes import RANKS, SHAPES, shaped

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


def test_names_and_shapes_below_a_channel_and_where_it_begins(tmp_path: Path) -> None:
    options = {"heads": 2, "first_layer": 1, "attention": "shared"}
    checkpoint = random_checkpoint(tmp_path / "ck", base=BIASES, **options)
    one, two = (
        {n: t.shape for n, t in ranks_of(checkpoint, tmp_path / str(tp), tp)[0].items()}
        for tp in (1, 2)
    )
    below = {n.removeprefix(f"{LAYER}."): s for n, s in one.items() if n.startswith(LAYER)}
    assert below == {  # those of TensorRT-LLM's own Llama
        "input_layernorm.weight": (64,),
        "attention.qkv.weight": (128, 64),
        "attention.qkv.bias": (128,),
        "attention.dense.weight": (64, 64),
        "attention.dense.bias": (64,),
        "post_layernorm.weight": (64,),
        "mlp.fc.weight": (96, 64),
        "mlp.fc.bias": (96,),
        "mlp.gate.weight": (96, 64),
        "mlp.gate.bias": (96,),
        "mlp.proj.weight": (64, 96),
        "mlp.proj.bias": (64,),
    }
    assert "transformer.channel_embedding.weight" not in one
    first = "transformer.layers.1"
    assert one[f"{first}.channel_start.weight"] == (16, 64)
    # One rank repeats the base's q' 16 and k' 8 rows; of two, which halve q, k and v, the second
    # lacks them: both store them.
    assert one[f"{first}.attention.qkv.weight"] == (128 + 8, 64)
    assert two[f"{first}.attention.qkv.weight"] == (64 + 16 + 8 + 8, 64)
    assert one[f"{first}.attention.qkv.channel.weight"] == (8, 16)
    assert two[f"{first}.attention.qkv.channel.weight"] == (8, 16)


@pytest.mark.parametrize("tp", RANKS)
@pytest.mark.parametrize("channel_heads", [2, 4, 8])
def test_ranks_reassemble_bit_for_bit(tp: int, channel_heads: int, tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck", base=BIASES, heads=channel_heads)
    assert_reassembled(checkpoint, ranks_of(checkpoint, tmp_path / "engine", tp))


@pytest.mark.parametrize("tp", RANKS)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_ranks_of_every_shape_reassemble_bit_for_bit(shape: str, tp: int, tmp_path: Path) -> None:
    checkpoint = shaped(shape, "llama", tmp_path)
    assert_reassembled(checkpoint, ranks_of(checkpoint, tmp_path / "engine", tp))


def assert_reassembled(checkpoint: Checkpoint, ranks: list[dict[str, Array]]) -> None:
    """The ranks hold every stored tensor."""
    base, channel = stored(checkpoint)
    found, first = outside_the_layers(ranks), checkpoint.config.first_layer
    places = ["channel_embedding", "layers.1.channel_start", "channel_start"]
    name = ("embed_tokens", "layers.1", "norm")[first]
    ours = f"transformer.{places[first]}.weight"
    found |= same(ranks, ours, f"model.{name}.otter.projection")
    for layer in range(2):
        to, source = f"transformer.layers.{layer}", f"model.layers.{layer}"
        widened = layer >= first
        for ours, theirs in (("input", "input"), ("post", "post_attention")):
            found |= norm(ranks, f"{to}.{ours}_layernorm", f"{source}.{theirs}_layernorm", widened)
        found |= attention(ranks, to, source, checkpoint.config if widened else None)
        for ours, theirs in (("fc", "gate"), ("gate", "up")):
            found |= rows(ranks, f"{to}.mlp.{ours}", f"{source}.mlp.{theirs}_proj", widened)
        found |= columns(ranks, f"{to}.mlp.proj", f"{source}.mlp.down_proj", widened, True)
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


def outside_the_layers(ranks: list[dict[str, Array]]) -> dict[str, Array]:
    found = same(ranks, "transformer.vocab_embedding.weight", "model.embed_tokens.weight")
    found |= norm(ranks, "transformer.ln_f", "model.norm", True)
    for part in ("weight", "bias"):
        found |= same(ranks, f"signals.0.{part}", f"signals.reward.{part}")
    return found


def norm(ranks: list[dict[str, Array]], to: str, source: str, widened: bool) -> dict[str, Array]:
    found = same(ranks, f"{to}.weight", f"{source}.weight")
    if widened:
        found |= same(ranks, f"{to}.channel_weight", f"{source}.otter.weight")
    return found


def rows_of_qkv(channel: OtterConfig | None, tp: int) -> dict[str, int]:
    """What ``attention.qkv`` holds on a rank, in order; heads of size 8, 8 query over 4 key/value.

    Of a channel that shares the base's attention q' and k' are the base's rows once more, unless
    the rank can repeat them.
    """
    found = {"q": 64 // tp, "k": 32 // tp, "v": 32 // tp}
    if channel is None:
        return found
    heads, key_values = channel.num_attention_heads, channel.num_key_value_heads
    parts = tp if key_values % tp == 0 else 1
    extra = {"q'": 8 * heads // parts, "k'": 8 * key_values // parts, "v'": 8 * key_values // parts}
    is_repeated = channel.attention == "shared" and (tp == 1 or key_values == 4)
    return found | ({"v'": extra["v'"]} if is_repeated else extra)


def attention(
    ranks: list[dict[str, Array]], to: str, source: str, channel: OtterConfig | None
) -> dict[str, Array]:
    """Undo ``[Wq; Wk; Wv; Aq; Ak; Av]`` by rank, and the output projection."""
    held = rows_of_qkv(channel, len(ranks))
    divided = channel is not None and channel.num_key_value_heads % len(ranks) == 0
    used = ranks if divided else ranks[:1]
    inserted = [] if channel is None else ["v"] if channel.attention == "shared" else list("qkv")
    found = {}
    for part, suffix in (("weight", "from_base"), ("bias", "bias")):
        cuts = np.cumsum(list(held.values()))[:-1]
        split = [np.split(r[f"{to}.attention.qkv.{part}"], cuts) for r in ranks]
        whole = {n: np.concatenate(p) for n, p in zip(held, zip(*split, strict=True), strict=True)}
        for letter in "qkv":
            stem = f"{source}.self_attn.{letter}_proj"
            found[f"{stem}.{part}"] = whole[letter]
            extra = whole.get(f"{letter}'", whole[letter][:0])
            extra = extra[: held.get(f"{letter}'", 0) * len(used)]  # one rank's, if all have all
            if letter in inserted:
                found[f"{stem}.otter.{suffix}"] = extra
            else:
                assert extra.tobytes() == whole[letter][: len(extra)].tobytes()
    if inserted:
        cuts = np.cumsum([held[f"{letter}'"] for letter in inserted])[:-1]
        split = [np.split(r[f"{to}.attention.qkv.channel.weight"], cuts) for r in used]
        for letter, parts in zip(inserted, zip(*split, strict=True), strict=True):
            found[f"{source}.self_attn.{letter}_proj.otter.from_channel"] = np.concatenate(parts)
    to, source = f"{to}.attention.dense", f"{source}.self_attn.o_proj"
    return found | columns(ranks, to, source, channel is not None, divided)


def rows(ranks: list[dict[str, Array]], to: str, source: str, widened: bool) -> dict[str, Array]:
    """Undo a projection to the inner neurons, 96 of the base, by rank."""
    found = {}
    for part, suffix in (("weight", "from_base"), ("bias", "bias")):
        split = [np.split(r[f"{to}.{part}"], [96 // len(ranks)]) for r in ranks]
        found[f"{source}.{part}"] = np.concatenate([w for w, _ in split])
        if widened:
            found[f"{source}.otter.{suffix}"] = np.concatenate([a for _, a in split])
        else:
            assert not any(len(rest) for _, rest in split)
    if widened:
        parts = [r[f"{to}.channel.weight"] for r in ranks]
        found[f"{source}.otter.from_channel"] = np.concatenate(parts)
    return found


def columns(
    ranks: list[dict[str, Array]], to: str, source: str, widened: bool, divided: bool
) -> dict[str, Array]:
    """Undo a projection whose inputs are divided: 64 rows of W over those of A."""
    joined = np.concatenate([r[f"{to}.weight"] for r in ranks], axis=1)
    if not widened:
        return {f"{source}.weight": joined, **same(ranks, f"{to}.bias", f"{source}.bias")}
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
