"""A ``medusa`` signal: each head's best token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt

from otter_export.manifest import EngineManifest
from otter_export.runtime.drafts.drafter import Draft, Drafter
from otter_export.runtime.drafts.tree import TokenTree
from otter_export.runtime.engine import Engine, FloatArray
from otter_export.signals import Signal, kind_of


class MedusaHeads(Drafter):
    """Head i drafts the token i places behind the next one, from the row that chose that one.

    Args:
        name: Of the signal, ``[n, V']`` for a row.
        token_ids: ``[V']``: what its logits stand for; None: every token.
    """

    def __init__(self, name: str, token_ids: npt.NDArray[np.int32] | None = None) -> None:
        self._name = name
        self._token_ids = token_ids

    @classmethod
    def of(cls, engine: Engine, signal: Signal) -> Self:
        """Those of an engine's signal."""
        return cls(signal.name, engine.token_ids(signal))

    def draft(
        self,
        history: Sequence[int],
        token: int,
        signals: Mapping[str, FloatArray],
        most: int,
    ) -> Draft:
        """The best token of each head, the first heads; see `Drafter.draft`."""
        del history, token
        best = signals[self._name][:most].argmax(axis=-1)
        tokens = best if self._token_ids is None else self._token_ids[best]
        return Draft(TokenTree.chain(tokens.tolist()), self._name)


def drafting(manifest: EngineManifest) -> list[Signal]:
    """The signals of an engine that draft."""
    return [signal for signal in manifest.signals if kind_of(signal).drafts]
