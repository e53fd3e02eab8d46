"""Requests for session.py, and what our own runtime answers to the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from otter_export.checkpoint import Checkpoint
from otter_export.load import load_engine
from otter_export.runtime.engine import Engine
from otter_export.runtime.generation import generate
from otter_export.runtime.methods import make_method
from otter_export.runtime.penalties import Penalties
from otter_export.runtime.request import Request
from tests.built import build

#: Of candidates; requests of these tests ask for at most so many.
SPECULATIVE = {
    "method": "custom_class",
    "model": "otter_export.plugins.vllm.candidates.Proposer",
    "num_speculative_tokens": 8,
}
#: Longer than a block of the cache, shorter, and one token.
PROMPTS: tuple[list[int], ...] = (
    [5, 9, 20, 33, 7, 8, 11, 64, 90, 91, 3, 17],
    [40, 41, 3],
    [7],
)


def request(
    prompt: Sequence[int], options: Mapping[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    """A request to vLLM, whose rewards come back.

    Args:
        prompt: Token ids.
        options: Guidance, without its prefix; None asks for none, and for no rewards.
        fields: Of vLLM's ``SamplingParams``.
    """
    found: dict[str, Any] = {"prompt": list(prompt), "logprobs": 1, **fields}
    if options is not None:
        arguments = {f"otter_{name}": value for name, value in options.items()}
        found["extra_args"] = {"otter_rewards": 1, **arguments}
    return found


def our_engine(checkpoint: Path) -> Engine:
    """An ONNX engine of ours, fp32, built beside the checkpoint."""
    directory = checkpoint.with_name(f"{checkpoint.name}-engine")
    if not directory.is_dir():
        build(Checkpoint.open(checkpoint), directory, max_sequence_length=64)
    return load_engine(directory, threads=1)


def our_tokens(
    engine: Engine, prompt: Sequence[int], options: Mapping[str, Any], count: int
) -> Any:
    """What our runtime generates greedily: tokens, and their rewards.

    Args:
        engine: From `our_engine`.
        prompt: Token ids.
        options: Guidance, and `Penalties`, as in `request`.
        count: Tokens; fewer come back where the text ends.
    """
    names = Penalties.__dataclass_fields__
    penalties = Penalties(**{n: v for n, v in options.items() if n in names})
    own = {n: v for n, v in options.items() if n not in names}
    by_expert = own.get("signal") == "tone"
    if by_expert:
        own = {"top_p": 1.0, "top_k": 8, **own}
    method = make_method("experts" if by_expert else "args-greedy", own)
    asked = Request(list(prompt), method, max_tokens=count, seed=0, penalties=penalties)
    (result,) = generate(engine, [asked])
    return result


def agrees(answer: Any, result: Any, vocab_size: int, tolerance: float = 1e-4) -> bool:
    """Whether vLLM's answer, which does not stop at the end of a text, begins as ours.

    Args:
        answer: One choice, as session.py gives it.
        result: Of `our_tokens`.
        vocab_size: The id of rewards.
        tolerance: Of rewards, float32 in another order.
    """
    ours = list(result.token_ids)
    if answer["token_ids"][: len(ours)] != ours or not ours:
        return False
    rewards = [dict(entry)[vocab_size] for entry in answer["logprobs"]]
    return all(abs(a - b) < tolerance for a, b in zip(rewards, result.rewards, strict=False))
