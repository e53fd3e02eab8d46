"""L4: cache memory on every device against the same in numpy, and what a missing device says."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.cuda import CudaDevice, gpu_capabilities
from otter_export.errors import EngineError, MissingDependencyError
from otter_export.runtime.memory.block import Move
from otter_export.runtime.memory.cuda import CudaBlock, cuda_memory
from otter_export.runtime.memory.host import HostBlock, host_memory
from otter_export.runtime.memory.pool import Pool
from otter_export.runtime.memory.torch import torch_memory
from otter_export.runtime.recent import Recent
from tests.devices import has_gpu
from tests.runtime.executors.fake_tensorrt import bytes_at
from tests.runtime.memory.fake_cuda import FakeCuda

SHAPE = (4, 3, 2, 7, 5)


@pytest.fixture(scope="module")
def runtime() -> Any:
    return pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")


@pytest.fixture
def cuda(runtime: Any) -> FakeCuda:
    return FakeCuda(runtime)


def array_of(block: CudaBlock) -> np.ndarray[Any, Any]:
    count = int(np.prod(block.shape))
    return bytes_at(block.pointer, 2 * count).view(np.float16).reshape(block.shape)


def host_block(values: np.ndarray[Any, Any] | None = None) -> HostBlock:
    block = host_memory().block(SHAPE, "float16")
    block.array[:] = 0 if values is None else values
    return block


@st.composite
def moves_of_rows(draw: st.DrawFn) -> list[Move]:
    """Runs of one to three rows, none of which is written twice."""
    written: set[tuple[int, int]] = set()
    moves = []
    for _ in range(draw(st.integers(0, 6))):
        rows = draw(st.integers(1, 3))
        places, slots = st.integers(0, 2), st.integers(0, 7 - rows)
        move = Move(draw(places), draw(slots), draw(places), draw(slots), rows)
        target = {(move.place, move.slot + i) for i in range(rows)}
        if written.isdisjoint(target):
            written |= target
            moves.append(move)
    return moves


@given(moves=moves_of_rows(), inside=st.booleans(), start=st.integers(0, 7))
def test_rows_move_as_one_by_one_in_numpy(
    runtime: Any, moves: list[Move], inside: bool, start: int
) -> None:
    """Any moves, overlapping ones inside a block too: all are read before any is written."""
    import torch

    values = np.random.default_rng(1).standard_normal((2, *SHAPE)).astype(np.float16)
    memory = cuda_memory(CudaDevice(FakeCuda(runtime)))
    made = [memory.block(SHAPE, "float16") for _ in range(2)]
    torch_made = [torch_memory("cpu", lambda _: None).block(SHAPE, "float16") for _ in range(2)]
    host = [host_block(values[i]) for i in range(2)]
    for i in range(2):
        array_of(made[i])[:] = values[i]
        torch_made[i].tensor.copy_(torch.from_numpy(values[i]))
    expected, read = values[0].copy(), values[0 if inside else 1]
    for place, slot, source_place, source_slot, rows in moves:
        for i in range(rows):
            expected[:, place, :, slot + i] = read[:, source_place, :, source_slot + i]
    expected[:, 1, :, start:] = 0
    blocks: Any
    for blocks in (host, made, torch_made):
        blocks[0].put(moves, blocks[0] if inside else blocks[1])
        blocks[0].clear(1, start)
    assert np.array_equal(host[0].array, expected)
    assert np.array_equal(array_of(made[0]), expected)
    assert np.array_equal(torch_made[0].tensor.numpy(), expected)


def test_addresses_of_slices(cuda: FakeCuda) -> None:
    made = cuda_memory(CudaDevice(cuda)).block(SHAPE, "bfloat16")
    assert [made.address(i) - made.pointer for i in range(4)] == [0, 420, 840, 1260]
    torch_made = torch_memory("cpu", lambda address: None).block(SHAPE, "bfloat16")
    assert [torch_made.address(i) - torch_made.address(0) for i in range(4)] == [0, 420, 840, 1260]
    host = host_block()
    assert [host.address(i) - host.address(0) for i in range(4)] == [0, 420, 840, 1260]


def test_a_run_of_rows_is_one_copy(cuda: FakeCuda) -> None:
    memory = cuda_memory(CudaDevice(cuda))
    blocks = [memory.block(SHAPE, "float16") for _ in range(2)]
    blocks[0].put([Move(0, 4, 2, 1, 3), Move(1, 0, 1, 5, 1)], blocks[1])
    assert cuda.calls.count("cudaMemcpy3DAsync") == 2


def test_memory_is_zero_reused_and_given_up(cuda: FakeCuda) -> None:
    dropped: list[int] = []
    memory = cuda_memory(CudaDevice(cuda), dropped.append)
    block = memory.block(SHAPE, "float16")
    assert not array_of(block).any()
    array_of(block)[:] = 1
    pointer = block.pointer
    del block
    used = memory.block(SHAPE, "float16", zeroed=False)
    assert used.pointer == pointer and array_of(used).all()
    del used
    again = memory.block(SHAPE, "float16")
    assert again.pointer == pointer and not array_of(again).any()
    many = [memory.block(SHAPE, "float16") for _ in range(6)]
    del many
    assert len(dropped) == 2 and pointer not in dropped
    memory.clear()
    assert len(dropped) == 6 and list(cuda.blocks) == [pointer]


def test_a_full_device_first_gives_up_what_nothing_uses(runtime: Any) -> None:
    size = 2 * int(np.prod(SHAPE))
    memory = cuda_memory(CudaDevice(FakeCuda(runtime, limit=2 * size)))
    first = memory.block(SHAPE, "float16")
    del first
    other = memory.block((4, 6, 2, 7, 5), "float16")
    assert other.shape[1] == 6
    with pytest.raises(EngineError, match=r"no 0.00 GiB left for a cache of 3 sequences of 7 tok"):
        memory.block(SHAPE, "float16")


def test_buffers_move_bytes(cuda: FakeCuda) -> None:
    buffer = CudaDevice(cuda).buffer(64)
    buffer.write(np.arange(6, dtype=np.int64).reshape(2, 3))
    assert buffer.read((3, 2), np.int64).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert bytes_at(buffer.address, 16).view(np.int64).tolist() == [0, 1]
    assert len(cuda.blocks) == 2
    del buffer
    assert not cuda.blocks


def test_a_captured_graph_is_launched_and_a_failed_capture_is_ended(cuda: FakeCuda) -> None:
    device, ran = CudaDevice(cuda), []

    def work() -> None:
        assert cuda.recording is not None
        cuda.recording.append(lambda: ran.append(1))

    launch = device.capture(work)
    assert not ran
    launch()
    launch()
    assert ran == [1, 1]

    def failing() -> None:
        raise EngineError("cannot")

    with pytest.raises(EngineError, match="cannot"):
        device.capture(failing)
    assert cuda.recording is None
    device.synchronize()


def test_a_device_names_its_capability(cuda: FakeCuda) -> None:
    assert (CudaDevice(cuda).capability, CudaDevice(cuda).stream) == ("8.9", 7)


def test_the_gpus_of_this_machine(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("otter_export.cuda._bindings", lambda *_: cuda)
        assert gpu_capabilities() == ("8.6", "8.9")
    broken = types.ModuleType("cuda.bindings.runtime")  # without any function
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", broken)
    assert gpu_capabilities() == ()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert gpu_capabilities() == ()


def test_the_recently_used_stay() -> None:
    table: Recent[int, list[int]] = Recent(2)
    first = table.get(1, list)
    table.get(2, list)
    assert table.get(1, list) is first
    table.get(3, list)
    assert table.get(1, list) is first and len(table) == 2
    made = table.get(2, lambda: [5])
    assert made == [5]
    table.forget(lambda key: key == 2)
    assert len(table) == 1


def test_a_pool_gives_the_oldest_of_a_size() -> None:
    dropped: list[str] = []
    pool: Pool[str] = Pool(dropped.append, keep=2)
    a, new = pool.take(8, lambda: "a")
    b, _ = pool.take(8, lambda: "b")
    assert new and (a.memory, b.memory) == ("a", "b")
    pool.give(b)
    pool.give(a)
    assert pool.take(9, lambda: "c")[0].memory == "c"
    assert pool.take(8, lambda: "d") == (a, False)
    pool.give(a)
    pool.give(pool.take(9, lambda: "e")[0])
    assert dropped == ["b"]


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_no_gpu(runtime: Any) -> None:
    with pytest.raises(EngineError, match=r"needs an NVIDIA GPU; cudaGet.*--target onnx") as caught:
        CudaDevice()
    assert "\n" not in str(caught.value)


def test_no_library_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match="needs the package 'cuda-bindings'"):
        CudaDevice()


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs a CUDA device")
def test_rows_move_through_torch_on_a_gpu() -> None:
    import torch

    made = torch_memory("cuda", lambda address: None).block(SHAPE, "float16")

    def write(values: np.ndarray[Any, Any]) -> None:
        made.tensor.copy_(torch.from_numpy(values))

    _check_moves_on_a_gpu(made, write, lambda: made.tensor.cpu().numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs a CUDA device")
def test_rows_move_through_cuda_bindings_on_a_gpu(runtime: Any) -> None:
    device = CudaDevice()
    made = cuda_memory(device).block(SHAPE, "float16")
    size = 2 * int(np.prod(SHAPE))

    def write(values: np.ndarray[Any, Any]) -> None:
        device.synchronize()
        (error,) = runtime.cudaMemcpy(
            made.pointer, values.ctypes.data, size, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        )
        assert int(error) == 0

    def read() -> np.ndarray[Any, Any]:
        device.synchronize()
        values = np.empty(SHAPE, np.float16)
        (error,) = runtime.cudaMemcpy(
            values.ctypes.data, made.pointer, size, runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        )
        assert int(error) == 0
        return values

    expected = _check_moves_on_a_gpu(made, write, read)
    launch = device.capture(lambda: made.clear(0, 0))
    assert np.array_equal(read(), expected.array)
    launch()
    expected.clear(0, 0)
    assert np.array_equal(read(), expected.array)
    buffer = device.buffer(expected.array.nbytes)
    buffer.write(expected.array)
    assert np.array_equal(buffer.read(SHAPE, np.float16), expected.array)


def _check_moves_on_a_gpu(
    made: Any,
    write: Callable[[np.ndarray[Any, Any]], None],
    read: Callable[[], np.ndarray[Any, Any]],
) -> HostBlock:
    """Moves that overlap, and a place that is cleared; returns what is there then."""
    values = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float16)
    expected = host_block(values)
    write(values)
    for block in (made, expected):
        block.put([Move(0, 1, 0, 0, 2), Move(2, 6, 2, 5, 1)], block)
        block.clear(1, 2)
    assert np.array_equal(read(), expected.array)
    return expected
