"""L1: the just-in-time launch compiles for any widths; all of it but the launch, without a GPU.

Triton makes integers that are 1 into constants and marks those that are multiples of 16, so what
it compiles depends on the widths, other than ahead of time.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

triton = pytest.importorskip(
    "triton", reason="OpenAI Triton, the kernel language, is not installed"
)

Compile = Callable[..., str]


class _Device:
    """Stands in for the driver of a device of compute capability 9.0."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def compile_launch(monkeypatch: pytest.MonkeyPatch) -> Compile:
    """`launch` with the last step left out; returns the PTX."""
    from otter_export.plugins.otter_linear import launch, otter_linear

    compiled: list[Any] = []
    run = otter_linear.run

    def warm_up(*arguments: Any, warmup: bool, **options: Any) -> None:
        compiled.append(run(*arguments, warmup=True, **options))

    monkeypatch.setattr(otter_linear, "run", warm_up)
    # What is compiled for the stand-in must not be found by a test that has a real device.
    caches = collections.defaultdict(otter_linear.create_binder)
    monkeypatch.setattr(otter_linear, "device_caches", caches)
    monkeypatch.setattr(triton.runtime.driver, "_active", _Device())

    def compile_one(*arguments: Any) -> str:
        launch(*arguments)
        return str(compiled[-1].asm["ptx"])

    return compile_one


def _arguments(
    rows: int, widths: tuple[int, int, int, int], *, joined: bool = False, bias: bool = False
) -> tuple[Any, ...]:
    """Arguments of `launch` after the tile; ``joined``: x and x' are columns of one tensor."""
    base_in, channel_in, base_out, channel_out = widths

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float16)

    x, x_channel = empty(rows, base_in), empty(rows, channel_in)
    y, y_channel = empty(rows, base_out), empty(rows, channel_out)
    if joined:
        x, x_channel = empty(rows, base_in + channel_in).split([base_in, channel_in], dim=1)
        y, y_channel = empty(rows, base_out + channel_out).split([base_out, channel_out], dim=1)
    weights = empty(base_out, base_in), empty(channel_out, base_in), empty(channel_out, channel_in)
    return x, x_channel, weights, (y[0], y_channel[0]) if bias else None, y, y_channel


@pytest.mark.parametrize(
    "widths",
    [
        (1, 1, 1, 1),
        (64, 1, 1, 64),
        (64, 64, 64, 1),
        (16, 16, 1, 16),
        (1, 64, 64, 64),
        (33, 7, 5, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
def test_any_widths_compile(
    compile_launch: Compile, widths: tuple[int, int, int, int], joined: bool
) -> None:
    from otter_export.plugins.tiles import UNALIGNED_TILES

    arguments = _arguments(1, widths, joined=joined, bias=joined)
    ptx = compile_launch(UNALIGNED_TILES[0], *arguments)
    assert ".visible .entry otter_linear" in ptx


@pytest.mark.parametrize("joined", [False, True], ids=["apart", "joined"])
@pytest.mark.parametrize("rows", [1, 5, 16])
def test_usual_widths_are_read_16_bytes_at_a_time(
    compile_launch: Compile, rows: int, joined: bool
) -> None:
    from otter_export.plugins.tiles import TILES

    ptx = compile_launch(TILES[1], *_arguments(rows, (576, 64, 576, 192), joined=joined))
    copies = re.findall(r"cp\.async\.\S+ \[[^]]*\], \[[^]]*\], (\w+)", ptx)
    assert copies and {int(size, 0) for size in copies} == {16}


def test_one_compilation_serves_all_row_counts(compile_launch: Compile) -> None:
    from otter_export.plugins.tiles import TILES

    first = compile_launch(TILES[1], *_arguments(1, (576, 64, 576, 192)))
    assert compile_launch(TILES[1], *_arguments(16, (576, 64, 576, 192))) == first
