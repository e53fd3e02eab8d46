"""Weights in several safetensors files and their index, as transformers writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from otter_export.files import write_json
from otter_export.safetensors_io import PlannedTensor, write_safetensors

Shard = Sequence[PlannedTensor]
#: Files are read in parallel by some libraries; this is transformers' own size.
SHARD_BYTES = 5 * 1000**3


def in_shards(
    tensors: Iterable[PlannedTensor], shard_bytes: int = SHARD_BYTES
) -> tuple[Shard, ...]:
    """Tensors in files of at most ``shard_bytes`` (or one tensor)."""
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return tuple(shards)


def write_shards(
    directory: Path, shards: Sequence[Shard], progress: Callable[[int], None] | None
) -> list[str]:
    """Write the shards, one tensor in memory at a time, and their index; returns the names."""
    count = len(shards)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(directory / name, shard, {"format": "pt"}, progress)
    weight_map = {t.name: n for n, shard in zip(names, shards, strict=True) for t in shard}
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    index_name = "model.safetensors.index.json"
    write_json(directory / index_name, index)
    return [*names, index_name]
