"""Ways to spoil an engine or a checkpoint so that exactly one thing about it is wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from safetensors.numpy import load_file, save_file

from otter_export.evaluation.counting_engine import CountingEngine
from otter_export.manifest import describe_file
from otter_export.runtime.engine import Cache, Step

Edit = Callable[[np.ndarray], None]


def rehash(engine: Path) -> None:
    """Write sizes and hashes of the files as they are now, as a forger would."""
    path = engine / "engine.json"
    manifest = json.loads(path.read_text())
    names = [file["path"] for file in manifest["files"]]
    manifest["files"] = [dataclasses.asdict(describe_file(engine, name)) for name in names]
    path.write_text(json.dumps(manifest))


def flip_byte(path: Path, offset: int = 4096) -> None:
    """Change one byte of a file, and of none that it is linked to."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.unlink()
    path.write_bytes(data)


def edit_weight(engine: Path, name: str, edit: Edit) -> None:
    """Change a weight in the external data; engine.json gets the new hashes."""
    tensor = ir.load(engine / "model.onnx").graph.initializers[name].const_value
    assert isinstance(tensor, ir.ExternalTensor), f"{name} is stored inside the model"
    array = np.array(tensor.numpy())
    location = engine / tensor.location
    data = bytearray(location.read_bytes())
    edit(array)
    start = tensor.offset or 0
    data[start : start + array.nbytes] = array.tobytes()
    location.unlink()  # it may be a link to the checkpoint's
    location.write_bytes(data)
    rehash(engine)


def edit_graph(engine: Path, edit: Callable[[ir.Graph], None]) -> None:
    """Change the graph and leave the weights; engine.json gets the new hashes."""
    path = engine / "model.onnx"
    model = ir.load(path)
    edit(model.graph)
    path.write_bytes(ir.serde.serialize_model(model).SerializeToString())
    rehash(engine)


def edit_tensor(checkpoint: Path, name: str, edit: Edit) -> None:
    """Change an inserted tensor of a checkpoint."""
    tensors = load_file(checkpoint / "otter.safetensors")
    edit(tensors[name])
    save_file(tensors, checkpoint / "otter.safetensors", {"format": "pt"})


class SequentialTree(CountingEngine):
    """Ignores the tree: every new token sees those before it."""

    def forward(
        self, cache: Cache, input_ids: Any, position_ids: Any, tree: Any, keep: int
    ) -> Step:
        wrong = np.broadcast_to(np.tri(tree.shape[1], dtype=np.bool_), tree.shape).copy()
        return super().forward(cache, input_ids, position_ids, wrong, keep)


class FirstRowKept(CountingEngine):
    """Keeps the first rows of a step, whichever were asked for."""

    def commit(self, cache: Cache, step: Step, rows: Sequence[Sequence[int]]) -> None:
        super().commit(cache, step, [range(len(kept)) for kept in rows])


class PositionsFromZero(CountingEngine):
    """Counts the positions of every step from 0."""

    def forward(
        self, cache: Cache, input_ids: Any, position_ids: Any, tree: Any, keep: int
    ) -> Step:
        wrong = position_ids - position_ids.min()
        return super().forward(cache, input_ids, wrong, tree, keep)


class WidthChangesLogits(CountingEngine):
    """Steps of several tokens prefer other tokens than single ones do."""

    def forward(
        self, cache: Cache, input_ids: Any, position_ids: Any, tree: Any, keep: int
    ) -> Step:
        step = super().forward(cache, input_ids, position_ids, tree, keep)
        if input_ids.shape[1] in (1, keep) and keep > 1:
            return dataclasses.replace(step, logits=np.ascontiguousarray(step.logits[..., ::-1]))
        return step


class LastRowLost(CountingEngine):
    """Keeps all rows of a step but the last of several."""

    def commit(self, cache: Cache, step: Step, rows: Sequence[Sequence[int]]) -> None:
        super().commit(cache, step, [kept[:-1] if len(kept) > 1 else kept for kept in rows])


class ShortStepsScoreTwice(CountingEngine):
    """Steps of at most 8 tokens, which those of candidates are, give twice the signals."""

    def forward(
        self, cache: Cache, input_ids: Any, position_ids: Any, tree: Any, keep: int
    ) -> Step:
        step = super().forward(cache, input_ids, position_ids, tree, keep)
        if input_ids.shape[1] > 8:
            return step
        doubled = {name: 2 * values for name, values in step.signals.items()}
        return dataclasses.replace(step, signals=doubled)
