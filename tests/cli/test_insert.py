"""L0: ``otter-export insert``: defaults, forms, atomic writing, and its memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from otter_export.base_model import BaseModel
from otter_export.channel_options import ChannelOptions, channel_config
from otter_export.checkpoint import Checkpoint
from otter_export.errors import OtterError
from otter_export.insert import plan
from otter_export.safetensors_io import TensorStore
from tests import tiny
from tests.command_line import Cli

NAME = "model.layers.0.mlp.up_proj.otter.from_base"


def test_the_plain_command(cli: Cli, tiny_llama: Path, tmp_path: Path) -> None:
    result = cli("insert", tiny_llama, tmp_path / "ckpt")
    assert result.status == 0 and result.stderr == ""
    assert "channel d'=64 m'=96 H'=2 H'kv=1 e=16, projection embedding, copy" in result.stdout
    assert f"wrote {tmp_path / 'ckpt'}: " in result.stdout and "peak memory" in result.stdout
    opened = Checkpoint.open(tmp_path / "ckpt")
    assert [s.name for s in opened.config.signals] == ["reward"]
    # Self-contained: weights, configuration and tokenizer are copies, byte for byte.
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "ckpt" / name).read_bytes() == (tiny_llama / name).read_bytes()


def test_every_option_arrives(cli: Cli, tiny_llama: Path, tmp_path: Path) -> None:
    arguments = "--hidden-size 32 --intermediate-size 40 --heads 4 --init normal --embedding table"
    arguments += (
        " --signal good:value:sigmoid --signal next:q_value --signal draft:medusa:identity:3"
    )
    arguments += " --signal steer:expert --dtype BF16 --seed 7 --adapter --key-value-heads 4"
    result = cli("insert", tiny_llama, tmp_path / "ckpt", *arguments.split())
    assert result.status == 0
    config = Checkpoint.open(tmp_path / "ckpt").config
    assert (config.hidden_size, config.intermediate_size) == (32, 40)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 4)
    assert (config.embedding, config.initialization) == ("table", "normal")
    assert [(s.name, s.kind, s.activation, s.bounds, s.heads) for s in config.signals] == [
        ("good", "value", "sigmoid", (0.0, 1.0), 1),
        ("next", "q_value", "tanh", (-1.0, 1.0), 1),
        ("draft", "medusa", "identity", None, 3),
        ("steer", "expert", "identity", None, 1),
    ]
    store = TensorStore.open(tmp_path / "ckpt", "otter")
    assert {info.dtype for info in store.values()} == {"BF16"}
    base = BaseModel.open(tiny_llama)
    expected = plan(
        str(tiny_llama),
        tmp_path / "other",
        ChannelOptions(32, 40, 4, "table", "normal", config.signals, seed=7, key_value_heads=4),
    )
    assert expected.config == channel_config(
        base, ChannelOptions(32, 40, 4, "table", "normal", config.signals, key_value_heads=4)
    )
    for tensor in expected.tensors:
        # bfloat16 has eight bits of mantissa.
        np.testing.assert_allclose(store.float32(tensor.name), tensor.make(), rtol=2**-8)


@pytest.mark.parametrize(
    ("change", "hidden", "expected"),
    [
        # SmolLM2-135M: d 576, m 1536, 9 heads over 3.
        (
            {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
            | {"num_key_value_heads": 3, "head_dim": 64},
            64,
            (192, 3, 1),
        ),
        # As many key/value heads as heads: one of each.
        ({"num_key_value_heads": 4}, 64, (96, 1, 1)),
        ({"num_key_value_heads": 1}, 8, (64, 4, 1)),
    ],
)
def test_default_widths(
    change: dict[str, int], hidden: int, expected: tuple[int, int, int], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**tiny.LLAMA, **change}))
    config = channel_config(BaseModel.open(tmp_path), ChannelOptions(hidden_size=hidden))
    found = (config.intermediate_size, config.num_attention_heads, config.num_key_value_heads)
    assert found == expected


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        ({}, "", "targets onnx, trt, trtllm, vllm build it"),
        (
            {"hidden_act": "gelu"},
            "",
            "targets onnx, trt, vllm build it\n  not trtllm: .* hidden_act = 'gelu'",
        ),
        ({"head_dim": 8}, "", "targets onnx, trtllm, vllm build it\n  not trt: .* heads of size 8"),
        (
            {},
            "--heads 1",
            "targets onnx, trt, vllm build it\n  not trtllm: the channel has 1 query heads",
        ),
        (
            {},
            "--signal draft:medusa:identity:3",
            "targets onnx, trt build it\n  not trtllm: signal 'draft' of kind 'medusa' drafts",
        ),
    ],
)
def test_what_each_target_will_say(
    base: dict[str, object], options: str, message: str, cli: Cli, tmp_path: Path
) -> None:
    tiny.write_base(tmp_path / "base", **base)
    result = cli("insert", tmp_path / "base", tmp_path / "ckpt", *options.split())
    assert result.status == 0 and re.search(message, result.stdout)


@pytest.mark.parametrize("trained", [False, True])
def test_a_checkpoint_is_no_base(
    trained: bool, cli: Cli, tiny_checkpoint: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """Its channel would be dropped."""
    adapter = tiny.write_checkpoint(tmp_path / "adapter", base=tiny_llama, adapter=True)
    result = cli("insert", adapter if trained else tiny_checkpoint, tmp_path / "ckpt")
    assert result.status == 2 and "is a checkpoint, which has a channel already" in result.stderr
    remedy = f"insert into its base, {os.path.relpath(tiny_llama, adapter)}"
    assert (remedy if trained else "a copy without otter_config.json") in result.stderr
    assert not (tmp_path / "ckpt").exists()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("engine.json", "is an engine; a channel is inserted into a base model"),
        ("adapter_config.json", "is a LoRA adapter; merge it into its base first"),
    ],
)
def test_what_is_given_in_place_of_a_base(
    file: str, message: str, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / file).write_text("{}")
    result = cli("insert", tmp_path / "given", tmp_path / "ckpt")
    assert result.status == 2 and message in result.stderr


def test_a_base_needs_the_tokenizer_that_engines_read(cli: Cli, tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base")
    (base / "tokenizer.json").rename(base / "tokenizer.model")
    result = cli("insert", base, tmp_path / "ckpt")
    assert result.status == 2 and "has no tokenizer.json, only tokenizer.model" in result.stderr
    (base / "tokenizer.json").write_text('{"model": {"type": "New"}}')
    result = cli("insert", base, tmp_path / "ckpt")
    assert result.status == 2 and "tokenizer.json is not a readable tokenizer" in result.stderr


@pytest.mark.parametrize("eos", [None, 128, "</s>"])
def test_a_base_without_an_end_is_said(cli: Cli, eos: object, tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", eos_token_id=eos)
    result = cli("insert", base, tmp_path / "ckpt")
    assert result.status == 0 and "note: no token ends a text: eos_token_id" in result.stdout


def test_what_of_a_base_is_not_read_is_said(cli: Cli, tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", vocab_size=127)
    tiny.write_tokenizer(base, 128)
    tensors = load_file(base / "model.safetensors")
    buffers = {"model.rotary_emb.inv_freq": np.ones(8, np.float32)}
    save_file({**tensors, **buffers}, base / "model.safetensors")
    (base / "model.safetensors.index.json").write_text("{}")
    shown = cli("insert", base, tmp_path / "ckpt").stdout
    assert (
        "note: model.safetensors is read, as transformers does; model.safetensors.index.json"
        in shown
    )
    assert "note: the model does not read the stored tensor model.rotary_emb.inv_freq\n" in shown
    assert "note: the tokenizer has the token 'w127' beyond the embedding's 127 rows" in shown
    assert not (tmp_path / "ckpt" / "model.safetensors.index.json").exists()


def test_positions_that_are_not_built_are_said(cli: Cli, tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    scaling = {"type": "longrope", "original_max_position_embeddings": 64, **factors}
    base = tiny.write_base(tmp_path / "base", rope_scaling=scaling)
    shown = cli("insert", base, tmp_path / "ckpt").stdout
    assert "note: sequences are at most 64 tokens long, not 128: longer ones rotate" in shown


def test_shards_and_their_index_are_copied(family: str, cli: Cli, tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", family, shards=3)
    assert cli("insert", base, tmp_path / "ckpt", "--hidden-size", 16).status == 0
    for path in base.iterdir():
        assert (tmp_path / "ckpt" / path.name).read_bytes() == path.read_bytes()
    Checkpoint.open(tmp_path / "ckpt")


def test_trained_tensors_replace_initial_ones(cli: Cli, tiny_llama: Path, tmp_path: Path) -> None:
    assert cli("insert", tiny_llama, tmp_path / "plain", "--adapter").status == 0
    initial = load_file(tmp_path / "plain" / "otter.safetensors")
    trained = {NAME: initial[NAME].astype(np.float16) + np.float16(1)}
    save_file(trained, tmp_path / "delta.safetensors")
    delta = ("--from", tmp_path / "delta.safetensors")
    assert cli("insert", tiny_llama, tmp_path / "ckpt", "--adapter", *delta).status == 0
    found = load_file(tmp_path / "ckpt" / "otter.safetensors")
    np.testing.assert_array_equal(found.pop(NAME), trained[NAME].astype(np.float32))
    del initial[NAME]
    assert found.keys() == initial.keys()
    for name, values in initial.items():
        np.testing.assert_array_equal(found[name], values)


def test_names_are_paths_or_texts(tiny_llama: Path, tmp_path: Path) -> None:
    plan(tiny_llama, str(tmp_path / "ckpt"), ChannelOptions()).write()
    channel = tmp_path / "ckpt" / "otter.safetensors"
    again = plan(str(tiny_llama), tmp_path / "two", ChannelOptions(), replacements=str(channel))
    assert again.base.directory == BaseModel.open(str(tiny_llama)).directory


def test_all_problems_of_the_trained_tensors_at_once(tiny_llama: Path, tmp_path: Path) -> None:
    wrong = {
        NAME: np.zeros((3, 3), np.float32),
        "model.norm.otter.weight": np.zeros(64, np.float64),
        "signals.other.weight": np.zeros(1, np.float32),
    }
    save_file(wrong, tmp_path / "delta.safetensors")
    with pytest.raises(OtterError) as caught:
        plan(
            str(tiny_llama),
            tmp_path / "ckpt",
            ChannelOptions(),
            replacements=tmp_path / "delta.safetensors",
        )
    message = str(caught.value)
    assert f"tensor {NAME} has shape [3, 3], expected [96, 64]" in message
    assert "tensor model.norm.otter.weight has dtype F64; accepted: F32, F16, BF16" in message
    assert "tensor signals.other.weight is not one of this channel" in message


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] = 1e5
    save_file(tensors, base / "model.safetensors")
    planned = plan(str(base), tmp_path / "ckpt", ChannelOptions(dtype="F16"))
    with pytest.raises(OtterError, match=r"model\.norm\.otter\.weight .* beyond the range of F16"):
        planned.write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_force_replaces_after_success_only(cli: Cli, tiny_llama: Path, tmp_path: Path) -> None:
    target = tmp_path / "ckpt"
    assert cli("insert", tiny_llama, target, "--seed", 1).status == 0
    before = (target / "otter.safetensors").read_bytes()
    assert cli("insert", tiny_llama, target, "--seed", 2).status == 2
    assert cli("insert", tmp_path / "nowhere", target, "--force").status == 2
    assert (target / "otter.safetensors").read_bytes() == before
    assert cli("insert", tiny_llama, target, "--seed", 2, "--force").status == 0
    assert (target / "otter.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


def test_the_base_is_never_replaced(cli: Cli, tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "all" / "base")
    inner = tmp_path / "all"
    (inner / "otter_config.json").write_text("{}")  # so that --force alone would take it
    for target in (inner, base, tmp_path / "all" / "base" / ".." / "base"):
        result = cli("insert", base, target, "--force")
        assert result.status == 2
    assert (base / "model.safetensors").is_file()


#: Inserts into the base given, after everything is imported; prints the growth of the peak.
MEASURE = """
import resource, sys
from pathlib import Path
from otter_export.channel_options import ChannelOptions
from otter_export.insert import plan
options = ChannelOptions()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
plan(sys.argv[1], Path(sys.argv[2]), options, adapter=sys.argv[3] == "adapter").write()
print(peak() - before)
"""


def measure(base: Path, checkpoint: Path, form: str) -> int:
    command = [sys.executable, "-c", MEASURE, str(base), str(checkpoint), form]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_of_a_1_1b_insertion_is_below_its_largest_tensor(tmp_path: Path) -> None:
    # TinyLlama-1.1B's sizes: 2.2 GB of weights, of which the embedding is the largest.
    base = tiny.write_sparse_base(
        tmp_path / "base",
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=64,
        vocab_size=32000,
    )
    largest = 32000 * 2048 * 2
    growth = measure(base, tmp_path / "ckpt", "adapter")
    assert growth < largest, f"{growth} bytes more for a largest tensor of {largest}"


def test_copying_the_base_takes_no_memory(tmp_path: Path) -> None:
    base = tiny.write_sparse_base(
        tmp_path / "base", vocab_size=1 << 20, hidden_size=128, head_dim=32
    )
    assert (base / "model.safetensors").stat().st_size > 256 << 20
    growth = measure(base, tmp_path / "ckpt", "copy")
    assert growth < 32 << 20, f"{growth} bytes for copying 268 MB"


def test_unwrapping_a_base_takes_no_memory(tmp_path: Path) -> None:
    # Eight layers of 34 MB each, whose tensors are written one after another.
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8}
    text = {**tiny.LLAMA, **sizes, "num_attention_heads": 16, "head_dim": 64}
    base = tmp_path / "base"
    base.mkdir()
    shapes = {f"language_model.{name}": shape for name, shape in tiny.base_shapes(text).items()}
    tiny.write_sparse(base / "model.safetensors", shapes, "BF16")
    (base / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    tiny.write_tokenizer(base, 128)
    growth = measure(base, tmp_path / "ckpt", "copy")
    assert (tmp_path / "ckpt" / "model-00001-of-00001.safetensors").stat().st_size > 192 << 20
    assert growth < 32 << 20, f"{growth} bytes for writing more than 192 MB"


def test_a_probe_of_data(cli: Cli, tiny_llama: Path, tmp_path: Path) -> None:
    """The value starts as a regression of the scores; `tests/modeling/test_probe_fit.py` which."""
    lines = [{"text": f"w{3 + i % 40} w{5 + i % 7}", "score": 4 - i % 9} for i in range(40)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ("insert", tiny_llama, tmp_path / "ck", "--init", "probe", "--first-layer", 2)
    command += ("--data", data, "--hidden-size", 8)
    assert "outside the bounds [-1, 1]" in cli(*command).stderr
    result = cli(*command, "--score-scale", 4)
    assert result.status == 0
    opened = Checkpoint.open(tmp_path / "ck")
    rows = opened.float32("model.norm.otter.projection")
    gain = opened.base.norm_weight(opened.base.sites.norms[-1])
    np.testing.assert_allclose((rows / gain) @ (rows / gain).T, np.eye(8), atol=1e-5)  # float32
    # One direction matters; the others are drawn and correlate with the scores by chance alone.
    assert abs(opened.float32("signals.reward.weight")).max() > 0


def test_an_expert_pair_begins_with_the_words_of_its_classes(
    cli: Cli, tiny_llama: Path, tmp_path: Path
) -> None:
    words = {"expert": "w20", "anti": "w30"}
    lines = [
        {"text": f"w{3 + i % 9} {words[label]}", "label": label}
        for i in range(20)
        for label in words
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ("insert", tiny_llama, tmp_path / "ck", "--init", "probe", "--data", data)
    result = cli(*command, "--signal", "kind:expert", "--hidden-size", 8)
    assert result.status == 0, result.stderr
    sides = Checkpoint.open(tmp_path / "ck").float32("signals.kind.bias")
    said = {word: sides[0, int(word[1:])] - sides[1, int(word[1:])] for word in ("w20", "w30")}
    assert said["w20"] > 1
    assert said["w30"] == pytest.approx(-said["w20"], abs=1e-5)  # as many of either
