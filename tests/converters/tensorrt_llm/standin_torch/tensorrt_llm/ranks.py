"""All ranks of a model as threads of this process."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import torch

from tests.converters.tensorrt_llm.rank_threads import in_threads


@dataclasses.dataclass
class Mapping:
    tp_size: int = 1
    tp_rank: int = 0
    pp_size: int = 1
    enable_attention_dp: bool = False


_ACTIVE = threading.local()


def exchange(part: torch.Tensor) -> list[torch.Tensor]:
    """The parts of all ranks, in their order."""
    barrier, parts, rank = _ACTIVE.world
    parts[rank] = part
    barrier.wait()
    found = [parts[r] for r in sorted(parts)]
    barrier.wait()
    return found


def on_all(count: int, run: Callable[[int], Any]) -> list[Any]:
    """What ``run(rank)`` gives on each rank; the first error of any is raised."""
    barrier, parts = threading.Barrier(count, timeout=60), {}

    def in_world(rank: int) -> Any:
        _ACTIVE.world = (barrier, parts, rank)
        return run(rank)

    return in_threads(in_world, count, barrier.abort)
