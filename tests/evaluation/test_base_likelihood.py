"""L2: the perplexity that an engine gives is transformers' loss on the untouched base."""

from __future__ import annotations

import numpy as np
import pytest

from otter_export.evaluation import base_likelihood
from otter_export.evaluation.base_likelihood import token_losses
from otter_export.evaluation.text_metrics import bootstrap_perplexity
from otter_export.load import load_engine
from tests.evaluation.conftest import Build

#: A prompt of one token, and one beyond a chunk of four.
CASES = [([5], [9, 30, 7]), ([3, 4, 5, 6, 7, 8], [40]), ([1, 9, 8], [7, 100, 3, 4, 5, 5, 2])]


@pytest.mark.parametrize(("prompt", "tokens"), CASES)
@pytest.mark.parametrize("chunk", [256, 4, 1])
def test_the_losses_are_those_of_transformers(
    engine: Build, prompt: list[int], tokens: list[int], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(base_likelihood, "CHUNK_TOKENS", chunk)
    directory = engine("fp32")
    found = token_losses(load_engine(directory, threads=1), prompt, tokens)
    base = AutoModelForCausalLM.from_pretrained(directory.parent / "llama-base")
    ids = torch.tensor([[*prompt, *tokens]])
    labels = torch.tensor([[*[-100] * len(prompt), *tokens]])
    with torch.inference_mode():
        loss = float(base(ids, labels=labels).loss)
    assert found.shape == (len(tokens),)
    # The same sums in float32, in another order.
    assert found.mean() == pytest.approx(loss, rel=1e-5)
    assert bootstrap_perplexity([found]).mean == pytest.approx(np.exp(loss), rel=1e-4)
