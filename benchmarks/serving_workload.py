"""What the serving benchmark asks for, of the server and of the library."""

from __future__ import annotations

from typing import Any

from otter_export import ArgsGreedy, Plain
from otter_export.runtime.methods.base import DecodingMethod

PROMPTS = (
    "The movie was",
    "I watched this film last night and",
    "My opinion of the new restaurant in town:",
    "After two weeks with this phone I can say that",
    "The book begins slowly, but",
    "Review of the concert:",
)
WEIGHT, TOP_K = 4.0, 8
#: By name: the library's method, and the server's fields for the same.
METHODS: dict[str, tuple[DecodingMethod, dict[str, Any]]] = {
    "plain": (Plain(), {"method": "plain"}),
    "guided": (
        ArgsGreedy(top_k=TOP_K, weight=WEIGHT),
        {"method": "args-greedy", "top_k": TOP_K, "reward_weight": WEIGHT},
    ),
}


def requests(method: str, tokens: int, count: int) -> list[dict[str, Any]]:
    """Fields of ``count`` requests over all prompts."""
    shared = {**METHODS[method][1], "max_tokens": tokens, "stream": True}
    return [{**shared, "text_input": PROMPTS[i % len(PROMPTS)]} for i in range(count)]
