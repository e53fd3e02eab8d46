"""`Model` on transformers: a decoder and a head on its last state, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.model import Array, Cache


class TorchModel:
    """A decoder of transformers, or anything that is called like one.

    Args:
        decoder: Takes ``input_ids`` ``[B, S]``, ``past_key_values`` and ``use_cache``.
        head: What is wanted of its answer: ``[B, V]`` or ``[B]``.
    """

    def __init__(self, decoder: Any, head: Callable[[Any], Tensor]) -> None:
        self._decoder = decoder
        self._head = head

    @torch.inference_mode()
    def read(self, cache: Cache | None, ids: Sequence[Sequence[int]]) -> tuple[Array, Cache]:
        """See `Model.read`."""
        tokens = torch.tensor(ids)
        answer = self._decoder(input_ids=tokens, past_key_values=cache, use_cache=True)
        return self._head(answer).float().numpy(), answer.past_key_values

    def rows(self, cache: Cache, chosen: Sequence[int]) -> Cache:
        """See `Model.rows`."""
        cache.batch_select_indices(torch.tensor(chosen))
        return cache


def language_model(causal_lm: Any) -> TorchModel:
    """The next token's logits of a causal LM of transformers; its head runs on one row."""
    return TorchModel(
        causal_lm.base_model,
        lambda answer: causal_lm.get_output_embeddings()(answer.last_hidden_state[:, -1]),
    )


def reward_model(causal_lm: Any, seed: int = 0) -> TorchModel:
    """A causal LM's decoder under a random scalar head, as a reward model has it."""
    width = causal_lm.config.hidden_size
    head = torch.randn(width, generator=torch.Generator().manual_seed(seed)) * width**-0.5
    return TorchModel(
        causal_lm.base_model, lambda answer: torch.tanh(answer.last_hidden_state[:, -1] @ head)
    )
