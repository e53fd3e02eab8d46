"""L1: widened modules against the mathematics in numpy; base parts bit for bit.

Tolerance: 1e-5 on values of order one, float32 sums in another order.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from otter_export.config import OtterConfig
from otter_export.family import Space
from otter_export.modeling.insertion import _resize
from otter_export.modeling.layers import (
    ProjectionWidths,
    WidenedFusedProjection,
    WidenedHeadNorm,
    WidenedNorm,
)
from otter_export.modeling.otter_model import base_logits

Array = np.ndarray[Any, Any]
EPSILON = 1e-3


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def close(found: torch.Tensor, expected: Array) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5, rtol=0)


def normalized(x: Array, is_layer_norm: bool) -> Array:
    wide = x.astype(np.float64)
    if is_layer_norm:
        wide = wide - wide.mean(-1, keepdims=True)
    found: Array = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + EPSILON)
    return found


@pytest.mark.parametrize("is_layer_norm", [False, True])
@pytest.mark.parametrize("axis", [1, -2])
def test_a_norm_of_heads_has_the_statistics_of_each(is_layer_norm: bool, axis: int) -> None:
    kind = nn.LayerNorm if is_layer_norm else nn.RMSNorm
    base = randomized(kind(8, eps=EPSILON))
    module = randomized(WidenedHeadNorm(base, is_layer_norm, 4, axis, 8), seed=1)
    assert [n for n, _ in module.named_parameters() if n.startswith("otter")] == (
        ["otter.weight", "otter.bias"] if is_layer_norm else ["otter.weight"]
    )
    x = torch.randn(2, 3, 6, 8) + 2
    if axis == 1:
        x = x.transpose(1, 2)
    heads, extra = x.split([4, 2], dim=axis)
    found = module(x).split([4, 2], dim=axis)
    assert torch.equal(found[0], base(heads.contiguous()))
    expected = normalized(extra.numpy(), is_layer_norm) * module.otter.weight.detach().numpy()
    if is_layer_norm:
        expected = expected + module.otter.bias.detach().numpy()
    close(found[1], expected)


def test_a_norm_over_all_heads_has_the_statistics_of_the_base() -> None:
    """OLMo 2: the queries of the base's heads are one vector, and so are the extra ones."""
    module = randomized(WidenedNorm(nn.RMSNorm(12, eps=EPSILON), False, 12, 6), seed=1)
    x = torch.randn(2, 3, 18)
    base = x[..., :12].numpy().astype(np.float64)
    r = 1 / np.sqrt((base**2).mean(-1, keepdims=True) + EPSILON)
    close(module(x)[..., 12:], x[..., 12:].numpy() * r * module.otter.weight.detach().numpy())


def test_a_fused_projection_head_by_head() -> None:
    """``[q1 k1 v1 q2 k2 v2 | q'1 k'1 v'1]``: three base heads of size 2, one extra head."""
    base = randomized(nn.Linear(5, 18))
    widths = ProjectionWidths(base_in=5, channel_in=3, base_out=6, channel_out=4)
    module = WidenedFusedProjection(base, dict.fromkeys("qkv", widths), (2, 6))
    randomized(module, seed=1)
    x = torch.randn(2, 3, 8)
    found = module(x)
    assert torch.equal(found[..., :18], base(x[..., :5].contiguous()))
    parts = []
    for part in "qkv":
        otter = module.get_submodule(part).otter
        a, b, bias = (t.detach().numpy() for t in (otter.from_base, otter.from_channel, otter.bias))
        parts.append(x[..., :5].numpy() @ a.T + x[..., 5:].numpy() @ b.T + bias)
    heads = [part[..., 2 * h : 2 * h + 2] for h in range(2) for part in parts]
    close(found[..., 18:], np.concatenate(heads, axis=-1))


def test_a_fused_projection_part_by_part() -> None:
    """``[gate gate' up up']``, without a bias."""
    base = randomized(nn.Linear(5, 14, bias=False))
    widths = ProjectionWidths(base_in=5, channel_in=3, base_out=7, channel_out=4)
    module = WidenedFusedProjection(base, dict.fromkeys(("gate", "up"), widths))
    randomized(module, seed=1)
    x = torch.randn(2, 8)
    y, found = base(x[:, :5].contiguous()), module(x)
    assert torch.equal(found[:, :7], y[:, :7]) and torch.equal(found[:, 11:18], y[:, 7:])
    for part, start in (("gate", 7), ("up", 18)):
        otter = module.get_submodule(part).otter
        assert otter.bias is None
        a, b = (t.detach().numpy() for t in (otter.from_base, otter.from_channel))
        close(found[:, start : start + 4], x[:, :5].numpy() @ a.T + x[:, 5:].numpy() @ b.T)


def test_sizes_that_a_forward_reads_grow_in_a_copy_of_the_config() -> None:
    """Phi-3 splits by the config's number of heads, which all layers share with the model."""
    shared = SimpleNamespace(num_attention_heads=4, hidden_size=64)
    first, second = (
        SimpleNamespace(config=shared, num_key_value_heads=2, split_size=64) for _ in range(2)
    )
    channel = OtterConfig(16, 24, 2, 1, 16)
    _resize(first, "config.num_attention_heads", Space.QUERY, channel)
    _resize(first, "num_key_value_heads", Space.KEY, channel)
    _resize(first, "split_size", Space.QUERY, channel)
    assert vars(first.config) == {"num_attention_heads": 6, "hidden_size": 64}
    assert (first.num_key_value_heads, first.split_size) == (3, 96)
    assert shared.num_attention_heads == 4 and second.config is shared


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, lambda z: z),
        ({"logit_scale": 0.25}, lambda z: 0.25 * z),
        ({"logits_scaling": 8.0}, lambda z: z / 8),
        ({"final_logit_softcapping": None}, lambda z: z),
        ({"final_logit_softcapping": 2.0}, lambda z: 2 * np.tanh(z / 2)),
    ],
)
def test_logits_are_scaled_or_capped_as_the_config_says(
    settings: dict[str, Any], expected: Any
) -> None:
    """As the causal models of Cohere, Granite and Gemma 2 do behind their heads."""
    head = randomized(nn.Linear(4, 9))
    base = SimpleNamespace(config=SimpleNamespace(**settings), get_output_embeddings=lambda: head)
    state = torch.randn(2, 3, 4)
    found = base_logits(base, state)
    weight, bias = (p.detach().numpy() for p in (head.weight, head.bias))
    close(found, expected(state.numpy() @ weight.T + bias))
