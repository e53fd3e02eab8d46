"""L2: an independent oracle, a dense Hugging Face model with the weights ``[[W, 0], [A, B]]``.

The widened model is written out as one larger ordinary model: more hidden units, neurons and heads,
a zero block, and norms whose statistics come from the first d units. Where a channel begins inside
the base, its part is zero until then, and ``P x`` is added there; where it shares the base's
attention, the extra queries and keys are the base's rows once more. Nothing of
`otter_export.modeling` is used to build it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from otter_export.checkpoint import Checkpoint
from otter_export.family import ProjectionSite, channel_width
from otter_export.modeling.otter_model import OtterModel
from tests import tiny
from tests.modeling.reference import load, tokens

# GPT-2 takes its head size from hidden size / heads, so d' = H' * e there; e is 16.
WIDTHS = {"hidden_size": 32, "intermediate_size": 24, "heads": 2}


class BaseStatisticsNorm(nn.Module):
    """``gamma * x / rms(x[:d])`` or ``gamma * (x - mean(x[:d])) / std(x[:d]) + beta``."""

    def __init__(self, weight: Tensor, bias: Tensor | None, d: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.bias, self.d, self.epsilon = weight, bias, d, epsilon

    def forward(self, x: Tensor) -> Tensor:
        base = x[..., : self.d]
        if self.bias is None:
            return self.weight * x / torch.sqrt((base**2).mean(-1, keepdim=True) + self.epsilon)
        mean, variance = base.mean(-1, keepdim=True), base.var(-1, keepdim=True, correction=0)
        return self.weight * (x - mean) / torch.sqrt(variance + self.epsilon) + self.bias


def dense_model(family: str, checkpoint: Checkpoint) -> Any:
    """The widened model as a plain transformers model, float64."""
    names = {
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_attention_heads": "n_head",
    }
    base, config = checkpoint.base.dimensions, checkpoint.config
    fields = dict(tiny.CONFIGS[family])
    for name in (*names, "num_key_value_heads"):
        key = names.get(name, name) if family == "gpt2" else name
        fields[key] = getattr(base, name) + getattr(config, name)
    if family != "gpt2":
        fields["head_dim"] = base.head_dim
    fields["tie_word_embeddings"] = False
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).double().eval()
    _fill(model, checkpoint)
    if config.first_layer:
        _begin(model, checkpoint)
    return model


def _begin(model: Any, checkpoint: Checkpoint) -> None:
    """Add ``[0 ; P x]`` to what enters the first layer of the channel, or the final norm."""
    sites, d = checkpoint.base.sites, checkpoint.base.dimensions.hidden_size
    name = (*sites.layers, sites.norms[-1].name)[checkpoint.config.first_layer]
    start = torch.tensor(checkpoint.float32(f"{name}.otter.projection")).double()

    def add(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = arguments
        assert not x[..., d:].any()
        return (torch.cat((x[..., :d], x[..., :d] @ start.T), -1), *others)

    model.get_submodule(name).register_forward_pre_hook(add)


def _fill(model: Any, checkpoint: Checkpoint) -> None:
    base, channel = checkpoint.base, checkpoint.float32
    d = base.dimensions.hidden_size
    state: dict[str, np.ndarray] = {}
    for name, _ in base.sites.embeddings:
        table = base.float32(f"{name}.weight")
        if f"{name}.otter.table" in checkpoint.tensors:
            extra = channel(f"{name}.otter.table")
        elif checkpoint.config.first_layer:
            extra = np.zeros((len(table), checkpoint.config.hidden_size), np.float32)
        else:
            extra = table @ channel(f"{name}.otter.projection").T
        state[f"{name}.weight"] = np.concatenate((table, extra), 1)
    fused: dict[str, list[ProjectionSite]] = {}
    for site in base.sites.projections:
        fused.setdefault(site.parameter, []).append(site)
    for parameter, parts in fused.items():
        weight = np.concatenate([_dense_weight(checkpoint, site) for site in parts])
        state[f"{parameter}.weight"] = weight.T if parts[0].transposed else weight
        if base.has(f"{parameter}.bias"):
            biases = [(base.projection_bias(site), inserted(checkpoint, site)[2]) for site in parts]
            state[f"{parameter}.bias"] = np.concatenate([b for pair in biases for b in pair])
    tied = f"{base.sites.embeddings[0][0]}.weight"
    head = base.float32("lm_head.weight" if base.has("lm_head.weight") else tied)
    state["lm_head.weight"] = np.pad(head, ((0, 0), (0, checkpoint.config.hidden_size)))
    tensors = {name: torch.from_numpy(values).double() for name, values in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all("norm" in name or "ln_" in name for name in missing)
    for name in (norm.name for norm in base.sites.norms):
        joined = {}
        for kind in ("weight", "bias"):
            if base.has(f"{name}.{kind}"):
                extra = f"{name}.otter.{kind}"
                zeros = np.zeros(checkpoint.config.hidden_size, np.float32)
                parts_of = (
                    base.float32(f"{name}.{kind}"),
                    channel(extra) if extra in checkpoint.tensors else zeros,
                )
                joined[kind] = torch.from_numpy(np.concatenate(parts_of)).double()
        owner, _, attribute = name.rpartition(".")
        norm = BaseStatisticsNorm(joined["weight"], joined.get("bias"), d, 1e-5)
        setattr(model.get_submodule(owner), attribute, norm)


def inserted(checkpoint: Checkpoint, site: ProjectionSite) -> list[np.ndarray]:
    """A, B and b' of a projection: stored, or what its absence means."""
    base, config = checkpoint.base, checkpoint.config
    if f"{site.name}.otter.from_base" in checkpoint.tensors:
        kinds = ["from_base", "from_channel"]
        kinds += ["bias"] if base.has(f"{site.parameter}.bias") else []
        return [checkpoint.float32(f"{site.name}.otter.{kind}") for kind in kinds]
    weight = base.projection(site)
    bias = base.projection_bias(site) if base.has(f"{site.parameter}.bias") else weight[:, 0]
    rows, columns = channel_width(config, site.writes), channel_width(config, site.reads)
    nothing = np.zeros((rows, columns), np.float32)
    if site.layer < config.first_layer:
        return [np.zeros_like(weight[:rows]), nothing, np.zeros_like(bias[:rows])]
    # These bases have as many queries for each key as the channel: its heads are the first ones.
    return [weight[:rows], nothing, bias[:rows]]


def _dense_weight(checkpoint: Checkpoint, site: ProjectionSite) -> np.ndarray:
    weight = checkpoint.base.projection(site)
    a, b = inserted(checkpoint, site)[:2]
    return np.block([[weight, np.zeros((weight.shape[0], b.shape[1]), np.float32)], [a, b]])


def compare(model: OtterModel, checkpoint: Checkpoint, family: str) -> None:
    """Final states, rewards and logits of the reference and of the dense model."""
    dense = dense_model(family, checkpoint)
    ids, d = tokens(2, 13), checkpoint.base.dimensions.hidden_size
    with torch.no_grad():
        state = dense.base_model(ids).last_hidden_state
        weight = torch.tensor(checkpoint.float32("signals.reward.weight")).double()
        bias = torch.tensor(checkpoint.float32("signals.reward.bias")).double()
        expected = torch.tanh(state[..., d:] @ weight[0] + bias)
        output = model(ids)
        found = model.base.base_model(ids).last_hidden_state
        logits = dense(ids).logits
    # float32 against float64 over two layers; the states are of order 1, logits of order 10.
    torch.testing.assert_close(found.double(), state, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.signals["reward"].double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.logits.double(), logits, rtol=1e-4, atol=1e-3)
    assert expected.std() > 1e-3, "a constant reward would prove nothing"


@pytest.mark.parametrize("initialization", ["copy", "normal", "random"])
@pytest.mark.parametrize("embedding", ["projection", "table"])
def test_channel_equals_the_dense_model(
    tmp_path: Path, family: str, initialization: str, embedding: str
) -> None:
    _, model, checkpoint = load(
        tmp_path, family, initialization=initialization, embedding=embedding, **WIDTHS
    )
    compare(model, checkpoint, family)


@pytest.mark.parametrize("attention", ["own", "shared"])
@pytest.mark.parametrize("first_layer", [0, 1, 2])
def test_every_shape_equals_the_dense_model(
    tmp_path: Path, family: str, first_layer: int, attention: str
) -> None:
    options = {"first_layer": first_layer, "attention": attention, **WIDTHS}
    _, model, checkpoint = load(tmp_path, family, initialization="normal", **options)
    compare(model, checkpoint, family)
