"""What the answers of vLLM are held against: the torch reference, over every prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from otter_export.checkpoint import Checkpoint
from otter_export.modeling.otter_model import load_reference

#: Both compute in float32, in another order; logits are of the order of 10.
TOLERANCE = 1e-4
Array = np.ndarray[Any, Any]


class Reference:
    """Logits and signals of a checkpoint after every prefix of a sequence.

    Args:
        checkpoint: Its directory.
    """

    def __init__(self, checkpoint: Path) -> None:
        opened = Checkpoint.open(checkpoint)
        self.vocab_size = opened.base.dimensions.vocab_size
        self._model = load_reference(opened)
        self._seen: dict[tuple[int, ...], tuple[Array, dict[str, Array]]] = {}

    def rows(self, ids: Sequence[int]) -> tuple[Array, dict[str, Array]]:
        """Logits ``[S, V]`` and each signal, ``[S]`` or ``[S, V]``, float64."""
        key = tuple(ids)
        if key not in self._seen:
            with torch.no_grad():
                output = self._model(torch.tensor([key]), use_cache=False)
            signals = {name: v[0].double().numpy() for name, v in output.signals.items()}
            self._seen[key] = (output.logits[0].double().numpy(), signals)
        return self._seen[key]

    def scores(
        self, logits: Array, rewards: Mapping[str, Array], options: Mapping[str, Any]
    ) -> Array:
        """``logit + sum of weight * reward`` of the k likeliest, minus infinity elsewhere."""
        weights = options.get("weights") or {options["signal"]: options.get("weight", 0.0)}
        scores = np.full(len(logits), -np.inf)
        best = np.argsort(-logits, kind="stable")[: options.get("top_k", 8) or None]
        total = sum(w * rewards[name] for name, w in weights.items())
        scores[best] = logits[best] + np.asarray(total)[best]
        return scores

    def check(self, prompt: Sequence[int], answer: Any, options: Mapping[str, Any]) -> None:
        """Every token is a best one, and its logprob and its reward are right.

        Args:
            prompt: Token ids.
            answer: One choice, as session.py gives it, with rewards.
            options: Its guidance without the prefix, with ``signal``; ``value`` signals unguided.
        """
        tokens = answer["token_ids"]
        logits, signals = self.rows([*prompt, *tokens])
        names = options.get("weights") or {options["signal"]: 0}
        first = next(iter(names))
        for i, token in enumerate(tokens):
            row = len(prompt) - 1 + i
            rewards = {n: signals[n][row] for n in names if signals[n].ndim == 2}
            entries = dict(answer["logprobs"][i])
            if rewards:
                scores = self.scores(logits[row], rewards, options)
                wanted = rewards[first][token]
            else:
                scores, wanted = logits[row], signals[first][row]
            assert scores[token] >= scores.max() - TOLERANCE, (i, token)
            assert abs(entries[self.vocab_size] - wanted) < TOLERANCE, (i, token)
            assert abs(entries[token] - log_softmax(logits[row])[token]) < TOLERANCE


def log_softmax(logits: Array) -> Array:
    """Of one row."""
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
