"""All ranks of a model as threads of this process."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import torch


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
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def target(rank: int) -> None:
        _ACTIVE.world = (barrier, parts, rank)
        try:
            with torch.no_grad():
                results[rank] = run(rank)
        except BaseException as error:  # raised again below
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=target, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next(
            (e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0]
        )
    return results
