"""`Model`: a language model or a reward model and its KV cache, whatever library runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
#: Keys and values of a batch of rows, in the library's own form.
Cache = Any


class Model(Protocol):
    """What a method of the literature asks of a model."""

    def read(self, cache: Cache | None, ids: Sequence[Sequence[int]]) -> tuple[Array, Cache]:
        """One forward pass over new tokens.

        Args:
            cache: What was read before, as it came from here; not used again. None begins.
            ids: ``[B, S]``: the tokens that follow, all rows of one length.

        Returns:
            The output at the last token, float32: ``[B, V]`` of a language model or of a reward
            model that scores all next tokens, ``[B]`` of one that scores what it has read; and the
            cache with these tokens.
        """
        ...

    def rows(self, cache: Cache, chosen: Sequence[int]) -> Cache:
        """Copies of rows of a cache, in this order; a row may be asked for several times.

        The cache itself is not used again.
        """
        ...


class Counting:
    """A model that counts its work.

    Attributes:
        forwards: Forward passes.
        tokens: Tokens that were fed, of all rows.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self.forwards = self.tokens = 0

    def read(self, cache: Cache | None, ids: Sequence[Sequence[int]]) -> tuple[Array, Cache]:
        """See `Model.read`."""
        self.forwards += 1
        self.tokens += sum(map(len, ids))
        return self._model.read(cache, ids)

    def rows(self, cache: Cache, chosen: Sequence[int]) -> Cache:
        """See `Model.rows`."""
        return self._model.rows(cache, chosen)


def best(logits: Array, k: int) -> npt.NDArray[np.int64]:
    """Ids of the k best next tokens, best first; of equal ones the lower id."""
    # Sorting all of the vocabulary would take a third of a small model's step.
    ids = np.flatnonzero(logits >= np.partition(logits, -k)[-k])
    return ids[np.argsort(-logits[ids], kind="stable")][:k]


def add(logits: Array, rewards: Array, weight: float) -> Array:
    """``logits + weight * rewards``, in float64 so that no sum makes a tie; all ``[k]``."""
    return logits.astype(np.float64) + weight * rewards.astype(np.float64)
