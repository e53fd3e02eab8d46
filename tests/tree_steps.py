"""Prompts, and a tree step of candidates behind them, for engines compared with each other."""

from __future__ import annotations

import numpy as np

from otter_export.runtime.engine import Engine, Step
from otter_export.runtime.prefill import prefill


def ids(batch: int, length: int, seed: int = 0) -> list[list[int]]:
    """Tokens of the tiny models, ``[batch, length]``."""
    found: list[list[int]] = np.random.default_rng(seed).integers(3, 128, (batch, length)).tolist()
    return found


def candidates(engine: Engine, prompts: list[list[int]], tokens: list[int]) -> Step:
    """A tree step of candidates behind prompts of different lengths."""
    cache, _ = prefill(engine, prompts)
    batch, width = len(prompts), len(tokens)
    tree = np.broadcast_to(np.eye(width, dtype=np.bool_), (batch, width, width))
    positions = np.repeat(cache.lengths[:, None], width, 1)
    return engine.forward(cache, np.array([tokens] * batch), positions, tree, width)


def assert_equal_to_separate_forwards(engine: Engine) -> None:
    """Each candidate of a tree step gives what its own prompt with that token gives."""
    prompt, tokens = ids(1, 11)[0], [3, 60, 127, 8, 99]
    together = candidates(engine, [prompt], tokens)
    for row, token in enumerate(tokens):
        _, alone = prefill(engine, [[*prompt, token]])
        np.testing.assert_allclose(together.logits[0, row], alone.logits[0, 0], atol=1e-4)
        for name, values in alone.signals.items():
            np.testing.assert_allclose(together.signals[name][0, row], values[0, 0], atol=2e-5)
