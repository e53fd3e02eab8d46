"""L1: all of the GPU benchmark but the launches: shapes, floors, forms, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.gpu import fused_projection
from benchmarks.gpu.forms import FORMS, draw, error
from benchmarks.gpu.layers import MODELS, floor_microseconds, moved_bytes
from otter_export.plugins.tiles import Widths


def test_dry_run_prints_every_case(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    assert fused_projection.main(["--dry-run", "--rows", "1", "32", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert out.read_text() == printed
    lines = printed.splitlines()[2:]
    assert len(lines) == 4 * 5 * 2
    # 8192 x 28672 + 64 x 28672 + 256 x 28672 ... two bytes each, at 3350 GB/s.
    assert "| 70B | down | 28672 + 256 | 8192 + 64 | 1 | 473.54 | 141.35 | 16x16x256 |" in lines


def test_floor_by_hand() -> None:
    widths = Widths(base_in=100, channel_in=10, base_out=50, channel_out=5)
    values = 50 * 100 + 5 * 100 + 5 * 10 + 3 * (100 + 10 + 50 + 5)
    assert moved_bytes(widths, 3) == 2 * values
    assert floor_microseconds(widths, 3, 1e6) == 2 * values


def test_channel_widths_are_the_default_ones() -> None:
    smollm2 = MODELS["135M"].projections()
    # What `otter-export insert` gives SmolLM2-135M: d' = 64, m' = 192, 3 heads and 1 of 64.
    assert smollm2["q"] == Widths(576, 64, 576, 192)
    assert smollm2["k, v"] == Widths(576, 64, 192, 64)
    assert smollm2["o"] == Widths(576, 192, 576, 64)
    assert smollm2["gate, up"] == Widths(576, 64, 1536, 192)
    assert smollm2["down"] == Widths(1536, 192, 576, 64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_forms_compute_the_same(dtype: torch.dtype) -> None:
    tensors = draw(Widths(96, 32, 64, 48), 5, dtype, "cpu")
    assert error(FORMS["fused"](tensors), tensors) <= 1
    # cuBLAS's forms round two times, the second time a sum: they may be off by more, but not much.
    for form in FORMS.values():
        y, y_channel = form(tensors)
        assert (y.shape, y_channel.shape) == ((5, 64), (5, 48))
        assert y.dtype == y_channel.dtype == dtype
        exact = tensors.x.double() @ tensors.from_base.double().T
        exact += tensors.x_channel.double() @ tensors.from_channel.double().T
        torch.testing.assert_close(y_channel.double(), exact, rtol=0.05, atol=0.05)


def test_a_wrong_result_is_noticed() -> None:
    tensors = draw(Widths(96, 32, 64, 48), 5, torch.float16, "cpu")
    y, y_channel = FORMS["fused"](tensors)
    spoilt = y_channel.clone()
    spoilt[3, 7] *= 1.01
    assert error((y, spoilt), tensors) > 1
    assert error((y + 0.01, y_channel), tensors) > 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: nothing to refuse")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert fused_projection.main([]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: this needs an NVIDIA GPU; --dry-run prints shapes and floors\n"
    assert captured.out == ""
