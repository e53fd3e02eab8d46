"""``drafts``: head i learns what the base itself would choose i places after the next token.

The labels cost nothing: they are the base's own argmax at later rows of the same forward pass, so
any text will do. Text that the base wrote is the text that it will draft.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from otter_export.checkpoint import Checkpoint
from otter_export.modeling.data import Batch
from otter_export.modeling.objectives.objective import Head, Judged, Objective
from otter_export.modeling.otter_model import OtterOutput
from otter_export.modeling.training_config import TrainingConfig
from otter_export.signals import Signal


@dataclasses.dataclass(frozen=True)
class Drafts(Objective):
    """Cross-entropy of each head with the base's choice, over the tokens that a signal drafts.

    Args:
        signal: A ``medusa`` signal.
        token_ids: int64 ``[V']``, ascending: what it drafts; None: all tokens.
    """

    signal: Signal
    token_ids: Tensor | None = None
    metric: ClassVar[str] = "acceptance"
    needs_logits: ClassVar[bool] = True

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: TrainingConfig, signal: Signal) -> Self:
        """See `Objective`."""
        ids = checkpoint.token_ids(signal)
        return cls(signal, None if ids is None else torch.from_numpy(ids.astype(np.int64)))

    @property
    def chosen(self) -> str:
        """See `Objective`."""
        return "all"

    @property
    def reads(self) -> tuple[str, ...]:
        """See `Objective`."""
        return ()

    def loss(self, output: OtterOutput, batch: Batch, head: Head) -> Tensor:
        """Mean over heads and rows; where the base chooses what is not drafted, there is none."""
        total, count = output.channel.new_zeros((), dtype=torch.float32), 0
        for drafted, chosen, _ in self._heads(output, batch, head):
            index, known = self._index(chosen)
            logits = drafted[known].float()
            total = total + functional.cross_entropy(logits, index[known], reduction="sum")
            count += len(logits)
        return total / max(count, 1)

    def judge(self, output: OtterOutput, batch: Batch, head: Head, ends: bool) -> Judged:
        """For each row of the batch: its domain, the tokens drafted, and how many of them right."""
        size = (len(batch.ids), self.signal.heads)
        right, drafts = torch.zeros(size), torch.zeros(size)
        for i, (drafted, chosen, rows) in enumerate(self._heads(output, batch, head)):
            best = drafted.argmax(-1)
            if self.token_ids is not None:
                best = self.token_ids[best]
            right[:, i].index_add_(0, rows, (best == chosen).float())
            drafts[:, i].index_add_(0, rows, torch.ones(len(rows)))
        domains = np.asarray(batch.domains, dtype=np.str_)
        return {"right": right.numpy(), "drafts": drafts.numpy(), "domain": domains}

    def metrics(self, judged: Judged) -> dict[str, float]:
        """Share of drafts that the base accepts: of all, of each head, and in each domain.

        Heads count from 1; ``code 2`` is the second head in the domain ``code``.
        """
        right, drafts, domains = judged["right"], judged["drafts"], judged["domain"]

        def share(rows: slice | np.ndarray, head: slice | int) -> float:
            return float(right[rows, head].sum() / max(drafts[rows, head].sum(), 1))

        heads = range(right.shape[1])
        found = {"all": share(slice(None), slice(None))}
        found |= {str(head + 1): share(slice(None), head) for head in heads}
        for domain in np.unique(domains[domains != ""]):
            found |= {f"{domain} {head + 1}": share(domains == domain, head) for head in heads}
        return found

    def _heads(
        self, output: OtterOutput, batch: Batch, head: Head
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each head its logits ``[N, V']``, what the base chose ``[N]``, and in which rows.

        The next token after position t is at t + 1; head i drafts the one at t + 1 + i, which the
        base chooses at t + i.
        """
        rows, at = batch.supervised.nonzero(as_tuple=True)
        drafted = head(output.channel[rows, at])  # [N, n, V']
        base = output.logits.argmax(-1)
        columns = torch.arange(batch.ids.shape[1])
        last = (batch.supervised * columns).amax(1)
        for i in range(1, self.signal.heads + 1):
            known = at + i <= last[rows]
            yield drafted[known, i - 1], base[rows[known], at[known] + i], rows[known]

    def _index(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Where tokens ``[N]`` lie among those that are drafted, and whether they do."""
        if self.token_ids is None:
            return tokens, torch.ones_like(tokens, dtype=torch.bool)
        index = torch.searchsorted(self.token_ids, tokens).clamp(max=len(self.token_ids) - 1)
        return index, self.token_ids[index] == tokens
