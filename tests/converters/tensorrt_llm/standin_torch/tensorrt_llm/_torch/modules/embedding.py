"""Language model head and embedding, with a vocabulary padded to the ranks."""

from __future__ import annotations

from typing import Any

import torch

from tensorrt_llm._torch.modules.linear import Linear, TensorParallelMode
from tensorrt_llm.ranks import exchange


class LMHead(Linear):
    def __init__(self, num_embeddings: int, embedding_dim: int, **arguments: Any) -> None:
        assert arguments["tensor_parallel_mode"] is TensorParallelMode.COLUMN
        ranks = arguments["mapping"].tp_size
        padded = -(-num_embeddings // ranks) * ranks
        super().__init__(embedding_dim, padded, bias=False, **arguments)
        self.num_embeddings = num_embeddings

    def forward(self, input: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return super().forward(input, **arguments)[..., : self.num_embeddings]


class Embedding(LMHead):
    def forward(self, input: torch.Tensor, **_: Any) -> torch.Tensor:
        rows = len(self.weight)
        own = input.long() - rows * self.tp_rank
        inside = (own >= 0) & (own < rows)
        found = torch.where(inside[:, None], self.weight[own.clamp(0, rows - 1)], 0)
        return torch.stack(exchange(found)).sum(0) if self.tp_size > 1 else found
