"""All ranks of a model as threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def in_threads(run: Callable[[int], T], count: int, abort: Callable[[], None]) -> list[T]:
    """What ``run(rank)`` gives on each rank; the first error of any is raised.

    ``abort`` frees the ranks that wait for one that failed.
    """
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def target(rank: int) -> None:
        try:
            with torch.no_grad():
                results[rank] = run(rank)
        except BaseException as error:  # raised again below
            errors.append(error)
            abort()

    threads = [threading.Thread(target=target, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next(
            (e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0]
        )
    return [results[rank] for rank in range(count)]
