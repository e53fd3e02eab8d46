"""L0: several observers of one scheduler hear the same, every hook of it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from otter_export import Request
from otter_export.errors import RequestError
from otter_export.runtime.scheduler import Observer, Scheduler
from tests.runtime.fake_engine import FakeEngine


def test_every_hook_reaches_every_observer() -> None:
    heard: list[tuple[int, str, tuple[Any, ...]]] = []

    class Ear(Observer):
        def __init__(self, number: int) -> None:
            for name in hooks:
                setattr(self, name, lambda *a, name=name: heard.append((number, name, a)))

    hooks = [n for n, _ in inspect.getmembers(Observer, inspect.isfunction) if n[0] != "_"]
    scheduler = Scheduler(FakeEngine(), observers=[Ear(0), Ear(1)])
    with pytest.raises(RequestError):
        scheduler.submit(Request([999]), on_event=print)
    scheduler.submit(Request([1], max_tokens=3), on_event=lambda event: None)
    while scheduler.step():
        pass
    for (_, name, told), other in zip(heard[::2], heard[1::2], strict=True):
        assert other == (1, name, told)
        assert len(told) == len(inspect.signature(getattr(Observer, name)).parameters) - 1
    assert {number for number, *_ in heard[::2]} == {0}
    assert {name for _, name, _ in heard} == set(hooks)
    assert len(hooks) >= 6
