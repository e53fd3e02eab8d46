"""L4: two ranks give what one gives, for every shape of a channel and both ways of guidance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.vllm.asked import (
    PROMPTS,
    SPECULATIVE,
    agrees,
    our_engine,
    our_tokens,
    request,
)
from tests.plugins.vllm.checkpoints import base_of, checkpoint_of
from tests.plugins.vllm.reference import Reference

OPTIONS: tuple[dict[str, Any], ...] = ({"signal": "reward"}, {"signal": "next", "weight": 4.0})
FED: dict[str, Any] = {"signal": "reward", "weight": 6.0}
TWO = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One with attention of its own, and one that shares the base's, whose heads are divided."""
    root = tmp_path_factory.mktemp("ranks")
    base = base_of("llama", root / "base")
    shared = checkpoint_of("llama", root / "shared", base, attention="shared")
    return checkpoint_of("llama", root / "own", base), shared


@pytest.fixture(scope="module")
def answers(run_jobs: Callable[..., list[Any]], checkpoints: tuple[Path, Path]) -> list[Any]:
    own, shared = checkpoints
    batch = [request(p, o) for p in PROMPTS for o in OPTIONS]
    speculative = {**TWO, "speculative_config": SPECULATIVE}
    fed = [request(p, FED) for p in PROMPTS]
    jobs = [
        {"model": own, "options": speculative, "batches": [batch, fed]},
        {"model": shared, "options": TWO, "batches": [batch]},
    ]
    return run_jobs(jobs, VLLM_CPU_OMP_THREADS_BIND="0|1")


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1], ids=["own", "shared"])
def test_two_ranks(
    answers: list[Any],
    checkpoints: tuple[Path, Path],
    references: Callable[[Path], Reference],
    index: int,
) -> None:
    found = answers[index]
    assert isinstance(found, list), found
    cases = [(p, o) for p in PROMPTS for o in OPTIONS]
    for (prompt, options), answer in zip(cases, found[0], strict=True):
        references(checkpoints[index]).check(prompt, answer["outputs"][0], options)


@pytest.mark.slow
def test_candidates_on_two_ranks(answers: list[Any], checkpoints: tuple[Path, Path]) -> None:
    ours = our_engine(checkpoints[0])
    for prompt, answer in zip(PROMPTS, answers[0][1], strict=True):
        assert agrees(answer["outputs"][0], our_tokens(ours, prompt, FED, 8), 128)
