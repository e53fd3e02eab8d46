"""Requests for the server and the same for the library, and comparing what both answer."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest

from otter_export import ArgsGreedy, ArgsStochastic, Plain
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.request import Request, Result

#: Words of the tiny engine's vocabulary; its texts are not ASCII.
WORDS = tuple(f"ŵ{i}" for i in range(3, 128))
PROMPT = "ŵ7 ŵ8 ŵ9"
#: Tokens of about a second, if nobody ends them.
TOKENS = 1000
LONG = {"text_input": PROMPT, "stream": True, "max_tokens": TOKENS, "method": "plain"}


@dataclasses.dataclass(frozen=True)
class Case:
    """One request, for both.

    Args:
        fields: What the server gets.
        request: What the library gets.
    """

    fields: dict[str, Any]
    request: Request

    def renamed(self, **fields: Any) -> dict[str, Any]:
        """The fields with more of them."""
        return {**self.fields, **fields}


def case(
    prompt: str | list[int] = PROMPT,
    method: DecodingMethod | None = None,
    fields: dict[str, Any] | None = None,
    *,
    max_tokens: int = 24,
    seed: int | None = None,
    stop: tuple[str, ...] = (),
) -> Case:
    """A case; ``fields`` say for the server what ``method`` says for the library."""
    sent: dict[str, Any] = {"text_input" if isinstance(prompt, str) else "input_ids": prompt}
    sent |= {"max_tokens": max_tokens, **(fields or {})}
    if seed is not None:
        sent["seed"] = seed
    if stop:
        sent["stop_words"] = list(stop)
    chosen = method or ArgsGreedy()
    return Case(sent, Request(prompt, chosen, max_tokens=max_tokens, stop=stop, seed=seed))


#: Every method with and without its options, and every way in which a request ends.
CASES: dict[str, Case] = {
    "defaults": case(),
    "guided": case(
        method=ArgsGreedy(weight=4.0, top_k=12),
        fields={"method": "args-greedy", "reward_weight": 4.0, "top_k": 12},
    ),
    "gated": case(
        method=ArgsGreedy(weight=4.0, gate=3.7), fields={"reward_weight": 4.0, "gate": 3.7}
    ),
    "opposed": case(method=ArgsGreedy(weight=-3.5), fields={"reward_weight": -3.5}),
    "sampled": case(
        method=ArgsStochastic(weight=2.5, top_k=6, temperature=0.7, top_p=0.9),
        fields={
            "method": "args-stochastic",
            "reward_weight": 2.5,
            "top_k": 6,
            "temperature": 0.7,
            "top_p": 0.9,
        },
        seed=2**63 + 1,
    ),
    "two signals": case(
        method=ArgsGreedy(weights={"next": 3.0, "reward": 1.5}),
        fields={"weights": ["next=3", "reward=1.5"]},
    ),
    "by temperature": case(
        method=ArgsStochastic(temperature=0.8), fields={"temperature": 0.8}, seed=3
    ),
    "plain": case(method=Plain(), fields={"method": "plain"}),
    "plain, sampled": case(
        method=Plain(temperature=1.25, top_k=20),
        fields={"method": "plain", "temperature": 1.25, "top_k": 20},
        seed=4,
    ),
    "token ids": case([5, 9, 100, 7], ArgsGreedy(weight=1.5), {"reward_weight": 1.5}),
    "long prompt": case(" ".join(WORDS * 5), max_tokens=8),
    "one token": case(max_tokens=1),
    # What the engine writes, over two tokens; test_answers checks that it is met.
    "stop word": case(method=Plain(), fields={"method": "plain"}, stop=("nothing", "ŵ65 ŵ70")),
    "end of text": case("ŵ5 ŵ9", ArgsGreedy(weight=4.0), {"reward_weight": 4.0}, max_tokens=400),
}


def mixed(count: int, seed: int, *, max_tokens: int = 32) -> list[Case]:
    """Cases that differ in everything."""
    draw = random.Random(seed)
    return [_drawn(draw, max_tokens) for _ in range(count)]


def _drawn(draw: random.Random, max_tokens: int) -> Case:
    weight = draw.choice([-2.0, 0.0, 0.5, 1.0, 4.0, 8.0])
    k = draw.randint(1, 16)
    temperature = draw.choice([0.5, 1.0, 1.5])
    kind = draw.choice(["args-greedy", "args-stochastic", "plain", "plain sampled"])
    methods: dict[str, tuple[DecodingMethod, dict[str, Any]]] = {
        "args-greedy": (
            ArgsGreedy(weight=weight, top_k=k),
            {"method": "args-greedy", "reward_weight": weight, "top_k": k},
        ),
        "args-stochastic": (
            ArgsStochastic(weight=weight, top_k=k, temperature=temperature),
            {
                "method": "args-stochastic",
                "reward_weight": weight,
                "top_k": k,
                "temperature": temperature,
            },
        ),
        "plain": (Plain(), {"method": "plain"}),
        "plain sampled": (
            Plain(temperature=temperature),
            {"method": "plain", "temperature": temperature},
        ),
    }
    method, fields = methods[kind]
    words = draw.choices(WORDS, k=draw.randint(1, 40))
    ids = [int(word[1:]) for word in words]
    return case(
        " ".join(words) if draw.random() < 0.5 else ids,
        method,
        fields,
        max_tokens=draw.randint(1, max_tokens),
        seed=draw.randrange(1 << 64),
        stop=tuple(draw.choices(WORDS, k=draw.choice([0, 0, 2]))),
    )


def as_list(value: Any) -> list[Any]:
    """JSON from the server has a tensor of one value as that value."""
    return value if isinstance(value, list) else [value]


def check_answer(responses: Sequence[dict[str, Any]], expected: Result) -> None:
    """The responses of a request, one or a stream, say what the library does."""
    tokens = [token for response in responses for token in as_list(response["token_id"])]
    rewards = [reward for response in responses for reward in as_list(response["reward"])]
    assert tokens == list(expected.token_ids)
    assert "".join(response["text_output"] for response in responses) == expected.text
    assert [response["finish_reason"] for response in responses[:-1]] == [""] * (len(responses) - 1)
    assert responses[-1]["finish_reason"] == expected.finish_reason
    # The server's are float32 and came through JSON.
    assert rewards == pytest.approx(list(expected.rewards), abs=1e-6)
    if len(expected.signals) > 1:
        values = [value for response in responses for value in response["signal_values"]]
        by_token = zip(*expected.signals.values(), strict=True)
        assert values == pytest.approx([v for token in by_token for v in token], abs=1e-6)
    for response in responses:
        names = response.get("signal_names")
        assert names == (list(expected.signals) if len(expected.signals) > 1 else None)
