"""Reward-guided sampling through TensorRT-LLM's LLM API.

    cd DIR && python -m otter_trtllm.client --model . --prompt "The film was" --top-k 8 --weight 1.0

Each token takes one batched call: for every prompt, the prefix with each of its k candidates, one
generated token each, of which only the logits and the signal are used. Prefixes share the blocks of
the KV cache, so a candidate costs its own token and whatever its last block cannot reuse. That is k
sequences a token, where an engine with tree inputs runs one sequence of k+1 rows: TensorRT-LLM's
PyTorch backend has no hook by which a sampler could feed a tree. A q_value signal scores all next
tokens from one row, so it takes one sequence a token.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import otter_trtllm  # registers the model; here, so that worker processes import it too
from tensorrt_llm import LLM, SamplingParams
from tensorrt_llm.llmapi import KvCacheConfig

Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How tokens are chosen: by ``logit + weight * signal`` among the ``top_k`` likeliest.

    Args:
        signal: An entry of ``otter.signals`` of the model's config.json.
        top_k: Candidates of a position.
        weight: Of the signal; 0 is plain greedy or top-k decoding.
        temperature: 0 takes the best score; else the scores are sampled from at it.
        max_tokens: Most generated tokens.
        seed: Of the sampling.
    """

    signal: dict[str, Any]
    top_k: int = 8
    weight: float = 1.0
    temperature: float = 0.0
    max_tokens: int = 64
    seed: int = 0


@dataclasses.dataclass
class Generation:
    """One prompt, and what has been generated for it."""

    ids: list[int]
    logits: Array
    values: Array
    tokens: list[int] = dataclasses.field(default_factory=list)
    rewards: list[float] = dataclasses.field(default_factory=list)
    candidates: list[int] = dataclasses.field(default_factory=list)
    done: bool = False


def generate(
    llm: Any, prompts: Sequence[Sequence[int]], guidance: Guidance, vocabulary: int, eos: set[int]
) -> list[Generation]:
    """Generate for all prompts together: one call of the engine per token."""
    rng = np.random.default_rng(guidance.seed)
    answers = forward(llm, prompts, guidance, vocabulary)
    running = [Generation(list(p), *a) for p, a in zip(prompts, answers, strict=True)]
    everything = list(running)
    for _ in range(guidance.max_tokens):
        for sequence in running:
            sequence.candidates = likeliest(sequence.logits, guidance)
        scored = (
            _score_each(llm, running, guidance, vocabulary)
            if guidance.signal["kind"] == "value"
            else [(s.values[s.candidates], []) for s in running]
        )
        for sequence, (rewards, _) in zip(running, scored, strict=True):
            scores = sequence.logits[sequence.candidates] + guidance.weight * rewards
            winner = pick(scores, guidance.temperature, rng)
            sequence.tokens.append(sequence.candidates[winner])
            sequence.rewards.append(float(rewards[winner]))
            sequence.done = sequence.tokens[-1] in eos
        _advance(llm, running, scored, guidance, vocabulary)
        running = [s for s in running if not s.done]
        if not running:
            break
    return everything


def likeliest(logits: Array, guidance: Guidance) -> list[int]:
    """The candidates, best first; ties go to the smaller token.

    Where the best score is taken and the signal is bounded, a candidate so far below the best that
    no signal could make up for it is left out: that changes nothing but the cost.
    """
    order = np.argsort(-logits, kind="stable")[: guidance.top_k]
    bounds = guidance.signal.get("bounds")
    if guidance.temperature == 0 and bounds is not None:
        reach = abs(guidance.weight) * (bounds[1] - bounds[0])
        order = order[logits[order] >= logits[order[0]] - reach]
    return [int(token) for token in order]


def pick(scores: Array, temperature: float, rng: np.random.Generator) -> int:
    """Index of the chosen candidate."""
    if temperature == 0:
        return int(np.argmax(scores))
    wide = (scores - scores.max()).astype(np.float64) / temperature
    return int(rng.choice(len(scores), p=np.exp(wide) / np.exp(wide).sum()))


def forward(
    llm: Any, sequences: Sequence[Sequence[int]], guidance: Guidance, vocabulary: int
) -> list[tuple[Array, Array]]:
    """Next-token logits ``[V]`` and the signal (``[1]`` or ``[V]``) after each sequence."""
    name = guidance.signal["name"]
    parameters = SamplingParams(
        max_tokens=1,
        temperature=0.0,
        end_id=-1,
        detokenize=False,
        return_generation_logits=True,
        additional_model_outputs=[name],
    )
    answers = []
    for output in llm.generate([list(s) for s in sequences], sampling_params=parameters):
        answer = output.outputs[0]
        logits = _rows(answer.generation_logits)[-1, :vocabulary]
        signal = _rows(answer.additional_generation_outputs[name])[-1]
        answers.append((logits, signal))
    return answers


def _score_each(
    llm: Any, running: Sequence[Generation], guidance: Guidance, vocabulary: int
) -> list[tuple[Array, list[tuple[Array, Array]]]]:
    """For each sequence, the rewards of its candidates, and what the engine gave for each."""
    flat = [[*s.ids, *s.tokens, token] for s in running for token in s.candidates]
    answers = iter(forward(llm, flat, guidance, vocabulary))
    scored = []
    for sequence in running:
        own = [next(answers) for _ in sequence.candidates]
        scored.append((np.array([signal[0] for _, signal in own], np.float32), own))
    return scored


def _advance(
    llm: Any,
    running: Sequence[Generation],
    scored: Sequence[tuple[Array, list[tuple[Array, Array]]]],
    guidance: Guidance,
    vocabulary: int,
) -> None:
    """Set each sequence's next logits: the winner's, or those of a forward of their own."""
    for sequence, (_, answers) in zip(running, scored, strict=True):
        if answers:
            winner = sequence.candidates.index(sequence.tokens[-1])
            sequence.logits, sequence.values = answers[winner]
    waiting = [s for s, (_, answers) in zip(running, scored, strict=True) if not answers]
    waiting = [s for s in waiting if not s.done and len(s.tokens) < guidance.max_tokens]
    if waiting:
        ids = [[*s.ids, *s.tokens] for s in waiting]
        for sequence, answer in zip(waiting, forward(llm, ids, guidance, vocabulary), strict=True):
            sequence.logits, sequence.values = answer


def _rows(tensor: Any) -> Array:
    """A tensor of any leading dimensions as ``[rows, last]``, float32."""
    return np.asarray(tensor.float().cpu().numpy()).reshape(-1, tensor.shape[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; prints one JSON object per prompt and line."""
    parser = argparse.ArgumentParser(description="Reward-guided sampling through TensorRT-LLM.")
    parser.add_argument("--model", type=Path, default=Path(otter_trtllm.__file__).parent.parent)
    parser.add_argument("--prompt", action="append", required=True)
    parser.add_argument("--signal", help="Name of the signal.  [default: the first]")
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tp-size", type=int, default=1)
    given = parser.parse_args(arguments)
    config = json.loads((given.model / "config.json").read_text(encoding="utf-8"))
    signals = {s["name"]: s for s in config["otter"]["signals"]}
    name = given.signal or next(iter(signals))
    bad = [
        f"--signal {name}: known are {', '.join(signals)}" if name not in signals else "",
        "--top-k and --max-tokens must be at least 1"
        if min(given.top_k, given.max_tokens) < 1
        else "",
        "" if 0 <= given.temperature < math.inf else "--temperature must be 0 or more",
    ]
    if any(bad):
        parser.error("; ".join(filter(None, bad)))
    llm = LLM(
        model=str(given.model),
        tensor_parallel_size=given.tp_size,
        disable_overlap_scheduler=True,  # every request ends with its first token
        kv_cache_config=KvCacheConfig(enable_block_reuse=True, enable_partial_reuse=True),
    )
    guidance = Guidance(
        signals[name], given.top_k, given.weight, given.temperature, given.max_tokens, given.seed
    )
    eos = config.get("eos_token_id")
    prompts = [llm.tokenizer.encode(prompt) for prompt in given.prompt]
    ends = set(eos if isinstance(eos, list) else [] if eos is None else [eos])
    for text, done in zip(
        given.prompt, generate(llm, prompts, guidance, config["vocab_size"], ends), strict=True
    ):
        line = {"prompt": text, "prompt_ids": done.ids, "token_ids": done.tokens}
        answer = {"text": llm.tokenizer.decode(done.tokens), "rewards": done.rewards}
        print(json.dumps({**line, **answer}))


if __name__ == "__main__":
    main()
