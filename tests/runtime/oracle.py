"""Guided decoding in the slow and obvious way (L4): every candidate by a forward of its own."""

from __future__ import annotations

import numpy as np

from otter_export.runtime.engine import Engine, Step


def full_forward(engine: Engine, ids: list[int]) -> Step:
    """One causal pass over all tokens, from an empty cache."""
    n = len(ids)
    return engine.forward(
        engine.new_cache(1),
        np.array([ids], np.int64),
        np.arange(n, dtype=np.int64)[None],
        np.tri(n, dtype=np.bool_)[None],
        1,
    )


def guided_greedy(
    engine: Engine, prompt: list[int], top_k: int, weight: float, max_tokens: int
) -> tuple[list[int], list[float]]:
    """Token ids and rewards of ARGS greedy decoding; stops at an end-of-sequence token."""
    signal = engine.manifest.signals[0]
    tokens: list[int] = []
    rewards: list[float] = []
    for _ in range(max_tokens):
        step = full_forward(engine, prompt + tokens)
        logits = step.logits[0, 0].astype(np.float64)
        order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:top_k]
        scored = []
        for token in order:
            if signal.kind == "value":
                answer = full_forward(engine, [*prompt, *tokens, token])
                reward = float(answer.signals[signal.name][0, 0])
            else:
                reward = float(step.signals[signal.name][0, 0, token])
            scored.append((logits[token] + weight * reward, token, reward))
        best = max(range(len(scored)), key=lambda i: scored[i][0])
        tokens.append(scored[best][1])
        rewards.append(scored[best][2])
        if tokens[-1] in engine.manifest.eos_token_ids:
            break
    return tokens, rewards
