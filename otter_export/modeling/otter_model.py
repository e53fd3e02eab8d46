"""`OtterModel`: a Hugging Face causal LM with a channel inserted, and its signal heads.

Hugging Face's own forward, attention, rotary embedding, cache and ``generate`` run unchanged on the
widened state; only projections, norms, embeddings and the head are replaced.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from otter_export.base_model import BaseModel
from otter_export.boundary import errors_as
from otter_export.channel import expected_tensors
from otter_export.checkpoint import Checkpoint
from otter_export.config import OtterConfig
from otter_export.errors import CheckpointError
from otter_export.family import BaseDimensions, Family, Sites
from otter_export.layer_attention import completed_config
from otter_export.modeling.insertion import insert_channel
from otter_export.modeling.signals import SignalHead
from otter_export.safetensors_io import FloatArray
from otter_export.signals import is_token_ids


@dataclasses.dataclass(frozen=True)
class OtterOutput:
    """One forward pass.

    Args:
        logits: ``[B, S, V]``.
        signals: What an engine gives, by name: ``[B, S, *output_dims]`` (`SignalKind.output_dims`).
        channel: ``[B, S, d']``: n', what the heads read.
        past_key_values: Of transformers, if it was asked for a cache.
    """

    logits: Tensor
    signals: Mapping[str, Tensor]
    channel: Tensor
    past_key_values: Any


def base_logits(base: Any, state: Tensor) -> Tensor:
    """Logits of a final state as Hugging Face's causal LM has them: scaled, or capped.

    Args:
        base: The causal language model.
        state: ``[..., d]``.
    """
    logits: Tensor = base.get_output_embeddings()(state)
    logits = logits * getattr(base.config, "logit_scale", 1.0)
    logits = logits / getattr(base.config, "logits_scaling", 1.0)
    cap = getattr(base.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


class OtterModel(nn.Module):
    """A base model with a channel and signal heads; all channel tensors start at zero.

    Use `load_reference` to get one from a checkpoint.

    Args:
        base: The untouched Hugging Face causal LM; its modules are replaced in place.
        config: Shape and signals of the channel.
        family, dimensions, sites: What the base is, from `otter_export.base_model.BaseModel`.
    """

    def __init__(
        self,
        base: nn.Module,
        config: OtterConfig,
        family: Family,
        dimensions: BaseDimensions,
        sites: Sites,
    ) -> None:
        super().__init__()
        self.config = config
        self.windowed = family.windowed
        self.base: Any = base
        self.signals = nn.ModuleDict(
            {
                s.name: SignalHead(s, config.hidden_size, dimensions.vocab_size)
                for s in config.signals
            }
        )
        insert_channel(base, config, family, dimensions, sites)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(".otter." in name or name.startswith("signals."))

    def forward(
        self,
        input_ids: Tensor,
        *,
        compute_logits: bool = True,
        compute_signals: Collection[str] | None = None,
        **arguments: Any,
    ) -> OtterOutput:
        """Run the widened decoder.

        Args:
            input_ids: ``[B, S]``.
            compute_logits: False skips the language model head (training of values needs none);
                ``logits`` is then empty.
            compute_signals: Names of the signals to compute; None computes all.
            **arguments: Passed to the Hugging Face decoder: attention_mask (2-D, or a 4-D bool or
                additive mask for trees), position_ids, past_key_values, use_cache.
        """
        decoded = self.base.base_model(input_ids=input_ids, **arguments)
        state = decoded.last_hidden_state
        channel = state[..., -self.config.hidden_size :]
        logits = base_logits(self.base, state) if compute_logits else state[..., :0]
        names = self.signals if compute_signals is None else compute_signals
        signals = {name: self.head(name).output(channel) for name in names}
        return OtterOutput(logits, signals, channel, getattr(decoded, "past_key_values", None))

    def head(self, name: str) -> SignalHead:
        """The head of one signal."""
        head = self.signals[name]
        assert isinstance(head, SignalHead)
        return head

    def channel_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The inserted parameters under their checkpoint names; all that training changes."""
        for name, parameter in self.named_parameters():
            if ".otter." in name:
                yield name.removeprefix("base."), parameter
            elif name.startswith("signals."):
                yield name, parameter

    @torch.no_grad()
    def load_channel(self, read: Callable[[str], FloatArray]) -> None:
        """Set every inserted parameter from ``read(name)``, float32."""
        for name, parameter in self.channel_parameters():
            parameter.copy_(torch.from_numpy(read(name).copy()).reshape(parameter.shape))


def load_reference(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> OtterModel:
    """Load a checkpoint into torch, ready to evaluate.

    Raises:
        CheckpointError: transformers cannot load the base.
    """
    base = load_base(checkpoint.base, dtype)
    source = checkpoint.base
    model = OtterModel(base, checkpoint.config, source.family, source.dimensions, source.sites)
    model.load_channel(checkpoint.float32)
    names = {name for name, _ in model.channel_parameters()}
    expected = expected_tensors(checkpoint.config, source)
    if names != {name for name in expected if not is_token_ids(name)}:
        raise CheckpointError(f"{checkpoint.directory}: the base's modules do not fit its family")
    return model.to(dtype).eval()


def load_base(base: BaseModel, dtype: torch.dtype = torch.float32) -> Any:
    """The untouched base model in transformers, on the weights that engines are built from.

    Raises:
        CheckpointError: transformers cannot make the model, or it has other parameters.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.utils import logging as transformers_logging

    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = completed_config(base)
    with errors_as(CheckpointError, f"transformers cannot load {base.directory}"):
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(_base_parameters(base)),
            dtype=dtype,
            output_loading_info=True,
        )
    different = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if different:
        raise CheckpointError(
            f"{base.directory}: transformers' model has other parameters than the family "
            f"{base.family.name}: {', '.join(different[:5])}"
        )
    return model.eval()


def _base_parameters(base: BaseModel) -> Iterator[tuple[str, Tensor]]:
    """Every parameter that the model reads, by its name in transformers, as it is stored."""
    for name in base.tensors:
        stored = base.stored_name(name)
        assert stored is not None, name  # Checkpoint.open has listed what is missing
        info = base.weights[stored]
        with safetensors.safe_open(str(info.file), framework="pt") as file:
            yield name, file.get_tensor(stored)
