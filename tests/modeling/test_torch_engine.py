"""L2: a checkpoint that decodes in torch gives what its fp32 ONNX engine gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from otter_export import ArgsGreedy, ArgsStochastic, Plain, Request, generate, load_engine
from otter_export.checkpoint import Checkpoint
from otter_export.cli.main import _run
from otter_export.errors import CheckpointError, EngineError, RequestError
from otter_export.modeling.torch_engine import TorchOptions, torch_engine
from tests import built
from tests.modeling.torch_pairs import (
    FAMILIES,
    TOLERANCE,
    Pair,
    close,
    make_engine,
    make_pairs,
)
from tests.tree_steps import assert_equal_to_separate_forwards, candidates, ids


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return make_pairs(tmp_path_factory)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_equal_the_onnx_engine(family: str, pairs: dict[str, Pair]) -> None:
    pair = pairs[family]
    prompts = [*ids(1, 40), *ids(1, 7, 1), *ids(1, 23, 2)]
    found, expected = (candidates(e, prompts, [5, 9, 77]) for e in (pair.torch, pair.onnx))
    close(found, expected, TOLERANCE["fp32"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_step_equals_separate_forwards(family: str, pairs: dict[str, Pair]) -> None:
    assert_equal_to_separate_forwards(pairs[family].torch)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_the_onnx_engine(family: str, pairs: dict[str, Pair]) -> None:
    """Every method, in a batch that sequences join and leave; one runs to the model's limit."""
    methods = [
        ArgsGreedy(top_k=6, weight=3.0),
        ArgsGreedy(top_k=12, weight=2.0, prune=False),
        ArgsStochastic(top_k=6, weight=2.0),
        ArgsGreedy(top_k=5, signal="next"),
        Plain(temperature=1.0),
        ArgsGreedy(top_k=6, weight=3.0, gate=3.7),
    ]
    requests = [
        Request(ids(1, 4 + 22 * i, i)[0], method, max_tokens=45, seed=i)
        for i, method in enumerate(methods)
    ]
    pair = pairs[family]
    found, expected = (generate(e, requests, batch_size=3) for e in (pair.torch, pair.onnx))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.finish_reason == theirs.finish_reason
        np.testing.assert_allclose(ours.rewards, theirs.rewards, atol=2e-5)
    assert any(len(r.prompt_ids) + len(r.token_ids) == 128 for r in found)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_near_fp32(precision: str, pairs: dict[str, Pair]) -> None:
    pair = pairs["llama"]
    engine = make_engine(pair.checkpoint, TorchOptions(device="cpu", precision=precision))
    prompts = [*ids(1, 40), *ids(1, 7, 1)]
    found, expected = (candidates(e, prompts, [5, 9, 77]) for e in (engine, pair.onnx))
    close(found, expected, TOLERANCE[precision])
    assert built.relative(found.logits, expected.logits) > 1e-5
    model = engine._executor._model  # type: ignore[attr-defined]
    frequencies = dict(model.named_buffers())["base.model.rotary_emb.inv_freq"]
    assert frequencies.dtype == torch.float32
    assert model.head("reward").weight.dtype == torch.float32


def test_fused_projections_are_near_fp32_too(pairs: dict[str, Pair]) -> None:
    """On the CPU the operator computes in plain PyTorch; on a GPU by the kernel."""
    pair = pairs["llama"]
    options = TorchOptions(device="cpu", precision="fp16", fused=True)
    engine = make_engine(pair.checkpoint, options)
    found, expected = (candidates(e, ids(1, 20), [5, 9, 77]) for e in (engine, pair.onnx))
    close(found, expected, TOLERANCE["fp16"])
    names = {type(m).__name__ for m in engine._executor._model.modules()}  # type: ignore[attr-defined]
    assert "FusedProjection" in names and "WidenedProjection" not in names


def test_a_checkpoint_directory_loads_as_an_engine(pairs: dict[str, Pair]) -> None:
    pair = pairs["qwen2"]
    engine = load_engine(pair.checkpoint.directory, provider="cpu")
    assert (engine.manifest.target, engine.manifest.execution_provider) == ("torch", "cpu")
    assert engine.manifest.signals == pair.checkpoint.config.signals
    assert engine.manifest.eos_token_ids == pair.onnx.manifest.eos_token_ids
    found = generate(engine, "w5 w9", ArgsGreedy(top_k=3), max_tokens=3)[0]
    assert len(found.rewards) == len(found.token_ids) and "w" in found.text


def test_the_command_line_takes_a_checkpoint(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--json", "--max-tokens", "4", "--provider", "cpu"]
    status = _run(["generate", str(tiny_checkpoint), "--prompt", "w5 w9", *options], verbose=False)
    result = json.loads(capsys.readouterr().out)
    assert status == 0
    assert 1 <= len(result["rewards"]) == len(result["token_ids"]) <= 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tiny_checkpoint: Path) -> None:
    with pytest.raises(EngineError, match="no CUDA device here; use provider cpu"):
        load_engine(tiny_checkpoint, provider="cuda")


def test_what_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    with pytest.raises(RequestError, match="precision must be one of fp32, fp16, bf16, got 'int8'"):
        torch_engine(checkpoint, TorchOptions(device="cpu", precision="int8"))
    with pytest.raises(RequestError, match="device must be one of cpu, cuda, got 'tpu'"):
        torch_engine(checkpoint, TorchOptions(device="tpu"))
    shutil.copytree(tiny_checkpoint, tmp_path / "ck")
    (tmp_path / "ck" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer.json; save the fast tokenizer"):
        load_engine(tmp_path / "ck", provider="cpu")
    (tmp_path / "ck" / "otter.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(CheckpointError):
        load_engine(tmp_path / "ck", provider="cpu")
