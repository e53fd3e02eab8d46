"""How well the reward agrees with people: correlation with held-out ratings, by prefix length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from otter_export.checkpoint import Checkpoint
from otter_export.modeling.data import Reader, batches
from otter_export.modeling.objectives.objective import joined
from otter_export.modeling.objectives.regression import Regression
from otter_export.modeling.otter_model import load_reference
from otter_export.modeling.tokenization import end_token_id, load_tokenizer

_BATCH_TOKENS = 768


@torch.no_grad()
def agreement(
    directory: Path, snippets: Path, limit: int, progress: Callable[[int], object]
) -> dict[str, float]:
    """Pearson correlation of reward and rating at 25, 50, 75 and 100 % of a snippet.

    Args:
        directory: The checkpoint.
        snippets: JSON lines of ``{"text", "score"}`` that nothing was trained on.
        limit: How many of them are read; they are in the order of a hash.
        progress: Called with the number of snippets just read.
    """
    checkpoint = Checkpoint.open(directory)
    model = load_reference(checkpoint)
    signal = checkpoint.config.signals[0]
    end = end_token_id(checkpoint.base)
    reader = Reader("regression", signal, load_tokenizer(checkpoint.base.directory), end)
    objective, head, parts = Regression(signal), model.head(signal.name), []
    for batch in batches(reader.read(snippets)[:limit], _BATCH_TOKENS, None):
        output = model(batch.ids, compute_logits=False, use_cache=False)
        parts.append(objective.judge(output, batch, head, end is not None))
        progress(len(batch.ids))
    return objective.metrics(joined(parts))


def table(correlations: dict[str, float]) -> str:
    """One line per prefix length."""
    names = {key: f"{key} % of the snippet" for key in correlations} | {"end": "with the end token"}
    return "\n".join(f"  {names[key]:20} r = {r:.3f}" for key, r in correlations.items())
