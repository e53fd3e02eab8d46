"""An ``onnx`` engine's graph as it is in the file, or changed, run by ONNX Runtime directly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from otter_export.engine_io import (
    ATTENTION_MASK,
    INPUT_IDS,
    KEPT_ROWS,
    LOGITS,
    LOGITS_TO_KEEP,
    POSITION_IDS,
    WRITE_INDICES,
    is_cache,
    present_of,
)
from otter_export.evaluation.model_file import load_model
from otter_export.evaluation.steps import candidates, consecutive
from otter_export.manifest import EngineManifest
from otter_export.runtime.engine import BoolArray, IntArray
from otter_export.runtime.executors.onnxruntime import (
    OnnxRuntimeExecutor,
    linked_data,
    open_session,
)
from otter_export.runtime.step_engine import StepEngine

Arrays = Mapping[str, npt.NDArray[Any]]
#: MatMulNBits with float32 activations; 4, which engines are built with, rounds them to int8.
_FLOAT_ACTIVATIONS = 1


def with_float_activations(directory: Path, manifest: EngineManifest, provider: str) -> StepEngine:
    """The same engine with kernels that do not round activations: slower, and exact.

    What the graph computes can then be told from what its kernels round.
    """
    model = load_model(directory / manifest.model_file)
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", _FLOAT_ACTIVATIONS)
    serialized = ir.serde.serialize_model(model).SerializeToString()
    entries = {"session.model_external_initializers_file_folder_path": str(directory)}
    data = linked_data(directory, manifest)
    session = open_session(serialized, provider, entries=entries, data=data)
    return StepEngine(directory, manifest, OnnxRuntimeExecutor(manifest, session, provider))


def base_logits(graph: Any, prompt: Sequence[int], width: int) -> list[npt.NDArray[Any]]:
    """Logits of a prompt and of a step of candidates after it.

    Caches have the size of the prefix, so that two graphs get inputs of the very same shapes.

    Args:
        graph: A session of a widened graph or of its base alone.
        prompt: Token ids.
        width: Number of candidates; the first tokens of the prompt stand in for them.
    """
    past = {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), _dtype(value))
        for value in graph.get_inputs()
        if is_cache(value.name)
    }
    first = _run(graph, consecutive(prompt, 0), past, 0)
    kept = {name: first[present_of(name)] for name in past}
    fed = [prompt[i % len(prompt)] for i in range(width)]
    second = _run(graph, candidates(fed, len(prompt)), kept, len(prompt))
    return [first[LOGITS], second[LOGITS]]


def _run(
    graph: Any, step: tuple[IntArray, IntArray, BoolArray], past: Arrays, length: int
) -> Arrays:
    ids, positions, tree = step
    count = ids.shape[1]
    mask = np.concatenate((np.ones((1, count, length), np.bool_), tree), axis=2)
    inputs = {INPUT_IDS: ids, POSITION_IDS: positions, ATTENTION_MASK: mask}
    if WRITE_INDICES in [value.name for value in graph.get_inputs()]:
        inputs[ATTENTION_MASK] = mask[:, None]
        inputs[WRITE_INDICES] = np.array([length], np.int64)
        inputs[KEPT_ROWS] = np.arange(count)[None]
        # Slots for the new rows, which come out behind the prefix.
        behind = ((0, 0), (0, 0), (0, count), (0, 0))
        inputs |= {name: np.pad(cache, behind) for name, cache in past.items()}
    else:
        inputs |= {LOGITS_TO_KEEP: np.array([count], np.int64), **past}
    names = [value.name for value in graph.get_outputs()]
    return dict(zip(names, graph.run(names, inputs), strict=True))


def _dtype(value: Any) -> type:
    return np.float16 if value.type == "tensor(float16)" else np.float32
