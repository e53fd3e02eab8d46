"""Alternatives: tokens that texts could have gone on with, and the value of what they would make.

One pass over the texts fills a cache, one more runs all alternatives behind it: each is a row that
attends to the text before it and to itself, as a guided decoder's candidates do.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from otter_export.modeling.data import Batch
from otter_export.modeling.masks import layer_masks
from otter_export.modeling.otter_model import OtterModel

#: Alternatives are tried behind one position in so many.
EVERY = 8
#: Rows of a batch begin at different places; the golden ratio spreads them evenly.
_SPREAD = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class Alternatives:
    """The base's likeliest next tokens at some positions of each text.

    Args:
        at: int64 ``[R, P]``: positions; the token at the next one is supervised.
        tokens: int64 ``[R, P, k]``, the likeliest first.
        values: float32 ``[R, P, k]``: what a value signal gives the prefix that each one makes.
    """

    at: Tensor
    tokens: Tensor
    values: Tensor


@torch.no_grad()
def alternatives(
    model: OtterModel, batch: Batch, cache: DynamicCache, logits: Tensor, count: int, signal: str
) -> Alternatives:
    """Try the base's ``count`` likeliest tokens behind one position in `EVERY`.

    Args:
        model: Runs them.
        batch: Texts.
        cache: Full keys and values of the texts, as a pass of the model leaves them; it grows.
        logits: ``[R, S, V]``, of that pass.
        count: k; at most V.
        signal: Name of the value signal.
    """
    at = positions(batch)
    texts = torch.arange(len(at))[:, None]
    tokens = logits[texts, at].topk(min(count, logits.shape[-1])).indices
    size, rows = batch.ids.shape[1], tokens[0].numel()
    behind = at.repeat_interleave(tokens.shape[2], dim=1)  # [R, P * k]
    before = torch.arange(size) <= behind[:, :, None]
    mask = torch.cat((before, torch.eye(rows, dtype=torch.bool).expand(len(at), -1, -1)), dim=-1)
    keys = torch.cat((torch.arange(size).expand(len(at), -1), behind + 1), dim=1)
    output = model(
        tokens.flatten(1),
        compute_logits=False,
        compute_signals=(signal,),
        position_ids=behind + 1,
        attention_mask=layer_masks(
            model,
            mask[:, None],
            lambda: ((behind + 1)[:, :, None] - keys[:, None])[:, None],
            model.base.dtype,
        ),
        past_key_values=cache,
        use_cache=True,
    )
    return Alternatives(at, tokens, output.signals[signal].float().reshape(tokens.shape))


def positions(batch: Batch) -> Tensor:
    """Where alternatives are tried: int64 ``[R, P]``, evenly spread before the supervised tokens.

    P is an eighth of the longest text's tokens (`EVERY`); a text has other places in another row
    of a batch, and so in another epoch.
    """
    lengths = batch.supervised.sum(1)
    first = batch.supervised.to(torch.int8).argmax(1) - 1
    count = -(-int(lengths.max()) // EVERY)
    offset = torch.arange(len(lengths), dtype=torch.float64) * _SPREAD % 1
    shares = (torch.arange(count) + offset[:, None]) / count
    places = (shares * lengths[:, None]).long().minimum(lengths[:, None] - 1)
    return first[:, None] + places
