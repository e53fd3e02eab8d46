"""L4: cache memory on a device against the same in numpy, and what a missing device says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.errors import EngineError
from otter_export.runtime.backends import device as device_module
from otter_export.runtime.backends.cuda_device import CudaDevice
from otter_export.runtime.backends.cuda_slots import CudaSlots, runs
from otter_export.runtime.backends.device import open_device
from otter_export.runtime.backends.host_slots import HostSlots
from otter_export.runtime.backends.recent import Recent
from otter_export.runtime.backends.slot_pool import SlotPool
from otter_export.runtime.backends.torch_slots import TorchMemory
from tests.runtime.in_place.fake_cuda import FakeCuda
from tests.runtime.in_place.fake_tensorrt import bytes_at

SHAPE = (4, 3, 2, 7, 5)


@pytest.fixture(scope="module")
def runtime() -> Any:
    return pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")


@pytest.fixture
def cuda(runtime: Any) -> FakeCuda:
    return FakeCuda(runtime)


def array_of(slots: CudaSlots) -> np.ndarray[Any, Any]:
    count = int(np.prod(slots.shape))
    return bytes_at(slots.pointer, 2 * count).view(np.float16).reshape(slots.shape)


positions = st.tuples(st.integers(0, 2), st.integers(0, 6))


@given(
    targets=st.lists(positions, max_size=9, unique=True),
    sources=st.lists(positions, min_size=9, max_size=9),
    inside=st.booleans(),
    start=st.integers(0, 7),
)
def test_slots_move_as_in_numpy(
    runtime: Any,
    targets: list[tuple[int, int]],
    sources: list[tuple[int, int]],
    inside: bool,
    start: int,
) -> None:
    """Any moves, overlapping ones inside a block too: all are read before any is written."""
    columns = [
        np.array(c, np.int64)
        for pairs in (targets, sources[: len(targets)])
        for c in ([p for p, _ in pairs], [s for _, s in pairs])
    ]
    values = np.random.default_rng(1).standard_normal((2, *SHAPE)).astype(np.float16)
    expected = [HostSlots(SHAPE, np.dtype(np.float16)) for _ in range(2)]
    memory = CudaDevice(FakeCuda(runtime)).memory(lambda address: None)
    made = [memory.slots(SHAPE, "float16") for _ in range(2)]
    torch_made = [
        TorchMemory("cpu", lambda address: None).slots(SHAPE, "float16") for _ in range(2)
    ]
    import torch

    for i in range(2):
        expected[i].array[:] = array_of(made[i])[:] = values[i]
        torch_made[i].tensor.copy_(torch.from_numpy(values[i]))
    for blocks in (expected, made, torch_made):
        source = blocks[0] if inside else blocks[1]
        blocks[0].put(columns[0], columns[1], source, columns[2], columns[3])
        blocks[0].clear(1, start)
    assert np.array_equal(array_of(made[0]), expected[0].array)
    assert np.array_equal(torch_made[0].tensor.numpy(), expected[0].array)


def test_addresses_of_slices(cuda: FakeCuda) -> None:
    made = CudaDevice(cuda).memory(lambda address: None).slots(SHAPE, "bfloat16")
    assert [made.address(i) - made.pointer for i in range(4)] == [0, 420, 840, 1260]
    torch_made = TorchMemory("cpu", lambda address: None).slots(SHAPE, "bfloat16")
    assert [torch_made.address(i) - torch_made.address(0) for i in range(4)] == [0, 420, 840, 1260]


def test_neighbouring_slots_are_one_copy() -> None:
    columns = [
        np.array(c) for c in ([0, 0, 0, 1, 1], [4, 5, 6, 0, 2], [2, 2, 2, 1, 1], [1, 2, 3, 5, 7])
    ]
    assert list(runs(*columns)) == [(0, 3), (3, 1), (4, 1)]


def test_memory_is_zero_reused_and_given_up(cuda: FakeCuda) -> None:
    dropped: list[int] = []
    memory = CudaDevice(cuda).memory(dropped.append)
    slots = memory.slots(SHAPE, "float16")
    assert not array_of(slots).any()
    array_of(slots)[:] = 1
    pointer = slots.pointer
    del slots
    again = memory.slots(SHAPE, "float16")
    assert again.pointer == pointer and not array_of(again).any()
    many = [memory.slots(SHAPE, "float16") for _ in range(6)]
    del many
    assert len(dropped) == 2 and pointer not in dropped
    memory.clear()
    assert len(dropped) == 6 and list(cuda.blocks) == [pointer]


def test_a_full_device_first_gives_up_what_nothing_uses(runtime: Any) -> None:
    size = 2 * int(np.prod(SHAPE))
    memory = CudaDevice(FakeCuda(runtime, limit=2 * size)).memory(lambda address: None)
    first = memory.slots(SHAPE, "float16")
    del first
    other = memory.slots((4, 6, 2, 7, 5), "float16")
    assert other.shape[1] == 6
    with pytest.raises(EngineError, match=r"no 0.00 GiB left for a cache of 3 sequences of 7 tok"):
        memory.slots(SHAPE, "float16")


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
    pool: SlotPool[str] = SlotPool(dropped.append, keep=2)
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


def _has_gpu() -> bool:
    try:
        open_device()
    except EngineError:
        return False
    return True


@pytest.mark.skipif(_has_gpu(), reason="there is a GPU")
def test_no_gpu(runtime: Any) -> None:
    with pytest.raises(EngineError, match=r"needs an NVIDIA GPU; cudaGet.*--target onnx") as caught:
        open_device()
    assert "\n" not in str(caught.value)


def test_no_library_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from otter_export.errors import MissingDependencyError

    monkeypatch.setattr(device_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="needs the package 'cuda-bindings'"):
        open_device()


@pytest.mark.gpu
@pytest.mark.skipif(not _has_gpu(), reason="needs a CUDA device")
def test_slots_through_torch_on_a_gpu() -> None:
    import torch

    from otter_export.runtime.backends.torch_device import TorchDevice

    device = TorchDevice()
    made = device.memory(lambda address: None).slots(SHAPE, "float16")

    def write(values: np.ndarray[Any, Any]) -> None:
        made.tensor.copy_(torch.from_numpy(values))
        torch.cuda.synchronize()

    _check_on_a_gpu(device, made, write, lambda: made.tensor.cpu().numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not _has_gpu(), reason="needs a CUDA device")
def test_slots_through_cuda_bindings_on_a_gpu(runtime: Any) -> None:
    device = CudaDevice()
    made = device.memory(lambda address: None).slots(SHAPE, "float16")
    size = 2 * int(np.prod(SHAPE))

    def write(values: np.ndarray[Any, Any]) -> None:
        device.synchronize()
        (error,) = runtime.cudaMemcpy(
            made.pointer, values.ctypes.data, size, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        )
        assert int(error) == 0

    def read() -> np.ndarray[Any, Any]:
        values = np.empty(SHAPE, np.float16)
        (error,) = runtime.cudaMemcpy(
            values.ctypes.data, made.pointer, size, runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        )
        assert int(error) == 0
        return values

    _check_on_a_gpu(device, made, write, read)


def _check_on_a_gpu(
    device: Any,
    made: Any,
    write: Callable[[np.ndarray[Any, Any]], None],
    read: Callable[[], np.ndarray[Any, Any]],
) -> None:
    """Moves that overlap, a place that is cleared, a buffer, and a graph of a copy."""
    expected = HostSlots(SHAPE, np.dtype(np.float16))
    values = np.random.default_rng(2).standard_normal(SHAPE).astype(np.float16)
    expected.array[:] = values
    write(values)
    places, slots = np.array([0, 0, 2]), np.array([1, 2, 6])
    for block in (made, expected):
        block.put(places, slots, block, places, slots - 1)
        block.clear(1, 2)
    device.synchronize()
    assert np.array_equal(read(), expected.array)
    launch = device.capture(lambda: made.clear(0, 0))
    device.synchronize()
    assert np.array_equal(read(), expected.array)
    launch()
    device.synchronize()
    expected.clear(0, 0)
    assert np.array_equal(read(), expected.array)
    buffer = device.buffer(values.nbytes)
    buffer.write(values)
    assert np.array_equal(buffer.read(SHAPE, np.float16), values)
