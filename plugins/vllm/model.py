"""A model of vLLM's own with a channel and the heads of its signals.

``OtterLlamaForCausalLM`` and its like are made on demand, from vLLM's class of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn
from torch.nn import functional
from vllm.config import CompilationMode
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models import ModelRegistry

from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.plugins.vllm.bases import ARCHITECTURES, base_architecture
from otter_export.plugins.vllm.channel import Channel
from otter_export.plugins.vllm.checkpoint_config import checkpoint_directory
from otter_export.plugins.vllm.layer import copy, parameter
from otter_export.signals import Signal, kind_of

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class SignalHead(nn.Module):
    """``activation(W n' + b)`` in float32, as an engine gives it."""

    def __init__(self, signal: Signal, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.signal = signal
        rows = kind_of(signal).output_dims(signal, vocab_size) or (1,)
        self.weight = parameter(*rows, hidden_size, dtype=torch.float32)
        self.bias = parameter(*rows, dtype=torch.float32)

    def forward(self, channel: Tensor) -> Tensor:
        """``[R, d']`` to ``[R, 1]``, or ``[R, V]`` for signals that score all next tokens."""
        z = functional.linear(channel.float(), self.weight, self.bias)
        return ACTIVATIONS[self.signal.activation](z)

    def load(self, read: Callable[[str], Tensor]) -> None:
        """Read the head; of an expert and an anti-expert their difference."""
        kind = kind_of(self.signal)
        for name in ("weight", "bias"):
            stored = read(f"signals.{self.signal.name}.{name}").float()
            copy(getattr(self, name), kind.engine_head(stored))


class ChannelBeside:
    """What is put before one of vLLM's classes; its rows of hidden states are ``[h ; n']``."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        if vllm_config.compilation_config.mode != CompilationMode.NONE:
            raise UnsupportedError("Otter models run eagerly; start vLLM with --enforce-eager")
        model = vllm_config.model_config
        self.checkpoint = checkpoint = Checkpoint.open(checkpoint_directory(model))
        config, d = checkpoint.config, checkpoint.base.dimensions
        self.hidden_size = d.hidden_size
        self.otter = Channel(self, checkpoint, vllm_config.cache_config)  # type: ignore[arg-type]
        self.otter_signals = nn.ModuleDict(
            {
                s.name: SignalHead(s, config.hidden_size, d.vocab_size)
                for s in config.signals
                if kind_of(s).scores
            }
        )
        if Path(model.model).resolve() != checkpoint.base.directory.resolve():
            self.secondary_weights = [
                DefaultModelLoader.Source(str(checkpoint.base.directory), revision=None)
            ]
        #: n' of the rows of the last `compute_logits`.
        self.channel_rows = torch.empty(0)

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Those that score tokens."""
        heads: Any = self.otter_signals
        return tuple(head.signal for head in heads.values())

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **arguments: Any,
    ) -> Tensor:
        """The base's forward; hooks compute the channel on the way."""
        self.otter.reset(input_ids)
        forward = super().forward  # type: ignore[misc]
        state = forward(input_ids, positions, intermediate_tensors, inputs_embeds, **arguments)
        return torch.cat((state, self.otter.final), dim=-1)

    def compute_logits(self, hidden_states: Tensor, *arguments: Any) -> Tensor | None:
        """The base's logits; keeps the channel's part of these rows for the signals."""
        sizes = [self.hidden_size, hidden_states.shape[-1] - self.hidden_size]
        base, self.channel_rows = torch.split(hidden_states, sizes, -1)
        logits: Tensor | None = super().compute_logits(  # type: ignore[misc]
            base.contiguous(), *arguments
        )
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """The base's by vLLM's loader, the channel's from the checkpoint's own file."""
        base = ((name, tensor) for name, tensor in weights if not is_inserted(name))
        loaded: set[str] = super().load_weights(base)  # type: ignore[misc]
        store = self.checkpoint.tensors

        def read(name: str) -> Tensor:
            with safetensors.safe_open(str(store[name].file), framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor

        self.otter.load(read)
        heads: Any = self.otter_signals
        for head in heads.values():
            head.load(read)
        parameters = self.named_parameters()  # type: ignore[attr-defined]
        return (loaded or set()) | {n for n, _ in parameters if n.startswith("otter")}


def is_inserted(name: str) -> bool:
    """Whether a tensor is the channel's."""
    return ".otter." in name or name.startswith("signals.")


def __getattr__(name: str) -> type:
    if name not in ARCHITECTURES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = ModelRegistry.models[base_architecture(name)].load_model_cls()
    made = type(name, (ChannelBeside, base), {"__module__": __name__, "__doc__": base.__doc__})
    globals()[name] = made
    return made
