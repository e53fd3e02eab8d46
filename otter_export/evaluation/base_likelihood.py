"""Likelihood of a text under the base, by the logits of its engine, which no channel changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.evaluation.text_metrics import negative_log_likelihoods
from otter_export.runtime.engine import Engine
from otter_export.runtime.prefill import CHUNK_TOKENS


def token_losses(
    engine: Engine, prompt: Sequence[int], tokens: Sequence[int]
) -> npt.NDArray[np.float64]:
    """Negative log-likelihood in nats of each token of a text behind its prompt.

    An engine of a lower precision has the base of that precision, and reads by it.

    Args:
        engine: The engine.
        prompt: Token ids, at least one.
        tokens: Token ids, at least one.

    Returns:
        ``[tokens]``.

    Raises:
        EngineError: Prompt and tokens are longer than the engine's sequences, or it fails.
    """
    ids = [*prompt, *tokens[:-1]]
    cache = engine.new_cache(1)
    # The row of a prompt's last token is the first that predicts.
    first, logits = len(prompt) - 1, list[npt.NDArray[Any]]()
    for start in range(0, len(ids), CHUNK_TOKENS):
        part = np.array([ids[start : start + CHUNK_TOKENS]], np.int64)
        size = part.shape[1]
        positions = np.arange(start, start + size)[None]
        predicting = min(size, start + size - first)
        tree = np.tri(size, dtype=np.bool_)[None]
        step = engine.forward(cache, part, positions, tree, max(1, predicting))
        engine.commit(cache, step, [range(size)])
        if predicting > 0:
            logits.append(step.logits[0])
    return negative_log_likelihoods(np.concatenate(logits), np.array(tokens, np.int64))
