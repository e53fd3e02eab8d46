"""L2: the perplexity that an engine gives is transformers' loss on the untouched base."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from otter_export.evaluation import base_likelihood
from otter_export.evaluation.base_likelihood import token_losses
from otter_export.evaluation.text_metrics import bootstrap_perplexity
from otter_export.load import load_engine
from tests.evaluation.conftest import Build

#: Prompts and texts of one token and of several, of different lengths.
TEXTS = [([5], [9, 30, 7]), ([3, 4, 5, 6, 7, 8], [40]), ([1, 9, 8], [7, 100, 3, 4, 5, 5, 2])]


@pytest.mark.parametrize("chunk", [256, 12, 4, 1])
def test_the_losses_are_those_of_transformers(
    engine: Build, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together in a pass, two in one, and each in several."""
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(base_likelihood, "CHUNK_TOKENS", chunk)
    directory = engine("fp32")
    found = token_losses(load_engine(directory, threads=1), TEXTS)
    base = AutoModelForCausalLM.from_pretrained(directory.parent / "llama-base")
    sums, count = 0.0, 0
    for losses, (prompt, tokens) in zip(found, TEXTS, strict=True):
        ids = torch.tensor([[*prompt, *tokens]])
        labels = torch.tensor([[*[-100] * len(prompt), *tokens]])
        with torch.inference_mode():
            loss = float(base(ids, labels=labels).loss)
        assert losses.shape == (len(tokens),)
        # The same sums in float32, in another order.
        assert losses.mean() == pytest.approx(loss, rel=1e-5)
        sums, count = sums + loss * len(tokens), count + len(tokens)
    assert bootstrap_perplexity(found).mean == pytest.approx(np.exp(sums / count), rel=1e-4)


@hypothesis.given(st.lists(st.integers(1, 400)))
def test_every_text_is_in_one_pass_that_is_not_too_large(lengths: list[int]) -> None:
    groups = list(base_likelihood._groups(lengths))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        size = len(group) * max(lengths[index] for index in group)
        assert size <= base_likelihood.CHUNK_TOKENS or len(group) == 1
