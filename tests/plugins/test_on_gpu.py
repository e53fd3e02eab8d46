"""L2, on a GPU only: the kernel itself, compiled just in time and ahead of time, against float64.

Skipped where this suite usually runs, without a GPU; they passed on an H100 (docs/gpu.md).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.forms import Tensors, draw, error
from otter_export.cuda import KernelLibrary
from otter_export.plugins.loaded_kernels import LoadedKernels
from otter_export.plugins.tiles import TILES, UNALIGNED_TILES, Tile, Widths
from otter_export.plugins.torch_op import linear, linear_joined

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = ("float16", "bfloat16")
SHAPES = [
    *((rows, Widths(576, 64, 576, 192)) for rows in (1, 5, 16, 32, 100)),
    (8, Widths(4096, 512, 11008, 1376)),
    (3, Widths(129, 7, 33, 65)),
]


def _linear(t: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    return linear(t.x, t.x_channel, t.weight, t.from_base, t.from_channel, None, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "widths"), SHAPES, ids=str)
def test_operator(rows: int, widths: Widths, dtype: str) -> None:
    tensors = draw(widths, rows, getattr(torch, dtype), "cuda")
    assert error(_linear(tensors), tensors) <= 1


def test_joined_operator() -> None:
    # The same kernel on the same values; nothing is copied, and the base's row lies before x'.
    for rows, widths in SHAPES:
        t = draw(widths, rows, torch.bfloat16, "cuda")
        weights = (t.weight, t.from_base, t.from_channel)
        joined = linear_joined(torch.cat((t.x, t.x_channel), dim=1), *weights, None, None)
        assert error(joined.split((widths.base_out, widths.channel_out), dim=1), t) <= 1


@pytest.mark.parametrize("tile", [*TILES, *UNALIGNED_TILES], ids=lambda tile: str(tile.name))
def test_every_tile(tile: Tile) -> None:
    from otter_export.plugins.otter_linear import launch

    t = draw(Widths(576, 64, 96, 48), tile.rows + 1, torch.bfloat16, "cuda")
    y, y_channel = (torch.empty_like(part) for part in _linear(t))
    launch(*(tile, t.x, t.x_channel, (t.weight, t.from_base, t.from_channel), None, y, y_channel))
    assert error((y, y_channel), t) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_cubins_through_the_driver(tmp_path: Path, dtype: str) -> None:
    from otter_export.plugins.cubins import build_cubins

    major, minor = torch.cuda.get_device_capability()
    torch.cuda.current_stream().synchronize()  # makes the context current
    index = build_cubins(tmp_path, (10 * major + minor,), dtypes=(dtype,))
    library = KernelLibrary()
    kernels = LoadedKernels(library, library.device(), index, dtype)
    for rows, widths in SHAPES:
        t = draw(widths, rows, getattr(torch, dtype), "cuda")
        bias, bias_channel = t.weight[:, 0].contiguous(), t.from_base[:, 0].contiguous()
        expected = linear(
            t.x, t.x_channel, t.weight, t.from_base, t.from_channel, bias, bias_channel
        )
        results = [torch.empty_like(part) for part in expected]
        given = (t.x, t.x_channel, t.weight, t.from_base, t.from_channel, bias, bias_channel)
        pointers = [tensor.data_ptr() for tensor in (*given, *results)]
        kernels.launch(rows, widths, pointers, torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        for result, one in zip(results, expected, strict=True):
            torch.testing.assert_close(result, one)


def test_in_a_cuda_graph() -> None:
    tensors = draw(Widths(576, 64, 1536, 192), 4, torch.float16, "cuda")
    expected = _linear(tensors)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _linear(tensors)
    tensors.x.neg_()
    tensors.x_channel.neg_()
    graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(captured, expected, strict=True):
        torch.testing.assert_close(one, -other, rtol=0, atol=0)


def test_types_that_differ_are_refused() -> None:
    tensors = draw(Widths(64, 64, 64, 64), 1, torch.float16, "cuda")
    mixed = dataclasses.replace(tensors, from_base=tensors.from_base.bfloat16())
    with pytest.raises(TypeError, match="tensors of one type"):
        _linear(mixed)
