"""L1: loading and launching compiled kernels, against a stub of the CUDA driver's library.

The stub reads the arguments of a launch by the sizes that test_cubins.py finds in the kernels, so
what it writes down is what a kernel would read.
"""

from __future__ import annotations

import dataclasses

import pytest

from otter_export.cuda import KernelLibrary
from otter_export.errors import EngineError
from otter_export.plugins.cubin_index import CubinIndex
from otter_export.plugins.loaded_kernels import KernelLoader, LoadedKernels
from otter_export.plugins.tiles import TILES, UNALIGNED_TILES, Widths, choose_tile, grid
from tests.plugins.conftest import StubDriver

WIDTHS = Widths(base_in=576, channel_in=64, base_out=1536, channel_out=192)
#: Every address another, and wider than 32 bits.
POINTERS = tuple(0x7F0000000000 + 0x1000 * i for i in range(9))
STREAM = 0x5555_0000_0001


def _load(stub: StubDriver, cubins: CubinIndex) -> LoadedKernels:
    return KernelLoader(cubins, KernelLibrary(stub.bindings())).load("float16")


def test_a_launch_passes_every_argument(stub: StubDriver, cubins: CubinIndex) -> None:
    _load(stub, cubins).launch(5, WIDTHS, POINTERS, STREAM)
    (call,) = stub.calls("launch")
    tile = choose_tile(5, WIDTHS, 132, TILES)
    assert call["pointers"] == list(POINTERS)
    assert call["integers"] == [5, *2 * [576, 64, 1536, 192], 1]
    assert call["scratch"] == [0, 0]
    assert call["grid"] == [*grid(tile, 5, WIDTHS), 1]
    assert call["block"] == [32 * tile.warps, 1, 1]
    assert call["stream"] == STREAM
    (cubin,) = [c for c in cubins.select(90, "float16") if c.tile == tile and c.aligned]
    assert call["shared"] == cubin.shared_bytes


def test_without_bias_its_pointers_are_null(stub: StubDriver, cubins: CubinIndex) -> None:
    pointers = (*POINTERS[:5], 0, 0, *POINTERS[7:])
    _load(stub, cubins).launch(1, WIDTHS, pointers, STREAM)
    (call,) = stub.calls("launch")
    assert call["pointers"] == list(pointers)
    assert call["integers"][-1] == 0


@pytest.mark.parametrize(
    ("widths", "shift"),
    [(dataclasses.replace(WIDTHS, base_in=577), 0), (WIDTHS, 2)],
    ids=["a width that is no multiple of 8", "an address off by one value"],
)
def test_what_is_not_aligned_takes_another_kernel(
    stub: StubDriver, cubins: CubinIndex, widths: Widths, shift: int
) -> None:
    pointers = (POINTERS[0] + shift, *POINTERS[1:])
    _load(stub, cubins).launch(3, widths, pointers, STREAM)
    (call,) = stub.calls("launch")
    tile = choose_tile(3, widths, 132, UNALIGNED_TILES)
    assert call["grid"] == [*grid(tile, 3, widths), 1]
    assert call["block"] == [32 * tile.warps, 1, 1]


def test_no_rows_launch_nothing(stub: StubDriver, cubins: CubinIndex) -> None:
    _load(stub, cubins).launch(0, WIDTHS, POINTERS, STREAM)
    assert not stub.calls("launch")


def test_kernels_are_loaded_once_for_a_context(stub: StubDriver, cubins: CubinIndex) -> None:
    loader = KernelLoader(cubins, KernelLibrary(stub.bindings()))
    first = loader.load("float16")
    assert loader.load("float16") is first
    assert len(stub.calls("load")) == len(TILES) + len(UNALIGNED_TILES)
    stub.set(context=0xD0)
    assert loader.load("float16") is not first


def test_more_shared_memory_is_asked_for(stub: StubDriver, cubins: CubinIndex) -> None:
    _load(stub, cubins)
    large = sorted(
        c.shared_bytes for c in cubins.select(90, "float16") if c.shared_bytes > 48 << 10
    )
    asked = stub.calls("attribute")
    assert large and sorted(call["value"] for call in asked) == large
    assert {call["attribute"] for call in asked} == {8}  # MAX_DYNAMIC_SHARED_SIZE_BYTES


def test_errors_are_one_line(stub: StubDriver, cubins: CubinIndex) -> None:
    stub.set(missing=1)
    with pytest.raises(EngineError, match="runs on NVIDIA GPUs only"):
        KernelLibrary(stub.bindings())
    stub.set(missing="")
    stub.set(fail="cuInit:100")
    with pytest.raises(EngineError, match="cuInit failed with 100 \\(unknown error\\)"):
        KernelLibrary(stub.bindings())
    stub.set(fail="cuModuleLoadData:218")
    with pytest.raises(EngineError, match="cuModuleLoadData failed with 218"):
        _load(stub, cubins)
    stub.set(fail="", context=0)
    with pytest.raises(EngineError, match="no CUDA context is current"):
        _load(stub, cubins)
    stub.set(context=1, capability=75)
    with pytest.raises(
        EngineError, match=r"compute capability 7\.5; it has float16 for 8\.0, 9\.0"
    ):
        _load(stub, cubins)
    stub.set(capability=90, fail="cuLaunchKernel:700")
    with pytest.raises(EngineError, match=r"cuLaunchKernel failed with 700 .an illegal memory"):
        _load(stub, cubins).launch(1, WIDTHS, POINTERS, STREAM)
