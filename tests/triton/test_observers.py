"""L0: several observers of one scheduler hear the same, every hook of it."""

from __future__ import annotations

import inspect
from typing import Any

from otter_export.runtime.observer import Observer
from otter_export.serving.observers import Observers


def test_every_hook_reaches_every_observer() -> None:
    heard: list[tuple[int, str, tuple[Any, ...]]] = []

    class Ear(Observer):
        def __init__(self, number: int) -> None:
            for name in hooks:
                setattr(self, name, lambda *a, name=name: heard.append((number, name, a)))

    hooks = [n for n, _ in inspect.getmembers(Observer, inspect.isfunction) if n[0] != "_"]
    both = Observers(Ear(0), Ear(1))
    for name in hooks:
        count = len(inspect.signature(getattr(Observer, name)).parameters) - 1
        getattr(both, name)(*range(count))
        assert heard[-2:] == [(0, name, tuple(range(count))), (1, name, tuple(range(count)))]
    assert len(hooks) >= 6
