"""L0: weights in several files, and the index that finds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from otter_export.safetensors_io import PlannedTensor, TensorStore
from otter_export.shards import in_shards, write_shards

VALUES = {f"t{i}": np.full((size, 4), i, np.float32) for i, size in enumerate((10, 1, 2, 3, 1))}


def planned() -> list[PlannedTensor]:
    return [PlannedTensor(n, "F32", v.shape, lambda v=v: v) for n, v in VALUES.items()]


def test_a_shard_is_full_or_one_tensor() -> None:
    shards = in_shards(planned(), shard_bytes=64)
    assert [[t.name for t in shard] for shard in shards] == [["t0"], ["t1", "t2"], ["t3", "t4"]]
    assert len(in_shards(planned())) == 1


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    advanced: list[int] = []
    names = write_shards(tmp_path, in_shards(planned(), shard_bytes=64), advanced.append)
    assert names == [
        *(f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)),
        "model.safetensors.index.json",
    ]
    store = TensorStore.open(tmp_path, "model")
    assert set(store) == set(VALUES) and sum(advanced) == sum(v.nbytes for v in VALUES.values())
    assert all(np.array_equal(store.raw(name), value) for name, value in VALUES.items())
