"""L2: the emitted engine model, run over the stand-in API, gives the reference's outputs.

The stand-in computes what the model file asks for, so this shows the file's mathematics, its
tensor-parallel division and its use of the API's names; not TensorRT, nor NVIDIA's kernels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from otter_export.checkpoint import Checkpoint
from tests import tiny
from tests.built import random_checkpoint, relative
from tests.converters.tensorrt_llm.build import WIDE, built, reference
from tests.converters.tensorrt_llm.runner import Runner
from tests.converters.tensorrt_llm.shapes import FAMILIES, RANKS, SHAPES, shaped

pytestmark = pytest.mark.usefixtures("standin")
#: float32; sums in another order, rotary angles by another route.
TOLERANCE = 1e-4
PROMPTS = [[5, 17, 99, 3, 42], [7, 11], [120, 121, 1, 9, 88, 23, 54]]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
BOTH = (tiny.REWARD, tiny.NEXT)
#: name: (family, base settings, channel options, ranks).
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "llama": ("llama", {}, {}, 1),
    "two signals": ("llama", {}, {"signals": BOTH}, 1),
    "table": ("llama", {}, {"embedding": "table"}, 1),
    "all biases": ("llama", {"attention_bias": True, "mlp_bias": True}, {}, 1),
    "untied": ("llama", {"tie_word_embeddings": False}, {}, 1),
    "shards": ("llama", {"shards": 3}, {}, 1),
    "qwen2": ("qwen2", {}, {}, 1),
    "linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, {}, 1),
    "llama3": ("llama", {"rope_scaling": LLAMA3}, {}, 1),
    "theta of transformers 5": (
        "llama",
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {},
        1,
    ),
    "2 ranks, divided": ("llama", WIDE, {"heads": 4}, 2),
    "4 ranks, divided": ("llama", WIDE, {"heads": 8}, 4),
    "2 ranks, whole channel": ("llama", WIDE, {"heads": 2, "intermediate_size": 25}, 2),
    "4 ranks, whole heads": ("llama", WIDE, {"heads": 2}, 4),
    "2 ranks, biases": ("llama", {**WIDE, "attention_bias": True, "mlp_bias": True}, {}, 2),
    "2 ranks, divided, biases": (
        "llama",
        {**WIDE, "attention_bias": True, "mlp_bias": True},
        {"heads": 4},
        2,
    ),
    "2 ranks, qwen2, padded vocabulary": ("qwen2", {"vocab_size": 127}, {"signals": BOTH}, 2),
}


def checkpoint_of(case: str, directory: Path) -> tuple[Checkpoint, int]:
    family, base, channel, ranks = CASES[case]
    return random_checkpoint(directory / "ck", family, base=base, **channel), ranks


def assert_all_rows_equal(checkpoint: Checkpoint, runner: Runner) -> None:
    """Every row of whole prompts, against the reference."""
    outputs = runner.prompts(PROMPTS, runner.new_cache(len(PROMPTS)))
    expected = [reference(checkpoint, prompt) for prompt in PROMPTS]
    for name in expected[0]:
        wanted = torch.cat([e[name] for e in expected]).numpy()
        found = outputs[name].numpy()
        if name == "logits":
            vocabulary = wanted.shape[1]
            assert not found[:, vocabulary:].any()  # rows that pad the vocabulary are zero
            found = found[:, :vocabulary]
        assert found.shape == wanted.shape
        assert relative(found, wanted) < TOLERANCE
    assert set(outputs) == {"logits", *(s.name for s in checkpoint.config.signals)}


def assert_candidates_equal(checkpoint: Checkpoint, runner: Runner) -> None:
    """A tree step of all prompts, against a forward of the reference for each candidate."""
    cache = runner.new_cache(len(PROMPTS))
    runner.prompts([p[:-1] for p in PROMPTS], cache)
    candidates = [[10, 20, 30, 40], [60, 70, 80, 90], [2, 3, 4, 5]]
    past = [len(p) - 1 for p in PROMPTS]
    roots = [p[-1] for p in PROMPTS]
    outputs = runner.tree(candidates, roots, past, cache)
    separate = [
        reference(checkpoint, sequence)
        for prompt, tokens in zip(PROMPTS, candidates, strict=True)
        for sequence in (prompt, *([*prompt, token] for token in tokens))
    ]
    for name in ("logits", "reward"):
        expected = torch.stack([outputs[name][-1] for outputs in separate])
        assert relative(outputs[name].numpy(), expected.numpy()) < TOLERANCE


@pytest.mark.parametrize("case", list(CASES))
def test_outputs_equal_the_reference(case: str, tmp_path: Path) -> None:
    checkpoint, ranks = checkpoint_of(case, tmp_path)
    assert_all_rows_equal(checkpoint, Runner.load(built(checkpoint, tmp_path / "engine", ranks)))


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_shape_on_any_number_of_ranks(shape: str, family: str, tmp_path: Path) -> None:
    checkpoint = shaped(shape, family, tmp_path)
    for ranks in RANKS:
        runner = Runner.load(built(checkpoint, tmp_path / f"engine{ranks}", ranks))
        assert_all_rows_equal(checkpoint, runner)


@pytest.mark.parametrize("case", ["llama", "2 ranks, divided", "2 ranks, whole channel"])
def test_candidates_of_a_step_equal_separate_forwards(case: str, tmp_path: Path) -> None:
    checkpoint, ranks = checkpoint_of(case, tmp_path)
    assert_candidates_equal(checkpoint, Runner.load(built(checkpoint, tmp_path / "engine", ranks)))


@pytest.mark.parametrize("shape", list(SHAPES))
def test_candidates_with_every_shape(shape: str, tmp_path: Path) -> None:
    checkpoint = shaped(shape, "llama", tmp_path)
    assert_candidates_equal(checkpoint, Runner.load(built(checkpoint, tmp_path / "engine", 2)))


@pytest.mark.parametrize(("shape", "pools"), [("half", 2), ("shared", 1), ("probe", 1)])
def test_the_cache_has_a_pool_for_each_number_of_heads(
    shape: str, pools: int, tmp_path: Path
) -> None:
    runner = Runner.load(built(shaped(shape, "llama", tmp_path), tmp_path / "engine"))
    (model,) = runner.models
    inputs = model.prepare_attention_inputs(num_kv_heads=runner.config.num_key_value_heads)
    assert inputs["num_kv_cache_pools"] == pools
    heads = [layer.attention.kv_heads for layer in model.transformer.layers]
    assert runner.config.num_kv_heads_per_layer == heads


def test_steps_continue_from_the_chosen_token(tmp_path: Path) -> None:
    # The winner is fed again as the next root; only the root's cache row is kept.
    checkpoint, _ = checkpoint_of("llama", tmp_path)
    runner = Runner.load(built(checkpoint, tmp_path / "engine"))
    cache, tokens = runner.new_cache(1), [5, 17, 99]
    runner.prompts([tokens[:-1]], cache)
    for chosen in (30, 31, 32, 33):
        outputs = runner.tree([[chosen, 77, 78]], [tokens[-1]], [len(tokens) - 1], cache)
        tokens.append(chosen)
        expected = reference(checkpoint, tokens)
        assert relative(outputs["logits"][1].numpy(), expected["logits"][-1].numpy()) < TOLERANCE
        assert abs(float(outputs["reward"][1] - expected["reward"][-1])) < TOLERANCE


def test_last_rows_only(tmp_path: Path) -> None:
    checkpoint, _ = checkpoint_of("llama", tmp_path)
    runner = Runner.load(built(checkpoint, tmp_path / "engine"))
    outputs = runner.prompts(PROMPTS, runner.new_cache(len(PROMPTS)), all_rows=False)
    expected = [reference(checkpoint, p)["reward"][-1] for p in PROMPTS]
    assert torch.allclose(outputs["reward"], torch.stack(expected), atol=TOLERANCE)


@pytest.mark.parametrize("case", ["2 ranks, divided", "2 ranks, whole channel"])
def test_two_all_reduces_a_layer_as_without_a_channel(case: str, tmp_path: Path) -> None:
    checkpoint, ranks = checkpoint_of(case, tmp_path)
    runner = Runner.load(built(checkpoint, tmp_path / "engine", ranks))
    runner.prompts([[1, 2]], runner.new_cache(1))
    assert runner.all_reduces == 2 * checkpoint.base.dimensions.num_hidden_layers


def test_layers_below_the_channel_reduce_as_often(tmp_path: Path) -> None:
    runner = Runner.load(built(shaped("half", "llama", tmp_path), tmp_path / "engine", 2))
    runner.prompts([[1, 2]], runner.new_cache(1))
    assert runner.all_reduces == 2 * 2


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 2e-2), ("bf16", 1e-1)])
def test_half_precision(precision: str, tolerance: float, tmp_path: Path) -> None:
    # bf16 has 8 bits of mantissa; the tiny model's activations add up few values.
    checkpoint, _ = checkpoint_of("llama", tmp_path)
    runner = Runner.load(built(checkpoint, tmp_path / "engine", 1, precision))
    outputs = runner.prompts(PROMPTS[:1], runner.new_cache(1))
    expected = reference(checkpoint, PROMPTS[0])
    assert outputs["logits"].dtype == outputs["reward"].dtype == torch.float32
    for name in ("logits", "reward"):
        assert relative(outputs[name].numpy(), expected[name].numpy()) < tolerance
