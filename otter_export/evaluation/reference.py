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
    """Replace the base weights of a reference by those that an engine stores.

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
    untied = torch.nn.Parameter(parameter(f"{head}.weight").clone(), requires_grad=False)
    model.base.get_submodule(head).weight = untied
    quantized = stored.find(embedding, quantized=True) is not None
    copy(untied, f"{head}.weight", embedding, quantized=True if quantized else None)
    for name, _ in base.sites.embeddings:
        copy(parameter(f"{name}.weight"), f"{name}.weight", quantized=False)
    for name in base.sites.norms:
        copy(parameter(f"{name}.weight"), f"{name}.weight")
        if base.has(f"{name}.bias"):
            copy(parameter(f"{name}.bias"), f"{name}.bias")
    for site in base.sites.projections:
        rows = slice(site.offset, site.offset + base.dimensions.width(site.writes))
        weight = parameter(f"{site.parameter}.weight")
        part = weight[:, rows].T if site.transposed else weight[rows]
        copy(part, f"{site.graph_name}.weight")
        if base.has(f"{site.parameter}.bias"):
            copy(parameter(f"{site.parameter}.bias")[rows], f"{site.graph_name}.bias")
