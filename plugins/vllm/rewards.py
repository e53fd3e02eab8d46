"""Rewards travel among the logprobs: what vLLM streams per token, per choice and for prompts.

vLLM has no other channel for numbers that belong to a token. A request that asks for rewards gets
one entry more in each token's logprobs, behind that of the token itself: its id is the size of the
vocabulary, which no token has, and its "logprob" is the reward. `guided` makes such requests and
`rewards_of` takes the numbers out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors

from otter_export.plugins.vllm.guidance import PREFIX, Guidance


def with_rewards(
    tensors: LogprobsTensors, rewards: Tensor, reports: Tensor, vocab_size: int
) -> LogprobsTensors:
    """Logprobs with rewards in the second column; the last of the others makes room.

    Args:
        tensors: Of each row its token and the likeliest ones, ``[R, 1 + n]``, n at least 1.
        rewards: ``[R]``.
        reports: ``[R]``: the rows that want it.
        vocab_size: The id of the entry.
    """
    ids, values = tensors.logprob_token_ids, tensors.logprobs
    slot = torch.full_like(ids[:, :1], vocab_size)
    wide_ids = torch.cat((ids[:, :1], slot, ids[:, 1:-1]), dim=1)
    wide = torch.cat((values[:, :1], rewards[:, None].to(values.dtype), values[:, 1:-1]), dim=1)
    mask = reports[:, None]
    return tensors._replace(
        logprob_token_ids=torch.where(mask, wide_ids, ids),
        logprobs=torch.where(mask, wide, values),
    )


def guided(params: Any, *, prompt: bool = False, **options: Any) -> Any:
    """Sampling parameters with guidance, and with rewards that come back.

    Args:
        params: vLLM's; they are not changed.
        prompt: Whether the prompt's tokens get rewards too (`prompt_rewards_of`).
        options: Fields of `Guidance`: weight, signal, weights, top_k, top_p, gate, minimum.

    Raises:
        RequestError: There is no such option, or a value is out of range.
    """
    arguments = {f"{PREFIX}{name}": value for name, value in {"rewards": True, **options}.items()}
    Guidance.of(arguments)
    changed = copy.deepcopy(params)
    changed.extra_args = {**(params.extra_args or {}), **arguments}
    if arguments[f"{PREFIX}rewards"]:
        changed.logprobs = (params.logprobs or 0) + 1
        if prompt:
            changed.prompt_logprobs = (params.prompt_logprobs or 0) + 1
    return changed


def rewards_of(output: Any, vocab_size: int) -> list[float]:
    """The reward of each generated token of a ``CompletionOutput``; takes them out of it.

    Without guidance a ``value`` signal's number is that of the text before the token.
    """
    return [_taken(entry, vocab_size) for entry in output.logprobs or ()]


def prompt_rewards_of(output: Any, vocab_size: int) -> list[float]:
    """The reward of each prompt token of a ``RequestOutput``, the first without one left out."""
    return [_taken(entry, vocab_size) for entry in (output.prompt_logprobs or ())[1:]]


def _taken(entry: Mapping[int, Any] | None, vocab_size: int) -> float:
    found = entry.pop(vocab_size, None) if isinstance(entry, dict) else None
    return math.nan if found is None else float(found.logprob)


def last_values(rewards: Sequence[float]) -> list[float]:
    """Values of unguided text moved to the token that they include; the last is not known."""
    return [*rewards[1:], math.nan]
