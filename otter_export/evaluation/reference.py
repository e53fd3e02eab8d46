"""The torch reference of an engine: the checkpoint as it is, and with the engine's own weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from otter_export.checkpoint import Checkpoint
from otter_export.engine_io import LOGITS
from otter_export.errors import EngineError
from otter_export.evaluation.stored_weights import StoredWeights
from otter_export.modeling.otter_model import OtterModel, load_reference
from otter_export.runtime.engine import FloatArray

Outputs = dict[str, FloatArray]


@dataclasses.dataclass(frozen=True)
class References:
    """Outputs of one prompt: float32 rows of every output, by name.

    Args:
        checkpoint: Of the checkpoint's own weights.
        stored: Of the weights that the engine stores, dequantised; computed in float32 too.
    """

    checkpoint: Outputs
    stored: Outputs


def references(
    checkpoint: Checkpoint, stored: StoredWeights | None, prompts: Sequence[Sequence[int]]
) -> list[References]:
    """Run the reference on prompts.

    Args:
        checkpoint: The checkpoint.
        stored: The engine's weights; None when they are the checkpoint's own, bit for bit.
        prompts: Token ids.
    """
    model = load_reference(checkpoint)
    plain = [_run(model, prompt) for prompt in prompts]
    if stored is None:
        return [References(outputs, outputs) for outputs in plain]
    use_stored_weights(model, checkpoint, stored)
    own = [_run(model, prompt) for prompt in prompts]
    return [References(a, b) for a, b in zip(plain, own, strict=True)]


@torch.no_grad()
def _run(model: OtterModel, prompt: Sequence[int]) -> Outputs:
    output = model(torch.tensor([list(prompt)]), use_cache=False)
    tensors = {LOGITS: output.logits, **output.signals}
    return {name: np.asarray(tensor[0].float().numpy()) for name, tensor in tensors.items()}


@torch.no_grad()
def use_stored_weights(model: OtterModel, checkpoint: Checkpoint, stored: StoredWeights) -> None:
    """Give a reference an engine's base weights, and what it quantised of the channel.

    Raises:
        EngineError: The engine stores no such weight.
    """
    base = checkpoint.base

    def copy(target: Tensor, *names: str, quantized: bool | None = None) -> None:
        """Set ``target`` ``[out, in]`` or ``[out]`` from the first name that is stored."""
        found = (stored.find(name, quantized=quantized) for name in names)
        weight = next((w for w in found if w is not None), None)
        if weight is None:
            raise EngineError(f"the engine stores no {names[0]}")
        values = stored.read(weight, target.shape[-1]).values
        target.copy_(torch.from_numpy(values.copy()).reshape(target.shape))

    def parameter(name: str) -> Tensor:
        found = model.base.get_parameter(name)
        assert isinstance(found, Tensor)
        return found

    head, embedding = base.family.output_head, base.embedding_name
    # A tied head may be stored apart from the embedding: quantised, where the embedding is not.
    module = model.base.get_output_embeddings()
    untied = torch.nn.Parameter(module.weight.clone(), requires_grad=False)
    module.weight = untied
    quantized = stored.find(embedding, quantized=True) is not None
    copy(untied, f"{head}.weight", embedding, quantized=True if quantized else None)
    for name, _ in base.sites.embeddings:
        copy(parameter(f"{name}.weight"), f"{name}.weight", quantized=False)
    if module.bias is not None:
        copy(module.bias, f"{head}.bias")
    for norm in base.sites.norms:
        copy(parameter(f"{norm.name}.weight"), f"{norm.name}.weight")
        parameter(f"{norm.name}.weight").sub_(base.family.norm_offset)
        if base.has(f"{norm.name}.bias"):
            copy(parameter(f"{norm.name}.bias"), f"{norm.name}.bias")
    for site in base.sites.projections:
        rows = site.rows(np.arange(base.dimensions.width(site.writes)))
        kinds = ("weight", "bias") if base.has(f"{site.parameter}.bias") else ("weight",)
        for kind in kinds:
            whole = parameter(f"{site.parameter}.{kind}")
            whole = whole.T if site.transposed and kind == "weight" else whole
            part = whole[rows]
            copy(part, f"{site.graph_name}.{kind}")
            whole[rows] = part

    def channel(name: str) -> FloatArray:
        codes = stored.find(name, quantized=True)
        original = checkpoint.float32(name)
        return original if codes is None else stored.read(codes, original.shape[-1]).values

    model.load_channel(channel)
