"""L2, L4: target trtllm's model and client, run over a stand-in of the PyTorch backend's API.

This shows the package's mathematics, how it loads the directory on one rank and on several, and
that the client's tokens are those of guided decoding by separate forwards; not NVIDIA's kernels.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from otter_export.checkpoint import Checkpoint
from otter_export.converters.target import BuildRequest
from otter_export.converters.tensorrt_llm.pytorch import plan_directory
from tests import tiny
from tests.built import random_checkpoint, relative
from tests.converters.tensorrt_llm.build import WIDE, reference
from tests.converters.tensorrt_llm.shapes import FAMILIES, RANKS, SHAPES, shaped
from tests.converters.tensorrt_llm.test_engine_model import LLAMA3, PROMPTS

pytestmark = pytest.mark.usefixtures("standin_torch")
TOLERANCE = 1e-4
BOTH = (tiny.REWARD, tiny.NEXT)
LINEAR = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
#: name: (family, base settings, channel options, ranks).
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "llama": ("llama", {}, {"signals": BOTH}, 1),
    "table, untied": ("llama", {"tie_word_embeddings": False}, {"embedding": "table"}, 1),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}, {}, 1),
    "qwen2": ("qwen2", {}, {}, 1),
    "linear": ("llama", LINEAR, {}, 1),
    "llama3": ("llama", {"rope_scaling": LLAMA3}, {}, 1),
    "2 ranks": ("llama", WIDE, {"signals": BOTH}, 2),
    "4 ranks, biases": ("llama", {**WIDE, "attention_bias": True, "mlp_bias": True}, {}, 4),
    "2 ranks, qwen2, padded vocabulary": ("qwen2", {"vocab_size": 127}, {}, 2),
}


def written(checkpoint: Checkpoint, directory: Path, precision: str = "fp32") -> Path:
    directory.mkdir()
    plan_directory(checkpoint, BuildRequest(precision)).write(directory, None).save(directory)
    return directory


def client(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The emitted client; importing it registers the model."""
    monkeypatch.syspath_prepend(directory)
    return importlib.import_module("otter_trtllm.client")


def started(directory: Path, ranks: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The client, and an LLM over the directory."""
    module = client(directory, monkeypatch)
    return module, module.LLM(str(directory), tensor_parallel_size=ranks)


def assert_equal(checkpoint: Checkpoint, module: Any, llm: Any) -> None:
    """Logits and signals of each prompt's last row, against the reference."""
    expected = [reference(checkpoint, prompt) for prompt in PROMPTS]
    for signal in checkpoint.config.to_json()["signals"]:
        guidance = module.Guidance(signal)
        vocabulary = checkpoint.base.dimensions.vocab_size
        found = module.forward(llm, PROMPTS, guidance, vocabulary)
        wanted = np.stack([e["logits"][-1].numpy() for e in expected])
        assert relative(np.stack([logits for logits, _ in found]), wanted) < TOLERANCE
        wanted = np.stack([np.atleast_1d(e[signal["name"]][-1].numpy()) for e in expected])
        assert relative(np.stack([values for _, values in found]), wanted) < TOLERANCE


@pytest.mark.parametrize("case", list(CASES))
def test_outputs_equal_the_reference(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, base, channel, ranks = CASES[case]
    checkpoint = random_checkpoint(tmp_path / "ck", family, base=base, **channel)
    assert_equal(checkpoint, *started(written(checkpoint, tmp_path / "model"), ranks, monkeypatch))


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_shape_on_any_number_of_ranks(
    shape: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = shaped(shape, family, tmp_path)
    directory = written(checkpoint, tmp_path / "model")
    for ranks in RANKS:
        assert_equal(checkpoint, *started(directory, ranks, monkeypatch))


def guided(
    checkpoint: Checkpoint, prompt: list[int], signal: str, top_k: int, weight: float, most: int
) -> tuple[list[int], list[float]]:
    """ARGS greedy decoding with a forward of the reference for every candidate."""
    tokens: list[int] = []
    rewards: list[float] = []
    for _ in range(most):
        now = reference(checkpoint, prompt + tokens)
        order = np.argsort(-now["logits"][-1].numpy(), kind="stable")[:top_k]
        if signal == "next":
            values = [float(now["next"][-1, t]) for t in order]
        else:
            each = (reference(checkpoint, [*prompt, *tokens, int(t)]) for t in order)
            values = [float(e["reward"][-1]) for e in each]
        scores = [
            float(now["logits"][-1, t]) + weight * v for t, v in zip(order, values, strict=True)
        ]
        best = int(np.argmax(scores))
        tokens.append(int(order[best]))
        rewards.append(values[best])
        if tokens[-1] == 2:
            break
    return tokens, rewards


@pytest.mark.parametrize(("signal", "weight"), [("reward", 2.0), ("reward", 0.0), ("next", 2.0)])
def test_the_client_decodes_as_separate_forwards_do(
    signal: str, weight: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck", signals=BOTH)
    module, llm = started(written(checkpoint, tmp_path / "model"), 1, monkeypatch)
    entry = next(s for s in checkpoint.config.to_json()["signals"] if s["name"] == signal)
    guidance = module.Guidance(entry, top_k=5, weight=weight, max_tokens=6)
    found = module.generate(llm, PROMPTS, guidance, 128, {2})
    for prompt, sequence in zip(PROMPTS, found, strict=True):
        tokens, rewards = guided(checkpoint, prompt, signal, 5, weight, 6)
        assert sequence.tokens == tokens
        assert np.allclose(sequence.rewards, rewards, atol=TOLERANCE)
    assert len(llm.calls) <= 7  # the prompts, then one call a token
    if signal == "next":
        assert max(llm.calls) == len(PROMPTS)
    if weight == 0.0:  # nothing can win against the likeliest, so nothing else is asked for
        assert max(llm.calls) == len(PROMPTS)


def test_sampling_depends_on_the_seed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck")
    module, llm = started(written(checkpoint, tmp_path / "model"), 1, monkeypatch)
    signal = checkpoint.config.to_json()["signals"][0]

    def run(seed: int) -> list[list[int]]:
        guidance = module.Guidance(signal, 8, 1.0, temperature=4.0, max_tokens=8, seed=seed)
        return [s.tokens for s in module.generate(llm, PROMPTS, guidance, 128, set())]

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_the_clients_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck")
    module = client(written(checkpoint, tmp_path / "model"), monkeypatch)
    prompts = ["--prompt", "w5 w17", "--prompt", "w9"]
    module.main([*prompts, "--max-tokens", "3", "--top-k", "2"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt_ids"] for line in lines] == [[5, 17], [9]]
    for line in lines:
        tokens, rewards = guided(checkpoint, line["prompt_ids"], "reward", 2, 1.0, 3)
        assert line["token_ids"] == tokens
        assert np.allclose(line["rewards"], rewards, atol=TOLERANCE)
    with pytest.raises(SystemExit) as caught:
        module.main(["--prompt", "w5", "--signal", "nothing", "--top-k", "0"])
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--signal nothing: known are reward" in error and "at least 1" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), "tensor model.norm.weight is missing"),
        (lambda w: w.update(odd=torch.zeros(1)), "1 tensors .* no use for: odd"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(3)}), r"shape \(3,\), expected"),
    ],
)
def test_tensors_that_do_not_fit_are_errors(
    change: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = written(random_checkpoint(tmp_path / "ck"), tmp_path / "model")
    _, llm = started(directory, 1, monkeypatch)
    files = importlib.import_module("safetensors.torch")
    weights = files.load_file(next(directory.glob("*.safetensors")))
    change(weights)
    with pytest.raises(ValueError, match=message):
        llm.models[0].load_weights(weights)


def test_other_parallelism_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck")
    module = client(written(checkpoint, tmp_path / "model"), monkeypatch)
    with pytest.raises(ValueError, match="2 key_value_heads on 4 ranks"):
        module.LLM(str(tmp_path / "model"), tensor_parallel_size=4)
