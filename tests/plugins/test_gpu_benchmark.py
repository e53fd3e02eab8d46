"""L1: all of the GPU benchmark but the launches: shapes, floors, forms, and what it refuses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import fused_projection, timing
from benchmarks.gpu.forms import FORMS, Tensors, draw, error
from benchmarks.gpu.layers import MODELS, floor_microseconds, moved_bytes
from otter_export.plugins.tiles import TILES, Widths


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


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A device whose clock shows what the test says, and whose tensors are on the CPU."""
    times = {"fused": 30.0, "two calls": 40.0, "three calls": 50.0}
    properties = SimpleNamespace(name="A GPU", multi_processor_count=132, L2_cache_size=1 << 20)

    def graph_of(launches: Callable[[], object]) -> object:
        return launches()

    def best(graphs: dict[str, object]) -> dict[str, float]:
        assert all(len(results) == 8 for results in graphs.values())  # one for each copy
        return {name: 8 * times[name] for name in graphs}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(timing, "bandwidth", lambda: 1e11)
    monkeypatch.setattr(timing, "graph_of", graph_of)
    monkeypatch.setattr(timing, "best_microseconds", best)
    on_cpu = functools.partial(_draw_on_cpu, draw)
    monkeypatch.setattr(fused_projection, "draw", on_cpu)
    monkeypatch.setattr(fused_projection, "_times_of_tiles", lambda copies: {TILES[0]: 25.0})
    return times


def _draw_on_cpu(
    plain: Callable[..., Tensors], widths: Widths, rows: int, dtype: torch.dtype, *rest: Any
) -> Tensors:
    return plain(widths, rows, dtype, "cpu", rest[1])


def test_the_table(
    pretended_gpu: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # 2 (192 576 + 64 576 + 64 64) + 2 2 (576 + 64 + 192 + 64) = 306688 bytes, at 100 GB/s 3.07 us.
    monkeypatch.setattr(timing, "copies_of", lambda size: 8)
    small = {"k, v": MODELS["135M"].projections()["k, v"]}
    monkeypatch.setattr(
        fused_projection, "MODELS", {"135M": SimpleNamespace(projections=lambda: small)}
    )
    arguments = ["--models", "135M", "--rows", "2", "--sweep"]
    assert fused_projection.main(arguments) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| 135M | k, v | 2 | 3.07 | 30.00 | 40.00 | 50.00 | 9.78 | 0.75 | ")
    assert row.endswith(" | 16x16x256 | 16x16x256 25.00 |")
    # A wrong result is a failure of the run.
    monkeypatch.setattr(fused_projection, "error", lambda pair, tensors: float("nan"))
    assert fused_projection.main(arguments) == 1


def test_copies_exceed_the_cache(pretended_gpu: dict[str, float]) -> None:
    assert timing.copies_of(1 << 20) == 4
    assert timing.copies_of(3 << 19) == 3
    assert timing.copies_of(1 << 30) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: nothing to refuse")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert fused_projection.main([]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: this needs an NVIDIA GPU; --dry-run prints shapes and floors\n"
    assert captured.out == ""
