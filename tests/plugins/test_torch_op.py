"""L1: ``otter::linear`` is a well-behaved operator."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from otter_export.errors import MissingDependencyError
from otter_export.plugins.cubins import build_cubins
from otter_export.plugins.torch_op import linear, linear_joined


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


def test_compiling_without_triton_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'otter-export\[trt\]'"):
        build_cubins(tmp_path, (80,))
    assert not list(tmp_path.iterdir())
