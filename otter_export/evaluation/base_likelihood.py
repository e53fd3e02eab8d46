"""Likelihood of a text under the base, by the logits of its engine, which no channel changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.evaluation.text_metrics import negative_log_likelihoods
from otter_export.runtime.engine import Engine
from otter_export.runtime.prefill import CHUNK_TOKENS, feed

#: Token ids of a prompt, and of a text behind it; at least one each.
Text = tuple[Sequence[int], Sequence[int]]


def token_losses(engine: Engine, texts: Sequence[Text]) -> list[npt.NDArray[np.float64]]:
    """Negative log-likelihood in nats of each token of texts behind their prompts.

    An engine of a lower precision has the base of that precision, and reads by it. Texts of similar
    length share a pass.

    Args:
        engine: The engine.
        texts: What is read; tokens of prompts get no number.

    Returns:
        ``[tokens]`` for each text.

    Raises:
        EngineError: A prompt with its text is longer than the engine's sequences, or it fails.
    """
    found: dict[int, npt.NDArray[np.float64]] = {}
    for group in _groups([len(prompt) + len(tokens) - 1 for prompt, tokens in texts]):
        logits = _predictions(engine, [texts[index] for index in group])
        for index, rows in zip(group, logits, strict=True):
            found[index] = negative_log_likelihoods(rows, np.array(texts[index][1], np.int64))
    return [found[index] for index in range(len(texts))]


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts that share a pass; one that is longer than a pass is alone."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and (len(group) + 1) * lengths[index] > CHUNK_TOKENS:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _predictions(engine: Engine, texts: Sequence[Text]) -> list[npt.NDArray[Any]]:
    """Logits ``[tokens, V]`` of the rows that predict each text's tokens."""
    ids = [[*prompt, *tokens[:-1]] for prompt, tokens in texts]
    # The row of a prompt's last token is the first that predicts.
    first = [len(prompt) - 1 for prompt, _ in texts]
    cache = engine.new_cache(len(texts))
    found: list[list[npt.NDArray[Any]]] = [[] for _ in texts]
    for start in range(0, max(map(len, ids)), CHUNK_TOKENS):
        parts = [row[start : start + CHUNK_TOKENS] for row in ids]
        fed = feed(engine, cache, parts, max(0, min(first) - start))
        for b, part in enumerate(parts):
            begin = max(first[b] - start, fed.first)
            found[b].append(fed.step.logits[b, begin - fed.first : len(part) - fed.first])
    return [np.concatenate(rows) for rows in found]
