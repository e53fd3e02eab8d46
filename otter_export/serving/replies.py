"""From tokens and results to output tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from otter_export.runtime.request import Result, TokenEvent
from otter_export.serving.tensors import output

Outputs = dict[str, npt.NDArray[Any]]


def token_outputs(event: TokenEvent, max_candidates: int) -> Outputs:
    """One response of a stream.

    Args:
        event: The token.
        max_candidates: Most candidates to return; 0 returns none.
    """
    reason = event.finish_reason or ""
    outputs = _outputs(event.text, [event.token_id], [event.reward], reason)
    return outputs | (_candidates([event], max_candidates) if max_candidates else {})


def result_outputs(result: Result, events: Sequence[TokenEvent], max_candidates: int) -> Outputs:
    """The one response of a request that does not stream.

    Args:
        result: The result.
        events: Its tokens, if candidates are wanted.
        max_candidates: Most candidates per token to return; 0 returns none.
    """
    outputs = _outputs(
        result.text, list(result.token_ids), list(result.rewards), result.finish_reason
    )
    return outputs | (_candidates(events, max_candidates) if max_candidates else {})


def _outputs(text: str, tokens: list[int], rewards: list[float], reason: str) -> Outputs:
    return {
        "text_output": output("text_output", [text]),
        "token_id": output("token_id", list(tokens)),
        "reward": output("reward", list(rewards)),
        "finish_reason": output("finish_reason", [reason]),
    }


def _candidates(events: Sequence[TokenEvent], most: int) -> Outputs:
    """Candidates of all tokens one after the other; ``candidate_counts`` says where each begins."""
    kept = [event.candidates[:most] for event in events]
    flat = [candidate for candidates in kept for candidate in candidates]
    return {
        "candidate_counts": output("candidate_counts", [len(c) for c in kept]),
        "candidate_ids": output("candidate_ids", [c.token_id for c in flat]),
        "candidate_logits": output("candidate_logits", [c.logit for c in flat]),
        "candidate_rewards": output("candidate_rewards", [c.reward for c in flat]),
        "candidate_scores": output("candidate_scores", [c.score for c in flat]),
    }
