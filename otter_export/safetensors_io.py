"""Lazy, memory-mapped reading and streaming writing of safetensors files, sharded or not.

Reading touches headers only, until a tensor is asked for. Each header is checked by the safetensors
library first (offsets in range, no overlap, no gap), so a truncated or hostile file is one clear
error. Nothing here unpickles.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors

from otter_export.boundary import errors_as
from otter_export.config import check_fetched, read_json
from otter_export.errors import CheckpointError
from otter_export.files import is_file, open_regular, replacing

FloatArray = npt.NDArray[np.float32]

#: safetensors dtype names of the accepted weights, with the numpy type that holds their bits.
WEIGHT_DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
#: The largest value that each of them has; float32 is what all is computed in.
LARGEST = {"F32": math.inf, "F16": float(np.finfo(np.float16).max), "BF16": (2 - 2**-7) * 2.0**127}
#: What names tokens is stored in this type, beside the weights.
IDS_DTYPE = "I32"
_STORED: dict[str, Any] = {**WEIGHT_DTYPES, IDS_DTYPE: np.int32}
#: Bits that are all set in NaN and infinity.
_EXPONENTS: dict[str, Any] = {
    "F32": (np.uint32, np.uint32(0x7F80_0000)),
    "F16": (np.uint16, np.uint16(0x7C00)),
    "BF16": (np.uint16, np.uint16(0x7F80)),
}
_BLOCK_BYTES = 4 << 20
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies; ``begin`` and ``end`` are byte offsets in ``file``."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.end - self.begin

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def rows(self, rows: slice) -> TensorInfo:
        """Where some of its rows lie."""
        size = self.nbytes // max(1, self.shape[0])
        first, last, _ = rows.indices(self.shape[0])
        begin, end = self.begin + first * size, self.begin + last * size
        return dataclasses.replace(
            self, shape=(last - first, *self.shape[1:]), begin=begin, end=end
        )


class TensorStore(Mapping[str, TensorInfo]):
    """The tensors of one or more safetensors files, by name; no tensor data is read up front."""

    def __init__(self, infos: Mapping[str, TensorInfo], source: Path) -> None:
        self._infos = dict(infos)
        self.source = source

    @classmethod
    def open(cls, directory: Path, stem: str) -> TensorStore:
        """Open ``STEM.safetensors``, else the shards that ``STEM.safetensors.index.json`` names.

        The order is transformers': beside a single file, an index is what an older save left.

        Raises:
            CheckpointError: Neither file exists, a shard is missing, truncated, malformed or lies
                outside the directory, the index and the shards disagree, or weights are pickled.
        """
        index = directory / f"{stem}.safetensors.index.json"
        single = directory / f"{stem}.safetensors"
        if is_file(single, CheckpointError):
            return cls(read_header(single), single)
        if is_file(index, CheckpointError):
            return cls(_read_index(directory, index), index)
        pickles = sorted(p.name for p in directory.glob("*") if p.suffix in _PICKLE_SUFFIXES)
        if pickles:
            raise CheckpointError(
                f"{directory} holds {stem} weights as pickles ({', '.join(pickles[:3])}), which "
                "can run code and are never read; save them as safetensors "
                "(save_pretrained(..., safe_serialization=True))"
            )
        patterns = ("*.safetensors", "*/*.safetensors", "*.gguf")
        found = [path for pattern in patterns for path in directory.glob(pattern)]
        others = sorted(str(path.relative_to(directory)) for path in found)
        holds = f"; it holds {', '.join(others[:3])}" if others else ""
        raise CheckpointError(f"{directory} has neither {single.name} nor {index.name}{holds}")

    def __getitem__(self, name: str) -> TensorInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def raw(self, name: str) -> npt.NDArray[Any]:
        """Memory-mapped view of a tensor's bits; bfloat16 comes as uint16."""
        info = self._infos[name]
        if info.dtype not in _STORED:
            raise CheckpointError(
                f"{info.file}: tensor {name} has dtype {info.dtype}; accepted: {', '.join(_STORED)}"
            )
        dtype = np.dtype(_STORED[info.dtype])
        if info.nbytes == 0:
            return np.zeros(info.shape, dtype)
        return np.memmap(info.file, dtype, "r", offset=info.begin, shape=info.shape)

    def float32(self, name: str, index: Any = None) -> FloatArray:
        """A tensor in float32; exact for all accepted dtypes.

        Args:
            name: Which tensor.
            index: A numpy index. It is applied to the mapped bits, so that only what it selects
                takes memory.
        """
        raw = self.raw(name)
        return to_float32(raw if index is None else raw[index], self._infos[name].dtype)


def same_values(store: TensorStore, one: str, other: str) -> bool:
    """Whether two tensors are equal, bit for bit; stops at the first block that differs."""
    a, b = store[one], store[other]
    if (a.dtype, a.shape) != (b.dtype, b.shape) or a.dtype not in WEIGHT_DTYPES:
        return False
    first, second = (store.raw(name).reshape(-1).view(np.uint8) for name in (one, other))
    return all(
        np.array_equal(first[i : i + _BLOCK_BYTES], second[i : i + _BLOCK_BYTES])
        for i in range(0, len(first), _BLOCK_BYTES)
    )


def all_finite(data: npt.NDArray[np.uint8], dtype: str) -> bool:
    """Whether the bytes of an F32, F16 or BF16 tensor are finite numbers."""
    kind, exponent = _EXPONENTS[dtype]
    bits = data.view(kind)
    return not bits.size or bool((bits & exponent).max() != exponent)


def to_float32(raw: npt.NDArray[Any], dtype: str) -> FloatArray:
    """Widen the bits of an F32, F16 or BF16 tensor to float32 without rounding."""
    if dtype == "BF16":
        wide = raw.astype(np.uint32)
        wide <<= np.uint32(16)  # in place: embeddings are large
        return wide.view(np.float32)
    return np.asarray(raw, dtype=np.float32)


def from_float32(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Round float32 values to the bits of ``dtype``; to nearest, ties to even.

    What is beyond its range becomes infinite; `rounded` refuses that.
    """
    values = np.asarray(values, dtype=np.float32, order="C")
    if dtype == "F32":
        return values
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # A NaN whose payload is all ones would carry into the sign and become zero.
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))


def rounded(name: str, values: FloatArray, dtype: str, remedy: str) -> npt.NDArray[Any]:
    """`from_float32` of a tensor, whose values must not become infinite.

    Args:
        name: The tensor's.
        values: Float32 values.
        dtype: What they are stored in.
        remedy: What the user can do if they do not fit.

    Raises:
        CheckpointError: A value is beyond the range of ``dtype``.
    """
    if np.abs(values).max(initial=0) > LARGEST[dtype]:
        raise CheckpointError(
            f"tensor {name} has values beyond the range of {dtype} ({LARGEST[dtype]:g}); {remedy}"
        )
    return from_float32(values, dtype)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of one safetensors file.

    Raises:
        CheckpointError: The file is truncated, malformed, or not safetensors.
    """
    with (
        errors_as(CheckpointError, f"{path} is not a readable safetensors file"),
        open_regular(path, error=CheckpointError) as file,
    ):
        check_fetched(file.read(64))
        with safetensors.safe_open(str(path), framework="np"):
            pass  # it has checked the length, which is read below
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    return {
        name: TensorInfo(
            path,
            entry["dtype"],
            tuple(entry["shape"]),
            start + entry["data_offsets"][0],
            start + entry["data_offsets"][1],
        )
        for name, entry in header.items()
    }


def _read_index(directory: Path, index: Path) -> dict[str, TensorInfo]:
    data = read_json(index, limit_bytes=256 << 20)
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map")
    shards = sorted({str(name) for name in weight_map.values()})
    for name in shards:
        # Index files come with the checkpoint: a path in one is data, not to be trusted.
        path = PurePosixPath(name)
        inside = len(path.parts) == 1 and "\\" not in name and path.parts[0] not in (".", "..")
        if not inside:
            raise CheckpointError(f"{index} names {name!r}; shards must lie beside the index")
    missing = [name for name in shards if not is_file(directory / name, CheckpointError)]
    if missing:
        raise CheckpointError(f"{index} names missing files: {', '.join(missing)}")
    found: dict[str, TensorInfo] = {}
    for name in shards:
        for tensor, info in read_header(directory / name).items():
            if weight_map.get(tensor, name) != name:
                raise CheckpointError(
                    f"{directory / name} holds {tensor}, which {index} says is in "
                    f"{weight_map[tensor]}"
                )
            # Older saves left buffers (rotary frequencies, masks) in shards but not in the index.
            if tensor in found and tensor not in weight_map:
                continue
            found[tensor] = info
    absent = sorted(set(weight_map) - set(found))
    if absent:
        raise CheckpointError(f"{index} names tensors that no shard holds: {', '.join(absent[:5])}")
    return found


@dataclasses.dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: its header entry, and how to make its bits when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], npt.NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * int(np.dtype(_STORED[self.dtype]).itemsize)


def write_safetensors(
    path: Path,
    tensors: Iterable[PlannedTensor],
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write a safetensors file holding one tensor in memory at a time.

    The file appears under ``path`` only when it is complete.

    Args:
        path: Destination.
        tensors: What to write; ``make`` returns an array whose bytes are the tensor's.
        metadata: Strings for the header.
        progress: Called with the number of bytes written for each tensor.

    Returns:
        The file's size in bytes.

    Raises:
        OtterError: It cannot be written.
    """
    plan = list(tensors)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for tensor in plan:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with replacing(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in plan:
            data = np.asarray(tensor.make(), order="C")
            if data.nbytes != tensor.nbytes or data.shape != tensor.shape:
                raise ValueError(f"{tensor.name}: made {data.shape}, planned {tensor.shape}")
            file.write(data.data if data.size else b"")
            if progress is not None:
                progress(data.nbytes)
    return path.stat().st_size
