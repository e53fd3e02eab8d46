"""``model.onnx`` and its weights beside it: files of the checkpoint, and what is made of others.

Where a file of the checkpoint holds the bytes that the graph reads, it becomes a file of the engine
as it is: cloned, linked or copied. All other weights go into one data file. The blocks of a file
are made on every core, a few of them ahead, and written and hashed in the file's order by one
thread: memory holds some blocks, whatever the size of a weight.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from otter_export.boundary import errors_as
from otter_export.converters.target import Progress
from otter_export.errors import CheckpointError, OtterError
from otter_export.files import clone_regular, hard_link, writing
from otter_export.graph.emit import not_finite
from otter_export.graph.row_tensor import RowTensor
from otter_export.manifest import EngineFile, describe_file
from otter_export.safetensors_io import TensorInfo, all_finite

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
#: Tensors below this size stay inside the protobuf.
_EXTERNAL_BYTES = 1024
#: Of a file that is there, read at a time.
_BLOCK_BYTES = 4 << 20
#: Blocks that wait for each core.
_AHEAD = 4
#: Of tensors in the data file: a line of a cache.
_ALIGNMENT = 64
#: A file is taken as it is if the graph reads at least this share of its bytes: an engine in int8
#: does not keep gigabytes for the sake of its norms.
_READ_SHARE = 0.5
#: Bytes of a file.
Buffer = bytes | memoryview
_STORED = {ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16", ir.DataType.BFLOAT16: "BF16"}


@dataclasses.dataclass(frozen=True)
class _Weight:
    """A weight in a file.

    Args:
        value: Its initializer.
        tensor: What makes it.
        file: Name of the file in the engine.
        offset: Where it begins there.
    """

    value: ir.Value
    tensor: ir.TensorProtocol
    file: str
    offset: int

    @property
    def end(self) -> int:
        """Where it ends in its file."""
        return self.offset + self.tensor.nbytes

    def reference(self, directory: Path) -> ir.ExternalTensor:
        """What stands for it in the graph."""
        return ir.ExternalTensor(
            self.file,
            self.offset,
            self.tensor.nbytes,
            self.tensor.dtype,
            shape=self.tensor.shape,  # type: ignore[arg-type]
            name=str(self.value.name),
            base_dir=directory,
        )


def save_model(
    model: ir.Model,
    directory: Path,
    progress: Progress | None = None,
    *,
    link: bool = False,
) -> tuple[EngineFile, ...]:
    """Write ``model.onnx``, and its weights into files beside it.

    Args:
        model: Unchanged afterwards.
        directory: Where to; it holds none of these files.
        progress: Called with numbers of bytes, which add up to those of all weights.
        link: Whether files of the checkpoint are linked, where the system can, and not copied.

    Returns:
        The files, ``model.onnx`` first.

    Raises:
        OtterError: They cannot be written, or a weight cannot be stored.
    """
    advance: Progress = progress or (lambda count: None)
    values = [v for v in model.graph.initializers.values() if v.const_value is not None]
    outside = [v for v in values if _tensor(v).nbytes >= _EXTERNAL_BYTES]
    with (
        # onnx_ir puts its own error around what a weight is refused for.
        errors_as(OtterError, f"onnx_ir cannot write {directory / MODEL_FILE}"),
        writing(directory / DATA_FILE),
    ):
        taken = dict(_taken(outside))
        elsewhere = {id(w.value) for weights in taken.values() for w in weights}
        made = list(_laid_out(v for v in outside if id(v) not in elsewhere))
        files = [_take(source, directory, w, advance, link) for source, w in taken.items()]
        files.append(_written(directory / DATA_FILE, made, advance))
        weights = [*itertools.chain.from_iterable(taken.values()), *made]
        _write_graph(model, directory / MODEL_FILE, weights)
    advance(sum(_tensor(v).nbytes for v in values) - sum(w.tensor.nbytes for w in weights))
    return (describe_file(directory, MODEL_FILE), *files)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _as_stored(tensor: ir.TensorProtocol) -> TensorInfo | None:
    """Where the bytes of a tensor lie in a checkpoint, if they do."""
    info = tensor.stored if isinstance(tensor, RowTensor) else None
    if info is None or _STORED.get(tensor.dtype) != info.dtype:
        return None
    return info


def _taken(values: Iterable[ir.Value]) -> Iterator[tuple[Path, list[_Weight]]]:
    """The files of the checkpoint that are taken as they are, and the weights in them, in order."""
    groups: dict[Path, list[tuple[TensorInfo, ir.Value]]] = {}
    for value in values:
        info = _as_stored(_tensor(value))
        # Headers of some writers are not padded, and a runtime reads numbers in place.
        if info is not None and info.begin % _tensor(value).dtype.itemsize == 0:
            groups.setdefault(info.file, []).append((info, value))
    number = 0
    for source, group in sorted(groups.items()):
        if sum(info.nbytes for info, _ in group) < _READ_SHARE * source.stat().st_size:
            continue
        number += 1
        name = f"base-{number}.safetensors"
        ordered = sorted(group, key=lambda one: one[0].begin)
        yield source, [_Weight(value, _tensor(value), name, info.begin) for info, value in ordered]


def _laid_out(values: Iterable[ir.Value]) -> Iterator[_Weight]:
    """Weights one behind the other in the data file."""
    end = 0
    for value in values:
        weight = _Weight(value, _tensor(value), DATA_FILE, end + -end % _ALIGNMENT)
        yield weight
        end = weight.end


def _write_graph(model: ir.Model, path: Path, weights: Iterable[_Weight]) -> None:
    """Write the protobuf, in which weights are references; the small ones are in it."""
    values = [v for v in model.graph.initializers.values() if v.const_value is not None]
    tensors = [_tensor(value) for value in values]
    references = {id(weight.value): weight.reference(path.parent) for weight in weights}
    try:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = references.get(id(value)) or ir.tensor(
                tensor.numpy(), tensor.dtype, name=tensor.name
            )
        ir.save(model, path)
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor


def _written(path: Path, weights: Sequence[_Weight], advance: Progress) -> EngineFile:
    """Write the data file."""
    with path.open("xb") as file:
        return _in_order(path.name, _made(weights), advance, file.write)


def _take(
    source: Path, directory: Path, weights: Sequence[_Weight], advance: Progress, link: bool
) -> EngineFile:
    """Take a file of the checkpoint; it is read once, for its hash and to see finite weights."""
    path = directory / weights[0].file
    with source.open("rb") as file:
        blocks = _found(file.fileno(), os.fstat(file.fileno()).st_size, weights)
        if (link and hard_link(source, path)) or clone_regular(source, path):
            return _in_order(path.name, blocks, advance, len)
        with path.open("xb") as copy:
            return _in_order(path.name, blocks, advance, copy.write)


@dataclasses.dataclass(frozen=True)
class _Block:
    """Some bytes of a file.

    Args:
        make: Makes them.
        weights: How many of them are weights.
        ahead: Whether they may be made while those before them are written.
    """

    make: Callable[[], Buffer]
    weights: int
    ahead: bool = True


def _made(weights: Iterable[_Weight]) -> Iterator[_Block]:
    """The blocks of the data file."""
    end = 0
    for weight in weights:
        yield _Block(functools.partial(bytes, weight.offset - end), 0, ahead=False)
        end = weight.end
        tensor = weight.tensor
        if isinstance(tensor, RowTensor):
            for rows in tensor.blocks():
                size = tensor.nbytes // tensor.shape.numpy()[0] * (rows.stop - rows.start)
                yield _Block(functools.partial(_rows, tensor, rows), size)
        else:
            # What was computed beside earlier blocks is complete when those are written.
            yield _Block(functools.partial(_whole, tensor), tensor.nbytes, ahead=False)


def _rows(tensor: RowTensor, rows: slice) -> Buffer:
    """The bytes of some rows; those that are stored so are read as they are."""
    info = _as_stored(tensor)
    if info is None:
        return _bytes(tensor.rows(rows))
    with info.file.open("rb") as file:
        return _read(file.fileno(), info.rows(rows), str(tensor.name))


def _whole(tensor: ir.TensorProtocol) -> Buffer:
    if tensor.dtype.bitwidth < 8:  # packed in files, not in memory
        return tensor.tobytes()
    return _bytes(tensor.numpy())


def _bytes(array: npt.NDArray[Any]) -> Buffer:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _found(descriptor: int, size: int, weights: Iterable[_Weight]) -> Iterator[_Block]:
    """The blocks of a file that is there: its weights, and what lies between them."""
    end = 0
    for weight in weights:
        info = _as_stored(weight.tensor)
        assert info is not None
        yield from _between(descriptor, end, info.begin)
        for begin in range(info.begin, info.end, _BLOCK_BYTES):
            part = dataclasses.replace(info, begin=begin, end=min(begin + _BLOCK_BYTES, info.end))
            read = functools.partial(_read, descriptor, part, str(weight.tensor.name))
            yield _Block(read, part.nbytes)
        end = info.end
    yield from _between(descriptor, end, size)


def _between(descriptor: int, begin: int, end: int) -> Iterator[_Block]:
    for start in range(begin, end, _BLOCK_BYTES):
        size = min(_BLOCK_BYTES, end - start)
        yield _Block(functools.partial(_read_bytes, descriptor, start, size), 0)


def _read(descriptor: int, info: TensorInfo, name: str) -> Buffer:
    """Finite weights of a file.

    Raises:
        CheckpointError: They hold NaN or infinity.
    """
    data = _read_bytes(descriptor, info.begin, info.nbytes)
    if not all_finite(np.frombuffer(data, np.uint8), info.dtype):
        raise not_finite(name)
    return data


def _read_bytes(descriptor: int, begin: int, size: int) -> Buffer:
    data = os.pread(descriptor, size, begin)
    if len(data) != size:
        raise CheckpointError("a file of the checkpoint became shorter while it was read")
    return data


def _in_order(
    name: str,
    blocks: Iterable[_Block],
    advance: Progress,
    consume: Callable[[Buffer], object],
) -> EngineFile:
    """Consume the blocks of a file one after the other; a few of them are made ahead."""
    digest, size = hashlib.sha256(), 0
    cores = _cores()
    waiting: collections.deque[tuple[_Block, Callable[[], Buffer]]]
    waiting = collections.deque()

    def take() -> None:
        nonlocal size
        block, result = waiting.popleft()
        data = result()
        consume(data)
        digest.update(data)
        size += len(data)
        advance(block.weights)

    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        try:
            for block in blocks:
                make = pool.submit(block.make).result if block.ahead else block.make
                waiting.append((block, make))
                if len(waiting) > _AHEAD * cores:
                    take()
            while waiting:
                take()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return EngineFile(name, size, digest.hexdigest())


def _cores() -> int:
    """The cores that this process may use; macOS does not say which."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
