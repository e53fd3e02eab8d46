"""L2: every base class of vLLM's that takes a channel, against the torch reference.

An engine takes seconds to start, so the whole suite has one class of each structure; ``make
vllm-test`` has them all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.vllm.asked import PROMPTS, request
from tests.plugins.vllm.checkpoints import checkpoint_of
from tests.plugins.vllm.reference import Reference

CASES = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "granite"),
    *("exaone4", "glm4", "cohere", "ernie4_5", "nemotron", "stablelm", "ministral3"),
)
#: Plain; four norms a layer and windows; merged projections; side by side; another norm.
FEW = ("llama", "gemma3", "phi3", "cohere", "nemotron")
CHOSEN = CASES if os.environ.get("VLLM_FAMILIES") == "all" else FEW
GUIDANCE: tuple[dict[str, Any], ...] = (
    {"signal": "reward"},
    {"signal": "next", "weight": 4.0},
    {"signal": "tone", "weight": -1.0, "top_k": 20},
)


@pytest.fixture(scope="module")
def answers(
    run_jobs: Callable[..., list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Any]]:
    """Of each case its checkpoint and vLLM's answers: one process for all."""
    root = tmp_path_factory.mktemp("families")
    batch = [request(p, options) for p in PROMPTS for options in GUIDANCE]
    checkpoints = {name: checkpoint_of(name, root / name) for name in CHOSEN}
    jobs = [{"model": path, "batches": [batch]} for path in checkpoints.values()]
    found = run_jobs(jobs)
    return {name: (checkpoints[name], got) for name, got in zip(CHOSEN, found, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_family(
    name: str, answers: dict[str, tuple[Path, Any]], references: Callable[[Path], Reference]
) -> None:
    if name not in CHOSEN:
        pytest.skip("one class of each structure; make vllm-test has all")
    checkpoint, found = answers[name]
    assert isinstance(found, list), found
    requests = [(p, options) for p in PROMPTS for options in GUIDANCE]
    for (prompt, options), answer in zip(requests, found[0], strict=True):
        assert "outputs" in answer, answer
        references(checkpoint).check(prompt, answer["outputs"][0], options)
