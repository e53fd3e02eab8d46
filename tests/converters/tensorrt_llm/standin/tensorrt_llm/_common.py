"""The network that a model is called for: plugin settings, outputs, and the other ranks."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import torch


@dataclasses.dataclass
class PluginConfig:
    remove_input_padding: bool = True
    paged_kv_cache: bool = True
    gpt_attention_plugin: str = "auto"


class World:
    """All ranks of a model, one thread each."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=60)
        self._parts: dict[int, torch.Tensor] = {}
        self.all_reduces = 0

    def exchange(self, rank: int, part: torch.Tensor) -> list[torch.Tensor]:
        """The parts of all ranks, in their order."""
        self._parts[rank] = part
        self._barrier.wait()
        parts = [self._parts[r] for r in sorted(self._parts)]
        self._barrier.wait()
        return parts

    def abort(self) -> None:
        self._barrier.abort()


@dataclasses.dataclass
class Network:
    rank: int
    world: World
    plugin_config: PluginConfig = dataclasses.field(default_factory=PluginConfig)
    outputs: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


_ACTIVE = threading.local()


def default_net() -> Network:
    return _ACTIVE.network  # type: ignore[no-any-return]


def set_network(network: Any) -> None:
    _ACTIVE.network = network
