"""L2: a checkpoint that decodes in torch gives what its fp32 ONNX engine gives.

Tolerances, in units of the largest value: 2e-5 in fp32, where the same numbers are summed in
another order; half precision against fp32: 2e-2 in fp16, 1e-1 in bf16 (8 bits, some 30 roundings).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from otter_export import ArgsGreedy, ArgsStochastic, Plain, Request, generate, load_engine
from otter_export.checkpoint import Checkpoint
from otter_export.cli.main import _run
from otter_export.errors import CheckpointError, EngineError, RequestError
from otter_export.modeling.torch_engine import TorchOptions, torch_engine
from otter_export.runtime.engine import Engine, Step
from otter_export.runtime.prefill import prefill
from tests import built, tiny
from tests.runtime.fake_engine import ByteTokenizer

TOLERANCE = {"fp32": 2e-5, "fp16": 2e-2, "bf16": 1e-1}
FAMILIES = list(tiny.CONFIGS)


@dataclasses.dataclass
class Pair:
    checkpoint: Checkpoint
    onnx: Engine
    torch: Engine


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    made = {}
    for i, family in enumerate(FAMILIES):
        root = tmp_path_factory.mktemp(family)
        checkpoint = built.random_checkpoint(
            root / "ck", family, signals=(tiny.REWARD, tiny.NEXT), seed=i
        )
        onnx = load_engine(built.build(checkpoint, root / "onnx"), threads=1)
        onnx.__dict__["tokenizer"] = ByteTokenizer()
        # Short steps run in parts, so that those are tested too.
        options = TorchOptions(device="cpu", max_step=16)
        made[family] = Pair(checkpoint, onnx, _engine(checkpoint, options))
    return made


def _engine(checkpoint: Checkpoint, options: TorchOptions) -> Engine:
    engine = torch_engine(checkpoint, options)
    engine.__dict__["tokenizer"] = ByteTokenizer()
    return engine


def ids(batch: int, length: int, seed: int = 0) -> list[list[int]]:
    found: list[list[int]] = np.random.default_rng(seed).integers(3, 128, (batch, length)).tolist()
    return found


def candidates(engine: Engine, prompts: list[list[int]], tokens: list[int]) -> Step:
    """A tree step of candidates behind prompts of different lengths."""
    cache, _ = prefill(engine, prompts)
    batch, width = len(prompts), len(tokens)
    tree = np.broadcast_to(np.eye(width, dtype=np.bool_), (batch, width, width))
    positions = np.repeat(cache.lengths[:, None], width, 1)
    return engine.forward(cache, np.array([tokens] * batch), positions, tree, width)


def close(found: Step, expected: Step, tolerance: float) -> None:
    assert built.relative(found.logits, expected.logits) < tolerance
    assert found.signals.keys() == expected.signals.keys()
    for name, values in expected.signals.items():
        assert found.signals[name].dtype == np.float32
        assert np.abs(found.signals[name] - values).max() < tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_equal_the_onnx_engine(family: str, pairs: dict[str, Pair]) -> None:
    pair = pairs[family]
    prompts = [*ids(1, 40), *ids(1, 7, 1), *ids(1, 23, 2)]
    found, expected = (candidates(e, prompts, [5, 9, 77]) for e in (pair.torch, pair.onnx))
    close(found, expected, TOLERANCE["fp32"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_step_equals_separate_forwards(family: str, pairs: dict[str, Pair]) -> None:
    engine, prompt, tokens = pairs[family].torch, ids(1, 11)[0], [3, 60, 127, 8, 99]
    together = candidates(engine, [prompt], tokens)
    for row, token in enumerate(tokens):
        _, alone = prefill(engine, [[*prompt, token]])
        np.testing.assert_allclose(together.logits[0, row], alone.logits[0, 0], atol=1e-4)
        for name, values in alone.signals.items():
            np.testing.assert_allclose(together.signals[name][0, row], values[0, 0], atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_the_onnx_engine(family: str, pairs: dict[str, Pair]) -> None:
    """Every method, in a batch that sequences join and leave; one runs to the model's limit."""
    methods = [
        ArgsGreedy(top_k=6, weight=3.0),
        ArgsGreedy(top_k=12, weight=2.0, prune=False),
        ArgsStochastic(top_k=6, weight=2.0),
        ArgsGreedy(top_k=5, signal="next"),
        Plain(temperature=1.0),
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
    engine = _engine(pair.checkpoint, TorchOptions(device="cpu", precision=precision))
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
    engine = _engine(pair.checkpoint, options)
    found, expected = (candidates(e, ids(1, 20), [5, 9, 77]) for e in (engine, pair.onnx))
    close(found, expected, TOLERANCE["fp16"])
    names = {type(m).__name__ for m in engine._executor._model.modules()}  # type: ignore[attr-defined]
    assert "FusedProjection" in names and "WidenedProjection" not in names


def test_steps_of_one_shape_share_their_buffers(pairs: dict[str, Pair]) -> None:
    """What a CUDA graph needs: the same memory in every step of a shape, also for a new request."""
    engine = pairs["llama"].torch
    steps = engine._executor._steps  # type: ignore[attr-defined]
    steps.forget(lambda _: True)
    request = Request(ids(1, 5)[0], ArgsGreedy(top_k=4, weight=1.0, prune=False), max_tokens=9)
    first = generate(engine, request)[0]
    shapes = set(steps._entries)
    assert (1, 4, 4) in {key[1:] for key in shapes}
    again = generate(engine, request)[0]
    assert again.token_ids == first.token_ids and again.rewards == first.rewards
    assert set(steps._entries) == shapes


def test_a_cache_that_is_gone_gives_its_memory_back(pairs: dict[str, Pair]) -> None:
    engine = pairs["llama"].torch
    caches = [prefill(engine, ids(1, 3))[0] for _ in range(9)]
    tensors = [weakref.ref(c.blocks[0].tensor) for c in caches]  # type: ignore[attr-defined]
    del caches
    assert 1 <= sum(tensor() is not None for tensor in tensors) <= 4


def test_memory_of_an_earlier_cache_is_zero_again(pairs: dict[str, Pair]) -> None:
    engine = pairs["llama"].torch
    cache, _ = prefill(engine, ids(1, 3))
    address = cache.blocks[0].address(0)  # type: ignore[attr-defined]
    cache.blocks[0].tensor.fill_(torch.nan)  # type: ignore[attr-defined]
    del cache, _
    fresh = engine.new_cache(1)
    assert fresh.blocks[0].address(0) == address  # type: ignore[attr-defined]
    assert not fresh.blocks[0].tensor.any()  # type: ignore[attr-defined]


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_generation_on_a_gpu_equals_the_cpu(cuda_graphs: bool, pairs: dict[str, Pair]) -> None:
    """fp32; with graphs every shape is captured at its third step, and replayed after."""
    options = TorchOptions(device="cuda", precision="fp32", cuda_graphs=cuda_graphs)
    for pair in pairs.values():
        engine = _engine(pair.checkpoint, options)
        for k in (1, 4, 8):
            request = Request(ids(1, 9, k)[0], ArgsGreedy(top_k=k, weight=2.0), max_tokens=40)
            found, expected = (generate(e, request)[0] for e in (engine, pair.onnx))
            assert found.token_ids == expected.token_ids
            np.testing.assert_allclose(found.rewards, expected.rewards, atol=1e-4)
