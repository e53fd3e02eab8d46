"""L2: ``otter::linear`` is a well-behaved operator, and the reference keeps its values with it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from otter_export.checkpoint import Checkpoint
from otter_export.errors import MissingDependencyError
from otter_export.modeling.layers import WidenedProjection
from otter_export.modeling.otter_model import load_reference
from otter_export.plugins.cubins import build_cubins
from otter_export.plugins.torch_op import (
    FusedProjection,
    linear,
    linear_joined,
    use_fused_projections,
)


def _arguments(dtype: torch.dtype, *, bias: bool) -> tuple[torch.Tensor | None, ...]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    weights = (draw(24, 32), draw(12, 32), draw(12, 8))
    return (
        draw(2, 3, 32),
        draw(2, 3, 8),
        *weights,
        *((draw(24), draw(12)) if bias else (None,) * 2),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_operator(dtype: torch.dtype, bias: bool) -> None:
    arguments = _arguments(dtype, bias=bias)
    torch.library.opcheck(linear, arguments)
    x, x_channel, weight, from_base, from_channel, b, b_channel = arguments
    y, y_channel = linear(*arguments)
    assert y.dtype == y_channel.dtype == dtype
    # The base part is the base's own arithmetic, bit for bit.
    assert torch.equal(y, torch.nn.functional.linear(x, weight, b))
    exact = x.double() @ from_base.double().T + x_channel.double() @ from_channel.double().T
    exact += 0 if b_channel is None else b_channel.double()
    rounding = torch.finfo(dtype).eps / 2
    # One rounding; 41 additions in float32 are far below it, except in float32 itself.
    tolerance = rounding * exact.abs() + 50 * 2.0**-24 * exact.abs().max()
    assert ((y_channel.double() - exact).abs() <= tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_joined_operator_equals_the_other(dtype: torch.dtype) -> None:
    x, x_channel, *rest = _arguments(dtype, bias=True)
    state = torch.cat((x, x_channel), dim=-1)
    torch.library.opcheck(linear_joined, (state, *rest))
    y, y_channel = linear(x, x_channel, *rest)
    assert torch.equal(linear_joined(state, *rest), torch.cat((y, y_channel), dim=-1))


def test_shapes_without_values() -> None:
    arguments = [None if a is None else a.to("meta") for a in _arguments(torch.float16, bias=True)]
    y, y_channel = linear(*arguments)
    assert (y.shape, y_channel.shape) == ((2, 3, 24), (2, 3, 12))
    assert y.is_meta


def test_reference_with_fused_projections(tiny_checkpoint: Path) -> None:
    model = load_reference(Checkpoint.open(tiny_checkpoint)).to(torch.bfloat16).eval()
    ids = torch.arange(1, 9).reshape(2, 4)
    with torch.no_grad():
        plain = model(ids)
        names = {name for name, _ in model.named_parameters()}
        changed = use_fused_projections(model)
        fused = model(ids)
    # q, k, v, o, gate, up and down of every layer.
    layers = model.base.config.num_hidden_layers
    assert changed == 7 * layers
    assert sum(type(m) is FusedProjection for m in model.modules()) == changed
    assert {name for name, _ in model.named_parameters()} == names
    assert torch.equal(fused.logits, plain.logits)  # base values do not change at all
    for name, values in plain.signals.items():
        # bfloat16: three significant digits; the fused form rounds less often.
        torch.testing.assert_close(fused.signals[name], values, rtol=3e-2, atol=3e-2)
    assert use_fused_projections(model) == 0


def test_it_is_for_inference(tiny_checkpoint: Path) -> None:
    model = load_reference(Checkpoint.open(tiny_checkpoint)).to(torch.bfloat16)
    use_fused_projections(model)
    projection = next(m for m in model.modules() if isinstance(m, FusedProjection))
    x = torch.randn(2, projection.widths.base_in + projection.widths.channel_in).bfloat16()
    out = projection(x)
    assert torch.equal(out, WidenedProjection.forward(projection, x))
    assert out.requires_grad  # as before: the operator itself has no gradient


def test_compiling_without_triton_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'otter-export\[trt\]'"):
        build_cubins(tmp_path, (80,))
    assert not list(tmp_path.iterdir())
